"""A graph in pieces: a network's sweeps in bounded memory, by one process or by several.

Features of atoms are in memory, those of edges in files, and one piece at a time is worked on. A
journal says which pieces of which sweep are done, so that an evaluation that was stopped goes on.

Of several processes each has some pieces. Atoms' features are summed over all processes after every
sweep, by ``torch.distributed``; an edge's stay with the process that has its receiver.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn

from hamfast.errors import HamfastError
from hamfast.graph import CrystalGraph
from hamfast.models.journal import Journal
from hamfast.models.sweeps import Piece
from hamfast.nn import EquivariantLayerNorm
from hamfast.nn.layer_norm import Statistics

SLACK = 1.25
"""An evaluation is gone on with whose pieces are larger than they would be now by up to this."""
BOX = 8.0
"""Angstrom: atoms are ordered by boxes of this size, so that those of a piece have most neighbours
in common."""


class RowFile:
    """Rows of one width for the edges, or the atoms, of every piece.

    Args:
        path: of the file.
        dtype: of the rows.
        device: where they are read to.
    """

    def __init__(self, path: Path, dtype: torch.dtype, device: torch.device):
        self.path, self.dtype, self.device = path, dtype, device
        self.kind = torch.empty(0, dtype=dtype).numpy().dtype
        self.width = 0
        self.places: dict[int, tuple[int, int]] = {}
        self.rows = 0

    def add(self, number: int, start: int, rows: int, width: int) -> None:
        """Says where the rows of a piece are."""
        self.places[number], self.width = (start, rows), width
        self.rows = max(self.rows, start + rows)

    def append(self, number: int, values: Tensor) -> tuple[int, int, int]:
        """Writes the rows of a piece; returns the arguments of :meth:`add`."""
        start, (rows, width) = self.rows, values.shape
        array = values.detach().to("cpu", self.dtype).contiguous().numpy()
        with self.path.open("r+b" if self.path.exists() else "wb") as file:
            file.seek(start * width * array.itemsize)
            file.write(array.tobytes())
            file.flush()
            os.fsync(file.fileno())
        self.add(number, start, rows, width)
        return start, rows, width

    def read(self, piece: Piece) -> Tensor:
        """The rows of a piece, on the device."""
        return self.rows_of(piece.number).to(self.device)

    def rows_of(self, number: int) -> Tensor:
        """The rows of a piece."""
        start, rows = self.places[number]
        with self.path.open("rb") as file:
            file.seek(start * self.width * self.kind.itemsize)
            values = np.fromfile(file, self.kind, rows * self.width)
        return torch.from_numpy(values).view(rows, self.width)


class PieceMaker:
    """Cuts a graph into pieces.

    Args:
        graph: of one structure or of several.
        order: ``[atoms]`` int64, of the atoms, such as :func:`by_boxes`; where the graph is.
        device: where pieces are made.

    Attributes:
        sorted_edges: ``[edges]`` int64: the edges, sorted by their receivers in this order.
        pointers: ``[atoms + 1]``: where each atom's edges begin there.
    """

    def __init__(self, graph: CrystalGraph, order: Tensor, device: torch.device):
        self.graph, self.order, self.device = graph, order, device
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device)
        self.sorted_edges = torch.argsort(place[graph.receivers], stable=True)
        counts = torch.bincount(place[graph.receivers], minlength=graph.num_atoms)
        self.pointers = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        self.local = torch.full_like(order, -1)

    def edges_of(self, first: int, last: int) -> Tensor:
        """int64: the incoming edges of the atoms ``order[first:last]``, in the pieces' order."""
        return self.sorted_edges[int(self.pointers[first]) : int(self.pointers[last])]

    def first(self, edges: int) -> Piece:
        """The first piece with so many edges or more, if there are as many."""
        last = int(torch.searchsorted(self.pointers, min(edges, int(self.pointers[-1]))))
        return self.piece(0, max(last, 1))

    def piece(self, first: int, last: int, number: int = 0) -> Piece:
        """That of the atoms ``order[first:last]``, on the device."""
        graph, own, edges = self.graph, self.order[first:last], self.edges_of(first, last)
        senders = graph.senders[edges]
        self.local[own] = torch.arange(len(own), device=own.device)
        others = senders[self.local[senders] < 0].unique()
        self.local[others] = len(own) + torch.arange(len(others), device=own.device)
        atoms = torch.cat([own, others])
        part = CrystalGraph(
            species=graph.species[atoms],
            i=self.local[graph.receivers[edges]],
            j=self.local[senders],
            shift=graph.shift[edges],
            vector=graph.vector[edges],
            reverse=torch.zeros_like(edges),
            atom_graph=graph.atom_graph[atoms],
            edge_graph=graph.edge_graph[edges],
            num_graphs=graph.num_graphs,
            labels=graph.labels,
        )
        self.local[atoms] = -1
        return Piece(part.to(self.device), len(own), atoms.to(self.device), number)


