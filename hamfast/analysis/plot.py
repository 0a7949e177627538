"""Figures."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from hamfast.analysis.bands import BandStructure, DensityOfStates
from hamfast.data.h5 import replacing

_STYLE = {"DFT": {"color": "0.55", "lw": 2.6, "ls": "-"}, "predicted": {"color": "#c0392b", "lw": 1.0, "ls": "--"}}


def plot_bands(
    bands: dict[str, BandStructure],
    path: Path,
    *,
    window: tuple[float, float],
    title: str = "",
    dos: dict[str, DensityOfStates] | None = None,
) -> Path:
    """All band structures in one panel, E_F at 0; the density of states in a second one."""
    figure, axes = plt.subplots(
        1,
        2 if dos else 1,
        figsize=(7.2 if dos else 5.4, 4.6),
        width_ratios=[3, 1] if dos else None,
        sharey=True,
        squeeze=False,
    )
    left = axes[0, 0]
    for name, band in bands.items():
        style = _STYLE.get(name, {"lw": 1.0})
        lines = left.plot(band.path.distance, band.energies - band.fermi_energy, **style)
        lines[0].set_label(name)
    first = next(iter(bands.values())).path
    left.set_xticks([d for d, _ in first.ticks], ["Γ" if n in ("G", "Gamma") else n for _, n in first.ticks])
    for distance, _ in first.ticks:
        left.axvline(distance, color="0.85", lw=0.7, zorder=0)
    left.axhline(0.0, color="0.3", lw=0.7, ls=":")
    left.set_xlim(first.distance[0], first.distance[-1])
    left.set_ylim(*window)
    left.set_ylabel("E - E$_F$ (eV)")
    left.set_title(title, fontsize=10)
    left.legend(loc="upper right", fontsize=8, framealpha=0.9)
    if dos:
        right = axes[0, 1]
        for name, curve in dos.items():
            right.plot(curve.density, curve.grid, **_STYLE.get(name, {}))
        right.set_xlabel("DOS (1 / eV)")
        right.set_xlim(left=0)
        right.axhline(0.0, color="0.3", lw=0.7, ls=":")
    figure.tight_layout()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=160, format=path.suffix.lstrip(".") or "png")
    plt.close(figure)
    return path
