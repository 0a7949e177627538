"""Weights to start from: those of a checkpoint.

The new data may have other elements, as long as they have the same pairs of shells.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from ase.data import chemical_symbols
from torch import Tensor, nn

from hamfast.errors import HamfastError
from hamfast.models import Cascade, TargetNormalization
from hamfast.models.data_axes import DataAxis, data_axis
from hamfast.models.no_network import NoNetwork
from hamfast.nn import Linear
from hamfast.shells import Channel
from hamfast.targets import TargetSpec
from hamfast.training.checkpoint import LoadedModel
from hamfast.training.config import Config
from hamfast.training.folder import differences, listed


def check_compatible(config: Config, spec: TargetSpec, source: LoadedModel, where: str) -> None:
    """Can the model of this configuration and data start from the weights of ``source``?

    Raises:
        HamfastError: the models differ, or spin, a common element's shells, or the targets do; the
            message names what.
    """
    models = [c.model_dump(include={"target", "stage1", "stage2"}) for c in (source.config, config)]
    for stage in ("stage1", "stage2"):  # each may be new, or left out
        if None in (model[stage] for model in models):
            for model in models:
                del model[stage]
    changes = differences(models[0], models[1])
    if changes:
        raise HamfastError(f"{where}: the weights do not fit: {listed(changes, 'the checkpoint')}")
    old = source.spec
    if old.spinful != spec.spinful:
        words = ["without", "with"]
        raise HamfastError(
            f"{where}: made {words[old.spinful]} spin-orbit coupling, the data are {words[spec.spinful]} it"
        )
    known = dict(old.shells)
    for z, shells in spec.shells:
        if known.get(z, shells) != shells:
            raise HamfastError(
                f"{where}: {chemical_symbols[z]} has shells {list(known[z])} in the checkpoint, {list(shells)} in the data"
            )
    if set(old.channels) != set(spec.channels):
        raise HamfastError(
            f"{where}: the targets differ, so the weights do not fit: {_orbitals(old)} in the checkpoint, {_orbitals(spec)} "
            "in the data; the same pairs of shells have to occur in both"
        )
    if config.target.shift == "environment" and old.shells != spec.shells:
        raise HamfastError(
            f"{where}: target.shift environment is fitted for all elements together, {_orbitals(old)} in the checkpoint; "
            f"the data have {_orbitals(spec)}; the elements have to be the same, or the shift another"
        )


def _orbitals(spec: TargetSpec) -> str:
    return ", ".join(f"{chemical_symbols[z]} {list(shells)}" for z, shells in spec.shells)


def knows_pairs(source: LoadedModel, spec: TargetSpec, cutoffs: np.ndarray) -> bool:
    """Has the checkpoint a normalisation for each pair of elements in the data?

    Args:
        source: the checkpoint.
        spec: of the data.
        cutoffs: ``[species, species]`` angstrom, the longest pairs of the data; 0 where there are
            none.
    """
    if not set(spec.elements) <= set(source.spec.elements):
        return False
    if source.pair_cutoffs is None:  # they are unknown
        return True
    rows = [source.spec.elements.index(z) for z in spec.elements]
    return not np.any((cutoffs > 0) & (source.pair_cutoffs[np.ix_(rows, rows)] == 0))


@dataclass
class _Maps:
    """Where the old model has what the new one has; -1 where the old one lacks it.

    Attributes:
        species, pairs: for each species and each ordered pair of species, its index.
        entries: for each target entry, which is an irrep of the targets, its index.
        components: for each component of the targets, its index.
    """

    old: TargetSpec
    new: TargetSpec
    species: Tensor = field(init=False)
    pairs: Tensor = field(init=False)
    entries: Tensor = field(init=False)
    components: Tensor = field(init=False)

    def __post_init__(self):
        position = {z: n for n, z in enumerate(self.old.elements)}
        species = [position.get(z, -1) for z in self.new.elements]
        count = self.old.num_species
        self.species = torch.tensor(species)
        self.pairs = torch.tensor([-1 if a < 0 or b < 0 else count * a + b for a in species for b in species])
        where = {key: n for n, key in enumerate(_entries(self.old))}
        self.entries = torch.tensor([where[key] for key in _entries(self.new)])
        slices = list(self.old.irreps.slices())
        self.components = torch.cat([torch.arange(slices[n].start, slices[n].stop) for n in self.entries.tolist()])


def _entries(spec: TargetSpec) -> Iterator[tuple[int, Channel, int]]:
    """(real or imaginary half, channel, position in the channel) of each target entry."""
    for half in range(2 if spec.spinful else 1):
        for channel in spec.channels:
            l1, _, l2, _ = channel
            ls = range(abs(l1 - l2), l1 + l2 + 1)
            count = len(ls) + (sum(len(range(abs(l - 1), l + 2)) for l in ls) if spec.spinful else 0)
            for n in range(count):
                yield half, channel, n


def take_weights(model: Cascade, source: LoadedModel) -> list[str]:
    """Copies the checkpoint's weights, for each element and each pair of elements its own.

    Weights that the checkpoint does not have stay as they are.

    Args:
        model: of a configuration that :func:`check_compatible` accepts, with ``r_max`` of the
            checkpoint; its normalisation is fitted to the new data, unless the checkpoint's covers
            them (:func:`knows_pairs`).
        source: the checkpoint.

    Returns:
        words: what was taken, and what starts fresh.
    """
    maps = _Maps(source.spec, model.spec)
    theirs = dict(source.model.named_modules())
    with torch.no_grad():
        for name, module in model.named_modules():
            if name in theirs:
                for key, value in _own(module).items():
                    _copy(model, name, module, key, value, theirs[name], maps, source.pair_cutoffs)
    fresh = [chemical_symbols[z] for z in model.spec.elements if z not in source.spec.elements]
    common = [chemical_symbols[z] for z in model.spec.elements if z in source.spec.elements]
    new, old = _stages(model), _stages(source.model)
    taken = " and ".join(stage for stage in new if stage in old) or "target normalisation"
    words = [f"taken from the checkpoint: {taken}; elements: {', '.join(common) or 'none'}"]
    if fresh:
        words.append(f"fresh: what belongs to {', '.join(fresh)} alone")
    words += [f"fresh: {stage}, which the checkpoint does not have" for stage in new if stage not in old]
    return words


def _stages(model: Cascade) -> list[str]:
    stages = {"stage 1": model.stage1, "stage 2": model.stage2}
    return [name for name, stage in stages.items() if not (stage is None or isinstance(stage, NoNetwork))]


def _own(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers of the module itself."""
    state = module.state_dict(keep_vars=True)
    return {key: value for key, value in state.items() if "." not in key}


