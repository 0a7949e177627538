"""Evaluation of a model on structures with DFT Hamiltonians: stage 1 beside the cascade."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from hamfast.analysis.coverage import Coverage
from hamfast.analysis.equivariance import equivariance_error
from hamfast.analysis.metrics import ErrorSums, reference_bands
from hamfast.analysis.prediction import predict
from hamfast.analysis.uncertainty import LEVEL
from hamfast.data import read_snapshot
from hamfast.data.formats import names_apart
from hamfast.data.h5 import read_json
from hamfast.errors import HamfastError
from hamfast.training import LoadedModel

CLOSED_FORM, STAGE1, CASCADE = "closed form", "stage 1", "cascade"


def evaluate(
    loaded: LoadedModel,
    folders: Sequence[Path],
    *,
    eigenvalues: bool = True,
    level: float = LEVEL,
    report: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """All metrics of stage 1 and of the cascade over structures, in meV.

    Args:
        loaded: the model.
        folders: of the structures, which have DFT Hamiltonians.
        eigenvalues: compare band energies, too.
        level: that uncertainties state, of a model that has them.
        report: called after each structure.

    Returns:
        What ``hamfast evaluate`` writes as JSON: ``unit``, ``structures`` (their names) and
        ``stages``, which has the metrics of ``stage 1`` and of ``cascade``. A model without stage 1
        has ``closed form`` alone. Of a model with calibrated uncertainties there is
        ``uncertainty``, see :class:`hamfast.analysis.coverage.Coverage`; it is of the last stage.

    Raises:
        HamfastError: there are no folders, or one has no DFT Hamiltonian.
    """
    if not folders:
        raise HamfastError("evaluate: there are no structures")
    first = CLOSED_FORM if loaded.config.stage1 is None else STAGE1
    stages = [first] + ([CASCADE] if loaded.model.stage2 is not None else [])
    sums = {stage: ErrorSums() for stage in stages}
    equivariance: dict[str, list[float]] = {stage: [] for stage in stages}
    coverage = None if loaded.model.error_model is None else Coverage(level)
    names = names_apart(folders)
    for folder, name in zip(folders, names, strict=True):
        snapshot = read_snapshot(folder)
        if snapshot.hamiltonian is None:
            raise HamfastError(f"{folder}: there is no DFT Hamiltonian to compare with")
        snapshot.label = name
        prediction = predict(loaded, snapshot, None if coverage is None else level)
        reference = reference_bands(snapshot) if eigenvalues else None
        for stage in stages:
            matrix = prediction.refined if stage == CASCADE else prediction.baseline
            sums[stage].add(snapshot, matrix)
            if reference is not None:
                sums[stage].add_eigenvalues(snapshot, matrix, reference=reference)
        if coverage is not None:
            coverage.add(snapshot, prediction, reference)
        if len(equivariance[first]) < 2:  # a property of the model more than of the structure
            for stage in stages:
                error = equivariance_error(loaded.model, snapshot, rotations=2, refine=stage == CASCADE)
                equivariance[stage].append(error)
        if report is not None:
            report()
    result = {}
    for stage in stages:
        result[stage] = sums[stage].summary()
        result[stage]["equivariance_error"] = sum(equivariance[stage]) / len(equivariance[stage])
    found = {"unit": "meV", "structures": names, "stages": result}
    return found if coverage is None else found | {"uncertainty": coverage.summary()}


_ROWS = (
    ("MAE_all", "MAE of all matrix elements"),
    ("MAE_gauge_removed", "  after removing mu S"),
    ("MAE_cha_s", "MAE of the worst structure"),
    ("MAE_cha_b", "MAE of the worst shell pair"),
    ("MAE_onsite", "MAE on-site"),
    ("eigenvalue_MAE", "band energies, occupied and to 3 eV from E_F"),
    ("eigenvalue_shift", "  constant shift that was removed"),
    ("gap_error", "  gap"),
    ("valence_edge_error", "  valence band edge"),
    ("conduction_edge_error", "  conduction band edge"),
    ("structures_with_ghosts", "  structures with ghost states, left out"),
    ("equivariance_error", "equivariance error (relative)"),
)
_COUNTS = ("structures_with_ghosts",)


def evaluation_table(
    result: dict[str, Any], label_noise: dict[str, float] | None = None, title: str = "Test set"
) -> Table:
    """The table that ``hamfast evaluate`` prints.

    Args:
        result: of :func:`evaluate`.
        label_noise: the same metrics of the DFT data itself, for a column of its own.
        title: what was evaluated.
    """
    table = Table(title=f"{escape(title)}: {len(result['structures'])} structures, errors in meV")
    table.add_column("metric")
    for stage in result["stages"]:
        table.add_column(stage, justify="right")
    if label_noise:
        table.add_column("DFT label noise", justify="right")
    keys = {name: key for key, name in _ROWS}
    for name, cells in metric_rows(result["stages"]):
        if label_noise:
            cells.append(f"{label_noise[keys[name]]:.4f}" if keys[name] in label_noise else "")
        table.add_row(name, *cells)
    first = next(iter(result["stages"].values()))
    if len(first["MAE_by_structure"]) <= 8:
        for label in first["MAE_by_structure"]:
            cells = [f"{stages['MAE_by_structure'][label]:.3f}" for stages in result["stages"].values()]
            table.add_row(escape(f"  {label}"), *cells, *([""] if label_noise else []))
        for label, errors in first["bands_by_structure"].items():
            if errors["gap_DFT"] is not None:
                gaps = [stages["bands_by_structure"][label]["gap_predicted"] for stages in result["stages"].values()]
                cells = ["-" if gap is None else f"{gap:.1f}" for gap in gaps]
                table.add_row(
                    escape(f"  {label}: predicted gap (DFT: {errors['gap_DFT']:.1f})"),
                    *cells,
                    *([""] if label_noise else []),
                )
    for name, cells in shell_rows(result["stages"], 5):
        table.add_row(f"  {name}", *cells, *([""] if label_noise else []))
    for distance in first["MAE_by_distance"]:
        cells = [f"{stages['MAE_by_distance'][distance]:.3f}" for stages in result["stages"].values()]
        table.add_row(f"  pairs at {distance}", *cells, *([""] if label_noise else []))
    return table


def metric_rows(stages: dict[str, dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """Name of each metric that is known, and its value for each stage of :func:`evaluate`."""
    rows = []
    for key, name in _ROWS:
        values = [metrics[key] for metrics in stages.values()]
        if all(v is None or (key in _COUNTS and not v) for v in values):
            continue
        form = "d" if key in _COUNTS else ".1e" if key == "equivariance_error" else ".3f"
        rows.append((name, ["-" if v is None else format(v, form) for v in values]))
    return rows


def shell_rows(stages: dict[str, dict[str, Any]], most: int) -> list[tuple[str, list[str]]]:
    """The shell pairs with the largest errors of the first stage, and their errors in each."""
    errors = [metrics["MAE_by_shell_pair"] for metrics in stages.values()]
    worst = sorted(errors[0], key=lambda name: -errors[0][name])[:most]
    return [(f"shells {name}", [f"{own[name]:.3f}" for own in errors]) for name in worst]


def coverage_table(found: dict[str, Any]) -> Table:
    """The table of what uncertainties are worth; ``found`` is of
    :meth:`hamfast.analysis.coverage.Coverage.summary`."""
    table = Table(title=f"Uncertainty: {found['level']:.0%} of each kind are to lie within; meV")
    for name in ("kind", "within", "worst structure", "mean half-width", "mean error", "rank corr."):
        table.add_column(name, justify="left" if name == "kind" else "right")
    for name, values in found.items():
        if name == "level":
            continue
        rank = values["rank_correlation"]
        table.add_row(
            name,
            f"{values['coverage']:.1%}",
            f"{values['coverage_of_worst_structure']:.1%}",
            f"{values['mean_half_width']:.3f}",
            f"{values['mean_error']:.3f}",
            "-" if rank is None else f"{rank:.2f}",
        )
    return table


def read_label_noise(path: Path) -> dict[str, float]:
    """Metrics of the DFT data itself, meV, from a JSON file ``{"meV": {"MAE_all": 0.1}}``.

    Raises:
        HamfastError: the file is something else.
    """
    noise = read_json(path).get("meV")
    if not isinstance(noise, dict) or not all(
        isinstance(v, (int, float)) and not isinstance(v, bool) and np.isfinite(v) for v in noise.values()
    ):
        raise HamfastError(f'{path}: expected {{"meV": {{"MAE_all": 0.1, ...}}}}, found meV = {noise!r}')
    return noise
