"""The files that a training of DeepH-E3 leaves, read without running what is in them."""

from __future__ import annotations

import ast
import configparser
import json
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from e3nn.o3 import Irreps
from torch import Tensor

from hamfast.data.checked import boolean, shells
from hamfast.data.h5 import read_json, read_text
from hamfast.errors import HamfastError
from hamfast.placeholder import DATA_FOLDER
from hamfast.setting_types import shortened
from hamfast.shells import labelled
from hamfast.targets import TargetSpec

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


def training_file(folder: Path, name: str) -> Path:
    """A file of ``src``, or else of the folder itself; raises HamfastError if there is none."""
    found = [path for path in (folder / "src" / name, folder / name) if path.is_file()]
    if not found:
        raise HamfastError(f"{folder / 'src' / name}: file not found; expected the folder of a DeepH-E3 training")
    return found[0]


def read_settings(path: Path) -> dict[str, Any]:
    """The network's settings in ``train.ini``, with DeepH-E3's defaults.

    Raises:
        HamfastError: unreadable, a value of the wrong kind, or an option that stage 1 lacks.
    """
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
        raise HamfastError(
            f"{path}: target.target: expected hamiltonian, found {shortened(parser['target']['target'])}"
        )
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
        "given": {
            key: irreps(key) for key in ("irreps_post_node", "irreps_post_edge", "out_irreps", "irreps_out_node")
        },
    }
    for key, ours, fallback in (
        ("irreps_mid_edge", "irreps_mid", "irreps_mid"),
        ("irreps_edge_init", "embed", "irreps_embed"),
    ):
        if irreps(key, fallback) != found[ours]:
            raise HamfastError(
                f"{path}: network.{key}: expected {found[ours]}, as stage 1 has one for nodes and edges, found "
                f"{irreps(key, fallback)}"
            )
    if found["embed"].dim != found["embed"].count("0e"):
        raise HamfastError(f"{path}: network.irreps_embed: expected 0e alone, found {found['embed']}")
    return found


def read_spec(path: Path) -> TargetSpec:
    """Elements, shells and spin of ``dataset_info.json``; raises HamfastError if it has others."""
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


def check_targets(path: Path, spec: TargetSpec) -> None:
    """Raises HamfastError unless ``target_blocks.json`` lists all shell pairs, in our order."""
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


def check_norm(path: Path) -> None:
    """Raises HamfastError if the source has the layer norm of a version of DeepH-E3 that divided
    l > 0, too. The source is parsed, not run."""
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


def _numpy_globals() -> list:
    """What numpy's numbers need, under the names of numpy 1 and 2."""
    import numpy as np

    scalar = np.float64(0).__reduce__()[0]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    kinds = [type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")]
    return [*((scalar, name) for name in names), np.dtype, *kinds]


def read_state(path: Path) -> tuple[dict[str, Tensor], int | None]:
    """Name -> tensor of the ``state_dict``, and the epoch if the file has one.

    Raises:
        HamfastError: the file is missing, damaged, or a pickle of more than tensors and plain
            values, none of which is run.
    """
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
        raise HamfastError(
            f"{path}: not a readable file of torch, perhaps truncated ({type(error).__name__})"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise HamfastError(f"{path}: expected a state_dict of named tensors, found {shortened(type(state).__name__)}")
    epoch = content.get("epoch")
    return state, epoch if type(epoch) is int else None
