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

import copy
import math
from collections.abc import Iterable, Iterator

import torch
from e3nn import o3
from torch import Tensor, nn

from hamfast.graph import CrystalGraph
from hamfast.models.couplings import FeatureList, coupling_matrix
from hamfast.models.least_squares import NormalEquations
from hamfast.models.settings import ENVIRONMENT
from hamfast.nn import GaussianBasis, polynomial_envelope
from hamfast.sums import Sums
from hamfast.targets import TargetSpec

DENSITY_RADIAL = 5
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

FEATURES = 1400
"""Most coefficients of an irrep, for a pair of elements."""

EDGES_AT_ONCE = 256
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
            self.register_buffer(f"onsite_{ir}", torch.zeros(species, 1, len(onsite_index), targets))
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
        for l in range(HOPPING_L + 1):
            density = o3.Irrep(l, (-1) ** l)
            targets = [(L, ir) for ir in self.irreps for L in ls if ir in o3.Irrep(L, (-1) ** L) * density]
            matrix = coupling_matrix(l, ls, targets).transpose(0, 1).flatten(1)
            self._constant(f"hopping_coupling_{l}", matrix.to(torch.get_default_dtype()))
            degrees = self._degrees(l)
            for end in range(2):
                kept = degrees >= end  # the constant is the same at both ends
                found.add([ir for _, ir in targets], degrees, [kept] * len(targets))
        return found

    def _constant(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value, persistent=False)

    def forward(self, graph: CrystalGraph, densities: Tensor | None = None) -> Tensor:
        """``[edges, spec.dim]``, eV: the irreps of all blocks.

        Args:
            graph: the crystal, or a part of its edges.
            densities: of its atoms, see :meth:`densities`; None: those that its edges make.
        """
        edges, values = [], []
        for kind, n, rows, amplitudes, flat in self._rows(graph, densities):
            parts = []
            for ir in self.irreps:
                coefficients = self._of(kind, ir)[n]
                weights = (amplitudes @ coefficients.flatten(1)).unflatten(1, coefficients.shape[1:])
                parts.append((weights.transpose(1, 2) @ self._select(kind, ir, flat)).flatten(1))
            edges.append(rows)
            values.append(torch.cat(parts, 1))
        out = torch.cat(values)[:, self.position]
        return torch.zeros_like(out).index_copy(0, torch.cat(edges), out)

    @torch.no_grad()
    def fit(self, graphs: Iterable[CrystalGraph]) -> None:
        """Least squares on graphs with targets, in eV; the graphs are read once.

        Each fourth structure chooses the ridge and then takes part.
        """
        in_double, sums = self.in_double(), Sums()
        for number, graph in enumerate(graphs):
            in_double.add_to(sums, number, graph)
        self.solve(sums)

    def in_double(self) -> ClosedForm:
        """A copy in float64 on the CPU, which makes the sums of a fit."""
        return copy.deepcopy(self).to("cpu", torch.float64)

    def add_to(self, sums: Sums, number: int, graph: CrystalGraph) -> None:
        """Adds a structure to the sums of a fit: normal equations for each kind of block, pair of
        elements and irrep.

        Args:
            sums: so far.
            number: of the structure in the set.
            graph: with its target.
        """
        graph = graph.to("cpu", torch.float64)
        target = graph.known_target()
        for kind, n, rows, amplitudes, flat in self._rows(graph):
            for ir in self.irreps:
                features, components = self._select(kind, ir, flat), self._of("components", ir)
                if not features.shape[1]:  # two densities make no pseudoscalar
                    continue
                key = kind, n, str(ir)
                if key not in sums:
                    sums[key] = NormalEquations(amplitudes.shape[1], features.shape[1], len(components))
                sums[key].add(amplitudes, features, target[rows][:, components], number)

    def solve(self, sums: Sums) -> None:
        """Takes the coefficients from the sums over all structures."""
        for (kind, n, ir), equations in sums.items():
            self._of(kind, ir)[n].copy_(equations.solve())

    def bytes_of_sums(self) -> int:
        """The memory of the sums of a fit, if all pairs of elements occur."""
        coefficients = [self._of(kind, ir) for ir in self.irreps for kind in ("onsite", "hopping")]
        sums = [(len(c), NormalEquations.sizes(*c.shape[1:])) for c in coefficients]
        return 8 * sum(count * sum(math.prod(shape) for shape in shapes) for count, shapes in sums)

    def densities(self, graph: CrystalGraph) -> Tensor:
        """``[atoms, numbers]``: the densities of each atom's neighbours."""
        hop = torch.nonzero(~graph.onsite).flatten()
        hop = hop[graph.vector[hop].detach().norm(dim=-1) < self.environment]
        harmonics = o3.spherical_harmonics(list(range(ONSITE_L + 1)), graph.e3nn_vector[hop], True, "component")
        found = self._densities(graph, hop, graph.vector[hop].norm(dim=-1), harmonics)
        return torch.cat([density.flatten(1) for density in found], dim=1)

    def _split_densities(self, flat: Tensor) -> list[Tensor]:
        """The inverse of the last line of :meth:`densities`."""
        shapes = [(len(self._degrees(l)), 2 * l + 1) for l in range(ONSITE_L + 1)]
        parts = flat.split([channels * dim for channels, dim in shapes], dim=1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)]

    def _rows(
        self, graph: CrystalGraph, flat: Tensor | None = None
    ) -> Iterator[tuple[str, int, Tensor, Tensor, Tensor]]:
        """All edges, some at a time.

        Yields:
            The kind of block, ``onsite`` or ``hopping``; the index of the species, or of the pair;
            the edges, ``[rows]``; the amplitudes, ``[rows, amplitudes]``; the features of all
            irreps, ``[rows, numbers]``.
        """
        home, hop = torch.nonzero(graph.onsite).flatten(), torch.nonzero(~graph.onsite).flatten()
        length = graph.vector[hop].norm(dim=-1)
        ls = list(range(max(self.bond_l, ONSITE_L) + 1))
        harmonics = o3.spherical_harmonics(ls, graph.e3nn_vector[hop], True, "component")
        densities = self._densities(graph, hop, length, harmonics) if flat is None else self._split_densities(flat)
        for n in graph.species.unique().tolist():
            rows = home[graph.species[graph.i[home]] == n]
            yield "onsite", n, rows, length.new_ones(len(rows), 1), self._onsite(densities, graph.i[rows])
        bond = self.bond_basis(length)
        pair = graph.pair_species(self.spec.num_species)[hop]
        for n in pair.unique().tolist():
            for which in torch.split(torch.nonzero(pair == n).flatten(), EDGES_AT_ONCE):
                rows = hop[which]
                ends = [[density[atoms[rows]] for density in densities] for atoms in (graph.i, graph.j)]
                yield "hopping", n, rows, bond[which], self._hopping(harmonics[which], ends)

    def _of(self, name: str, ir: o3.Irrep | str) -> Tensor:
        return self.get_buffer(f"{name}_{ir}")

    def _select(self, kind: str, ir: o3.Irrep, flat: Tensor) -> Tensor:
        """``[rows, features, 2 l + 1]``: the features of an irrep."""
        index = self._of(f"{kind}_index", ir)
        return flat.index_select(1, index.flatten()).view(len(flat), *index.shape)

    def _densities(self, graph: CrystalGraph, hop: Tensor, length: Tensor, harmonics: Tensor) -> list[Tensor]:
        """For each l ``[atoms, channels, 2 l + 1]``; with l = 0 the last channel is 1."""
        close = torch.nonzero(length.detach() < self.environment).flatten()
        near, length = hop[close], length[close]
        radial = self.density_basis(length) * polynomial_envelope(length, self.environment)[:, None]
        terms = radial[:, :, None] * harmonics[close][:, None, : (ONSITE_L + 1) ** 2]
        species, atoms = self.spec.num_species, graph.num_atoms
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

    def _hopping(self, harmonics: Tensor, ends: list[list[Tensor]]) -> Tensor:
        """``[edges, numbers]``: all features of hoppings but their radial functions.

        ``ends`` are the densities of the row atoms and of the column atoms.
        """
        parts = []
        for l in range(HOPPING_L + 1):
            coupling = self.get_buffer(f"hopping_coupling_{l}")
            matrix = (harmonics[:, : len(coupling)] @ coupling).unflatten(1, (2 * l + 1, -1))
            parts += [(densities[l] @ matrix).flatten(1) for densities in ends]
        return torch.cat(parts, 1)
