"""How exactly a model's Hamiltonian rotates with the crystal."""

from __future__ import annotations

import torch

from hamfast.data.graphs import build_graph
from hamfast.data.snapshot import Snapshot
from hamfast.graph import CrystalGraph
from hamfast.models import Cascade
from hamfast.ops import rotate_irreps, rotation_from_euler


@torch.no_grad()
def equivariance_error(
    model: Cascade, structure: Snapshot | CrystalGraph, *, rotations: int = 3, seed: int = 0, refine: bool = True
) -> float:
    """The mean of ``||H(Qx) - D H(x) D^T|| / ||H(x)||`` over random rotations Q of a crystal x.

    D rotates the orbitals, and the norms run over all matrix elements.

    Args:
        model: the cascade.
        structure: a snapshot or a graph.
        rotations: how many.
        seed: of the rotations.
        refine: False measures stage 1 alone.
    """
    like = model.normalization.onsite_shift  # a model need not have parameters
    graph = structure if isinstance(structure, CrystalGraph) else build_graph(structure, model.spec)
    graph = graph.to(like.device, like.dtype)
    weight = model.spec.component_weight.to(like)
    here = model(graph, refine=refine).refined
    generator = torch.Generator().manual_seed(seed)
    errors = []
    for _ in range(rotations):
        angles = torch.rand(3, generator=generator, dtype=torch.float64) * 2 * torch.pi
        rotation = rotation_from_euler(angles)
        there = model(graph.rotated(rotation), refine=refine).refined
        rotated = rotate_irreps(here, model.spec.irreps, rotation)
        norm = ((here.square() * weight).sum()).sqrt()
        errors.append(float(((there - rotated).square() * weight).sum().sqrt() / norm))
    return sum(errors) / len(errors)
