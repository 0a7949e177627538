"""How large the errors of a model's blocks are expected to be.

The error of an irrep x of a block, in units of the target normalisation, is taken as

    dx = e + t sum_f dW_f phi_f

- e is independent noise: a normal number for each component, with the root mean square that the
  error of this channel has on the training set.
- phi are the features that go into the last linear map, and dW is what the training set leaves open
  of this map. The ridge regression of the training's errors on phi is repeated without one group of
  structures at a time. The spread of its weights is that of the jackknife over groups (Efron and
  Stein, Ann. Stat. 9, 586, 1981). The blocks of one structure are not independent, so the textbook
  posterior, which counts each of them, would be too narrow.
- t is a number for on-site blocks, and one for hoppings. Features are fitted to the training set,
  too, so dW alone is too small; held-out structures say by how much, if there are enough of them
  (:func:`hamfast.analysis.calibration.choose_mixing`), and else it is 1.

W and e are of an ordered pair of species, on-site blocks apart. Components of an irrep share W and
the size of e, so the spread turns with the structure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from e3nn.o3 import Irrep
from torch import Tensor

from hamfast.graph import CrystalGraph
from hamfast.models.cascade import Cascade
from hamfast.models.conformal import BlockScores, Scores
from hamfast.models.last_layer import LastFeatures, captured_features
from hamfast.targets import TargetSpec

GROUPS = 8
"""Of training structures, for the jackknife."""
RIDGE = 1e-6
"""Relative to the sum of squares of each feature."""

Kind = tuple[bool, int]
"""On-site blocks or not; the index of the ordered pair of species."""


class HeadSums:
    """Sums over training structures, from which the noise and the spread of the last map follow.

    Args:
        spec: the targets.
        groups: of structures.
    """

    def __init__(self, spec: TargetSpec, groups: int):
        self.spec, self.groups = spec, groups
        self.squares: dict[Kind, Tensor] = {}
        self.counts: dict[Kind, int] = {}
        self.gram: dict[tuple[Kind, Irrep], Tensor] = {}
        self.right: dict[tuple[Kind, Irrep], Tensor] = {}

    def add(self, graph: CrystalGraph, features: LastFeatures, error: Tensor, group: int) -> None:
        """Adds one structure.

        Args:
            graph: of it.
            features: of the last map.
            error: ``[edges, spec.dim]`` float64, in units of the target normalisation.
            group: the structure's, from 0.
        """
        for kind, rows in kinds(graph, self.spec):
            own = error[rows]
            self.squares[kind] = self.squares.get(kind, 0) + own.square().sum(0)
            self.counts[kind] = self.counts.get(kind, 0) + len(rows)
            for ir, places in _components(self.spec, kind).items():
                x = features.of(graph, rows, kind[0], ir).transpose(0, 1).flatten(1)  # [features, rows * d]
                y = own[:, places].transpose(0, 1).flatten(1)
                if (kind, ir) not in self.gram:
                    self.gram[kind, ir] = x.new_zeros(self.groups, len(x), len(x))
                    self.right[kind, ir] = x.new_zeros(self.groups, len(y), len(x))
                self.gram[kind, ir][group] += x @ x.T
                self.right[kind, ir][group] += y @ x.T

    def noise(self) -> Tensor:
        """``[2, pairs, irreps]`` float64: root mean square of a component; on-site second."""
        irreps = self.spec.irreps
        found = torch.zeros(2, self.spec.num_species**2, len(irreps), dtype=torch.float64)
        which = torch.repeat_interleave(torch.tensor([ir.dim for _, ir in irreps]))
        for (onsite, pair), squares in self.squares.items():
            sums = torch.zeros(len(irreps), dtype=torch.float64).index_add(0, which, squares.cpu())
            found[int(onsite), pair] = (sums / self.counts[onsite, pair] / torch.bincount(which)).sqrt()
        return found

    def heads(self) -> dict[tuple[Kind, Irrep], Tensor]:
        """``[groups, channels, features]`` float64 of each kind and irrep: deviations of the map.

        Their mean is zero, and their mean square the jackknife's estimate of the variance.
        """
        return {key: jackknife(gram, self.right[key]).cpu() for key, gram in self.gram.items()}


def jackknife(gram: Tensor, right: Tensor) -> Tensor:
    """Deviations of ridge regressions, each without one group of rows.

    Args:
        gram: ``[groups, features, features]``, sums of products of features.
        right: ``[groups, channels, features]``, sums of products of a target and a feature.

    Returns:
        ``[groups, channels, features]``, ``sqrt(groups - 1) (W_g - mean of W)``.
    """
    if not gram.shape[1]:
        return torch.zeros_like(right)
    square = gram.sum(0).diagonal()
    # A feature that never occurs gets weight zero.
    scale = torch.where(square > 1e-14 * square.max(), square.clamp(min=1e-300).rsqrt(), torch.zeros_like(square))
    left = scale[:, None] * (gram.sum(0) - gram) * scale + RIDGE * torch.eye(len(scale)).to(gram)
    found = torch.linalg.solve(left, ((right.sum(0) - right) * scale).transpose(1, 2)).transpose(1, 2) * scale
    return (len(gram) - 1) ** 0.5 * (found - found.mean(0))


def kinds(graph: CrystalGraph, spec: TargetSpec) -> Iterator[tuple[Kind, Tensor]]:
    """The edges of each kind of block that a graph has."""
    pair, onsite = graph.pair_species(spec.num_species), graph.onsite
    for is_onsite in (False, True):
        for p in pair[onsite == is_onsite].unique().tolist():
            yield (is_onsite, p), torch.nonzero((onsite == is_onsite) & (pair == p)).flatten()


@cache
def _element_weight(spec: TargetSpec) -> Tensor:
    """``[pairs, dim]`` float64: weights that make sums of squares of irreps means over elements."""
    found = []
    for first in range(spec.num_species):
        for second in range(spec.num_species):
            elements = math.prod(spec.block_shape(first, second))
            found.append(spec.component_weight * spec.mask(first, second) / elements)
    return torch.stack(found)


def _components(spec: TargetSpec, kind: Kind) -> dict[Irrep, Tensor]:
    """Of each irrep that a kind of block has ``[channels, 2 l + 1]`` int64: their components."""
    mask = spec.mask(kind[1] // spec.num_species, kind[1] % spec.num_species)
    found: dict[Irrep, list[Tensor]] = {}
    start = 0
    for _, ir in spec.irreps:
        if mask[start]:
            found.setdefault(ir, []).append(torch.arange(start, start + ir.dim))
        start += ir.dim
    return {ir: torch.stack(places) for ir, places in found.items()}


@dataclass(frozen=True)
class Spread:
    """Expected errors of the blocks of one graph, in eV, without the factors of the calibration."""

    independent: Tensor
    """``[edges]`` float64: mean square of a matrix element, of the noise."""
    shared: Tensor
    """``[edges]`` float64: the same of the heads, t = 1."""


class ErrorModel:
    """The expected errors of one model; see the module.

    Args:
        spec: the targets.
        noise, heads: see :class:`HeadSums`.
        mixing: t of hoppings and of on-site blocks.
        blocks: scores of held-out blocks.
        bands: scores of held-out band energies; None if they could not be had.
        structures: how many there were in the training and among those held out.
    """

    def __init__(
        self,
        spec: TargetSpec,
        noise: Tensor,
        heads: dict[tuple[Kind, Irrep], Tensor],
        mixing: tuple[float, float] = (1.0, 1.0),
        blocks: BlockScores | None = None,
        bands: Scores | None = None,
        structures: tuple[int, int] = (0, 0),
    ):
        self.spec, self.noise, self.heads = spec, noise, heads
        self.mixing, self.bands, self.structures = mixing, bands, structures
        self.blocks = BlockScores(()) if blocks is None else blocks
        self.num_heads = next(iter(heads.values())).shape[0] if heads else 0

    def spread(self, model: Cascade, graph: CrystalGraph, features: LastFeatures, scale: Tensor) -> Spread:
        """The expected errors of a graph's blocks.

        Args:
            model: whose errors they are.
            graph: without reverse pairs missing.
            features: of the last map.
            scale: ``[edges, spec.dim]`` eV, of the target normalisation.
        """
        irrep_of = model.normalization.irrep_of
        pair, onsite = graph.pair_species(self.spec.num_species), graph.onsite.long()
        noise = self.noise.to(graph.vector.device)[onsite, pair][:, irrep_of] * scale.double()
        independent = self.mean_square(graph, noise)
        # Both directions of a pair are one block: the mean of both is the variance of either.
        independent = 0.5 * (independent + independent[graph.reverse])
        shared = torch.zeros_like(independent)
        for dx in self.deviations(model, graph, features, scale):
            shared += self.mean_square(graph, dx) / self.num_heads
        return Spread(independent, shared)

    def deviations(
        self, model: Cascade, graph: CrystalGraph, features: LastFeatures, scale: Tensor
    ) -> Iterator[Tensor]:
        """For each head ``[edges, spec.dim]`` float64, eV: what its deviation does to the blocks.

        They are Hermitian. The arguments are those of :meth:`spread`.
        """
        own = [
            (rows, places.to(rows.device), features.of(graph, rows, kind[0], ir), self.heads[kind, ir])
            for kind, rows in kinds(graph, self.spec)
            for ir, places in _components(self.spec, kind).items()
            if (kind, ir) in self.heads
        ]
        for n in range(self.num_heads):
            dx = torch.zeros(graph.num_edges, self.spec.dim, dtype=torch.float64, device=graph.vector.device)
            for rows, places, x, head in own:
                values = torch.einsum("cf,rfd->rcd", head[n].to(x), x)
                dx[rows[:, None], places.flatten()] = values.flatten(1)
            dx *= scale.double()
            reverse = dx[graph.reverse][:, model.transpose_index] * model.transpose_sign.double()
            yield 0.5 * (dx + reverse)

    def mean_square(self, graph: CrystalGraph, x: Tensor) -> Tensor:
        """``[edges]``: the mean of |matrix element|^2 of blocks, from irreps ``[edges, dim]``."""
        weight = _element_weight(self.spec).to(x.device)[graph.pair_species(self.spec.num_species)]
        return (x.double().square() * weight).sum(1)

    def mixing_of(self, graph: CrystalGraph) -> Tensor:
        """``[edges]`` float64: t of each block."""
        return torch.tensor(self.mixing, dtype=torch.float64, device=graph.vector.device)[graph.onsite.long()]

    def lines(self) -> list[str]:
        """What was calibrated, in words of less than 80 columns."""
        training, held_out = self.structures
        blocks = self.blocks.classes[0][1].count
        words = [f"uncertainty: {blocks} blocks of {held_out} held-out structures, {training} of the training"]
        if self.bands is not None:
            words.append(f"uncertainty of bands: {self.bands.count} held-out levels")
        return words

    # --- in checkpoints
    # ---------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Tensors, plain numbers and strings."""
        return {
            "noise": self.noise.float(),
            "heads": [[onsite, pair, str(ir), head.float()] for ((onsite, pair), ir), head in self.heads.items()],
            "mixing": list(self.mixing),
            "blocks": self.blocks.state(),
            "bands": None if self.bands is None else self.bands.state(),
            "structures": list(self.structures),
        }

    @classmethod
    def from_state(cls, spec: TargetSpec, state: dict[str, Any]) -> ErrorModel:
        """The inverse of :meth:`state`, for the elements and orbitals of a model."""
        heads = {((onsite, pair), Irrep(ir)): head.double() for onsite, pair, ir, head in state["heads"]}
        bands = None if state["bands"] is None else Scores.from_state(state["bands"])
        (hopping, onsite), (training, held_out) = state["mixing"], state["structures"]
        return cls(
            spec, state["noise"].double(), heads, (hopping, onsite), BlockScores.from_state(state["blocks"]), bands,
            (training, held_out),
        )  # fmt: skip


@torch.no_grad()
def run(model: Cascade, graph: CrystalGraph) -> tuple[Tensor, LastFeatures, Tensor]:
    """The prediction ``[edges, spec.dim]`` (eV), the last features, and the scale of the targets.

    The graph is on the model's device and in its dtype. The prediction is Hermitian.
    """
    with captured_features(model) as features:
        output = model(graph).refined
    return hermitian(model, graph, output), features, scale_of(model, graph)


def hermitian(model: Cascade, graph: CrystalGraph, x: Tensor) -> Tensor:
    """The mean of blocks and the conjugate transposes of their reverses, as irreps."""
    return 0.5 * (x + x[graph.reverse][:, model.transpose_index] * model.transpose_sign)


def scale_of(model: Cascade, graph: CrystalGraph) -> Tensor:
    """``[edges, spec.dim]`` eV: the scale of the target normalisation; 1 where there is none."""
    units = model.normalization.shift_and_scale(graph)
    return graph.vector.new_ones(graph.num_edges, model.spec.dim) if units is None else units[1]
