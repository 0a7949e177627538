"""From a checkpoint and a structure to Hamiltonian blocks."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from hamfast.analysis.expected_error import calibrated, uncertainty_of
from hamfast.analysis.uncertainty import FILE as UNCERTAINTY
from hamfast.analysis.uncertainty import Uncertainty
from hamfast.data.blocks import BlockMatrix
from hamfast.data.cell_size import prediction_warning
from hamfast.data.formats import detect, format_of, read_snapshot, read_structure, written_as
from hamfast.data.graphs import blocks_from_irreps, build_graph, species_index
from hamfast.data.snapshot import Snapshot, difference
from hamfast.errors import DataWarning, HamfastError
from hamfast.graph import batch_graphs
from hamfast.models.last_layer import captured_features
from hamfast.training import LoadedModel


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


@torch.no_grad()
def predict_batch(loaded: LoadedModel, snapshots: Sequence[Snapshot], level: float | None = None) -> list[Prediction]:
    """Predicts several structures at once, as one graph; see :func:`predict`.

    With a ``level`` they go through the network one by one, as its last layer's features are
    wanted of each.
    """
    model = loaded.model
    if level is not None:
        calibrated(model, snapshots[0].label).blocks.quantiles(level)
        if len(snapshots) > 1:
            return [predict(loaded, snapshot, level) for snapshot in snapshots]
    like = model.normalization.onsite_shift  # a model need not have parameters
    graphs = [build_graph(snapshot, model.spec, pair_cutoffs=loaded.pair_cutoffs) for snapshot in snapshots]
    for snapshot in snapshots:
        if model.overlap is not None:
            model.overlap.check_basis(snapshot)
        _warn(loaded, snapshot)
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
    if not bool(torch.isfinite(irreps).all()):
        raise HamfastError(
            f"{snapshot.label}: the model's prediction is not finite; expected numbers: are the weights those of a training "
            "that diverged?"
        )
    matrix = blocks_from_irreps(irreps.double(), graph, spec)
    # Pairs of the files that are longer than any the model knows.
    given = snapshot.hamiltonian or snapshot.overlap
    beyond = [] if given is None else [n for n, pair in enumerate(given.index) if pair not in matrix.index]
    if not beyond:
        return matrix
    assert given is not None
    species = species_index(snapshot, spec)
    zeros = [np.zeros(spec.block_shape(*species[given.pairs[n, 3:]].tolist()), matrix.entries.dtype) for n in beyond]
    return matrix.joined(given.pairs[beyond], zeros)


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
) -> Written:
    """Predicts the Hamiltonian of a structure folder and writes it, in the folder's layout.

    Of a DFT code's own folder it is the new DeepH layout.

    Of what ``target`` holds nothing but an earlier prediction is written over.

    Args:
        loaded: the model.
        folder: of the structure.
        target: ``folder`` itself, or another one that gets a copy of the structure; if it has no
            overlap, with the model's.
        precision: ``float64`` or ``float32``, of the written values.
        compress: the files, by gzip.
        level: see :func:`predict`.

    Raises:
        HamfastError: as :func:`predict`; or ``target`` holds another structure, or other files.
    """
    snapshot = read_snapshot(folder)
    layout = format_of(folder)
    apart = target.resolve() != folder.resolve()
    new = apart and not (target.exists() and any(target.iterdir()))
    if apart and not new:
        _check_same(snapshot, folder, target)
    prediction = predict(loaded, snapshot, level)
    matrix = rounded(prediction.refined, precision)
    if new:
        if snapshot.overlap is None and loaded.model.overlap is not None:  # bands need one
            snapshot.overlap = loaded.model.overlap.matrix(snapshot, matrix.pairs)
        layout.write(snapshot, target)
    path = layout.write_prediction(snapshot, matrix, target, compress)
    return Written(path, *write_uncertainty(prediction.uncertainty, snapshot, target, compress))


def write_uncertainty(
    uncertainty: Uncertainty | None, snapshot: Snapshot, target: Path, compress: bool
) -> tuple[Path | None, tuple[str, ...]]:
    """Writes the uncertainty beside a prediction, or removes that of an earlier one.

    Returns:
        Its path, and what there is to say; None and nothing without one.
    """
    if uncertainty is None:
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
    if format_of(target) is not written_as(format_of(folder)):
        why = f"layout {format_of(target).NAME}"
    if why is not None:
        raise HamfastError(f"{target}: holds another structure than {folder} ({why}); choose another --output")
