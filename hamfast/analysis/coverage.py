"""What stated uncertainties are worth: how many errors they hold, how wide they are, and whether
larger ones have larger errors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from hamfast.analysis.calibration import SMALLEST, band_comparison
from hamfast.analysis.metrics import ReferenceBands
from hamfast.analysis.prediction import Prediction
from hamfast.analysis.uncertainty import MEV
from hamfast.data.snapshot import Snapshot
from hamfast.graph import ONSITE

NEAR = 4.0
"""Angstrom: hoppings up to this length are near ones."""


@dataclass
class Coverage:
    """Errors and half-widths of structures with DFT Hamiltonians.

    Args:
        level: that is stated.
    """

    level: float
    errors: dict[str, list[np.ndarray]] = field(default_factory=dict)
    """meV: ``on-site``, ``near``, ``far`` and ``bands`` -> those of each structure."""
    widths: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def add(self, snapshot: Snapshot, prediction: Prediction, reference: ReferenceBands | None) -> None:
        """Adds one structure: its blocks, each and its reverse once, and its levels.

        Args:
            snapshot: with the Hamiltonian of DFT.
            prediction: with an uncertainty.
            reference: levels of DFT; None: no levels are compared.
        """
        uncertainty, exact = prediction.uncertainty, snapshot.hamiltonian
        assert uncertainty is not None and exact is not None
        length = np.linalg.norm(snapshot.pair_vectors(uncertainty.pairs), axis=1)
        found: dict[str, list[tuple[float, float]]] = {"on-site": [], "near": [], "far": []}
        for n, pair in enumerate(map(tuple, uncertainty.pairs.tolist())):
            a, b, c, i, j = pair
            if pair not in exact.index or (-a, -b, -c, j, i) < pair:
                continue
            difference = prediction.refined.block(prediction.refined.index[pair]) - exact.block(exact.index[pair])
            error = np.sqrt(np.mean(np.abs(difference) ** 2))
            name = "on-site" if length[n] < ONSITE else "near" if length[n] < NEAR else "far"
            found[name].append((error, uncertainty.half_width[n]))
        for name, values in found.items():
            self._take(name, *np.array(values).reshape(-1, 2).T)
        if reference is not None and uncertainty.band_factor is not None:
            compared = band_comparison(snapshot, reference, prediction.refined, uncertainty)
            if compared is not None:
                self._take("bands", compared[0], uncertainty.band_factor * np.maximum(compared[1], SMALLEST))

    def _take(self, name: str, error: np.ndarray, width: np.ndarray) -> None:
        self.errors.setdefault(name, []).append(MEV * error)
        self.widths.setdefault(name, []).append(MEV * width)

    def summary(self) -> dict[str, Any]:
        """For JSON; errors and widths in meV."""
        found: dict[str, Any] = {"level": self.level}
        for name, parts in self.errors.items():
            error, width = np.concatenate(parts), np.concatenate(self.widths[name])
            if not len(error):
                continue
            each = [float(np.mean(e <= w)) for e, w in zip(parts, self.widths[name], strict=True) if len(e)]
            ranked = len(error) > 2 and np.ptp(error) > 0 and np.ptp(width) > 1e-9 * width.max()
            found[name] = {
                "count": len(error),
                "coverage": float(np.mean(error <= width)),
                "coverage_of_worst_structure": min(each),
                "mean_error": float(error.mean()),
                "mean_half_width": float(width.mean()),
                "rank_correlation": float(spearmanr(error, width).statistic) if ranked else None,
            }
        return found
