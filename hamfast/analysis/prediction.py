"""From a checkpoint and a structure to Hamiltonian blocks."""

from __future__ import annotations

import tempfile
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from hamfast.analysis.expected_error import calibrated, uncertainty_of
from hamfast.analysis.in_pieces import SMALL, Limits, check_finite, parts_of, plan_for
from hamfast.analysis.uncertainty import FILE as UNCERTAINTY
from hamfast.analysis.uncertainty import Uncertainty
from hamfast.data import deeph, packed
from hamfast.data.blocks import BlockMatrix, find_pairs, species_groups
from hamfast.data.cell_size import prediction_warning
from hamfast.data.formats import copied_as, detect, format_of, read_snapshot, read_structure
from hamfast.data.graphs import blocks_from_irreps, build_graph, species_index
from hamfast.data.matrix_file import MatrixFile
from hamfast.data.snapshot import Snapshot, difference
from hamfast.errors import DataWarning, HamfastError
from hamfast.graph import CrystalGraph, batch_graphs
from hamfast.models.last_layer import captured_features
from hamfast.targets import TargetSpec
from hamfast.training import LoadedModel

if TYPE_CHECKING:
    from hamfast.data.two_centre_overlap import TwoCentreOverlap


@dataclass
class Prediction:
    """Blocks in eV, in the order of the graph's pairs."""

    baseline: BlockMatrix
    """Stage 1."""
    refined: BlockMatrix
    """The cascade; the same object as ``baseline`` without a second stage."""
    uncertainty: Uncertainty | None = None
    """Of ``refined``, where it was asked for; of the graph's pairs."""


def predict(loaded: LoadedModel, snapshot: Snapshot, level: float | None = None) -> Prediction:
    """Predicts the Hamiltonian of a structure on the model's device.

    Of a network whose blocks are not Hermitian, as DeepH-E3's are not, it is the Hermitian part:
    that is what bands are of.

    The network sees the pairs that it was trained with, whatever list the structure's files have
    (:func:`hamfast.data.graphs.trained_pairs`). The result has these pairs and those of the files.

    Args:
        loaded: the model.
        snapshot: the structure.
        level: the share of blocks that their intervals are to hold; None: no uncertainty.

    Raises:
        HamfastError: an element or its orbitals are unknown to the model, or the result is not
            finite; the uncertainty is asked for and not calibrated, see
            :func:`hamfast.analysis.expected_error.uncertainty_of`.
    """
    return predict_batch(loaded, [snapshot], level)[0]


def predict_batch(loaded: LoadedModel, snapshots: Sequence[Snapshot], level: float | None = None) -> list[Prediction]:
    """Predicts several structures at once, as one graph; see :func:`predict`.

    With a ``level`` they go through the network one by one, as its last layer's features are
    wanted of each. So do large ones; one that the memory does not hold goes in pieces.
    """
    if level is not None and len(snapshots) > 1:
        return [predict(loaded, snapshot, level) for snapshot in snapshots]
    graphs = [graph_of(loaded, snapshot) for snapshot in snapshots]
    if level is None and max(graph.num_edges for graph in graphs) >= SMALL:
        return [_large(loaded, *one) for one in zip(snapshots, graphs, strict=True)]
    return at_once(loaded, snapshots, graphs, level)


def _large(loaded: LoadedModel, snapshot: Snapshot, graph: CrystalGraph) -> Prediction:
    with tempfile.TemporaryDirectory() as scratch:
        found = []
        for refine in (False, True)[loaded.model.stage2 is None :]:
            parts = predicted_parts(loaded, snapshot, graph, Path(scratch) / "pieces", Limits(), refine)
            if parts is None:
                return at_once(loaded, [snapshot], [graph], None)[0]
            found.append(BlockMatrix.one_after_the_other(list(parts)))
        return Prediction(found[0], found[-1])


@torch.no_grad()
def at_once(
    loaded: LoadedModel, snapshots: Sequence[Snapshot], graphs: list[CrystalGraph], level: float | None
) -> list[Prediction]:
    """Predicts structures as one graph, in the memory that this takes.

    Args:
        loaded: the model.
        snapshots: the structures.
        graphs: of each, see :func:`graph_of`.
        level: see :func:`predict`; with it there is one structure.

    Raises:
        HamfastError: as :func:`predict`.
    """
    model = loaded.model
    if level is not None:
        calibrated(model, snapshots[0].label).blocks.quantiles(level)
    like = model.normalization.onsite_shift  # a model need not have parameters
    batch = batch_graphs(graphs).to(like.device, like.dtype)
    with captured_features(model) as features:
        output = model(batch)
    uncertainty = None if level is None else uncertainty_of(model, batch, features, level)
    sizes = [graph.num_edges for graph in graphs]
    refined = output.refined.split(sizes)
    baseline = refined if output.refined is output.baseline else output.baseline.split(sizes)

    def blocks(irreps, graph, snapshot):
        matrix = _blocks(irreps, graph, snapshot, model.spec)
        return matrix if model.hermitian else matrix.hermitian_part()

    found = []
    for graph, snapshot, first, second in zip(graphs, snapshots, baseline, refined, strict=True):
        matrix = blocks(first, graph, snapshot)
        better = matrix if first is second else blocks(second, graph, snapshot)
        found.append(Prediction(matrix, better, uncertainty))
    return found


