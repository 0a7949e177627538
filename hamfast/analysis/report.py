"""``report.html``: what a run was trained on, how it went, and how well it does, in one file.

It opens without a network: figures are in the file.
"""

from __future__ import annotations

import base64
import csv
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hamfast.analysis.bands import band_structures
from hamfast.analysis.evaluation import metric_rows, shell_rows
from hamfast.analysis.figure import StandaloneFigure
from hamfast.analysis.plot import plot_bands
from hamfast.analysis.prediction import predict
from hamfast.data import read_snapshot
from hamfast.data.h5 import write_bytes
from hamfast.training import LoadedModel
from hamfast.training.card import card, evaluation_of
from hamfast.training.folder import CONFIG_FILE, MODEL_FILE

NAME = "report.html"
POINTS, WINDOW, MOST_ORBITALS = 40, (-4.0, 4.0), 700
"""Of the bands: k-points, eV, and rows of H(k) of which they take some seconds."""
STYLE = """
body { font: 15px/1.5 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse } td, th { padding: 2px 12px 2px 0; vertical-align: top; text-align: left }
td.number { text-align: right; font-variant-numeric: tabular-nums } img { max-width: 100% }
pre { background: #f4f4f4; padding: 1em; overflow-x: auto }
"""


def write_report(run: Path, bands: StandaloneFigure | None = None) -> Path:
    """Writes the report of a finished run from the files in its folder; returns its path.

    Args:
        run: the folder, with ``model.ckpt``; errors are shown if ``evaluation.json`` is there.
        bands: of a structure, predicted over DFT.

    Raises:
        HamfastError: the checkpoint cannot be read, or the report not be written.
    """
    model = run / MODEL_FILE
    parts = [f"<h1>{html.escape(run.name)}</h1>", "<h2>Model and data</h2>", _pairs(card(model))]
    losses = _losses(run)
    if losses is not None:
        parts += ["<h2>Training</h2>", _image(losses, "losses by epoch")]
    found = evaluation_of(model)
    if found is not None:
        parts += [f"<h2>Errors of {len(found['structures'])} structures</h2>", _errors(found["stages"])]
        parts.append(_image(_by_distance(found["stages"]), "errors by distance"))
    if bands is not None:
        parts += ["<h2>Bands</h2>", _image(bands, "bands of DFT and predicted")]
    config = run / CONFIG_FILE
    if config.is_file():
        parts += ["<h2>Configuration</h2>", f"<pre>{html.escape(config.read_text(encoding='utf-8'))}</pre>"]
    head = f'<meta charset="utf-8"><title>{html.escape(run.name)}</title><style>{STYLE}</style>'
    text = f"<!doctype html><html><head>{head}</head><body>{''.join(parts)}</body></html>"
    path = run / NAME
    write_bytes(path, text.encode("utf-8", "replace"))
    return path


def bands_of(loaded: LoadedModel, folder: Path) -> StandaloneFigure | None:
    """Predicted bands of a structure over those of DFT, along ASE's path.

    None if it has no overlap, or more orbitals than all bands are computed of.
    """
    snapshot = read_snapshot(folder)
    if snapshot.hamiltonian is None or snapshot.overlap is None or snapshot.matrix_size > MOST_ORBITALS:
        return None
    matrices = {"DFT": snapshot.hamiltonian, "predicted": predict(loaded, snapshot).refined}
    curves = band_structures(snapshot, matrices, None, points=POINTS)
    return plot_bands(curves, window=WINDOW, title=snapshot.label)


def _pairs(rows: Sequence[tuple[str, str]]) -> str:
    cells = (f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in rows)
    return f"<table>{''.join(cells)}</table>"


def _image(figure: StandaloneFigure, words: str) -> str:
    content = base64.b64encode(figure.image("png")).decode()
    return f'<p><img alt="{html.escape(words)}" src="data:image/png;base64,{content}"></p>'


def _losses(run: Path) -> StandaloneFigure | None:
    """The losses of all phases, one after the other; None if there was no training."""
    phases = [(p, p / "logs" / "metrics.csv") for p in map(run.joinpath, ("stage1", "stage2", "joint"))]
    texts = {folder.name: path.read_text(encoding="utf-8") for folder, path in phases if path.is_file()}
    rows = {name: list(csv.DictReader(text.splitlines())) for name, text in texts.items()}
    rows = {name: own for name, own in rows.items() if own}
    if not rows:
        return None
    figure = StandaloneFigure(figsize=(7.2, 3.2), layout="constrained")
    axes = figure.subplots()
    done = 0
    for n, (name, own) in enumerate(rows.items()):
        epochs = [done + int(row["epoch"]) + 1 for row in own]
        for column, style in (("train_loss_meV", ":"), ("val_loss_meV", "-")):
            label = f"{name}, {'training' if column.startswith('train') else 'validation'}"
            axes.plot(epochs, [float(row[column]) for row in own], style, color=f"C{n}", label=label)
        done = epochs[-1]
    axes.set(xlabel="epoch", ylabel="loss (meV)", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    return figure


def _errors(stages: dict[str, dict[str, Any]]) -> str:
    """The metrics of each stage, and the errors of the worst shell pairs."""
    rows = [("error, meV", list(stages)), *metric_rows(stages), *shell_rows(stages, 8)]
    cells = (
        f"<tr><th>{html.escape(name)}</th>{''.join(f'<td class=number>{html.escape(v)}</td>' for v in values)}</tr>"
        for name, values in rows
    )
    return f"<table>{''.join(cells)}</table>"


def _by_distance(stages: dict[str, dict[str, Any]]) -> StandaloneFigure:
    figure = StandaloneFigure(figsize=(7.2, 2.8), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(stages)
    names: list[str] = []
    for n, (stage, errors) in enumerate(stages.items()):
        names = list(errors["MAE_by_distance"])
        axes.bar([i + n * width for i in range(len(names))], errors["MAE_by_distance"].values(), width, label=stage)
    axes.set_xticks([i + 0.4 - width / 2 for i in range(len(names))], names, fontsize=8)
    axes.set(ylabel="MAE of H (meV)", yscale="log", xlabel="length of the pair")
    axes.legend(fontsize=8)
    return figure