def _copy(model, name, module, key, value, other, maps: _Maps, cutoffs: np.ndarray | None) -> None:
    old: Tensor = _own(other)[key].to(value)
    axis = data_axis(model, name)
    if axis in (DataAxis.SPECIES_MATRICES, DataAxis.PAIR_MATRICES):
        rows = maps.species if axis is DataAxis.SPECIES_MATRICES else maps.pairs
        _copy_species(module, other, old, value, rows)
    elif axis is DataAxis.SPECIES_INPUTS and key == "weight":
        rows, before = value.view(len(maps.species), -1), old.view(maps.old.num_species, -1)
        scale = (len(rows) / len(before)) ** 0.5  # e3nn divides by the root of the number of rows
        _copy_rows(rows, before * scale, maps.species)
    elif axis is DataAxis.ENTRY_OUTPUTS:
        _copy_output(module, other, key, old, value, maps.entries)
    elif axis is DataAxis.COMPONENT_INPUTS and key == "weight":
        edge = value.shape[1] - maps.new.dim
        value.copy_(torch.cat([old[:, :edge], old[:, edge:][:, maps.components.to(old.device)]], dim=1))
    elif axis is DataAxis.COMPONENT_OUTPUTS:
        value.copy_(old[maps.components])
    elif axis is DataAxis.PAIR_ROWS:
        _copy_rows(value, old, maps.pairs)
    elif isinstance(module, TargetNormalization):
        # A pair that the checkpoint's data did not have keeps what was fitted to the new data.
        seen = torch.ones(old.shape[0], dtype=torch.bool) if cutoffs is None else torch.tensor(cutoffs.flatten() > 0)
        pairs = torch.where((maps.pairs >= 0) & seen[maps.pairs], maps.pairs, -1)
        _copy_rows(value, old[..., maps.entries], pairs)
    else:
        assert value.shape == old.shape, f"{name}.{key}"  # check_compatible has seen to it
        value.copy_(old)


def _copy_rows(new: Tensor, old: Tensor, rows: Tensor) -> None:
    known = torch.nonzero(rows >= 0).flatten()
    new[known] = old[rows[known]]


def _copy_species(module, other, old: Tensor, value: Tensor, rows: Tensor) -> None:
    """Copies one matrix per species, or per pair of species.

    e3nn divides by the root of the number of inputs, and one-hot species are among the inputs.
    """
    known = torch.nonzero(rows >= 0).flatten()
    scale = (module.species / other.species) ** 0.5
    blocks = zip(module.plan.pairs, torch.split(value, module.sizes), torch.split(old, other.sizes), strict=True)
    for (i, o), new_block, old_block in blocks:
        mul_in, mul_out = module.irreps_in[i].mul, module.irreps_out[o].mul
        matrices = old_block.view(mul_in, other.species, mul_out)
        new_block.view(mul_in, module.species, mul_out)[:, known] = scale * matrices[:, rows[known]]


def _copy_output(module: Linear, other: Linear, key: str, old: Tensor, value: Tensor, entries: Tensor) -> None:
    """Copies the last linear map of stage 1.

    It has an output for each target entry, in the order of the data set's channels.
    """
    if key == "bias":  # for the scalars only, if it has biases
        if not len(old):
            return
        position = {irrep: n for n, irrep in enumerate(_scalars(other))}
        value.copy_(old[[position[int(entries[irrep])] for irrep in _scalars(module)]])
        return
    # A path of the map runs from an input irrep to an output irrep.
    known = dict(zip(other.plan.pairs, torch.split(old, other.sizes), strict=True))
    for (irrep_in, irrep_out), weights in zip(module.plan.pairs, torch.split(value, module.sizes), strict=True):
        weights.copy_(known[irrep_in, int(entries[irrep_out])])


def _scalars(linear: Linear) -> list[int]:
    """The positions of the scalars among the output irreps."""
    return [n for n, (_, ir) in enumerate(linear.irreps_out) if ir.is_scalar()]