def predicted_parts(
    loaded: LoadedModel, snapshot: Snapshot, graph: CrystalGraph, folder: Path, limits: Limits, refine: bool = True
) -> Iterator[BlockMatrix] | None:
    """The blocks of a structure that needs more memory than there is, some atoms' at a time.

    Args:
        loaded: the model.
        snapshot: the structure.
        graph: of it, see :func:`graph_of`.
        folder: see :func:`hamfast.analysis.in_pieces.parts_of`.
        limits: what it may take.
        refine: False stops after stage 1.

    Returns:
        None if the structure goes through the network at once: see :func:`predict`.

    Raises:
        HamfastError: the memory is too little for pieces, too; a prediction is not finite.
    """
    model = loaded.model
    plan = plan_for(model, snapshot, graph.to(dtype=model.normalization.onsite_shift.dtype), limits)
    if plan is None:
        return None
    parts = parts_of(model, plan, folder, limits, refine)
    further = _further(snapshot, graph, model.spec)
    return parts if further is None else chain(parts, [further] if limits.processes.is_first else [])


def graph_of(loaded: LoadedModel, snapshot: Snapshot) -> CrystalGraph:
    """The graph that a model sees of a structure, on the CPU; says what is unusual about it.

    Raises:
        HamfastError: an element or its orbitals are unknown to the model.
    """
    graph = build_graph(snapshot, loaded.model.spec, pair_cutoffs=loaded.pair_cutoffs)
    if loaded.model.overlap is not None:
        loaded.model.overlap.check_basis(snapshot)
    _warn(loaded, snapshot)
    return graph


def _warn(loaded: LoadedModel, snapshot: Snapshot) -> None:
    """Says where a structure is outside what the training could teach."""
    model = loaded.model
    words = prediction_warning(model.receptive_field, model.half_cell, snapshot.half_cell)
    if words is not None:
        warnings.warn(f"{snapshot.label}: {words}", DataWarning, stacklevel=3)
    outside = [] if model.training_range is None else model.training_range.outside(snapshot)
    if outside:
        warnings.warn(
            f"{snapshot.label}: unlike the structures of the training, it has {'; '.join(outside)}; errors may be larger than "
            "on the test set",
            DataWarning,
            stacklevel=3,
        )


def _blocks(irreps, graph, snapshot, spec) -> BlockMatrix:
    check_finite(irreps, snapshot.label)
    matrix = blocks_from_irreps(irreps.double(), graph, spec)
    further = _further(snapshot, graph, spec)
    return matrix if further is None else BlockMatrix.one_after_the_other([matrix, further])


def _further(snapshot: Snapshot, graph: CrystalGraph, spec: TargetSpec) -> BlockMatrix | None:
    """Zeros for pairs of the files that are longer than any the model knows; None without such."""
    given = snapshot.first_matrix
    if given is None:
        return None
    own = torch.cat([graph.shift, graph.receivers[:, None], graph.senders[:, None]], dim=1).cpu().numpy()
    pairs = given.pairs[find_pairs(own, given.pairs) < 0]
    if not len(pairs):
        return None
    dtype = np.complex128 if spec.spinful else np.float64
    groups = species_groups(species_index(snapshot, spec), pairs)
    return BlockMatrix.from_groups(
        pairs, [(which, np.zeros((len(which), *spec.block_shape(a, b)), dtype)) for a, b, which in groups]
    )


class Written(NamedTuple):
    """What a prediction has written."""

    hamiltonian: Path
    uncertainty: Path | None = None
    lines: tuple[str, ...] = ()
    """What there is to say of the uncertainty."""


