"""The figure of ``hamfast bands``."""

from __future__ import annotations

import numpy as np

from hamfast.analysis.band_errors import BandErrors
from hamfast.analysis.bands import BandStructure, DensityOfStates
from hamfast.analysis.figure import StandaloneFigure
from hamfast.analysis.populations import Populations

_STYLE = {"DFT": {"color": "0.55", "lw": 2.6, "ls": "-"}, "predicted": {"color": "#c0392b", "lw": 1.0, "ls": "--"}}
DOT = 36.0
"""Points squared: the area of a dot for a share of 1."""


def plot_bands(
    bands: dict[str, BandStructure],
    *,
    window: tuple[float, float],
    title: str = "",
    dos: dict[str, DensityOfStates] | None = None,
    errors: BandErrors | None = None,
    shares: Populations | None = None,
    shares_of: str = "DFT",
    half_width: np.ndarray | None = None,
) -> StandaloneFigure:
    """All band structures in one panel, E_F at 0; the density of states in a second one.

    Lines join the points of one band. Levels that could not be counted are drawn as points. The
    errors stand above the panels and the gaps in the legend below, where they cover no band.

    Args:
        bands: name -> curve.
        window: eV around the Fermi level.
        title: above the figure.
        dos: name -> density of states.
        errors: of the predicted bands.
        shares: of the levels of one curve: each set of orbitals gets dots, as large as its share.
        shares_of: the name of that curve.
        half_width: ``[kpoints, columns]`` eV, of the predicted curve: a shade around each band.
    """
    figure = StandaloneFigure(figsize=(7.2 if dos else 5.4, 5.0), layout="constrained")
    axes = figure.subplots(1, 2 if dos else 1, width_ratios=[3, 1] if dos else None, sharey=True, squeeze=False)
    left = axes[0, 0]
    handles = []
    for name, band in bands.items():
        style = _STYLE.get(name, {"lw": 1.0})
        if band.first_band is None:
            style = {"color": style.get("color"), "ls": "none", "marker": ".", "ms": 3}
        elif not np.isfinite(band.energies).all():  # a level without a neighbour in its band is no line
            style = style | {"marker": ".", "ms": 3}
        energies = band.energies - band.fermi_energy
        lines = [
            line
            for piece in band.path.pieces
            for line in left.plot(band.path.distance[piece], energies[piece], **style)
        ]
        gap = "" if band.gap is None else f", gap {band.gap:.3f} eV"
        lines[0].set_label(f"{name}{gap}")
        handles.append(lines[0])
    if half_width is not None:
        handles.append(_shade(left, bands["predicted"], half_width))
    if shares is not None:
        handles += _dots(left, bands[shares_of], shares, window)
    first = next(iter(bands.values())).path
    left.set_xticks([d for d, _ in first.ticks], [_greek(n) for _, n in first.ticks])
    for distance, _ in first.ticks:
        left.axvline(distance, color="0.85", lw=0.7, zorder=0)
    left.axhline(0.0, color="0.3", lw=0.7, ls=":")
    left.set_xlim(first.distance[0], first.distance[-1])
    left.set_ylim(*window)
    left.set_ylabel("E - E$_F$ (eV)")
    heading = title.encode("utf-8", "replace").decode().replace("$", r"\$")
    if errors is not None:
        heading += f"\nmean |dE| {errors.levels_MAE:.1f} meV after a shift of {errors.shift:.1f} meV"
    figure.suptitle(heading, fontsize=10)
    if dos:
        right = axes[0, 1]
        for name, curve in dos.items():
            style = _STYLE.get(name, {})
            right.plot(curve.density, curve.grid, **style)
            if curve.error is not None:
                ends = curve.density - 2 * curve.error, curve.density + 2 * curve.error
                right.fill_betweenx(curve.grid, *ends, alpha=0.25, linewidth=0, color=style.get("color"))
            for n, part in enumerate(curve.parts.values()):
                right.plot(part, curve.grid, color=f"C{n}", lw=1.0)
        right.set_xlabel("DOS (states / eV / cell)")
        right.set_xlim(left=0)
        right.axhline(0.0, color="0.3", lw=0.7, ls=":")
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)), fontsize=8, frameon=False)
    return figure


def _shade(axes, band: BandStructure, half_width: np.ndarray):
    """A shade as wide as the uncertainty of each band, and its entry in the legend."""
    energies = band.energies - band.fermi_energy
    shade = {"color": _STYLE["predicted"]["color"], "alpha": 0.25, "lw": 0}
    for piece in band.path.pieces:
        for low, high in zip((energies - half_width)[piece].T, (energies + half_width)[piece].T, strict=True):
            axes.fill_between(band.path.distance[piece], low, high, **shade)
    return axes.fill_between([], [], [], label="uncertainty", **shade)


def _dots(axes, band: BandStructure, shares: Populations, window: tuple[float, float]) -> list:
    """Dots on the levels of a curve for each set of orbitals, and their entries in the legend."""
    energies = shares.energies - band.fermi_energy
    distance = np.broadcast_to(band.path.distance[:, None], energies.shape)
    with np.errstate(invalid="ignore"):
        shown = (energies > window[0]) & (energies < window[1])
    handles = []
    for n, name in enumerate(shares.names):
        size = DOT * np.clip(shares.shares[..., n][shown], 0, 1)
        color = f"C{n}"
        axes.scatter(distance[shown], energies[shown], s=size, color=color, alpha=0.5, lw=0, zorder=3)
        handles.append(axes.scatter([], [], s=DOT, color=color, alpha=0.5, lw=0, label=name))
    return handles


def _greek(name: str) -> str:
    return "|".join("Γ" if corner in ("G", "Gamma") else corner.replace("$", r"\$") for corner in name.split("|"))