class Pieces:
    """Sweeps over one structure in pieces; see :class:`hamfast.models.sweeps.Sweeps`.

    Args:
        maker: of the pieces of the structure.
        edges_at_once: edges of a piece, the fewest that a process says; an atom that has more is
            one by itself.
        folder: for the features of edges; what an earlier evaluation of the same left there is
            gone on with.
        model: the network; its weights and ``key`` tell whether it is the same.
        rank, world: this process, and how many there are.
        report: called after every piece with the number of its atoms.

    Raises:
        HamfastError: the folder cannot be written, or there are fewer pieces than processes.
    """

    num_graphs = 1

    def __init__(
        self,
        maker: PieceMaker,
        edges_at_once: int,
        folder: Path,
        model: nn.Module,
        *,
        key: str = "",
        rank: int = 0,
        world: int = 1,
        report: Callable[[int], None] | None = None,
    ):
        self.maker, self.graph, self.folder, self.device = maker, maker.graph, folder, maker.device
        self.rank, self.world, self.report = rank, world, report or (lambda atoms: None)
        self.dtype = self.graph.vector.dtype
        self.species, self.atom_graph = self.graph.species.to(self.device), self.graph.atom_graph.to(self.device)
        self.journal = Journal(folder, rank, self._key(model, key))
        # Each process measures its own memory; the pieces must be the same in all of them.
        found: list[Any] = [(self.journal.edges_at_once, edges_at_once)] * world
        if world > 1:
            distributed.all_gather_object(found, found[0])
        before, edges_at_once = [one for one, _ in found], min(most for _, most in found)
        self.went_on = before[0] is not None and len(set(before)) == 1 and before[0] <= SLACK * edges_at_once
        edges_at_once = before[0] if self.went_on else edges_at_once
        self.bounds = bounds_of(maker.pointers.tolist(), edges_at_once)
        if len(self) < world:
            raise HamfastError(
                f"{', '.join(self.graph.labels)}: expected at most as many processes as pieces, found {world} and {len(self)}"
            )
        self.sweep = 0
        self.state = {"stopped": False}
        self.journal.begin(edges_at_once, self.went_on)

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def of_process(self, rank: int) -> list[int]:
        """The numbers of a process's pieces."""
        return np.array_split(np.arange(len(self)), self.world)[rank].tolist()

    def atoms_of(self, number: int) -> Tensor:
        """int64: the own atoms of a piece."""
        return self.maker.order[self.bounds[number] : self.bounds[number + 1]]

    def edges_of(self, number: int) -> Tensor:
        """int64: which edges of the graph a piece has, in its order."""
        return self.maker.edges_of(self.bounds[number], self.bounds[number + 1])

    # --- sweeps
    # ---------------------------------------------------------------------------------------------

    def nodes(self, function: Callable[[Piece], Tensor]) -> Tensor:
        """See :meth:`hamfast.models.sweeps.Sweeps.nodes`."""
        (found,), _ = self._run(lambda p: ((function(p)[: p.num_own],), ()))
        return found

    def edges(self, function: Callable[[Piece], tuple[Tensor, ...]]) -> tuple[RowFile, ...]:
        """See :meth:`hamfast.models.sweeps.Sweeps.edges`."""
        return self._run(lambda p: ((), function(p)))[1]

    def both(self, function: Callable[[Piece], tuple[Tensor, Tensor]]) -> tuple[Tensor, RowFile]:
        """See :meth:`hamfast.models.sweeps.Sweeps.both`."""

        def rows(piece: Piece):
            of_nodes, of_edges = function(piece)
            return (of_nodes[: piece.num_own],), (of_edges,)

        (nodes,), (edges,) = self._run(rows)
        return nodes, edges

    def normed(self, norm: EquivariantLayerNorm, field: RowFile) -> Callable[[Piece], Tensor]:
        """See :meth:`hamfast.models.sweeps.Sweeps.normed`."""
        path = self.folder / f"{self.sweep}-statistics-{self.rank}.pt"
        if path.exists():
            own = torch.load(path, weights_only=True)
        else:
            own = [self._statistics_of(norm, field, number) for number in self.of_process(self.rank)]
            torch.save(own, path)
        found: list[Any] = [None] * self.world
        if self.world > 1:
            distributed.all_gather_object(found, own)
        else:
            found = [own]
        parts = [Statistics(*(t.to(self.device) for t in one)) for many in found for one in many]
        statistics = _joined(norm, parts)
        return lambda piece: norm.normalized(field.read(piece), statistics, piece.graph.edge_graph)

    def _statistics_of(self, norm: EquivariantLayerNorm, field: RowFile, number: int) -> tuple[Tensor, ...]:
        rows = field.rows_of(number).to(self.device)
        graph = torch.zeros(len(rows), dtype=torch.int64, device=self.device)
        return tuple(t.cpu() for t in norm.statistics(rows, graph, 1))

    def _run(self, function) -> tuple[tuple[Tensor, ...], tuple[RowFile, ...]]:
        """One sweep: each piece's rows of atoms and of edges go into files."""
        sweep, self.sweep = self.sweep, self.sweep + 1
        files: dict[str, RowFile] = {}
        try:
            for number in self.of_process(self.rank):
                known = self.journal.done.get((sweep, number))
                if known is None:
                    of_nodes, of_edges = function(
                        self.maker.piece(self.bounds[number], self.bounds[number + 1], number)
                    )
                    names = [f"nodes{n}" for n in range(len(of_nodes))] + [f"edges{n}" for n in range(len(of_edges))]
                    entry: dict[str, list[int]] = {}
                    for name, rows in zip(names, (*of_nodes, *of_edges), strict=True):
                        entry[name] = list(self._file(files, sweep, name).append(number, rows))
                    self.journal.add(sweep, number, entry)
                else:
                    for name, where in known.items():
                        self._file(files, sweep, name).add(number, *where)
                self.report(self.bounds[number + 1] - self.bounds[number])
        except BaseException:
            self.state["stopped"] = True
            raise
        names = sorted(files)
        nodes = tuple(self._whole(files[name]) for name in names if name.startswith("nodes"))
        return nodes, tuple(files[name] for name in names if name.startswith("edges"))

    def _file(self, files: dict[str, RowFile], sweep: int, name: str) -> RowFile:
        if name not in files:
            path = self.folder / f"{sweep}-{name}-{self.rank}.rows"
            files[name] = RowFile(path, self.dtype, self.device)
            if name.startswith("edges"):  # those of atoms are wanted again where a later start goes on
                weakref.finalize(files[name], _remove, path, self.state).atexit = False
        return files[name]

    def _whole(self, file: RowFile) -> Tensor:
        """``[atoms, width]``, on the device, of the rows of all processes."""
        found = torch.zeros(self.graph.num_atoms, file.width, dtype=self.dtype)
        for number in file.places:
            found[self.atoms_of(number)] = file.rows_of(number)
        if self.world > 1:
            distributed.all_reduce(found)
        return found.to(self.device)

    def _key(self, model: nn.Module, what: str) -> str:
        found = hashlib.sha256(repr((what, self.rank, self.world, str(self.dtype), self.maker.order.tolist())).encode())
        for tensor in (*model.state_dict().values(), self.graph.species, self.graph.vector, self.graph.senders):
            found.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()

    def gathered(self, field: RowFile) -> np.memmap | None:
        """``[edges, width]`` on the first process, a file that is mapped: all rows of a field.

        They are in the order of the pieces. None on the other processes.
        """
        if self.rank:
            for number in self.of_process(self.rank):
                distributed.send(field.rows_of(number), 0)
            return None
        for rank in range(1, self.world):
            for number in self.of_process(rank):
                rows = torch.empty(len(self.edges_of(number)), field.width, dtype=self.dtype)
                distributed.recv(rows, rank)
                field.append(number, rows)
        return np.memmap(field.path, field.kind, "r", shape=(field.rows, field.width))

    def remove(self) -> None:
        """Removes the files: the evaluation has ended."""
        if self.world > 1:
            distributed.barrier()
        if self.rank == 0:
            shutil.rmtree(self.folder, ignore_errors=True)