def write_prediction(
    loaded: LoadedModel,
    folder: Path,
    target: Path,
    precision: str = "float64",
    compress: bool = True,
    level: float | None = None,
    limits: Limits | None = None,
) -> Written | None:
    """Predicts the Hamiltonian of a structure and writes it, in its layout.

    Beside a DFT code's own files, and as a copy of a structure in ``structures.sqlite``, it is the
    new DeepH layout.

    Of what ``target`` holds nothing but an earlier prediction is written over.

    Args:
        loaded: the model.
        folder: of the structure.
        target: ``folder`` itself, or another one that gets a copy of the structure; if it has no
            overlap, with the model's.
        precision: ``float64`` or ``float32``, of the written values.
        compress: the files, by gzip.
        level: see :func:`predict`; with it the structure goes through the network at once.
        limits: what the prediction may take.

    Returns:
        None on all processes but the first.

    Raises:
        HamfastError: as :func:`predict`; or ``target`` holds another structure, or other files; or
            is in ``structures.sqlite``, which has no place for an uncertainty, nor for a prediction
            in pieces.
    """
    limits = limits or Limits()
    snapshot = read_snapshot(folder)
    apart = target.resolve() != folder.resolve()
    layout = copied_as(format_of(folder)) if apart else format_of(folder)
    if layout is packed and level is not None:
        raise HamfastError(f"{folder}: an uncertainty is a file of its own; choose a folder for it with --output")
    new = apart and not (target.exists() and any(target.iterdir()))
    if apart and not new:
        _check_same(snapshot, folder, target)
    graph = graph_of(loaded, snapshot)
    check_alone(level, limits)
    parts = None if level is not None else predicted_parts(loaded, snapshot, graph, scratch_of(target), limits)
    if parts is not None and layout is packed:
        raise HamfastError(f"{folder}: predicted in pieces, it is written in pieces; choose a folder with --output")
    if parts is not None and copied_as(layout) is deeph:
        if not limits.processes.is_first:
            deque(parts, maxlen=0)
            return None
        if new:
            layout.write(snapshot, target)
        missing = apart and snapshot.overlap is None and not (target / deeph.OVERLAP).exists()
        overlap = loaded.model.overlap if missing else None
        return Written(write_parts(parts, snapshot, target, precision, compress, overlap))
    uncertainty = None
    if parts is not None:
        found = list(parts)
        if not found:
            return None
        matrix = rounded(BlockMatrix.one_after_the_other(found), precision)
    else:
        prediction = at_once(loaded, [snapshot], [graph], level)[0]
        matrix, uncertainty = rounded(prediction.refined, precision), prediction.uncertainty
    if new:
        if snapshot.overlap is None and loaded.model.overlap is not None:  # bands need one
            snapshot.overlap = loaded.model.overlap.matrix(snapshot, matrix.pairs)
        layout.write(snapshot, target)
    path = layout.write_prediction(snapshot, matrix, target, compress)
    return Written(path, *write_uncertainty(uncertainty, snapshot, target, compress))


def check_alone(level: float | None, limits: Limits) -> None:
    """Raises HamfastError if an uncertainty is asked for of several processes."""
    if level is not None and limits.processes.world > 1:
        raise HamfastError(
            f"--uncertainty: expected one process, found {limits.processes.world}; it needs the whole structure at once"
        )


def scratch_of(target: Path) -> Path:
    """The folder beside a target that holds what a prediction in pieces has so far."""
    return target.absolute().parent / f".{target.name}.pieces"


def write_parts(
    parts: Iterator[BlockMatrix],
    snapshot: Snapshot,
    target: Path,
    precision: str,
    compress: bool,
    overlap: TwoCentreOverlap | None,
) -> Path:
    """Writes predicted blocks as they come, in the new DeepH layout; returns the path.

    Args:
        parts: the blocks.
        snapshot: the structure.
        target: its folder.
        precision, compress: see :func:`write_prediction`.
        overlap: makes the overlap that is written, too; None: that is not wanted.
    """
    with ExitStack() as stack:
        # The prediction is renamed into place first, as it comes to the stack last.
        s = None if overlap is None else stack.enter_context(MatrixFile(target / deeph.OVERLAP, True))
        h = stack.enter_context(MatrixFile(target / deeph.PREDICTION, compress))
        for part in parts:
            h.add(rounded(part, precision))
            if s is not None and overlap is not None:
                s.add(overlap.matrix(snapshot, part.pairs))
    (target / UNCERTAINTY).unlink(missing_ok=True)
    return target / deeph.PREDICTION


def write_uncertainty(
    uncertainty: Uncertainty | None, snapshot: Snapshot, target: Path, compress: bool
) -> tuple[Path | None, tuple[str, ...]]:
    """Writes the uncertainty beside a prediction, or removes that of an earlier one.

    Returns:
        Its path, and what there is to say; None and nothing without one.
    """
    if uncertainty is None:
        if target.is_dir():
            (target / UNCERTAINTY).unlink(missing_ok=True)
        return None, ()
    return uncertainty.write(target, compress), tuple(uncertainty.lines(snapshot))


def rounded(matrix: BlockMatrix, precision: str) -> BlockMatrix:
    """The matrix in ``float64``, as it is, or ``float32``."""
    if precision != "float32":
        return matrix
    entries = matrix.entries.astype(np.complex64 if np.iscomplexobj(matrix.entries) else np.float32)
    return BlockMatrix(matrix.pairs, matrix.shapes, matrix.boundaries, entries)


def _check_same(snapshot: Snapshot, folder: Path, target: Path) -> None:
    """Raises HamfastError if ``target`` holds anything but the structure of ``folder``."""
    if detect(target) is None:
        raise HamfastError(
            f"{target}: expected a new folder, or one of this structure, found other files; choose another --output"
        )
    there = read_structure(target)
    why = difference(snapshot, there, np.zeros((0, 5), dtype=np.int64))
    if format_of(target) is not copied_as(format_of(folder)):
        why = f"layout {format_of(target).NAME}"
    if why is not None:
        raise HamfastError(f"{target}: holds another structure than {folder} ({why}); choose another --output")
