"""How far the blocks of one prediction may be from those of DFT.

The measure of a block's error is the root mean square of its matrix elements, which does not change
when the structure is turned. Its expected size is that of :mod:`hamfast.models.error_model`; what
turns it into an interval are the scores of held-out blocks (:mod:`hamfast.models.conformal`).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from hamfast.analysis.uncertainty import Uncertainty
from hamfast.data.blocks import BlockMatrix
from hamfast.data.graphs import blocks_from_irreps
from hamfast.errors import HamfastError
from hamfast.graph import CrystalGraph
from hamfast.models import Cascade
from hamfast.models.conformal import check_level
from hamfast.models.error_model import ErrorModel, Spread, scale_of
from hamfast.models.last_layer import LastFeatures


def calibrated(model: Cascade, where: str) -> ErrorModel:
    """The error model of a model.

    Raises:
        HamfastError: it has none.
    """
    if model.error_model is None:
        raise HamfastError(
            f"{where}: expected a checkpoint with calibrated uncertainties, found one without; `hamfast model calibrate FILE` adds them"
        )
    return model.error_model


def sigma_of(errors: ErrorModel, graph: CrystalGraph, spread: Spread) -> np.ndarray:
    """``[edges]`` eV: the expected error of each block, before the scores."""
    return (spread.independent + errors.mixing_of(graph).square() * spread.shared).sqrt().cpu().numpy()


def classes_of(errors: ErrorModel, graph: CrystalGraph) -> np.ndarray:
    """``[edges]``: the number of each block's class of scores."""
    species = graph.species.cpu().numpy()
    i, j, length = (t.cpu().numpy() for t in (graph.i, graph.j, graph.length))
    return errors.blocks.class_of(species[i], species[j], length)


@torch.no_grad()
def uncertainty_of(model: Cascade, graph: CrystalGraph, features: LastFeatures, level: float) -> Uncertainty:
    """The uncertainty of a prediction.

    Args:
        model: that made it, with its error model.
        graph: of the structure.
        features: that went into the model's last maps.
        level: the share of blocks that the intervals are to hold.

    Raises:
        HamfastError: there were too few held-out blocks for this level.
    """
    errors, scale = calibrated(model, "uncertainty"), scale_of(model, graph)
    quantiles = errors.blocks.quantiles(check_level(level))
    spread = errors.spread(model, graph, features, scale)
    which = classes_of(errors, graph)
    rms = np.array([scores.rms for _, scores in errors.blocks.classes])[which]
    pairs = torch.cat([graph.shift, graph.i[:, None], graph.j[:, None]], dim=1).cpu().numpy()
    return Uncertainty(
        level,
        pairs,
        quantiles[which] * sigma_of(errors, graph, spread),
        rms * spread.independent.sqrt().cpu().numpy(),
        tuple(_shared(model, graph, features, scale, rms)),
        None if errors.bands is None else errors.bands.quantile(level),
    )


def _shared(model, graph, features, scale, rms) -> Iterator[BlockMatrix]:
    errors = calibrated(model, "uncertainty")
    factor = errors.mixing_of(graph) * torch.from_numpy(rms).to(graph.vector.device)
    for dx in errors.deviations(model, graph, features, scale):
        yield blocks_from_irreps(factor[:, None] * dx, graph, model.spec)
