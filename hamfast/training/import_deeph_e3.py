"""Trained models of DeepH-E3 become checkpoints of hamfast.

The parameters of both networks are the same, one to one. What they mean depends on the e3nn that
trained them, see :mod:`hamfast.training.older_e3nn`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from e3nn.o3 import Irreps
from torch import Tensor

from hamfast.data.tensor_file import save_tensors
from hamfast.errors import HamfastError
from hamfast.models.covariant import CovariantNetwork, output_irreps
from hamfast.nn import EdgeTensorProduct
from hamfast.setting_types import shortened
from hamfast.targets import TargetSpec
from hamfast.training.checkpoint import build_model, check_finite, describe
from hamfast.training.config import Config, parse_config
from hamfast.training.deeph_e3_files import (
    WEIGHTS,
    check_norm,
    check_targets,
    read_settings,
    read_spec,
    read_state,
    training_file,
)
from hamfast.training.older_e3nn import to_this_e3nn

_CONSTANT = re.compile(r"\._compiled_|\.(output_mask|cst)$|^(basis|distance_expansion)\.(width|offsets)$")
_THEIR_NAMES = (
    ("node_updates", "node_update_blocks"),
    ("edge_updates", "edge_update_blocks"),
    ("linear_pre", "lin_pre"),
    ("linear_post", "lin_post"),
    ("convolution.radial", "conv.fc"),
    ("convolution.product.weight", "conv.tp.weights"),
    ("species.weight", "sc.weight"),
    ("skip.weight", "skip_connect.sc.weight"),
    ("unused_node_output", "lin_node"),
    ("output.", "lin_edge."),
)


@dataclass(frozen=True)
class Imported:
    """What an import has read and written."""

    output: Path
    """The checkpoint."""
    config: Config
    """Its configuration."""
    spec: TargetSpec
    """Elements, orbitals and spin that the model knows."""
    epoch: int | None
    """Of the weights, counted from 0; None if the file does not say."""
    e3nn_version: str
    """That trained them, in words."""


def import_deeph_e3(folder: Path, output: Path | None = None) -> Imported:
    """Reads the folder of a training of DeepH-E3 and writes a checkpoint of hamfast.

    Args:
        folder: with ``best_model.pkl`` and ``src``.
        output: the checkpoint, which is not there yet; default: ``model.ckpt`` in the folder.

    Raises:
        HamfastError: a file is missing, damaged, or holds what no such training writes; the model
            has an option that stage 1 does not have; weights do not fit; the checkpoint exists or
            cannot be written.
    """
    output = folder / "model.ckpt" if output is None else output
    if output.exists():
        raise HamfastError(f"{output}: exists already; choose another --output")
    if not folder.is_dir():
        raise HamfastError(f"{folder}: expected a folder with {WEIGHTS[0]} and src, found none")
    ini = training_file(folder, "train.ini")
    settings = read_settings(ini)
    spec = read_spec(training_file(folder, "dataset_info.json"))
    check_targets(training_file(folder, "target_blocks.json"), spec)
    for source in sorted(folder.glob("src/*/e3modules.py")):
        check_norm(source)
    path = next((folder / name for name in WEIGHTS if (folder / name).exists()), folder / WEIGHTS[0])
    state, epoch = read_state(path)
    config = _configuration(settings, state, ini, path, folder)
    assert config.stage1 is not None  # as _configuration makes it
    model = build_model(config, spec, config.stage1.cutoff)
    assert isinstance(model.stage1, CovariantNetwork)
    _check_derived(settings, model.stage1, ini)
    e3nn_version = take_state(model.stage1, state, path)
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    check_finite(weights, path)
    about = describe(config, model, None) | {"phase": "stage1"}
    save_tensors({"hamfast": about, "state_dict": {f"model.{k}": v for k, v in weights.items()}}, output)
    return Imported(output, config, spec, epoch, e3nn_version)


def _tensor(state: dict[str, Tensor], name: str, dim: int, path: Path) -> Tensor:
    if name not in state:
        raise HamfastError(f"{path}: expected the tensor {name}, found none")
    if state[name].dim() != dim or not state[name].numel():
        raise HamfastError(f"{path}: {name}: expected {dim} dimensions, found the shape {list(state[name].shape)}")
    return state[name]


def _stop(state: dict[str, Tensor], name: str, path: Path) -> float:
    """Where the evenly spaced Gaussians of a basis end, in angstrom; they start at 0."""
    offsets = _tensor(state, f"{name}.offsets", 1, path).double()
    stop = float(offsets[-1])
    even = torch.linspace(0.0, stop, len(offsets), dtype=torch.float64)
    width = _tensor(state, f"{name}.width", 1, path).double()
    if (
        len(offsets) < 2
        or not torch.allclose(offsets, even, atol=1e-4)
        or not torch.allclose(width, even[1], atol=1e-4)
    ):
        raise HamfastError(f"{path}: {name}: expected evenly spaced Gaussians from 0, found others")
    return round(stop, 5)


def _configuration(settings: dict, state: dict[str, Tensor], ini: Path, path: Path, folder: Path) -> Config:
    """hamfast's configuration of the model; what no file says has the value of the published
    training."""
    stop = _stop(state, "basis", path)
    if abs(stop - settings["cutoff"]) > 1e-4:
        raise HamfastError(
            f"{path}: basis: expected Gaussians up to cutoff_radius = {settings['cutoff']} of {ini}, found {stop}"
        )
    dtype = _tensor(state, "lin_edge.weight", 1, path).dtype
    if dtype not in (torch.float32, torch.float64):
        raise HamfastError(f"{path}: lin_edge.weight: expected float32 or float64, found {dtype}")
    hidden = _tensor(state, "node_update_blocks.0.conv.fc.0.weight", 2, path)
    return parse_config(
        {
            "output": str(folder),
            "precision": str(dtype).removeprefix("torch."),
            "data": {"root": settings["root"]},
            "target": {"shift": "none", "scale": "none", "hermitian": False},
            "stage1": {
                "irreps_mid": str(settings["irreps_mid"]),
                "l_max": settings["l_max"],
                "num_blocks": settings["num_blocks"],
                "cutoff": settings["cutoff"],
                "num_basis": len(state["basis.offsets"]),
                "radial_hidden": hidden.shape[0],
                "edge_basis_stop": _stop(state, "distance_expansion", path),
                "embed_dim": settings["embed"].dim,
            },
            "stage2": None,
            "training": {"stage1": {"loss": "mse", "ema": None, "clip": None}, "stage2": None},
        },
        str(ini),
    )


def _check_derived(settings: dict, network: CovariantNetwork, ini: Path) -> None:
    """Irreps that DeepH-E3 derives and that may be set by hand must be the derived ones."""
    post_node, post_edge = output_irreps(network.config, network.spec)
    derived = {
        "irreps_post_node": post_node,
        "irreps_post_edge": post_edge,
        "out_irreps": network.spec.irreps,
        "irreps_out_node": Irreps("1x0e"),
    }
    for key, given in settings["given"].items():
        if given is not None and given != derived[key]:
            raise HamfastError(
                f"{ini}: network.{key}: expected none, or {shortened(str(derived[key]), quoted=False)}, found "
                f"{shortened(str(given), quoted=False)}"
            )


def take_state(network: CovariantNetwork, state: dict[str, Tensor], path: Path) -> str:
    """Copies DeepH-E3's parameters into the network, each by its name.

    Args:
        network: stage 1 of the same settings.
        state: name -> tensor, as the file has them.
        path: of the file, for messages.

    Returns:
        The version of e3nn that trained them, in words.

    Raises:
        HamfastError: a parameter is missing, has another shape, or is left over; or it does not
            show which e3nn has trained it.
    """
    used: set[str] = set()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            theirs = _their_tensors(network, name)
            for one, shape in theirs.items():
                if one not in state or tuple(state[one].shape) != shape:
                    found = f"the shape {list(state[one].shape)}" if one in state else "none"
                    raise HamfastError(f"{path}: {one}: expected a parameter of shape {list(shape)}, found {found}")
            if theirs:
                parameter.copy_(torch.cat([state[one].flatten() for one in theirs]).view_as(parameter))
            used |= theirs.keys()
    left = [k for k, v in state.items() if k not in used and v.numel() and not _CONSTANT.search(k)]
    if left:
        raise HamfastError(
            f"{path}: expected no parameter beyond those of stage 1, found {len(left)} more, as {left[0]}"
        )
    return to_this_e3nn(network, state, path)


def _their_tensors(network: CovariantNetwork, name: str) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors that one of our parameters is made of, one after the other."""
    parameter = network.get_parameter(name)
    if not parameter.numel():
        return {}
    theirs = name
    for ours, other in _THEIR_NAMES:
        theirs = theirs.replace(ours, other)
    module = network.get_submodule(name.rpartition(".")[0])
    if not isinstance(module, EdgeTensorProduct):
        return {theirs: tuple(parameter.shape)}
    sizes = [(one.weight_shape[0], one.weight_shape[-1]) for one in module.plan.plan.instructions]
    return {f"{theirs}.{n}": (u if name.endswith("weight1") else 1, w) for n, (u, w) in enumerate(sizes)}
