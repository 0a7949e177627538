"""Calibration of a trained model's uncertainties; nothing is trained.

The training set gives the noise and the spread of the last map, see
:mod:`hamfast.models.error_model`. The validation set gives t and the scores.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from hamfast.analysis.band_errors import levels_that_count
from hamfast.analysis.band_uncertainty import WINDOW, level_errors
from hamfast.analysis.eigen import eigen_problem
from hamfast.analysis.expected_error import uncertainty_of
from hamfast.analysis.fermi import occupied_bands, whole_electrons
from hamfast.analysis.ghosts import leave_out_ghosts
from hamfast.analysis.metrics import ReferenceBands, reference_bands
from hamfast.analysis.uncertainty import Uncertainty
from hamfast.data import GraphDataset, read_snapshot, read_split
from hamfast.data.blocks import BlockMatrix
from hamfast.data.graphs import blocks_from_irreps
from hamfast.data.snapshot import Snapshot
from hamfast.data.summary import sample
from hamfast.data.tensor_file import save_tensors
from hamfast.errors import DataWarning, HamfastError
from hamfast.graph import ONSITE, CrystalGraph
from hamfast.models import Cascade
from hamfast.models.conformal import BlockScores, Scores
from hamfast.models.error_model import GROUPS, ErrorModel, HeadSums, run
from hamfast.training import LoadedModel, load_model
from hamfast.training.checkpoint import read_checkpoint

MOST_TRAINING, MOST_HELD_OUT, MOST_BANDS = 200, 100, 20
"""So many structures, from all over the set, are enough."""
MIXINGS = (0.0, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
"""Candidates for t."""
FEWEST = 10
"""Held-out structures from which t is chosen. What a few of them tell is how they differ from each
other: chosen by five, intervals were narrower and held less in larger cells."""
SMALLEST = 1e-12
"""eV, below which no error is expected."""


class HeldOut(NamedTuple):
    """The blocks of one held-out structure, each and its reverse once."""

    first: np.ndarray
    second: np.ndarray
    """``[blocks]`` int64: species."""
    length: np.ndarray
    """``[blocks]`` angstrom."""
    error: np.ndarray
    """``[blocks]`` eV: root mean square of an element."""
    independent: np.ndarray
    shared: np.ndarray
    """``[blocks]`` eV^2, see :class:`hamfast.models.error_model.Spread`."""


def calibrate(
    loaded: LoadedModel, training: Sequence[Path], held_out: Sequence[Path], report: Callable[[], None] = lambda: None
) -> ErrorModel:
    """Gives a model its error model.

    Args:
        loaded: the model.
        training: structure folders that it was trained on.
        held_out: of structures that it was not trained on.
        report: called after each structure, twice for each one held out.

    Returns:
        The error model, which ``loaded.model`` has from now on.

    Raises:
        HamfastError: a structure cannot be read, or has no Hamiltonian; fewer than 10 blocks are
            held out.
    """
    model = loaded.model
    training, held_out = sample(training, MOST_TRAINING), sample(held_out, MOST_HELD_OUT)
    sums = HeadSums(model.spec, min(GROUPS, len(training)))
    for n, graph in enumerate(_graphs(loaded, training)):
        output, features, scale = run(model, graph)
        sums.add(graph, features, ((graph.known_target() - output) / scale).double(), n % sums.groups)
        report()
    errors = ErrorModel(model.spec, sums.noise(), sums.heads(), structures=(len(training), len(held_out)))
    found = []
    for graph in _graphs(loaded, held_out):
        found.append(_held_out(model, errors, graph))
        report()
    together = HeldOut(*(np.concatenate(parts) for parts in zip(*found, strict=True)))
    where = together.first, together.second, together.length
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # the second time they are fitted, they warn
        classes = BlockScores.fit(*where, np.ones(len(together.error)))
    errors.mixing = (choose_mixing(found, classes, False), choose_mixing(found, classes, True))
    t = np.where(together.length < ONSITE, errors.mixing[1], errors.mixing[0])
    sigma = np.sqrt(together.independent + t**2 * together.shared)
    errors.blocks = BlockScores.fit(*where, together.error / np.maximum(sigma, SMALLEST))
    model.error_model = errors
    chosen, scores = sample(held_out, MOST_BANDS), []
    for folder in held_out:
        if folder in chosen:
            compared = _band_scores(loaded, folder)
            if compared is not None:
                scores.append(compared)
        report()
    if scores:
        errors.bands = Scores.of(np.concatenate(scores))
    return errors


def _graphs(loaded: LoadedModel, folders: Sequence[Path]):
    like = loaded.model.normalization.onsite_shift
    for graph in GraphDataset(folders, loaded.model.spec, None, like.dtype):
        yield graph.to(like.device)


def _held_out(model: Cascade, errors: ErrorModel, graph: CrystalGraph) -> HeldOut:
    output, features, scale = run(model, graph)
    spread = errors.spread(model, graph, features, scale)
    error = errors.mean_square(graph, graph.known_target() - output).sqrt()
    once = torch.arange(graph.num_edges, device=graph.reverse.device) <= graph.reverse
    species = graph.species
    parts = (species[graph.i], species[graph.j], graph.length.double(), error, spread.independent, spread.shared)
    return HeldOut(*(part[once].cpu().numpy() for part in parts))


def choose_mixing(found: Sequence[HeldOut], classes: BlockScores, onsite: bool) -> float:
    """t of one kind of block.

    Each structure is left out once. The likelihood of its errors is that of normal numbers whose
    variance has a factor per class, from the other structures. Of ``MIXINGS`` it is the smallest
    within one standard error of the best (the rule of Breiman et al., Classification and Regression
    Trees, 1984). With fewer than ``FEWEST`` structures it is 1.

    Args:
        found: the structures.
        classes: of blocks; their scores are not read.
        onsite: on-site blocks, or hoppings.
    """
    if len(found) < FEWEST:
        return 1.0
    own = [HeldOut(*(part[(h.length < ONSITE) == onsite] for part in h)) for h in found]
    which = [classes.class_of(h.first, h.second, h.length) for h in own]
    loss = np.full((len(MIXINGS), len(own)), np.nan)
    for row, t in enumerate(MIXINGS):
        square = [np.maximum(h.independent + t**2 * h.shared, SMALLEST**2) for h in own]
        ratio = [np.maximum(h.error, SMALLEST) ** 2 / s for h, s in zip(own, square, strict=True)]
        for n in range(len(own)):
            others = [m for m in range(len(own)) if m != n]
            names, values = (np.concatenate([part[m] for m in others]) for part in (which, ratio))
            count = np.bincount(names, minlength=len(classes.classes))
            factor = np.bincount(names, values, minlength=len(classes.classes)) / np.maximum(count, 1)
            known = count[which[n]] > 0
            if known.any():
                scale = factor[which[n][known]]
                terms = np.log(scale * square[n][known]) + ratio[n][known] / scale
                loss[row, n] = terms.mean()
    usable = np.isfinite(loss).all(axis=0)
    if usable.sum() < 2:
        return 1.0
    loss = loss[:, usable]
    worse = loss - loss[loss.mean(axis=1).argmin()]
    error = worse.std(axis=1, ddof=1) / np.sqrt(loss.shape[1])
    return MIXINGS[int(np.flatnonzero(worse.mean(axis=1) <= error)[0])]


def _band_scores(loaded: LoadedModel, folder: Path) -> np.ndarray | None:
    snapshot = read_snapshot(folder)
    reference = reference_bands(snapshot)
    graph = next(_graphs(loaded, [folder]))
    if reference is None:
        return None
    output, features, _ = run(loaded.model, graph)
    matrix = blocks_from_irreps(output.double(), graph, loaded.spec)
    uncertainty = uncertainty_of(loaded.model, graph, features, 0.5)
    found = band_comparison(snapshot, reference, matrix, uncertainty)
    return None if found is None else found[0] / np.maximum(found[1], SMALLEST)


def band_comparison(
    snapshot: Snapshot, reference: ReferenceBands, matrix: BlockMatrix, uncertainty: Uncertainty
) -> tuple[np.ndarray, np.ndarray] | None:
    """Errors of predicted levels, and expected ones, ``[levels]`` eV both.

    They are of the levels that count in ``hamfast evaluate``, and the median error is removed.

    Args:
        snapshot: the structure.
        reference: levels of DFT.
        matrix: the predicted Hamiltonian.
        uncertainty: of it.

    Returns:
        None if no level counts.
    """
    exact, ours = reference.problem, eigen_problem(snapshot, matrix)
    ours.occupation = exact.occupation
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # where H is evaluated, the same is said
        leave_out_ghosts(ours, reference.kpoints, snapshot.label)
    levels = level_errors(snapshot, ours, uncertainty, reference.kpoints)
    counts = levels_that_count(
        reference.energies,
        levels.energies,
        fermi=exact.fermi_energy_of(reference.energies[: reference.mesh]),
        predicted_fermi=ours.fermi_energy_of(levels.energies[: reference.mesh]),
        window=(-WINDOW, WINDOW),
        occupied=occupied_bands(whole_electrons(exact.electrons()), exact.degeneracy),
    )
    if not counts.any():
        return None
    error = (levels.energies - reference.energies)[counts]
    return np.abs(error - np.median(error)), levels.spread(counts)[counts]


def calibrate_file(
    path: Path,
    target: Path,
    root: Path | None = None,
    split: Path | None = None,
    device: str = "cpu",
    start: Callable[[int], Callable[[], None]] = lambda steps: lambda: None,
) -> ErrorModel:
    """Writes a checkpoint with calibrated uncertainties; all else in it stays.

    Args:
        path: of the checkpoint.
        target: file to write, ``path`` itself or another one.
        root: of the data set; None: that of the training.
        split: its split; None: that of the training, or ``dataset_split.json`` of ``root``.
        device: where the model runs.
        start: is given the number of steps, and returns what is called after each.

    Raises:
        HamfastError: as :func:`calibrate`, or there is no data set.
    """
    checkpoint, loaded = read_checkpoint(path), load_model(path, device)
    data = loaded.config.data
    if root is None:
        root = Path(data.root)
        split = Path(data.split) if split is None and data.split is not None else split
        if not root.exists():
            raise HamfastError(
                f"{path}: its data set {root} is not here; expected --root with the folder of its data set"
            )
    folders = read_split(root, split)
    steps = len(sample(folders["train"], MOST_TRAINING)) + 2 * len(sample(folders["validate"], MOST_HELD_OUT))
    errors = calibrate(loaded, folders["train"], folders["validate"], start(steps))
    checkpoint["hamfast"]["error_model"] = errors.state()
    save_tensors(checkpoint, target)
    return errors
