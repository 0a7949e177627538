"""Predictions in bounded memory: which structures go through the network in pieces, and their
blocks, some atoms' at a time (:mod:`hamfast.models.pieces`)."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from hamfast.data.blocks import BlockMatrix
from hamfast.data.graphs import blocks_from_irreps
from hamfast.data.snapshot import Snapshot
from hamfast.errors import HamfastError
from hamfast.graph import CrystalGraph
from hamfast.models.cascade import Cascade
from hamfast.models.covariant import CovariantNetwork
from hamfast.models.memory import APART, HIDDEN, MOST, free_memory, measured, used_memory
from hamfast.models.pieces import PieceMaker, Pieces, by_boxes
from hamfast.training.processes import Processes

SMALL = 50_000
"""Edges of a structure below which nothing is measured, unless the memory is given."""
FEWEST = 500
"""Edges of a piece below which pieces are of no use."""
SHARE = 0.8
"""Of the memory that is free, what is taken."""
WIDTHS = 12
"""So many rows of features of all atoms are there at a time."""
COPIES = 4
"""So many copies of all blocks are there at a time, where a structure goes through at once."""


@dataclass
class Limits:
    """What a prediction may take."""

    memory: float | None = None
    """Bytes, of this process on the model's device; None: what is free."""
    processes: Processes = field(default_factory=lambda: Processes(0, 1, 1))
    """That work on one structure together."""
    report: Callable[[str, int, int], Callable[[int], None]] | None = None
    """Is called with a structure's name, the number of its atoms and that of the sweeps; returns
    what is called with the number of atoms after every piece."""


@dataclass
class Needs:
    """How much memory, in bytes, a prediction needs on the model's device."""

    apart: float
    """Whatever the structure is."""
    per_atom: float
    """For each atom of the structure, in pieces."""
    per_edge: float
    """For each edge that is worked on, in pieces."""
    per_edge_at_once: float
    """For each edge of a structure that goes through at once: its blocks are in float64 there."""
    sweeps: int
    """How many the network has."""

    @staticmethod
    def of(model: Cascade, maker: PieceMaker) -> Needs:
        """Those of a model on its device, measured on two pieces of a structure."""
        apart, per_edge, sweeps = measured(model, maker)
        width = model.stage1.irreps_node.dim if isinstance(model.stage1, CovariantNetwork) else 0
        number = model.normalization.onsite_shift.element_size()
        return Needs(
            HIDDEN * apart,
            WIDTHS * width * number,
            HIDDEN * per_edge + COPIES * number * model.spec.dim,
            HIDDEN * per_edge + COPIES * 8 * model.spec.dim,
            sweeps,
        )

    def at_once(self, edges: int) -> float:
        """Of a structure of so many edges."""
        return self.apart + self.per_edge_at_once * edges

    def in_pieces(self, atoms: int, edges: int) -> float:
        """Of a structure of so many atoms, in pieces of so many edges."""
        return self.apart + self.per_atom * atoms + self.per_edge * edges


@dataclass
class Plan:
    """How a structure is worked off."""

    maker: PieceMaker
    edges_at_once: int
    sweeps: int


def plan_for(model: Cascade, snapshot: Snapshot, graph: CrystalGraph, limits: Limits) -> Plan | None:
    """The pieces of a structure; None if it goes through the network at once.

    Args:
        model: on its device, in its dtype.
        snapshot: the structure.
        graph: of it, on the CPU, in the model's dtype.
        limits: what it may take.

    Raises:
        HamfastError: the memory is too little for pieces, too.
    """
    world, edges = limits.processes.world, graph.num_edges
    if world == 1 and limits.memory is None and edges < SMALL:
        return None
    like = model.normalization.onsite_shift
    maker = PieceMaker(graph, by_boxes(snapshot.positions), like.device)
    needs = Needs.of(model, maker)
    free, used = free_memory(like.device), used_memory(like.device)
    if limits.memory is not None:
        free = limits.memory - used
    elif free is not None:
        free *= SHARE
    else:
        free = math.inf
    if world == 1 and needs.at_once(edges) < free:
        return None
    libraries = APART if like.device.type == "cpu" else 0.0
    at_once = (free - libraries - needs.in_pieces(graph.num_atoms, 0)) / needs.per_edge
    if at_once < FEWEST:
        least = libraries + needs.in_pieces(graph.num_atoms, FEWEST)
        taken = 0.0 if limits.memory is None else used  # of --memory
        raise HamfastError(
            f"{snapshot.label}: {graph.num_atoms} atoms need {(taken + least) / 1e9:.1f} GB at least, found "
            f"{(taken + free) / 1e9:.1f} GB"
        )
    return Plan(maker, int(min(at_once, MOST, math.ceil(edges / (2 * world)))), needs.sweeps)


@torch.no_grad()
def parts_of(model: Cascade, plan: Plan, folder: Path, limits: Limits, refine: bool = True) -> Iterator[BlockMatrix]:
    """The Hermitian blocks of a structure, eV, some atoms' rows at a time.

    On all processes but the first there are none.

    Args:
        model: on its device.
        plan: of the structure.
        folder: for features of edges. What an earlier call left there is gone on with; it is
            removed at the end.
        limits: what it may take.
        refine: False stops after stage 1.

    Raises:
        HamfastError: the folder cannot be written, or the prediction is not finite.
    """
    maker, graph = plan.maker, plan.maker.graph
    label, atoms = graph.labels[0], graph.num_atoms
    report = None if limits.report is None else limits.report(label, atoms, plan.sweeps)
    processes = limits.processes
    pieces = Pieces(
        maker,
        plan.edges_at_once,
        folder,
        model,
        key="refined" if refine else "stage 1",
        rank=processes.rank,
        world=processes.world,
        report=report,
    )
    rows = pieces.gathered(model.sweep(pieces, refine))
    if rows is not None:
        place = np.empty(graph.num_edges, dtype=np.int64)
        place[maker.sorted_edges.numpy()] = np.arange(graph.num_edges)
        for number in range(len(pieces)):
            edges = pieces.edges_of(number)
            own, back = (torch.from_numpy(rows[place[n.numpy()]]) for n in (edges, graph.reverse[edges]))
            index, sign = model.transpose_index.cpu(), model.transpose_sign.to("cpu", own.dtype)
            irreps = 0.5 * (own + back.index_select(1, index) * sign)
            check_finite(irreps, label)
            yield blocks_from_irreps(irreps.double(), graph.with_some_edges(edges), model.spec)
            # What was read of the file is no longer wanted, and would count as memory of ours.
            rows._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]
    pieces.remove()


def check_finite(irreps: torch.Tensor, label: str) -> None:
    """Raises HamfastError if a prediction is not finite."""
    if not bool(torch.isfinite(irreps).all()):
        raise HamfastError(
            f"{label}: the model's prediction is not finite; expected numbers: are the weights those of a training "
            "that diverged?"
        )