def _remove(path: Path, state: dict[str, bool]) -> None:
    """Removes a file that nothing reads any more; one that was stopped is wanted again."""
    if not state["stopped"]:
        path.unlink(missing_ok=True)


def _joined(norm: EquivariantLayerNorm, parts: list[Statistics]) -> Statistics:
    """The statistics of all rows, of those of some each (Chan, Golub and LeVeque, 1983)."""
    rows = torch.stack([part.rows for part in parts])[..., None]
    mean = (rows * torch.stack([part.mean for part in parts])).sum(0) / rows.sum(0)
    squares = torch.stack([part.variance + (part.mean - mean).square() for part in parts])
    variance, scalar = torch.zeros_like(mean), norm.scalar_block.unique()
    variance[:, scalar] = ((rows * squares).sum(0) / rows.sum(0))[:, scalar]
    return Statistics(rows[..., 0].sum(0), mean, variance)


def by_boxes(positions: np.ndarray) -> Tensor:
    """``[atoms]`` int64: their numbers, those near each other mostly one after the other.

    Args:
        positions: ``[atoms, 3]`` angstrom.
    """
    x, y, z = np.floor((positions - positions.min(axis=0)) / BOX).astype(np.int64).T
    return torch.from_numpy(np.lexsort((z, np.where(x % 2, -y, y), x)))


def bounds_of(pointers: list[int], edges_at_once: int) -> list[int]:
    """Where pieces begin, and the number of atoms at the end."""
    bounds = [0]
    for atom in range(1, len(pointers)):
        if pointers[atom] - pointers[bounds[-1]] > edges_at_once and atom - 1 > bounds[-1]:
            bounds.append(atom - 1)
    return [*bounds, len(pointers) - 1]
