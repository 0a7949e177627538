"""The crystal graph: one or several structures as tensors. What data makes and models read."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

ONSITE = 1e-6
"""Angstrom: shorter edges are those of on-site blocks."""


@dataclass
class CrystalGraph:
    """Atoms, and the ordered pairs of atoms for which the Hamiltonian has a block.

    A pair is an edge. As in the literature, H_ij(R) is the block whose row atom i lies in the home
    cell and whose column atom j lies in cell R. On-site blocks are edges with i = j and R = 0. With
    (R, i, j) there is always (-R, j, i). Messages run from j, the sender, to i, the receiver.
    """

    species: Tensor
    """``[atoms]`` int64, index into the data set's elements."""
    i: Tensor
    """``[edges]`` int64: the block's row atom, in the home cell; it receives."""
    j: Tensor
    """``[edges]`` int64: the block's column atom; it sends."""
    shift: Tensor
    """``[edges, 3]`` int64: the lattice vector R of j."""
    vector: Tensor
    """``[edges, 3]`` angstrom, Cartesian xyz: from i to j in cell R."""
    reverse: Tensor
    """``[edges]`` int64: the edge (-R, j, i)."""
    atom_graph: Tensor
    """``[atoms]`` int64: which structure of the batch."""
    edge_graph: Tensor
    """``[edges]`` int64: which structure of the batch."""
    num_graphs: int = 1
    target: Tensor | None = None
    """``[edges, target dim]`` eV, irreps of the blocks."""
    units: Tensor | None = None
    """``[edges, 2, target dim]`` eV: shift and scale of the target normalisation, where a training
    has made them before; they belong to these vectors."""
    labels: tuple[str, ...] = ()
    """The name of each structure."""

    @property
    def num_atoms(self) -> int:
        """Of all structures together."""
        return self.species.shape[0]

    @property
    def num_edges(self) -> int:
        """Of all structures together."""
        return self.i.shape[0]

    @property
    def senders(self) -> Tensor:
        """``[edges]`` int64: the atom that a message comes from, which is ``j``."""
        return self.j

    @property
    def receivers(self) -> Tensor:
        """``[edges]`` int64: the atom that a message goes to, which is ``i``."""
        return self.i

    @property
    def length(self) -> Tensor:
        """``[edges]`` angstrom."""
        return self.vector.norm(dim=-1)

    @property
    def e3nn_vector(self) -> Tensor:
        """``[edges, 3]`` angstrom: ``vector`` in e3nn's order of axes.

        Its (x, y, z) are the crystal's (y, z, x). So the components of its l = 1 irreps are the
        crystal's y, z, x, and those of all irreps are m = -l ... l.
        """
        return self.vector[:, [1, 2, 0]]

    @property
    def onsite(self) -> Tensor:
        """``[edges]`` bool: is the block one of a single atom?"""
        return self.length < ONSITE

    def shorter_than(self, radius: float) -> Tensor:
        """int64: the edges shorter than ``radius`` (angstrom)."""
        return torch.nonzero(self.length < radius).flatten()

    def within(self, radius: float) -> CrystalGraph:
        """The same atoms with the edges shorter than ``radius`` (angstrom) alone."""
        return self.with_edges(self.shorter_than(radius))

    def with_edges(self, kept: Tensor) -> CrystalGraph:
        """The same atoms with these edges alone, ``kept`` int64; with each its reverse one."""
        number = torch.full_like(self.i, -1)
        number[kept] = torch.arange(len(kept), device=kept.device)
        return replace(self.with_some_edges(kept), reverse=number[self.reverse[kept]])

    def with_some_edges(self, kept: Tensor) -> CrystalGraph:
        """As :meth:`with_edges` where reverse edges need not be among them: ``reverse`` means
        nothing then.
        """
        return replace(
            self,
            i=self.i[kept],
            j=self.j[kept],
            shift=self.shift[kept],
            vector=self.vector[kept],
            edge_graph=self.edge_graph[kept],
            target=None if self.target is None else self.target[kept],
            units=None if self.units is None else self.units[kept],
        )

    def known_target(self) -> Tensor:
        """The target, ``[edges, target dim]`` eV.

        Raises:
            ValueError: the graph was built without a Hamiltonian.
        """
        if self.target is None:
            raise ValueError(
                f"{', '.join(self.labels)}: expected a graph with a target, found one without a Hamiltonian"
            )
        return self.target

    def pair_species(self, num_species: int) -> Tensor:
        """``[edges]`` int64: ``num_species`` times the receiver's species, plus the sender's."""
        return num_species * self.species[self.receivers] + self.species[self.senders]

    def to(self, device=None, dtype: torch.dtype | None = None) -> CrystalGraph:
        """Moves all tensors; ``dtype`` applies to the floating-point ones."""

        def move(value):
            if not isinstance(value, Tensor):
                return value
            return value.to(device=device, dtype=dtype if value.is_floating_point() else None)

        return replace(self, **{f.name: move(getattr(self, f.name)) for f in fields(self)})

    def rotated(self, rotation: Tensor) -> CrystalGraph:
        """The same structure rotated by ``rotation`` ``[3, 3]``, without its target."""
        return replace(self, vector=self.vector @ rotation.T.to(self.vector), target=None, units=None)


def structures_of(graph: CrystalGraph, first: int, last: int) -> CrystalGraph:
    """Some structures of a batch, from ``first`` on and before ``last``.

    It is what :func:`batch_graphs` makes of them.
    """
    if (first, last) == (0, graph.num_graphs):
        return graph
    bounds = torch.tensor([first, last], device=graph.species.device)
    atoms = slice(*torch.searchsorted(graph.atom_graph, bounds).tolist())
    edges = slice(*torch.searchsorted(graph.edge_graph, bounds).tolist())
    return CrystalGraph(
        species=graph.species[atoms],
        i=graph.i[edges] - atoms.start,
        j=graph.j[edges] - atoms.start,
        shift=graph.shift[edges],
        vector=graph.vector[edges],
        reverse=graph.reverse[edges] - edges.start,
        atom_graph=graph.atom_graph[atoms] - first,
        edge_graph=graph.edge_graph[edges] - first,
        num_graphs=last - first,
        target=None if graph.target is None else graph.target[edges],
        units=None if graph.units is None else graph.units[edges],
        labels=graph.labels[first:last],
    )


def batch_graphs(graphs: list[CrystalGraph]) -> CrystalGraph:
    """One graph of several structures; the rows of all their tensors follow each other."""
    if len(graphs) == 1:
        return graphs[0]
    atoms, edges = [0], [0]
    for graph in graphs:
        atoms.append(atoms[-1] + graph.num_atoms)
        edges.append(edges[-1] + graph.num_edges)

    def offset(name, offsets):
        return torch.cat([getattr(g, name) + o for g, o in zip(graphs, offsets, strict=False)])

    has_target = all(g.target is not None for g in graphs)
    return CrystalGraph(
        species=torch.cat([g.species for g in graphs]),
        i=offset("i", atoms),
        j=offset("j", atoms),
        shift=torch.cat([g.shift for g in graphs]),
        vector=torch.cat([g.vector for g in graphs]),
        reverse=offset("reverse", edges),
        atom_graph=offset("atom_graph", range(len(graphs))),
        edge_graph=offset("edge_graph", range(len(graphs))),
        num_graphs=len(graphs),
        target=torch.cat([g.target for g in graphs if g.target is not None]) if has_target else None,
        units=torch.cat([g.units for g in graphs if g.units is not None])
        if all(g.units is not None for g in graphs)
        else None,
        labels=tuple(label for g in graphs for label in g.labels),
    )
