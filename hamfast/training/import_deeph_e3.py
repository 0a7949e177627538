"""Trained models of DeepH-E3 become checkpoints of hamfast.

What is read: ``train.ini``, ``dataset_info.json`` and ``target_blocks.json`` of the folder ``src``,
and the weights in ``best_model.pkl``. Nothing in these files is run.

The parameters of both networks are the same, one to one. Their meaning depends on the e3nn that
trained them: before 0.5 some Wigner 3j symbols had the other sign, and before 0.4.2 each path of a
product had another norm. DeepH-E3 asks for 0.3.5. The tables of e3nn that stand among the weights
tell which it was; signs and norms go into the weights.
"""

from __future__ import annotations

import ast
import configparser
import json
import pickle
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from e3nn.o3 import Irreps
from torch import Tensor

from hamfast.data.checked import boolean, shells
from hamfast.data.h5 import read_json, read_text
from hamfast.data.tensor_file import save_tensors
from hamfast.errors import HamfastError
from hamfast.models.covariant import CovariantNetwork, output_irreps
from hamfast.nn import EdgeTensorProduct
from hamfast.placeholder import DATA_FOLDER
from hamfast.plan.coupling import wigner_3j
from hamfast.setting_types import shortened
from hamfast.shells import labelled
from hamfast.targets import TargetSpec
from hamfast.training.checkpoint import build_model, check_finite, describe
from hamfast.training.config import Config, parse_config

WEIGHTS = ("best_model.pkl", "best_model.pt")
"""Names of the file with the weights of the lowest validation loss."""

DEFAULTS = {
    "network": {
        "cutoff_radius": "7.2",
        "only_ij": "False",
        "spherical_harmonics_lmax": "4",
        "spherical_basis_irreps": "",
        "irreps_embed": "64x0e",
        "irreps_mid": "64x0e+32x1o+16x2e+8x3o+8x4e",
        "num_blocks": "3",
        "ignore_parity": "False",
    },
    "target": {"target": "hamiltonian", "convert_net_out": "False"},
    "data": {"processed_data_dir": ""},
}
"""What DeepH-E3 takes for keys that ``train.ini`` does not have."""

OTHER_SIGN = {(1, l, l) for l in range(2, 12)} | {
    (3, 4, 6), (3, 5, 7), (3, 6, 8), (3, 7, 9), (3, 8, 10), (3, 9, 11), (4, 4, 5), (4, 5, 6), (4, 6, 7), (4, 7, 8),
    (4, 8, 9), (4, 9, 10), (4, 10, 11), (5, 5, 5), (5, 6, 6), (5, 6, 10), (5, 7, 7), (5, 7, 11), (5, 8, 8), (5, 9, 9),
    (5, 10, 10), (5, 11, 11), (6, 6, 9), (6, 7, 10), (6, 8, 11), (7, 7, 9), (7, 8, 10), (7, 9, 11), (8, 8, 9),
    (8, 9, 10), (8, 10, 11), (9, 9, 9), (9, 10, 10), (9, 11, 11),
}  # fmt: skip
"""The l of the Wigner 3j symbols, sorted, whose sign was the other one before e3nn 0.5."""

_TABLE = re.compile(r"\.(_compiled_main_\w+)\._w3j_(\d+)_(\d+)_(\d+)$")
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
    ini = _file(folder, "train.ini")
    settings = _read_settings(ini)
    spec = _read_spec(_file(folder, "dataset_info.json"))
    _check_targets(_file(folder, "target_blocks.json"), spec)
    for source in sorted(folder.glob("src/*/e3modules.py")):
        _check_norm(source)
    path = next((folder / name for name in WEIGHTS if (folder / name).exists()), folder / WEIGHTS[0])
    state, epoch = _read_state(path)
    config = _configuration(settings, state, ini, path, folder)
    model = build_model(config, spec, config.stage1.cutoff)
    _check_derived(settings, model.stage1, ini)
    take_state(model.stage1, state, path)
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    check_finite(weights, path)
    about = describe(config, model, None) | {"phase": "stage1"}
    save_tensors({"hamfast": about, "state_dict": {f"model.{k}": v for k, v in weights.items()}}, output)
    return Imported(output, config, spec, epoch)


def _file(folder: Path, name: str) -> Path:
    """A file of ``src``, or else of the folder itself."""
    found = [path for path in (folder / "src" / name, folder / name) if path.is_file()]
    if not found:
        raise HamfastError(f"{folder / 'src' / name}: file not found; expected the folder of a DeepH-E3 training")
    return found[0]


