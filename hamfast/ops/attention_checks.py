"""Which operands of graph attention belong together: what was expected, what was found."""

from __future__ import annotations

from numbers import Real

import torch
from torch import Tensor

from hamfast.ops.attention_formula import ACTIVATIONS, PARTS, SCORES, WEIGHTINGS
from hamfast.ops.checks import check_rows, check_tensor, found
from hamfast.ops.edge_index import EdgeIndex

_NAME = "graph_attention"


def check_numbers(negative_slope, clip, epsilon, dropout, seed) -> None:
    """Raises TypeError or ValueError, which names the argument, for a number out of its range."""
    for name, number in (
        ("negative_slope", negative_slope),
        ("clip", clip),
        ("epsilon", epsilon),
        ("dropout", dropout),
    ):
        if not isinstance(number, Real) and not (number is None and name == "clip"):
            raise TypeError(f"{_NAME}: {name}: expected a number, found {found(number)}")
    if clip is not None and not clip > 0:
        raise ValueError(f"{_NAME}: clip: expected a positive number or None, found {clip}")
    if not epsilon >= 0:
        raise ValueError(f"{_NAME}: epsilon: expected a number >= 0, found {epsilon}")
    if not 0 <= dropout <= 1:
        raise ValueError(f"{_NAME}: dropout: expected a probability from 0 to 1, found {dropout}")
    if seed is not None:
        check_tensor(_NAME, "seed", seed)
    if seed is not None and (seed.dtype != torch.int64 or seed.numel() != 1):
        raise ValueError(f"{_NAME}: seed: expected an int64 scalar tensor, found {list(seed.shape)} {seed.dtype}")


def check_operands(
    edges: EdgeIndex, given: dict[str, Tensor | None], outer_rows_of: str, score: str, activation: str, weight: str
) -> tuple[int, int | None]:
    """Number of heads, and the width of the query (None without one)."""
    for name, value, allowed in (
        ("score", score, SCORES),
        ("score_activation", activation, ACTIVATIONS),
        ("weight", weight, WEIGHTINGS),
    ):
        if value not in allowed:
            raise ValueError(f"{_NAME}: {name}: expected one of {', '.join(allowed)}, found {value!r}")
    rows = edges.rows
    heads = _heads(given)
    width = _check_scores(given, rows, heads, score)
    components = _check_values(given, rows, heads)
    for name in ("bias", "score_scale", "envelope", "gate"):
        tensor = given[name]
        if tensor is not None and tuple(tensor.shape) not in ((rows["edge"],), (rows["edge"], heads)):
            raise ValueError(
                f"{_NAME}: {name}: expected [{rows['edge']}] or [{rows['edge']}, {heads}], found {list(tensor.shape)}"
            )
    needs_edge = given["edge_key_weight"] is not None or given["edge_value_weight"] is not None
    if (given["edge"] is not None) != needs_edge:
        raise ValueError(
            f"{_NAME}: expected edge together with edge_key_weight or edge_value_weight, found one without the other"
        )
    if given["edge"] is not None:
        if given["edge"].dim() != 2 or given["edge"].shape[0] != rows["edge"]:
            raise ValueError(f"{_NAME}: edge: expected [{rows['edge']}, features], found {list(given['edge'].shape)}")
        for name in ("edge_key_weight", "edge_value_weight"):
            tensor = given[name]
            if tensor is not None and tensor.shape[-1] != given["edge"].shape[1]:
                raise ValueError(
                    f"{_NAME}: {name}: expected {given['edge'].shape[1]} features as edge, found {tensor.shape[-1]}"
                )
    y, u = given["outer Y"], given["outer u"]
    if y is not None and u is not None:
        if outer_rows_of not in ("sender", "edge"):
            raise ValueError(f"{_NAME}: outer: expected u per sender or edge, found {outer_rows_of!r}")
        if y.dim() != 2 or y.shape[0] != rows["edge"]:
            raise ValueError(f"{_NAME}: outer Y: expected [{rows['edge']}, components], found {list(y.shape)}")
        if u.dim() != 3:
            raise ValueError(f"{_NAME}: outer u: expected [{rows[outer_rows_of]}, heads, width], found {list(u.shape)}")
        check_rows(_NAME, "outer u", u, rows[outer_rows_of], heads, u.shape[2])
        if components is not None and components != (y.shape[1], u.shape[2]):
            raise ValueError(
                f"{_NAME}: outer: expected {list(components)} components and width as the values, found {[y.shape[1], u.shape[2]]}"
            )
    return heads, width


