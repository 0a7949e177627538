"""Shift and scale of the targets, for each species pair and irrep.

Both are constants, or functions of the distance. The shift may depend on more.

The network predicts ``(target - shift) / scale``. Both are covariant by construction.

- A constant shift exists only for scalars.
- A radial shift is a two-centre model (the Slater-Koster form): ``f(r) Y_l(direction)`` for every
  irrep whose parity is (-1)^l. Linear least squares fit it to the training set.
- The shift by environment adds a linear model of the atoms' neighbours to it, which least squares
  fit to what the radial shift leaves (:class:`hamfast.models.closed_form.ClosedForm`).
- The scale is the root mean square of what the shift leaves.

Blocks of one atom (on-site) have shifts and scales of their own. A hopping is a block of two atoms.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from e3nn import o3
from torch import Tensor, nn

from hamfast.graph import CrystalGraph
from hamfast.models.closed_form import ClosedForm
from hamfast.models.fits import EnvironmentFit, ScaleFit, TwoCentreFit
from hamfast.models.settings import ENVIRONMENT
from hamfast.nn import GaussianBasis
from hamfast.sums import Fit, Sums
from hamfast.targets import TargetSpec


class TargetNormalization(nn.Module):
    """Fitted to a training set once, then a part of the model: checkpoints hold its coefficients.

    Args:
        spec: the targets.
        shift: ``none`` (as DeepH-E3), ``constant``, ``radial`` or ``environment``.
        scale: ``none`` (as DeepH-E3), ``constant`` or ``radial``.
        r_max: angstrom, where the radial functions end; the longest pair of the data.
        num_basis: Gaussians of the radial functions.
        environment: angstrom, the radius of an environment, where the shift is by environment.

    Attributes:
        closed_form: the shift by environment, without the radial one; None for other shifts.
        shift_coefficients, scale_coefficients: ``[species pairs, num_basis, irreps]``, of hoppings.
        onsite_shift, onsite_scale: ``[species pairs, irreps]``.

    Raises:
        ValueError: the environment is larger than ``r_max``.
    """

    shift_coefficients: Tensor
    onsite_shift: Tensor
    scale_coefficients: Tensor
    onsite_scale: Tensor
    irrep_of: Tensor
    harmonic_of: Tensor
    has_shift: Tensor
    inverse_dim: Tensor

    def __init__(
        self,
        spec: TargetSpec,
        shift: str,
        scale: str,
        r_max: float,
        num_basis: int = 32,
        environment: float = ENVIRONMENT,
    ):
        super().__init__()
        self.spec, self.shift_mode, self.scale_mode = spec, shift, scale
        # Under the shift by environment, too, a radial one comes first.
        self.two_centre_mode = "radial" if shift == "environment" else shift
        self.closed_form = ClosedForm(spec, r_max, environment) if shift == "environment" else None
        self.basis = GaussianBasis(0.0, r_max, num_basis)
        irreps = spec.irreps
        self.l_max = max(ir.l for _, ir in irreps)
        pairs, count = spec.num_species**2, len(irreps)
        self.register_buffer("shift_coefficients", torch.zeros(pairs, num_basis, count))
        self.register_buffer("onsite_shift", torch.zeros(pairs, count))
        self.register_buffer("scale_coefficients", torch.ones(pairs, num_basis, count))
        self.register_buffer("onsite_scale", torch.ones(pairs, count))
        self.register_buffer(
            "irrep_of", torch.repeat_interleave(torch.tensor([ir.dim for _, ir in irreps])), persistent=False
        )
        harmonic = torch.cat([torch.arange(ir.l**2, (ir.l + 1) ** 2) for _, ir in irreps])
        self.register_buffer("harmonic_of", harmonic, persistent=False)
        natural = torch.tensor([float(ir.p == (-1) ** ir.l) for _, ir in irreps])
        scalar = torch.tensor([float(ir.l == 0 and ir.p == 1) for _, ir in irreps])
        self.register_buffer("has_shift", natural if self.two_centre_mode == "radial" else scalar, persistent=False)
        self.register_buffer("inverse_dim", torch.tensor([1.0 / ir.dim for _, ir in irreps]), persistent=False)

    @property
    def is_trivial(self) -> bool:
        """Is there neither a shift nor a scale?"""
        return self.shift_mode == "none" and self.scale_mode == "none"

    def shift_and_scale(self, graph: CrystalGraph, densities: Tensor | None = None) -> tuple[Tensor, Tensor] | None:
        """Shift and scale ``[edges, spec.dim]``, eV: a target is ``shift + scale * output``.

        None where there is neither.

        Args:
            graph: the crystal, or a part of its edges.
            densities: see :meth:`hamfast.models.closed_form.ClosedForm.forward`.
        """
        return None if self.is_trivial else (self.shift(graph, densities), self.scale(graph))

    def shift(self, graph: CrystalGraph, densities: Tensor | None = None) -> Tensor:
        """``[edges, spec.dim]`` eV; the arguments are those of :meth:`shift_and_scale`."""
        shift = self.two_centre_shift(graph)
        return shift if self.closed_form is None else shift + self.closed_form(graph, densities)

    def two_centre_shift(self, graph: CrystalGraph) -> Tensor:
        """The shift without what depends on the environment, ``[edges, spec.dim]`` eV."""
        pair, onsite = graph.pair_species(self.spec.num_species), graph.onsite
        mixed = self._mix(self.features(graph.length, self.two_centre_mode), self.shift_coefficients, pair)
        amplitude = torch.where(onsite[:, None], self.onsite_shift[pair], mixed)
        return amplitude.index_select(1, self.irrep_of) * self.harmonics(graph)

    def scale(self, graph: CrystalGraph) -> Tensor:
        """``[edges, spec.dim]`` eV."""
        pair, onsite = graph.pair_species(self.spec.num_species), graph.onsite
        mixed = self._mix(self.features(graph.length, self.scale_mode), self.scale_coefficients, pair)
        return torch.where(onsite[:, None], self.onsite_scale[pair], mixed).index_select(1, self.irrep_of)

    def name_of_shift(self) -> str | None:
        """32 letters that change with the shift; None where it takes too little time to be kept."""
        if self.closed_form is None:
            return None
        found = hashlib.sha256(repr((self.spec, self.closed_form.environment)).encode())
        for name, value in self.state_dict().items():
            if not name.endswith(("onsite_scale", "scale_coefficients")):
                found.update(f"{name} {value.dtype} {list(value.shape)}".encode())
                found.update(value.cpu().numpy().tobytes())
        # No coefficient says where the radial functions end.
        found.update(self.basis.centers.cpu().numpy().tobytes())
        return found.hexdigest()[:32]

    # --- fits
    # ---------------------------------------------------------------------------------------------

    def fit(self, graphs: Iterable[CrystalGraph]) -> None:
        """Fits shift and scale to graphs with targets, read once for each of :meth:`fits`."""
        for fit in self.fits():
            sums = Sums()
            for number, graph in enumerate(graphs):
                fit.add(sums, number, graph)
            fit.solve(sums)

    def fits(self) -> list[Fit]:
        """What is to be fitted, one after the other.

        The scale measures what the fitted shift leaves, and the shift by environment what the
        radial one does. Sums of one pass for all would hold products of three basis functions, and
        the difference of large sums that follows would lose digits.
        """
        found: list[Fit] = [] if self.shift_mode == "none" else [TwoCentreFit(self)]
        if self.closed_form is not None:
            found.append(EnvironmentFit(self, self.closed_form))
        return found if self.scale_mode == "none" else [*found, ScaleFit(self)]

    def features(self, length: Tensor, mode: str) -> Tensor:
        """``[edges, num_basis]``: smooth functions of the distance that add up to 1.

        A constant is the special case in which all of them are equal.
        """
        if mode != "radial":
            return torch.full((length.shape[0], self.basis.centers.shape[0]), 1.0 / self.basis.centers.shape[0]).to(
                length
            )
        phi = self.basis(length.clamp(max=float(self.basis.centers[-1])))
        return phi / phi.sum(-1, keepdim=True)

    @staticmethod
    def _mix(phi, coefficients, pair):
        """``[edges, irreps]``: ``phi`` times the coefficients of each edge's species pair."""
        out = phi.new_zeros(phi.shape[0], coefficients.shape[-1])
        for p in range(coefficients.shape[0]):
            which = torch.nonzero(pair == p).flatten()
            out = out.index_copy(0, which, phi[which] @ coefficients[p])
        return out

    def harmonics(self, graph: CrystalGraph) -> Tensor:
        """``[edges, spec.dim]``: of each component; on-site, where there is no direction, those of
        l = 0 are 1, and others 0."""
        directions = graph.e3nn_vector
        harmonics = o3.spherical_harmonics(list(range(self.l_max + 1)), directions, True, "component")
        scalar = torch.zeros_like(harmonics[:1])
        scalar[:, 0] = 1.0
        return torch.where(graph.onsite[:, None], scalar, harmonics).index_select(1, self.harmonic_of)

    def per_irrep(self, values: Tensor) -> Tensor:
        """``[edges, irreps]``: sums over the components of each irrep."""
        return values.new_zeros(values.shape[0], len(self.spec.irreps)).index_add(1, self.irrep_of, values)