# --- settings and targets
# -------------------------------------------------------------------------------------------------


def _read_settings(path: Path) -> dict[str, Any]:
    """The keys of the network, with DeepH-E3's defaults; those that stage 1 lacks are refused."""
    parser = configparser.ConfigParser(inline_comment_prefixes=(";",), interpolation=None)
    parser.read_dict(DEFAULTS)
    try:
        parser.read_string(read_text(path))
    except configparser.Error as error:
        raise HamfastError(f"{path}: not a readable INI file ({' '.join(str(error).split())})") from error

    def number(key, kind, what):
        text = parser["network"][key].strip()
        try:
            return kind(text)
        except ValueError as error:
            raise HamfastError(f"{path}: network.{key}: expected {what}, found {shortened(text)}") from error

    def irreps(key, *fallbacks):
        text = next((t for k in (key, *fallbacks) if (t := parser["network"].get(k, "").strip())), "")
        try:
            return Irreps(text) if text else None
        except ValueError as error:
            raise HamfastError(f"{path}: network.{key}: expected irreps, found {shortened(text)}") from error

    for section, key in (("network", "ignore_parity"), ("network", "only_ij"), ("target", "convert_net_out")):
        if parser[section][key].strip().lower() not in ("false", "no", "off", "0"):
            raise HamfastError(f"{path}: {section}.{key}: expected False, found {shortened(parser[section][key])}")
    if parser["target"]["target"].strip() != "hamiltonian":
        raise HamfastError(f"{path}: target.target: expected hamiltonian, found {shortened(parser['target']['target'])}")
    if parser["network"]["spherical_basis_irreps"].strip():
        raise HamfastError(
            f"{path}: network.spherical_basis_irreps: expected none, as stage 1 has spherical harmonics alone, found "
            f"{shortened(parser['network']['spherical_basis_irreps'].strip())}"
        )
    found = {
        "cutoff": number("cutoff_radius", float, "angstrom"),
        "l_max": number("spherical_harmonics_lmax", int, "a whole number"),
        "num_blocks": number("num_blocks", int, "a whole number"),
        "root": parser["data"]["processed_data_dir"].strip() or DATA_FOLDER,
        "irreps_mid": irreps("irreps_mid_node", "irreps_mid"),
        "embed": irreps("irreps_embed_node", "irreps_embed"),
        "given": {key: irreps(key) for key in ("irreps_post_node", "irreps_post_edge", "out_irreps", "irreps_out_node")},
    }
    for key, ours, fallback in (("irreps_mid_edge", "irreps_mid", "irreps_mid"), ("irreps_edge_init", "embed", "irreps_embed")):
        if irreps(key, fallback) != found[ours]:
            raise HamfastError(
                f"{path}: network.{key}: expected {found[ours]}, as stage 1 has one for nodes and edges, found "
                f"{irreps(key, fallback)}"
            )
    if found["embed"].dim != found["embed"].count("0e"):
        raise HamfastError(f"{path}: network.irreps_embed: expected 0e alone, found {found['embed']}")
    return found


def _read_spec(path: Path) -> TargetSpec:
    info = read_json(path)
    numbers, orbitals = info.get("index_to_Z"), info.get("orbital_types")
    if not isinstance(numbers, list) or not all(type(z) is int and 0 < z < 119 for z in numbers) or not numbers:
        raise HamfastError(f"{path}: index_to_Z: expected a list of atomic numbers, found {shortened(numbers)}")
    if not isinstance(orbitals, list) or len(orbitals) != len(numbers) or len(set(numbers)) != len(numbers):
        raise HamfastError(
            f"{path}: orbital_types: expected a list for each of the elements {numbers}, found {shortened(orbitals)}"
        )
    listed = {z: shells(ls, f"{path}: orbital_types of element {z}") for z, ls in zip(numbers, orbitals, strict=True)}
    return TargetSpec.from_mapping(listed, boolean(info, "spinful", path))


def target_blocks(spec: TargetSpec) -> list[dict[str, list[int]]]:
    """The channels as DeepH-E3 lists them: ``"42 16"`` -> positions of both shells, for each."""
    places = {z: {label: n for n, label in enumerate(labelled(ls))} for z, ls in spec.shells}
    return [
        {
            f"{a} {b}": [places[a][l1, n1], places[b][l2, n2]]
            for a in places
            for b in places
            if (l1, n1) in places[a] and (l2, n2) in places[b]
        }
        for l1, n1, l2, n2 in spec.channels
    ]


