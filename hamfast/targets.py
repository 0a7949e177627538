"""Hamiltonian blocks as irreps, and the exact map in both directions.

A block couples the shells of its row atom with those of its column atom. A pair of shells (l1, l2)
is a channel. Its (2 l1 + 1)(2 l2 + 1) matrix elements H are the direct sum of the irreps
l = |l1 - l2| ... l1 + l2, all of parity (-1)^(l1 + l2). With Wigner's 3j symbols w3j of real
harmonics, the components x are (Wigner-Eckart theorem)

    x_lm = (2 l + 1) sum_m1,m2 w3j[m1, m2, m] H[m1, m2],

    H[m1, m2] = sum_l,m w3j[m1, m2, m] x_lm.

With spin-orbit coupling a block is complex and has twice as many rows and columns. Its four spin
blocks are expanded in (1, sigma_y, sigma_z, sigma_x) / sqrt(2): a scalar, and an axial vector in
e3nn's order. The vector couples with each spatial irrep l to l - 1, l and l + 1. The real halves of
all components come first, then the imaginary ones. The order of channels and the normalisation are
DeepH-E3's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from e3nn import o3
from torch import Tensor

from hamfast.constants import real_tensors
from hamfast.ops.sparse_map import SparseMatrix, sparse_map, sparse_matrix
from hamfast.plan.coupling import wigner_3j
from hamfast.shells import ShellSpec, labelled


@dataclass(frozen=True)
class TargetSpec(ShellSpec):
    """The irreps of a data set's Hamiltonian blocks, and the maps between irreps and blocks."""

    @cached_property
    def irreps(self) -> o3.Irreps:
        """One entry of multiplicity 1 per irrep, in the order of the components."""
        return o3.Irreps([(1, irrep) for irrep in self.irrep_list])

    @cached_property
    @real_tensors()
    def component_weight(self) -> Tensor:
        """``[dim]`` float64: weights that make sums of squares of irreps those of matrix elements.

        A component of l has the weight 1 / (2 l + 1). One that is made with spin is divided by
        2 l + 1 of its spatial irrep, too.
        """
        weights = []
        for l1, _, l2, _ in self.channels:
            ls = range(abs(l1 - l2), l1 + l2 + 1)
            weights += [1 / (2 * l + 1) for l in ls for _ in range(2 * l + 1)]
            if self.spinful:
                for l in ls:
                    for k in range(abs(l - 1), l + 2):
                        weights += [1 / ((2 * l + 1) * (2 * k + 1))] * (2 * k + 1)
        return torch.tensor(weights * (2 if self.spinful else 1), dtype=torch.float64)

    @cached_property
    @real_tensors()
    def transpose(self) -> tuple[Tensor, Tensor]:
        """``index`` ``[dim]`` int64 and ``sign`` ``[dim]`` float64.

        The irreps of a block's Hermitian conjugate are ``sign * x[..., index]``.
        """
        start, starts = 0, {}
        sizes = {}
        for channel in self.channels:
            l1, _, l2, _ = channel
            size = (2 * l1 + 1) * (2 * l2 + 1) * (4 if self.spinful else 1)
            starts[channel], sizes[channel] = start, size
            start += size
        index: list[int] = []
        sign: list[float] = []
        for l1, n1, l2, n2 in self.channels:
            begin = starts[(l2, n2, l1, n1)]
            index += range(begin, begin + sizes[(l2, n2, l1, n1)])
            ls = range(abs(l1 - l2), l1 + l2 + 1)
            sign += [(-1.0) ** (l1 + l2 + l) for l in ls for _ in range(2 * l + 1)]
            if self.spinful:
                sign += [(-1.0) ** (l1 + l2 + l) for l in ls for _ in range(3 * (2 * l + 1))]
        if self.spinful:  # the Pauli matrices are Hermitian: only the spatial factor is conjugated
            index = index + [start + i for i in index]
            sign = sign + [-s for s in sign]
        return torch.tensor(index), torch.tensor(sign, dtype=torch.float64)

    def mask(self, first: int, second: int) -> Tensor:
        """``[dim]`` bool: the components that a pair of species has.

        ``first`` and ``second`` are the indices of the row and the column atom's species.
        """
        mask = torch.zeros(self.dim, dtype=torch.bool)
        for group in _layout(self, first, second):
            mask[group.components.flatten()] = True
        if self.spinful:
            mask[self.dim // 2 :] = mask[: self.dim // 2]
        return mask

    def to_irreps(self, blocks: Tensor, first: int, second: int) -> Tensor:
        """The irreps of blocks between two species.

        Args:
            blocks: ``[edges, rows, columns]``, real or, with spin, complex.
            first, second: indices of the row and the column atom's species.

        Returns:
            ``[edges, dim]``, real; zero in channels that the two species do not have.

        Raises:
            ValueError: the blocks' shape is not that of the orbital list.
        """
        if tuple(blocks.shape[1:]) != self.block_shape(first, second):
            raise ValueError(
                f"blocks between elements {self.elements[first]} and {self.elements[second]}: expected shape "
                f"{self.block_shape(first, second)} from their orbital lists {self.shells[first][1]} and "
                f"{self.shells[second][1]}{' with spin' if self.spinful else ''}, found {tuple(blocks.shape[1:])}"
            )
        real = blocks.real.dtype if blocks.is_complex() else blocks.dtype
        half = self.dim // 2 if self.spinful else self.dim
        x = torch.zeros(blocks.shape[0], half, dtype=blocks.dtype, device=blocks.device)
        spins = (
            self._spin_components(blocks) if self.spinful else blocks.flatten(1).unsqueeze(0)
        )  # [spin, edges, elements]
        for group in _layout(self, first, second):
            matrix = _coupling(group.l1, group.l2, self.spinful).to(real).to(x)
            elements = group.elements.to(blocks.device)
            h = spins[:, :, elements].permute(1, 2, 0, 3).flatten(2)  # [edges, channels, spin * d]
            x[:, group.components.to(blocks.device)] = h @ matrix.T
        return torch.cat([x.real, x.imag], dim=1) if self.spinful else x

    def to_blocks(self, x: Tensor, first: int, second: int) -> Tensor:
        """``[edges, dim]`` -> ``[edges, rows, columns]``: the exact inverse of :meth:`to_irreps`.

        It is differentiable.
        """
        shape = self.block_shape(first, second)
        out = sparse_map(x, _block_matrix(self, first, second, x.dtype, x.device))
        return torch.view_as_complex(out.view(-1, *shape, 2)) if self.spinful else out.view(-1, *shape)

    def _spin_components(self, blocks):
        """``[edges, 2 n1, 2 n2]`` -> ``[4, edges, n1 * n2]`` for (1, y, z, x)."""
        rows, columns = blocks.shape[1] // 2, blocks.shape[2] // 2
        quarters = blocks.view(-1, 2, rows, 2, columns).permute(0, 1, 3, 2, 4).reshape(-1, 4, rows * columns)
        return torch.einsum("sk,esn->ken", _spin_basis(blocks.dtype).conj().to(blocks.device), quarters)


@dataclass(frozen=True)
class _Group:
    """All channels of one (l1, l2) that a pair of species has."""

    l1: int
    l2: int
    components: Tensor  # [channels, (4) (2 l1 + 1)(2 l2 + 1)]: positions in the irreps
    elements: Tensor  # [channels, (2 l1 + 1)(2 l2 + 1)]: positions in the flattened block


@cache
@real_tensors()
def _layout(spec: TargetSpec, first: int, second: int) -> tuple[_Group, ...]:
    starts, start = {}, 0
    for channel in spec.channels:
        starts[channel] = start
        start += (2 * channel[0] + 1) * (2 * channel[2] + 1) * (4 if spec.spinful else 1)
    shells1, shells2 = spec.shells[first][1], spec.shells[second][1]
    columns = spec.num_orbitals(second)
    groups: dict[tuple[int, int], tuple[list, list]] = {}
    row = 0
    for l1, n1 in labelled(shells1):
        column = 0
        for l2, n2 in labelled(shells2):
            d1, d2 = 2 * l1 + 1, 2 * l2 + 1
            begin = starts[(l1, n1, l2, n2)]
            components, elements = groups.setdefault((l1, l2), ([], []))
            components.append(list(range(begin, begin + d1 * d2 * (4 if spec.spinful else 1))))
            elements.append([(row + a) * columns + column + b for a in range(d1) for b in range(d2)])
            column += d2
        row += 2 * l1 + 1
    return tuple(_Group(l1, l2, torch.tensor(c), torch.tensor(e)) for (l1, l2), (c, e) in groups.items())


@cache
@real_tensors()
def _block_matrix(spec: TargetSpec, first: int, second: int, dtype: torch.dtype, device: torch.device) -> SparseMatrix:
    """The matrix that makes a block's elements of the irreps.

    Its rows are the elements, row by row; with spin there are two rows for each, the real and the
    imaginary half.
    """
    n1, n2 = spec.num_orbitals(first), spec.num_orbitals(second)
    spins, half = (4, spec.dim // 2) if spec.spinful else (1, spec.dim)
    rows = torch.zeros(spins, n1 * n2, half, dtype=torch.float64)
    for group in _layout(spec, first, second):
        d = group.elements.shape[1]
        matrix = _inverse_coupling(group.l1, group.l2, spec.spinful).unflatten(0, (spins, d))
        for components, elements in zip(group.components, group.elements, strict=True):
            rows[:, elements[:, None], components[None, :]] = matrix
    if spec.spinful:
        spatial = torch.einsum("sk,knm->snm", _spin_basis(torch.complex128), rows.to(torch.complex128))
        elements = spatial.view(2, 2, n1, n2, half).permute(0, 2, 1, 3, 4).reshape(4 * n1 * n2, half)
        # (re + i im)(a + i b), as a real matrix of (a, b).
        real = torch.cat([elements.real, -elements.imag], dim=1)
        imaginary = torch.cat([elements.imag, elements.real], dim=1)
        rows = torch.stack([real, imaginary], dim=1)
    return sparse_matrix(rows.flatten(0, 1)).to(torch.empty(0, dtype=dtype, device=device))


@cache
@real_tensors()
def _spatial(l1: int, l2: int) -> tuple[Tensor, Tensor]:
    """Block elements to irreps, and back, as square matrices."""
    tables = [torch.tensor(wigner_3j(l1, l2, l)).flatten(0, 1) for l in range(abs(l1 - l2), l1 + l2 + 1)]
    forward = torch.cat([t.T * t.shape[1] for t in tables])
    return forward, torch.cat(tables, dim=1)


@cache
@real_tensors()
def _coupling(l1: int, l2: int, spinful: bool) -> Tensor:
    """``[irreps, (spin) elements]``; with spin the columns are (1, y, z, x) x elements."""
    forward, _ = _spatial(l1, l2)
    if not spinful:
        return forward
    d = forward.shape[0]
    rows = [torch.cat([forward, torch.zeros(d, 3 * d, dtype=torch.float64)], dim=1)]
    start = 0
    for l in range(abs(l1 - l2), l1 + l2 + 1):
        spatial = forward[start : start + 2 * l + 1]  # [2 l + 1, elements]
        start += 2 * l + 1
        for k in range(abs(l - 1), l + 2):
            table = torch.tensor(wigner_3j(l, 1, k)) * (2 * k + 1)
            vector = torch.einsum("msk,mn->ksn", table, spatial).flatten(1)
            rows.append(torch.cat([torch.zeros(2 * k + 1, d, dtype=torch.float64), vector], dim=1))
    return torch.cat(rows)


@cache
@real_tensors()
def _inverse_coupling(l1: int, l2: int, spinful: bool) -> Tensor:
    _, backward = _spatial(l1, l2)
    if not spinful:
        return backward
    d = backward.shape[0]
    columns = [torch.cat([backward, torch.zeros(3 * d, d, dtype=torch.float64)])]
    start = 0
    for l in range(abs(l1 - l2), l1 + l2 + 1):
        spatial = backward[:, start : start + 2 * l + 1]  # [elements, 2 l + 1]
        start += 2 * l + 1
        for k in range(abs(l - 1), l + 2):
            vector = torch.einsum("msk,nm->snk", torch.tensor(wigner_3j(l, 1, k)), spatial).flatten(0, 1)
            columns.append(torch.cat([torch.zeros(d, 2 * k + 1, dtype=torch.float64), vector]))
    return torch.cat(columns, dim=1)


def _spin_basis(dtype: torch.dtype) -> Tensor:
    """``[4, 4]``: the matrices (1, sigma_y, sigma_z, sigma_x) / sqrt(2), each in a column.

    Its rows are (up up, up down, down up, down down).
    """
    i = 1j
    basis = [[1, 0, 1, 0], [0, -i, 0, 1], [0, i, 0, 1], [1, 0, -1, 0]]
    return torch.tensor(basis, dtype=dtype) / math.sqrt(2)
