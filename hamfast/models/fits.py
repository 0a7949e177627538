"""The fits of a target normalisation, each to sums over the structures of a training set."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hamfast.graph import CrystalGraph
from hamfast.sums import Sums

if TYPE_CHECKING:
    from hamfast.models.closed_form import ClosedForm
    from hamfast.models.normalization import TargetNormalization


class _FitByPair:
    """A fit whose sums have a row for each pair of elements: those of its hoppings, and the mean of
    its blocks of one atom."""

    name = ""

    def __init__(self, normalization: TargetNormalization):
        self.normalization = normalization
        self.pairs, self.basis, self.irreps = normalization.shift_coefficients.shape

    def hopping_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the sums over hoppings."""
        raise NotImplementedError

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all sums."""
        return self.hopping_shapes() | {"onsite": (self.pairs, self.irreps), "count": (self.pairs, 1)}

    def bytes(self) -> int:
        """See :class:`hamfast.sums.Fit`."""
        return 8 * sum(map(math.prod, self.shapes().values()))

    def begin(self, sums: Sums) -> None:
        """Makes the sums of nothing, where there are none."""
        if not sums:
            sums.update({name: torch.zeros(shape, dtype=torch.float64) for name, shape in self.shapes().items()})

    def add_onsite(self, sums: Sums, graph: CrystalGraph, values: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Adds the blocks of one atom; yields each pair's number, and which edges are its hoppings.

        Args:
            values: ``[edges, irreps]``, what is added.
        """
        self.begin(sums)
        pair, onsite = graph.pair_species(self.normalization.spec.num_species), graph.onsite
        for p in pair.unique().tolist():
            home = (pair == p) & onsite
            sums["onsite"][p] += values[home].sum(0)
            sums["count"][p] += home.sum()
            yield p, (pair == p) & ~onsite

    @staticmethod
    def onsite_mean(sums: Sums) -> Tensor:
        """``[pairs, irreps]``"""
        return sums["onsite"] / sums["count"].clamp(min=1)


class TwoCentreFit(_FitByPair):
    """Of the shift as a function of the distance, or of constants."""

    name = "shift"

    def hopping_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the sums over hoppings."""
        return {"gram": (self.pairs, self.basis, self.basis), "right": (self.pairs, self.basis, self.irreps)}

    @torch.no_grad()
    def add(self, sums: Sums, number: int, graph: CrystalGraph) -> None:
        """See :class:`hamfast.sums.Fit`."""
        own = self.normalization
        product = graph.known_target() * own.harmonics(graph).to(graph.known_target())
        projection = own.per_irrep(product).double() * own.inverse_dim.double() * own.has_shift.double()
        phi = own.features(graph.length, own.two_centre_mode).double()
        for p, hop in self.add_onsite(sums, graph, projection):
            sums["gram"][p] += phi[hop].T @ phi[hop]
            sums["right"][p] += phi[hop].T @ projection[hop]

    @torch.no_grad()
    def solve(self, sums: Sums) -> None:
        """See :class:`hamfast.sums.Fit`."""
        self.begin(sums)
        # A little ridge: coefficients of functions that no pair of the data reaches stay zero.
        ridge = 1e-6 * sums["gram"].diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-12)
        gram = sums["gram"] + ridge[:, None, None] * torch.eye(self.basis, dtype=torch.float64)
        self.normalization.shift_coefficients.copy_(torch.linalg.solve(gram, sums["right"]))
        self.normalization.onsite_shift.copy_(self.onsite_mean(sums))


class EnvironmentFit:
    """Of the shift by environment, to what the two-centre shift leaves."""

    name = "shift by environment"

    def __init__(self, normalization: TargetNormalization, closed_form: ClosedForm):
        self.normalization, self.closed_form, self.in_double = normalization, closed_form, closed_form.in_double()

    def bytes(self) -> int:
        """See :class:`hamfast.sums.Fit`."""
        return self.closed_form.bytes_of_sums()

    @torch.no_grad()
    def add(self, sums: Sums, number: int, graph: CrystalGraph) -> None:
        """See :class:`hamfast.sums.Fit`."""
        left = graph.known_target() - self.normalization.two_centre_shift(graph)
        self.in_double.add_to(sums, number, replace(graph, target=left))

    @torch.no_grad()
    def solve(self, sums: Sums) -> None:
        """See :class:`hamfast.sums.Fit`."""
        self.closed_form.solve(sums)


class ScaleFit(_FitByPair):
    """Of the scale, to what the shift leaves. Graphs with units have that shift in them."""

    name = "scale"

    def hopping_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the sums over hoppings."""
        return {"square": (self.pairs, self.basis, self.irreps), "weight": (self.pairs, self.basis, 1)}

    @torch.no_grad()
    def add(self, sums: Sums, number: int, graph: CrystalGraph) -> None:
        """See :class:`hamfast.sums.Fit`."""
        own = self.normalization
        shift = own.shift(graph) if graph.units is None else graph.units[:, 0]
        squares = own.per_irrep((graph.known_target() - shift).double().square()) * own.inverse_dim.double()
        phi = own.features(graph.length, own.scale_mode).double()
        for p, hop in self.add_onsite(sums, graph, squares):
            sums["square"][p] += phi[hop].T @ squares[hop]
            sums["weight"][p] += phi[hop].sum(0)[:, None]

    @torch.no_grad()
    def solve(self, sums: Sums) -> None:
        """See :class:`hamfast.sums.Fit`."""
        self.begin(sums)
        own, spec = self.normalization, self.normalization.spec
        masks = torch.stack([spec.mask(p // spec.num_species, p % spec.num_species) for p in range(self.pairs)])
        present = own.per_irrep(masks.double()) > 0  # [pairs, irreps]
        square, weight = sums["square"], sums["weight"]
        hop = torch.where(weight > 1e-6, square / weight.clamp(min=1e-6), torch.zeros_like(square)).sqrt()
        # Symmetry makes some channels exactly zero. Floors keep a scale for them, so that noise in
        # them is not blown up.
        top = (hop * present[:, None]).amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)
        own.scale_coefficients.copy_(hop.clamp(min=1e-6).maximum(1e-5 * top))
        home = self.onsite_mean(sums).sqrt()
        top = (home * present).amax(dim=1, keepdim=True).clamp(min=1e-12)
        own.onsite_scale.copy_(home.clamp(min=1e-6).maximum(1e-5 * top))
