"""Which operands of graph attention belong together: what was expected, what was found."""

from __future__ import annotations

from numbers import Real
from typing import Any

import torch
from torch import Tensor

from hamfast.ops.attention_formula import ACTIVATIONS, PARTS, SCALARS, SCORES, WEIGHTINGS
from hamfast.ops.checks import check_probability, check_rows, check_tensor, found
from hamfast.ops.edge_index import EdgeIndex

_NAME = "graph_attention"


def check_settings(negative_slope: Any, clip: Any, epsilon: Any, dropout: Any, seed: Any) -> None:
    """Checks what :func:`hamfast.ops.graph_attention` takes by these names.

    Raises:
        TypeError: one is of another type than the function says.
        ValueError: one is out of its range.
    """
    reals = {"negative_slope": negative_slope, "clip": clip, "epsilon": epsilon}
    for name, value in reals.items():
        if not isinstance(value, Real) and not (value is None and name == "clip"):
            raise TypeError(f"{_NAME}: {name}: expected a number, found {found(value)}")
    if clip is not None and not clip > 0:
        raise ValueError(f"{_NAME}: clip: expected a positive number or None, found {clip}")
    if not epsilon >= 0:
        raise ValueError(f"{_NAME}: epsilon: expected a number >= 0, found {epsilon}")
    check_probability(_NAME, "dropout", dropout)
    if seed is not None:
        check_tensor(_NAME, "seed", seed)
    if seed is not None and (seed.dtype != torch.int64 or seed.numel() != 1):
        raise ValueError(f"{_NAME}: seed: expected an int64 scalar tensor, found {list(seed.shape)} {seed.dtype}")


def check_outer(outer: Any) -> tuple[Tensor | None, Tensor | None, str]:
    """Y, u and what u has a row for, of ``outer``; None, None and ``edge`` without it.

    Raises:
        TypeError: it is no such triple.
    """
    if outer is None:
        return None, None, "edge"
    if not (isinstance(outer, (tuple, list)) and len(outer) == 3):
        raise TypeError(f"{_NAME}: outer: expected (Y, u, sender or edge), found {found(outer)}")
    y, u, rows_of = outer
    check_tensor(_NAME, "outer Y", y)
    check_tensor(_NAME, "outer u", u)
    return y, u, rows_of


def check_operands(
    edges: EdgeIndex, given: dict[str, Tensor | None], outer_rows_of: str, score: str, activation: str, weight: str
) -> tuple[int, int | None]:
    """Checks which operands there are, and their shapes.

    Args:
        given: the operands by their names.
        outer_rows_of: what u of ``outer`` has a row for.

    Returns:
        How many heads there are, and the width of the query (None without one).

    Raises:
        ValueError: operands exclude each other, or a shape does not fit; the message names it.
    """
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
    shape = _check_values(given, rows, heads)
    for name in SCALARS:
        tensor = given[name]
        if tensor is not None and tuple(tensor.shape) not in ((rows["edge"],), (rows["edge"], heads)):
            raise ValueError(
                f"{_NAME}: {name}: expected [{rows['edge']}] or [{rows['edge']}, {heads}], found {list(tensor.shape)}"
            )
    _check_features(given, rows)
    _check_outer_shapes(given["outer Y"], given["outer u"], outer_rows_of, rows, heads, shape)
    return heads, width


def _heads(given: dict[str, Tensor | None]) -> int:
    for name, tensor in given.items():
        if tensor is None or name in ("edge", "outer Y"):
            continue
        axis = 0 if name in ("edge_key_weight", "edge_value_weight", "vector") else 1
        if tensor.dim() > axis + (axis == 1 and name not in SCALARS):
            return tensor.shape[axis]
        if tensor.dim() == 1:
            continue
        raise ValueError(f"{_NAME}: {name}: expected [rows, heads, width], found {list(tensor.shape)}")
    return 1


def _check_features(given: dict[str, Tensor | None], rows: dict[str, int]) -> None:
    """The edges' features, and the weights that make keys and values of them."""
    edge, weights = given["edge"], {n: given[n] for n in ("edge_key_weight", "edge_value_weight")}
    if (edge is not None) != any(weight is not None for weight in weights.values()):
        raise ValueError(
            f"{_NAME}: expected edge together with edge_key_weight or edge_value_weight, found one without the other"
        )
    if edge is None:
        return
    if edge.dim() != 2 or edge.shape[0] != rows["edge"]:
        raise ValueError(f"{_NAME}: edge: expected [{rows['edge']}, features], found {list(edge.shape)}")
    for name, weight in weights.items():
        if weight is not None and weight.shape[-1] != edge.shape[1]:
            raise ValueError(f"{_NAME}: {name}: expected {edge.shape[1]} features as edge, found {weight.shape[-1]}")


def _check_outer_shapes(
    y: Tensor | None, u: Tensor | None, rows_of: str, rows: dict[str, int], heads: int, shape: tuple[int, ...] | None
) -> None:
    """Values of rank one; shape: that of the other values, None without any."""
    if y is None or u is None:
        return
    if rows_of not in ("sender", "edge"):
        raise ValueError(f"{_NAME}: outer: expected u per sender or edge, found {rows_of!r}")
    if y.dim() != 2 or y.shape[0] != rows["edge"]:
        raise ValueError(f"{_NAME}: outer Y: expected [{rows['edge']}, components], found {list(y.shape)}")
    if u.dim() != 3:
        raise ValueError(f"{_NAME}: outer u: expected [{rows[rows_of]}, heads, width], found {list(u.shape)}")
    check_rows(_NAME, "outer u", u, rows[rows_of], heads, u.shape[2])
    if shape is not None and shape != (y.shape[1], u.shape[2]):
        raise ValueError(
            f"{_NAME}: outer: expected {list(shape)} components and width as the values, "
            f"found {[y.shape[1], u.shape[2]]}"
        )


def _check_scores(given: dict[str, Any], rows: dict[str, int], heads: int, score: str) -> int | None:
    """Queries, keys and what belongs to them. Returns their width, None for given scores."""
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


def _check_values(given: dict[str, Any], rows: dict[str, int], heads: int) -> tuple[int, ...] | None:
    """Values and what belongs to them. Returns their ``(components,) width``, None without any."""
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
