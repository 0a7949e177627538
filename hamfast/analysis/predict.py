"""From a checkpoint and a structure to Hamiltonian blocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hamfast.data.blocks import BlockMatrix
from hamfast.data.build_graph import blocks_from_irreps, build_graph
from hamfast.data.snapshot import Snapshot
from hamfast.training import LoadedModel


@dataclass
class Prediction:
    """Blocks in eV, in the order of the graph's pairs."""

    baseline: BlockMatrix
    """Stage 1."""
    refined: BlockMatrix
    """The cascade; the same object as ``baseline`` without a second stage."""


@torch.no_grad()
def predict(loaded: LoadedModel, snapshot: Snapshot) -> Prediction:
    """Predicts the Hamiltonian of a structure on the model's device.

    Pairs are those of the snapshot's Hamiltonian or else of its overlap; without either, all pairs within the longest
    distances of the training data.

    Raises:
        HamfastError: an element or its orbitals are unknown to the model.
    """
    model = loaded.model
    parameter = next(model.parameters())
    graph = build_graph(snapshot, model.spec, pair_cutoffs=loaded.pair_cutoffs).to(parameter.device, parameter.dtype)
    output = model(graph)
    baseline = blocks_from_irreps(output.baseline.double(), graph, model.spec)
    if output.refined is output.baseline:
        return Prediction(baseline, baseline)
    return Prediction(baseline, blocks_from_irreps(output.refined.double(), graph, model.spec))
