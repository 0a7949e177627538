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

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from e3nn import o3
from torch import Tensor, nn

from hamfast.graph import CrystalGraph
from hamfast.models.closed_form import ClosedForm
from hamfast.models.settings import ENVIRONMENT
from hamfast.nn import GaussianBasis
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
        if self.is_trivial:
            return None
        pair, onsite = graph.pair_species(self.spec.num_species), graph.onsite
        phi = self._features(graph.length, self.two_centre_mode)
        amplitude = torch.where(onsite[:, None], self.onsite_shift[pair], self._mix(phi, self.shift_coefficients, pair))
        shift = amplitude[:, self.irrep_of] * self._harmonics(graph, onsite)[:, self.harmonic_of]
        if self.closed_form is not None:
            shift = shift + self.closed_form(graph, densities)
        phi = self._features(graph.length, self.scale_mode)
        scale = torch.where(onsite[:, None], self.onsite_scale[pair], self._mix(phi, self.scale_coefficients, pair))
        return shift, scale[:, self.irrep_of]

    def fit(self, graphs: Iterable[CrystalGraph]) -> None:
        """Fits shift and scale to graphs with targets.

        The scale measures what the fitted shift leaves, and the shift by environment what the
        radial one does, so the graphs are read once for each. Sums of one pass for all would hold
        products of three basis functions, and the difference of large sums that follows would lose
        digits.
        """
        if self.shift_mode != "none":
            self._fit_shift(graphs)
        if self.closed_form is not None:
            self.closed_form.fit(self._remainders(graphs))
        if self.scale_mode != "none":
            self._fit_scale(graphs)

    def _fit_shift(self, graphs):
        shape = self.shift_coefficients.shape
        gram = torch.zeros(shape[0], shape[1], shape[1], dtype=torch.float64)
        right = torch.zeros(*shape, dtype=torch.float64)
        onsite_sum, onsite_count = torch.zeros(shape[0], shape[2], dtype=torch.float64), torch.zeros(shape[0], 1)
        for graph in graphs:
            pair, onsite = graph.pair_species(self.spec.num_species), graph.onsite
            product = graph.known_target() * self._harmonics(graph, onsite)[:, self.harmonic_of].to(
                graph.known_target()
            )
            projection = self._per_irrep(product).double() * self.inverse_dim.double() * self.has_shift.double()
            phi = self._features(graph.length, self.two_centre_mode).double()
            for p in pair.unique().tolist():
                hop, home = (pair == p) & ~onsite, (pair == p) & onsite
                gram[p] += phi[hop].T @ phi[hop]
                right[p] += phi[hop].T @ projection[hop]
                onsite_sum[p] += projection[home].sum(0)
                onsite_count[p] += home.sum()
        # A little ridge: coefficients of functions that no pair of the data reaches stay zero.
        ridge = 1e-6 * gram.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-12)
        gram = gram + ridge[:, None, None] * torch.eye(shape[1], dtype=torch.float64)
        self.shift_coefficients.copy_(torch.linalg.solve(gram, right))
        self.onsite_shift.copy_(onsite_sum / onsite_count.clamp(min=1))

    def _remainders(self, graphs: Iterable[CrystalGraph]) -> Iterator[CrystalGraph]:
        """The graphs, with what the shift so far leaves of their targets."""
        for graph in graphs:
            units = self.shift_and_scale(graph)
            assert units is not None  # there is a shift
            yield replace(graph, target=graph.known_target() - units[0])

    def _fit_scale(self, graphs):
        shape = self.scale_coefficients.shape
        square = torch.zeros(*shape, dtype=torch.float64)
        weight = torch.zeros(shape[0], shape[1], 1, dtype=torch.float64)
        onsite_square, onsite_count = torch.zeros(shape[0], shape[2], dtype=torch.float64), torch.zeros(shape[0], 1)
        masks = torch.stack(
            [self.spec.mask(p // self.spec.num_species, p % self.spec.num_species) for p in range(shape[0])]
        )
        for graph in graphs:
            pair, onsite = graph.pair_species(self.spec.num_species), graph.onsite
            units = self.shift_and_scale(graph)
            assert units is not None  # there is a scale to fit
            squares = self._per_irrep((graph.known_target() - units[0]).double().square()) * self.inverse_dim.double()
            phi = self._features(graph.length, self.scale_mode).double()
            for p in pair.unique().tolist():
                hop, home = (pair == p) & ~onsite, (pair == p) & onsite
                square[p] += phi[hop].T @ squares[hop]
                weight[p] += phi[hop].sum(0)[:, None]
                onsite_square[p] += squares[home].sum(0)
                onsite_count[p] += home.sum()
        present = self._per_irrep(masks.double()) > 0  # [pairs, irreps]
        hop = torch.where(weight > 1e-6, square / weight.clamp(min=1e-6), torch.zeros_like(square)).sqrt()
        # Symmetry makes some channels exactly zero. Floors keep a scale for them, so that noise in
        # them is not blown up.
        top = (hop * present[:, None]).amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)
        self.scale_coefficients.copy_(hop.clamp(min=1e-6).maximum(1e-5 * top))
        home = (onsite_square / onsite_count.clamp(min=1)).sqrt()
        top = (home * present).amax(dim=1, keepdim=True).clamp(min=1e-12)
        self.onsite_scale.copy_(home.clamp(min=1e-6).maximum(1e-5 * top))

    def _features(self, length, mode):
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

    def _harmonics(self, graph, onsite):
        """``[edges, (l_max + 1)^2]``; on-site, where there is no direction, (1, 0, ..., 0)."""
        directions = graph.e3nn_vector
        harmonics = o3.spherical_harmonics(list(range(self.l_max + 1)), directions, True, "component")
        scalar = torch.zeros_like(harmonics[:1])
        scalar[:, 0] = 1.0
        return torch.where(onsite[:, None], scalar, harmonics)

    def _per_irrep(self, values):
        """``[edges, irreps]``: sums over the components of each irrep."""
        return values.new_zeros(values.shape[0], len(self.spec.irreps)).index_add(1, self.irrep_of, values)
