"""How far predicted bands are from those of DFT.

It is one measure, for both ``hamfast bands`` and ``hamfast evaluate``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from hamfast.analysis.fermi import band_edges, edges_known

MEV = 1e3


@dataclass(frozen=True)
class BandErrors:
    """Errors of predicted levels, in meV. The n-th band is compared with the n-th."""

    levels_MAE: float
    """Mean |dE - shift| over the levels that count."""
    shift: float
    """The constant that was removed: the median of dE, for which ``levels_MAE`` is smallest. It is
    no error, as a shift of all levels is a choice of the zero of energy."""
    gap_DFT: float | None
    """None if the number of occupied bands is not known or not whole, or if an edge is not known at
    every k-point. So are the values below."""
    gap_predicted: float | None
    """At least 0, as ``gap_DFT``."""
    valence_edge_error: float | None
    """Of the highest occupied level, the shift removed."""
    conduction_edge_error: float | None
    """Of the lowest unoccupied level, the shift removed."""

    @property
    def gap_error(self) -> float | None:
        """Predicted minus DFT; None if one of the two is not known."""
        if self.gap_DFT is None or self.gap_predicted is None:
            return None
        return self.gap_predicted - self.gap_DFT

    def as_dict(self) -> dict[str, float | None]:
        """Name -> meV, for JSON."""
        return asdict(self) | {"gap_error": self.gap_error}


def band_errors(
    reference: np.ndarray,
    predicted: np.ndarray,
    *,
    fermi: float,
    predicted_fermi: float,
    window: tuple[float, float],
    occupied: int | None,
) -> BandErrors | None:
    """Errors of predicted levels.

    These levels count: those within ``window`` of the Fermi level in DFT, those within it in the
    prediction, and all occupied ones. So a level that moved out of the window, or into it, is not
    passed over.

    Args:
        reference, predicted: ``[kpoints, bands]`` eV, the same band in the same column; NaN where
            one is not known.
        fermi, predicted_fermi: eV, each in the scale of its levels.
        window: eV around the Fermi level.
        occupied: the number of columns that are occupied bands; None if that is not known or
            differs from k to k.

    Returns:
        None if no level counts.
    """
    counts = levels_that_count(
        reference, predicted, fermi=fermi, predicted_fermi=predicted_fermi, window=window, occupied=occupied
    )
    if not counts.any():
        return None
    difference = (predicted - reference)[counts]
    shift = float(np.median(difference))
    gaps: tuple[float | None, float | None] = (None, None)
    edges: tuple[float | None, float | None] = (None, None)
    if occupied is not None and edges_known(reference, occupied) and edges_known(predicted, occupied):
        (valence, conduction), (valence_p, conduction_p) = (band_edges(e, occupied) for e in (reference, predicted))
        gaps = max(0.0, conduction - valence) * MEV, max(0.0, conduction_p - valence_p) * MEV
        edges = (valence_p - shift - valence) * MEV, (conduction_p - shift - conduction) * MEV
    return BandErrors(float(np.abs(difference - shift).mean()) * MEV, shift * MEV, *gaps, *edges)


def levels_that_count(
    reference: np.ndarray,
    predicted: np.ndarray,
    *,
    fermi: float,
    predicted_fermi: float,
    window: tuple[float, float],
    occupied: int | None,
) -> np.ndarray:
    """``[kpoints, bands]`` bool; the arguments are those of :func:`band_errors`."""
    counts = _within(reference - fermi, window) | _within(predicted - predicted_fermi, window)
    if occupied is None:
        counts |= reference <= fermi
    else:
        counts |= np.arange(reference.shape[1]) < occupied
    return counts & np.isfinite(reference) & np.isfinite(predicted)


def _within(energies: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return (energies > window[0]) & (energies < window[1])
