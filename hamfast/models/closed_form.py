"""The Hamiltonian as a linear model of atoms' environments, fitted in closed form.

An atom's density is, for each element of its neighbours, a sum over them:

    A[n, l] = sum_j R_n(r_ij) Y_l(direction of r_ij),

with Gaussians R_n that end smoothly at the radius of the environment. One more A with l = 0 is 1.

- A block of one atom is a linear function of products A x A, coupled to the irrep of the target.
- A block of two atoms, a hopping, is one of products b_k(r) Y_L(direction) x A of the bond and the
  density of either end, coupled to the irrep of the target.

Coefficients belong to a pair of elements, an irrep of the target and a product. So the model is
covariant, whatever they are. Source: the atomic cluster expansion of Hamiltonians, Zhang et al.,
npj Comput. Mater. 8, 158 (2022); the features here are fewer.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from e3nn import o3
from torch import Tensor, nn

from hamfast.graph import CrystalGraph
from hamfast.models.couplings import FeatureList, coupling_matrix
from hamfast.models.least_squares import NormalEquations
from hamfast.models.settings import ENVIRONMENT
from hamfast.nn import GaussianBasis, polynomial_envelope
from hamfast.targets import TargetSpec

DENSITY_RADIAL = 4
"""Radial functions of a density."""

DENSITY_START = 1.0
"""Angstrom: the centre of the first of them."""

ONSITE_L = 4
"""Highest l of the densities in blocks of one atom."""

ONSITE_PAIRS = [(a, b) for a in range(ONSITE_L + 1) for b in range(a, ONSITE_L + 1)]
"""The two l of products of densities."""

HOPPING_L = 4
"""Highest l of the densities in hoppings."""

BOND_RADIAL = 14
"""Radial functions of a bond."""

FEATURES = 1800
"""Most coefficients of an irrep, for a pair of elements."""

EDGES_AT_ONCE = 1024
"""So many edges are in memory together, with all their features."""


class ClosedForm(nn.Module):
    """A linear model of all blocks; its coefficients are buffers, which :meth:`fit` computes.

    Args:
        spec: the targets.
        r_max: angstrom, where the radial functions of bonds end; the longest pair of the data.
        environment: angstrom, the radius of an environment. Above half of the training cell, atoms
            and their periodic images are in it together, and the model does not carry over to
            larger cells.
        features: most coefficients of an irrep, for a pair of elements. Products of the first
            radial functions and of low l come first.

    Raises:
        ValueError: the environment is larger than ``r_max``, or smaller than any bond.
    """

    position: Tensor

    def __init__(self, spec: TargetSpec, r_max: float, environment: float = ENVIRONMENT, features: int = FEATURES):
        super().__init__()
        if not DENSITY_START < environment <= r_max:
            raise ValueError(
                f"target.environment: expected more than {DENSITY_START:g} and at most {r_max:.2f} angstrom, the "
                f"longest pair of the data, found {environment}"
            )
        self.spec, self.environment = spec, environment
        self._settings = (r_max, environment, features)
        self.density_basis = GaussianBasis(DENSITY_START, environment, DENSITY_RADIAL)
        self.bond_basis = GaussianBasis(0.0, r_max, BOND_RADIAL)
        starts: dict[o3.Irrep, list[int]] = {}
        for (_, ir), own in zip(spec.irreps, spec.irreps.slices(), strict=True):
            starts.setdefault(ir, []).append(own.start)
        self.irreps = sorted(starts)
        self.bond_l = max(ir.l for ir in starts) + HOPPING_L
        onsite, hopping = self._onsite_features(), self._hopping_features()
        species, position = spec.num_species, []
        for ir in self.irreps:
            onsite_index = onsite.index(ir, features)
            hopping_index = hopping.index(ir, max(1, features // BOND_RADIAL))
            components = torch.tensor(starts[ir])[:, None] + torch.arange(ir.dim)
            position.append(components.flatten())
            self._constant(f"onsite_index_{ir}", onsite_index)
            self._constant(f"hopping_index_{ir}", hopping_index)
            self._constant(f"components_{ir}", components)
            targets = len(components)
            self.register_buffer(f"onsite_{ir}", torch.zeros(species, len(onsite_index), targets))
            shape = (species**2, BOND_RADIAL, len(hopping_index), targets)
            self.register_buffer(f"hopping_{ir}", torch.zeros(shape))
        self._constant("position", torch.cat(position).argsort())

    def _degrees(self, l: int) -> Tensor:
        """``[channels]`` of a density; the constant comes after the others with l = 0."""
        degrees = torch.arange(1, 1 + DENSITY_RADIAL).repeat(self.spec.num_species) + l
        return torch.cat([degrees, torch.tensor([0])]) if l == 0 else degrees

    def _onsite_features(self) -> FeatureList:
        found = FeatureList()
        for a, b in ONSITE_PAIRS:
            targets = [ir for ir in self.irreps if ir in o3.Irrep(a, (-1) ** a) * o3.Irrep(b, (-1) ** b)]
            matrix = coupling_matrix(a, [b], [(b, ir) for ir in targets])
            self._constant(f"onsite_coupling_{a}{b}", matrix.flatten(0, 1).to(torch.get_default_dtype()))
            degrees = self._degrees(a)[:, None] + self._degrees(b)
            # Of one l, channels commute; coupled to an odd l, two equal ones are zero.
            once = torch.ones_like(degrees, dtype=torch.bool)
            kept = [once if a != b else once.triu(ir.l % 2) for ir in targets]
            found.add(targets, degrees.flatten(), [k.flatten() for k in kept])
        return found

    def _hopping_features(self) -> FeatureList:
        found, ls = FeatureList(), range(self.bond_l + 1)
        for end in range(2):
            for l in range(HOPPING_L + 1):
                targets = [
                    (bond, ir)
                    for ir in self.irreps
                    for bond in ls
                    if ir in o3.Irrep(bond, (-1) ** bond) * o3.Irrep(l, (-1) ** l)
                ]
                matrix = coupling_matrix(l, ls, targets).transpose(0, 1).flatten(1)
                self._constant(f"hopping_coupling_{l}", matrix.to(torch.get_default_dtype()))
                degrees = self._degrees(l)
                kept = degrees >= end  # the constant is the same at both ends
                found.add([ir for _, ir in targets], degrees, [kept] * len(targets))
        return found

    def _constant(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value, persistent=False)

    def forward(self, graph: CrystalGraph) -> Tensor:
        """``[edges, spec.dim]``, eV: the irreps of all blocks."""
        home, hop = self._edges(graph)
        densities = self._densities(graph, hop)
        species = self.spec.num_species
        atoms = graph.i[home]
        rows, values = [], []
        for kind in graph.species.unique().tolist():
            which = torch.nonzero(graph.species[atoms] == kind).flatten()
            flat = self._onsite(densities, atoms[which])
            parts = []
            for ir in self.irreps:
                x = flat[:, self._of("onsite_index", ir)]
                parts.append(torch.einsum("efm,ft->etm", x, self._of("onsite", ir)[kind]).flatten(1))
            rows.append(home[which])
            values.append(torch.cat(parts, 1))
        pair = graph.pair_species(species)[hop]
        for kind in pair.unique().tolist():
            for edges in torch.split(hop[pair == kind], EDGES_AT_ONCE):
                flat, bond = self._hopping(graph, densities, edges)
                parts = []
                for ir in self.irreps:
                    x, c = flat[:, self._of("hopping_index", ir)], self._of("hopping", ir)[kind]
                    weights = (bond @ c.flatten(1)).unflatten(1, c.shape[1:])
                    parts.append((weights.transpose(1, 2) @ x).flatten(1))
                rows.append(edges)
                values.append(torch.cat(parts, 1))
        out = torch.cat(values)[:, self.position]
        return torch.zeros_like(out).index_copy(0, torch.cat(rows), out)

    @torch.no_grad()
    def fit(self, graphs: Iterable[CrystalGraph]) -> None:
        """Least squares on graphs with targets, in eV; the graphs are read once.

        Each fourth structure chooses the ridge and then takes part.
        """
        double = self.__class__(self.spec, *self._settings).double()
        sums: dict[tuple[str, int, o3.Irrep], NormalEquations] = {}

        def add(kind, n, ir, amplitudes, flat, target, number):
            index, components = self._of(f"{kind}_index", ir), self._of("components", ir)
            if (kind, n, ir) not in sums:
                sums[kind, n, ir] = NormalEquations(amplitudes.shape[1], len(index), len(components))
            sums[kind, n, ir].add(amplitudes, flat[:, index], target[:, components], number)

        for number, graph in enumerate(graphs):
            graph = graph.to(dtype=torch.float64)
            target = graph.known_target()
            home, hop = double._edges(graph)
            densities = double._densities(graph, hop)
            for kind in graph.species.unique().tolist():
                own = home[graph.species[graph.i[home]] == kind]
                flat = double._onsite(densities, graph.i[own])
                for ir in self.irreps:
                    add("onsite", kind, ir, torch.ones(len(own), 1).double(), flat, target[own], number)
            pair = graph.pair_species(self.spec.num_species)[hop]
            for kind in pair.unique().tolist():
                for edges in torch.split(hop[pair == kind], EDGES_AT_ONCE):
                    flat, bond = double._hopping(graph, densities, edges)
                    for ir in self.irreps:
                        add("hopping", kind, ir, bond, flat, target[edges], number)
        for (kind, n, ir), equations in sums.items():
            found = equations.solve()
            self._of(kind, ir)[n].copy_(found[0] if kind == "onsite" else found)

    def _of(self, name: str, ir: o3.Irrep) -> Tensor:
        return self.get_buffer(f"{name}_{ir}")

    @staticmethod
    def _edges(graph: CrystalGraph) -> tuple[Tensor, Tensor]:
        """The edges of one atom and those of two."""
        onsite = graph.vector.detach().norm(dim=-1) < 1e-6
        return torch.nonzero(onsite).flatten(), torch.nonzero(~onsite).flatten()

    def _densities(self, graph: CrystalGraph, hop: Tensor) -> list[Tensor]:
        """For each l ``[atoms, channels, 2 l + 1]``; with l = 0 the last channel is 1."""
        near = hop[graph.vector.detach()[hop].norm(dim=-1) < self.environment]
        length = graph.length[near]
        radial = self.density_basis(length) * polynomial_envelope(length, self.environment)[:, None]
        harmonics = _harmonics(graph, near, ONSITE_L)
        species, atoms = self.spec.num_species, graph.num_atoms
        terms = radial[:, :, None] * harmonics[:, None, :]
        row = graph.i[near] * species + graph.species[graph.j[near]]
        sums = terms.new_zeros(atoms * species, *terms.shape[1:]).index_add(0, row, terms)
        sums = sums.view(atoms, species * DENSITY_RADIAL, -1)
        found = [sums[:, :, l**2 : (l + 1) ** 2] for l in range(ONSITE_L + 1)]
        found[0] = torch.cat([found[0], found[0].new_ones(atoms, 1, 1)], dim=1)
        return found

    def _onsite(self, densities: list[Tensor], atoms: Tensor) -> Tensor:
        """``[atoms, numbers]``: all features of the blocks of these atoms."""
        own, parts = [d[atoms] for d in densities], []
        for a, b in ONSITE_PAIRS:
            product = own[a][:, :, None, :, None] * own[b][:, None, :, None, :]
            coupling = self.get_buffer(f"onsite_coupling_{a}{b}")
            parts.append((product.flatten(3).flatten(1, 2) @ coupling).flatten(1))
        return torch.cat(parts, 1)

    def _hopping(self, graph: CrystalGraph, densities: list[Tensor], edges: Tensor) -> tuple[Tensor, Tensor]:
        """``[edges, numbers]``: all features of hoppings but their radial functions.

        The second result is these, ``[edges, BOND_RADIAL]``.
        """
        harmonics, parts = _harmonics(graph, edges, self.bond_l), []
        for atoms in (graph.i[edges], graph.j[edges]):
            for l in range(HOPPING_L + 1):
                matrix = (harmonics @ self.get_buffer(f"hopping_coupling_{l}")).unflatten(1, (2 * l + 1, -1))
                parts.append((densities[l][atoms] @ matrix).flatten(1))
        return torch.cat(parts, 1), self.bond_basis(graph.length[edges])


def _harmonics(graph: CrystalGraph, edges: Tensor, l_max: int) -> Tensor:
    """``[edges, (l_max + 1)^2]``."""
    return o3.spherical_harmonics(list(range(l_max + 1)), graph.e3nn_vector[edges], True, "component")
