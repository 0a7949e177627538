"""Wigner D matrices that rotate each edge onto e3nn's polar axis."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from e3nn import o3
from torch import Tensor

from hamfast.constants import real_tensors
from hamfast.ops.checks import check_rows, check_tensor


def wigner_dim(l_max: int) -> int:
    """Numbers per edge: ``sum over l <= l_max of (2 l + 1)^2``."""
    return (l_max + 1) * (2 * l_max + 1) * (2 * l_max + 3) // 3


def edge_wigner(direction: Tensor, l_max: int) -> Tensor:
    """D matrices of the rotations that take each direction to (0, 1, 0), e3nn's polar axis.

    With R(alpha, beta, 0) (0, 1, 0) = direction, returns D(R^-1) = exp(-beta X_0) exp(-alpha X_1).
    Rotation about the polar axis is diagonal in |m|; the other one is the same thing in a basis
    rotated by a constant matrix.

    Args:
        direction: ``[edges, 3]`` in e3nn's axis order, any length; zero counts as the polar axis.
        l_max: highest l.

    Returns:
        ``[edges, wigner_dim(l_max)]``, the matrices for l = 0, 1, ... l_max, row-major. No
        gradient: the rotation about the edge itself is a choice, and the matrices have no
        derivative at the poles.
    """
    with torch.no_grad():
        x, y, z = torch.nn.functional.normalize(direction, dim=-1).unbind(-1)
        on_axis = (x * x + z * z) == 0
        alpha = torch.where(on_axis, torch.zeros_like(x), torch.atan2(x, z))
        zero = (x * x + y * y + z * z) == 0
        # atan2 keeps full precision near the poles, where acos(y) does not.
        beta = torch.where(zero, torch.zeros_like(y), torch.atan2(torch.sqrt(x * x + z * z), y))
        m = torch.arange(1, l_max + 1, dtype=direction.dtype, device=direction.device)
        cos_a, sin_a = torch.cos(alpha.unsqueeze(-1) * m), torch.sin(alpha.unsqueeze(-1) * m)
        cos_b, sin_b = torch.cos(beta.unsqueeze(-1) * m), torch.sin(beta.unsqueeze(-1) * m)
        one = torch.ones_like(alpha).unsqueeze(-1)
        matrices = []
        for l in range(l_max + 1):
            fourier = torch.cat([one, cos_b[:, :l], sin_b[:, :l]], dim=-1)
            tilt = (fourier @ _tilt(l, direction.dtype, direction.device)).view(-1, 2 * l + 1, 2 * l + 1)
            cosine = torch.cat([cos_a[:, :l].flip(-1), one, cos_a[:, :l]], dim=-1).unsqueeze(-2)
            sine = torch.cat([-sin_a[:, :l].flip(-1), torch.zeros_like(one), sin_a[:, :l]], dim=-1).unsqueeze(-2)
            # Column m of a rotation by -alpha about the polar axis mixes columns m and -m.
            matrices.append((tilt * cosine + tilt.flip(-1) * sine * _rotation_sign(l)).flatten(1))
        return torch.cat(matrices, dim=1)


@contextmanager
def float64_default() -> Iterator[None]:
    """Inside, torch's default dtype is float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _wigner_D(l: int, alpha: Tensor, beta: Tensor, gamma: Tensor) -> Tensor:
    """e3nn's, in float64: its generators have the default dtype, whatever the angles have."""
    with float64_default():
        return o3.wigner_D(l, alpha, beta, gamma)


@cache
@real_tensors()
def _rotation_sign(l: int) -> float:
    """The sign convention of e3nn's rotation about the polar axis: exp(-alpha X_1)[-1, +1] = sign
    sin(alpha)."""
    if l == 0:
        return 1.0
    angle = torch.tensor(0.3, dtype=torch.float64)
    quarter = _wigner_D(l, -angle, torch.zeros_like(angle), torch.zeros_like(angle))
    return float(torch.sign(quarter[l - 1, l + 1]))


@cache
@real_tensors()
def _tilt(l: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``exp(-beta X_0)`` as a Fourier series in beta: ``[1 + 2 l, (2 l + 1)^2]`` for 1, cos(m
    beta), sin(m beta)."""
    angles = torch.arange(2 * l + 1, dtype=torch.float64) * (2 * torch.pi / (2 * l + 1)) + 0.1
    zero = torch.zeros_like(angles)
    samples = _wigner_D(l, zero, -angles, zero).flatten(1)
    m = torch.arange(1, l + 1, dtype=torch.float64)
    basis = torch.cat(
        [torch.ones_like(angles)[:, None], torch.cos(angles[:, None] * m), torch.sin(angles[:, None] * m)], 1
    )
    series = torch.linalg.solve(basis, samples)
    series[series.abs() < 1e-13] = 0.0
    return series.to(dtype=dtype, device=device)


def rotate_irreps(x: Tensor, irreps: o3.Irreps, rotation: Tensor) -> Tensor:
    """Turns rows of irreps (multiplicity 1 per entry, as targets are) with the crystal.

    Args:
        x: ``[rows, irreps.dim]``.
        rotation: ``[3, 3]`` orthogonal, proper or not, acting on Cartesian (x, y, z).
    """
    check_tensor("rotate_irreps", "x", x)
    check_rows("rotate_irreps", "rotation", rotation, 3, 3)
    irreps = o3.Irreps(irreps)
    if x.shape[-1:] != (irreps.dim,) or x.dim() != 2:
        raise ValueError(f"rotate_irreps: x: expected [rows, {irreps.dim}], found {list(x.shape)}")
    # e3nn's axes are the crystal's (y, z, x).
    in_axes = rotation.double()[[1, 2, 0]][:, [1, 2, 0]].cpu()
    starts: dict[tuple[int, int], list[int]] = {}
    for (mul, ir), columns in zip(irreps, irreps.slices(), strict=True):
        if mul != 1:
            raise ValueError(f"rotate_irreps: expected multiplicity 1 in every entry, found {mul}x{ir}")
        starts.setdefault((ir.l, ir.p), []).append(columns.start)
    out = torch.empty_like(x)
    for (l, p), begins in starts.items():
        index = (torch.tensor(begins)[:, None] + torch.arange(2 * l + 1)).to(x.device)
        with float64_default():
            matrix = o3.Irrep(l, p).D_from_matrix(in_axes).to(x)
        out[:, index] = x[:, index] @ matrix.T
    return out


def rotation_from_euler(angles: Tensor) -> Tensor:
    """``[3]`` Euler angles -> ``[3, 3]`` float64 rotation of Cartesian (x, y, z)."""
    check_rows("rotation_from_euler", "angles", angles, 3)
    in_axes = o3.angles_to_matrix(*angles.double())
    inverse = [2, 0, 1]
    return in_axes[inverse][:, inverse]