def _heads(given) -> int:
    for name, tensor in given.items():
        if tensor is None or name in ("edge", "outer Y"):
            continue
        axis = 0 if name in ("edge_key_weight", "edge_value_weight", "vector") else 1
        if tensor.dim() > axis + (axis == 1 and name not in ("bias", "score_scale", "envelope", "gate")):
            return tensor.shape[axis]
        if tensor.dim() == 1:
            continue
        raise ValueError(f"{_NAME}: {name}: expected [rows, heads, width], found {list(tensor.shape)}")
    return 1


def _check_scores(given, rows, heads, score) -> int | None:
    operands = {
        name: {p: given[f"{name}_{p}"] for p in PARTS if given[f"{name}_{p}"] is not None} for name in ("query", "key")
    }
    weight, vector = given["edge_key_weight"], given["vector"]
    if score == "given":
        extra = [n for n in ("edge_key_weight", "key_filter", "vector", "score_scale") if given[n] is not None]
        extra += [f"{n}_{p}" for n, parts in operands.items() for p in parts]
        if given["bias"] is None or extra:
            found = f"also {', '.join(extra)}" if extra else "no bias"
            raise ValueError(f"{_NAME}: score given: expected the bias alone, which is the score; found {found}")
        return None
    for name, parts in operands.items():
        if not parts and not (name == "key" and weight is not None):
            raise ValueError(f"{_NAME}: {name}: expected at least one of its parts, found none")
    if (vector is not None) != (score == "additive"):
        raise ValueError(f"{_NAME}: vector: expected with score additive and only there, found score {score!r}")
    if score == "additive" and given["key_filter"] is not None:
        raise ValueError(f"{_NAME}: key_filter: expected score dot, found additive")
    width = next(iter(operands["query"].values())).shape[-1]
    for name, parts in operands.items():
        for part, tensor in parts.items():
            check_rows(_NAME, f"{name}_{part}", tensor, rows[part], heads, width)
    if given["key_filter"] is not None:
        check_rows(_NAME, "key_filter", given["key_filter"], rows["edge"], heads, width)
    if vector is not None:
        check_rows(_NAME, "vector", vector, heads, width)
    if weight is not None:
        check_rows(_NAME, "edge_key_weight", weight, heads, width, weight.shape[-1])
    return width


def _check_values(given, rows, heads) -> tuple[int, ...] | None:
    """(components,) width of the values, None without any."""
    shape = None
    for part in PARTS:
        tensor, name = given[f"value_{part}"], f"value_{part}"
        if tensor is None:
            continue
        if shape is None:
            if tensor.dim() not in (3, 4):
                raise ValueError(
                    f"{_NAME}: {name}: expected [{rows[part]}, heads, (components,) width], found {list(tensor.shape)}"
                )
            shape = tuple(tensor.shape[2:])
        check_rows(_NAME, name, tensor, rows[part], heads, *shape)
    weight, filters = given["edge_value_weight"], given["value_filter"]
    if weight is not None:
        if shape is None:
            shape = tuple(weight.shape[1:-1])
        check_rows(_NAME, "edge_value_weight", weight, heads, *shape, weight.shape[-1])
    if filters is not None:
        if shape is None:
            raise ValueError(f"{_NAME}: value_filter: expected values to multiply, found none")
        check_rows(_NAME, "value_filter", filters, rows["edge"], heads, shape[-1])
    return shape