def _check_targets(path: Path, spec: TargetSpec) -> None:
    try:
        found = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise HamfastError(f"{path}: not valid JSON ({error})") from error
    expected = target_blocks(spec)
    if found != expected:
        count = len(found) if isinstance(found, list) else "no list of"
        raise HamfastError(
            f"{path}: expected all {len(expected)} shell pairs of the elements {list(spec.elements)} in one model "
            f"(target_blocks_type = all), found {count} targets in another choice or order"
        )


def _check_norm(path: Path) -> None:
    """Refuses the layer norm that divides l > 0 too, which one version of DeepH-E3 had."""
    try:
        tree = ast.parse(read_text(path))
    except (SyntaxError, ValueError, RecursionError) as error:
        raise HamfastError(f"{path}: not readable as Python ({error})") from error
    for node in ast.walk(tree):
        if not (isinstance(node, ast.ClassDef) and node.name == "e3LayerNorm"):
            continue
        for function in (f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"):
            arguments, defaults = function.args.args, function.args.defaults
            for argument, default in zip(arguments[len(arguments) - len(defaults) :], defaults, strict=True):
                if argument.arg == "divide_norm" and not (isinstance(default, ast.Constant) and default.value is False):
                    raise HamfastError(
                        f"{path}: e3LayerNorm: expected divide_norm=False, as stage 1 has it, found "
                        f"{ast.unparse(default)}; this training was made with another network"
                    )


# --- weights
# -------------------------------------------------------------------------------------------------


def _numpy_globals() -> list:
    """What numpy's numbers need, under the names of numpy 1 and 2."""
    import numpy as np

    scalar = np.float64(0).__reduce__()[0]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    kinds = [type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")]
    return [*((scalar, name) for name in names), np.dtype, *kinds]


def _read_state(path: Path) -> tuple[dict[str, Tensor], int | None]:
    """Name -> tensor, and the epoch. Of the file's pickle, tensors and plain values alone."""
    if not path.is_file():
        raise HamfastError(f"{path}: file not found; expected one of {', '.join(WEIGHTS)} in the folder")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_numpy_globals()):
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"{name[1]}, which was not run" if name else "another pickle"
        raise HamfastError(f"{path}: expected tensors and plain numbers alone, found {what}") from error
    except Exception as error:  # what a damaged file raises depends on its bytes
        raise HamfastError(f"{path}: not a readable file of torch, perhaps truncated ({type(error).__name__})") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise HamfastError(f"{path}: expected a state_dict of named tensors, found {shortened(type(state).__name__)}")
    epoch = content.get("epoch")
    return state, epoch if type(epoch) is int else None


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
    if len(offsets) < 2 or not torch.allclose(offsets, even, atol=1e-4) or not torch.allclose(width, even[1], atol=1e-4):
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


def take_state(network: CovariantNetwork, state: dict[str, Tensor], path: Path) -> None:
    """Copies DeepH-E3's parameters into the network, each by its name.

    Args:
        network: stage 1 of the same settings.
        state: name -> tensor, as the file has them.
        path: of the file, for messages.

    Raises:
        HamfastError: a parameter is missing, has another shape, or is left over; or it does not
            show which e3nn has trained it.
    """
    used: set[str] = set()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if not parameter.numel():
                continue
            theirs = name
            for ours, other in _THEIR_NAMES:
                theirs = theirs.replace(ours, other)
            product = network.get_submodule(name.rpartition(".")[0])
            if isinstance(product, EdgeTensorProduct):
                shapes = [(w[0] if name.endswith("1") else 1, w[-1]) for w in map(_shape, product.plan.plan.instructions)]
                names = [f"{theirs}.{n}" for n in range(len(shapes))]
            else:
                names, shapes = [theirs], [tuple(parameter.shape)]
            for one, shape in zip(names, shapes, strict=True):
                if one not in state or tuple(state[one].shape) != shape:
                    found = f"the shape {list(state[one].shape)}" if one in state else "none"
                    raise HamfastError(f"{path}: {one}: expected a parameter of shape {list(shape)}, found {found}")
            used.update(names)
            parameter.copy_(torch.cat([state[one].flatten() for one in names]).view_as(parameter))
    left = [k for k, v in state.items() if k not in used and v.numel() and not _CONSTANT.search(k)]
    if left:
        raise HamfastError(f"{path}: expected no parameter beyond those of stage 1, found {len(left)} more, as {left[0]}")
    _to_this_e3nn(network, state, path)


def _shape(instruction) -> tuple[int, ...]:
    return instruction.weight_shape


# --- which e3nn
# -------------------------------------------------------------------------------------------------


def _other_sign(*ls: int) -> bool:
    return tuple(sorted(ls)) in OTHER_SIGN


def _to_this_e3nn(network: CovariantNetwork, state: dict[str, Tensor], path: Path) -> None:
    """Signs and norms of an older e3nn go into the weights of the products and of the output."""
    flipped, per_path = _conventions(network, state, path)
    with torch.no_grad():
        for product in (m for m in network.modules() if isinstance(m, EdgeTensorProduct)):
            harmonics = range(network.config.l_max + 1)
            paths = product.plan.plan.instructions
            factors = []
            for one in paths:
                l1, l3 = product.irreps_in1[one.i_in1].ir.l, product.irreps_out[one.i_out].ir.l
                factor = -1.0 if flipped and _other_sign(l1, harmonics[one.i_in2], l3) else 1.0
                if per_path:
                    sizes = [_shape(p)[0] for p in paths if p.i_out == one.i_out]
                    factor *= (sum(sizes) / (len(sizes) * _shape(one)[0])) ** 0.5
                factors += [factor] * _shape(one)[-1]
            product.weight2.mul_(torch.tensor(factors).to(product.weight2))
        if flipped:
            output = network.output
            signs = _target_signs(network.spec)
            rows = [torch.full((size,), signs[o]) for (_, o, _, _), size in zip(output.pairs, output.sizes, strict=True)]
            output.weight.mul_(torch.cat(rows).to(output.weight))
            scalars = [sign for sign, (_, ir) in zip(signs, network.spec.irreps, strict=True) if ir.is_scalar()]
            output.bias.mul_(torch.tensor(scalars).to(output.bias))


def _target_signs(spec: TargetSpec) -> list[float]:
    """Of each irrep of the targets: -1 where the map to blocks had the other sign."""
    signs = []
    for l1, _, l2, _ in spec.channels:
        spatial = {l: -1.0 if _other_sign(l1, l2, l) else 1.0 for l in range(abs(l1 - l2), l1 + l2 + 1)}
        signs += spatial.values()
        if spec.spinful:
            signs += [
                sign * (-1.0 if _other_sign(l, 1, k) else 1.0)
                for l, sign in spatial.items()
                for k in range(abs(l - 1), l + 2)
            ]
    return signs * (2 if spec.spinful else 1)


def _conventions(network: CovariantNetwork, state: dict[str, Tensor], path: Path) -> tuple[bool, bool]:
    """Have the Wigner 3j symbols the signs from before e3nn 0.5, and products a norm per path?"""
    signs, names = set(), set()
    for name, table in state.items():
        match = _TABLE.search(name)
        if match is None:
            continue
        ls = tuple(int(l) for l in match.groups()[1:])
        names.add(match[1])
        if not _other_sign(*ls):
            continue
        ours = torch.tensor(wigner_3j(*ls))
        if table.shape != ours.shape:
            raise HamfastError(f"{path}: {name}: expected the shape {list(ours.shape)}, found {list(table.shape)}")
        signs.add(bool((table.double() * ours).sum() < 0))
    per_path = "_compiled_main_out" in names
    if not names or len(signs) > 1 or (per_path and signs == {False}):
        raise HamfastError(
            f"{path}: expected the tables of one e3nn (names that end in _w3j_1_1_2 or alike) among the weights, which tell "
            f"signs and norms of products, found {'contradictory ones' if names else 'none'}"
        )
    if not signs and not per_path and -1.0 in _target_signs(network.spec):
        raise HamfastError(f"{path}: expected a table of e3nn whose sign tells its version, as _w3j_1_2_2, found none")
    mid = Irreps(network.config.irreps_mid)
    if per_path and len({ir for _, ir in mid}) != len(mid):
        raise HamfastError(
            f"{path}: irreps_mid: expected each irrep once, as the norms of linear maps changed between e3nn 0.3 and 0.4.2, "
            f"found {mid}"
        )
    return per_path or signs == {True}, per_path
