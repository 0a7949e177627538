"""The symmetric contraction by torch's own operations, for backends without a kernel for it: on any
device, in memory of terms x nodes x channels."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from hamfast.constants import constant, on_host, real_tensors
from hamfast.records.choices import Slot
from hamfast.records.tables import ContractionDims

X, Y, W, G = Slot.X, Slot.Y, Slot.W, Slot.G


def contraction_derivatives(arguments: Any) -> tuple[Tensor, ...]:
    """The results of ``hamfast::symmetric_contraction``.

    Args:
        arguments: of the op, as its record reads them.
    """
    x, y, w, g = arguments.operands
    wanted = [bool(arguments.wanted >> slot & 1) for slot in range(4)]
    tables, dims = arguments.tables, ContractionDims(*arguments.dims)
    maps = _maps(tables, dims)
    nodes, channels, _ = x.shape
    value, tangent = _monomials(maps, x, arguments.direction)
    coefficients = torch.einsum("tk,skc->stc", maps.coefficients, w)
    per_node = torch.einsum("ns,stc->tnc", y, coefficients)
    # Of each term: its prefix, its last factor, and their derivatives along the direction.
    prefix, factor = value[maps.prefix], value[maps.factor]
    product = prefix * factor
    if tangent is not None:
        prefix_along, factor_along = tangent[maps.prefix], tangent[maps.factor]
        product = prefix_along * factor + prefix * factor_along
    results = [x.new_empty(0)] * 4
    starts = np.cumsum([0] + [d for d, _ in on_host(tables.blocks).tolist()])
    if wanted[G]:
        sums = torch.einsum("it,tnc->nci", maps.components, per_node * product)
        blocks = [sums[..., a:b].flatten(1) for a, b in pairwise(starts)]
        results[G] = torch.cat(blocks, dim=1) if blocks else x.new_empty(nodes, 0)
    if g is None or not any(wanted[:G]):
        return tuple(results)
    pieces = [g[:, a * channels : b * channels].reshape(nodes, channels, b - a) for a, b in pairwise(starts)]
    per_component = torch.cat(pieces, dim=2) if pieces else g.new_empty(nodes, channels, 0)
    grad = torch.einsum("it,nci->tnc", maps.components, per_component)
    if wanted[W]:
        results[W] = torch.einsum("tk,ns,tnc->skc", maps.coefficients, y, grad * product)
    if wanted[Y]:
        results[Y] = torch.einsum("tnc,stc->ns", grad * product, coefficients)
    if wanted[X]:
        pull = grad * per_node
        if tangent is None:
            found = _scattered(maps, pull * factor, pull * prefix)
            results[X] = _pulled(maps, found, None, value, None, x)
        else:
            found = _scattered(maps, pull * factor_along, pull * prefix_along)
            along = _scattered(maps, pull * factor, pull * prefix)
            results[X] = _pulled(maps, found, along, value, tangent, x)
    return tuple(results)


class _Maps(NamedTuple):
    """A plan as matrices of few entries, and as indices."""

    coefficients: Tensor
    """``[terms, paths]``."""
    components: Tensor
    """``[components, terms]``: 1 where a term belongs to a component."""
    by_prefix: Tensor
    by_factor: Tensor
    """``[monomials, terms]``: 1 at a term's prefix, and at its last factor."""
    prefix: Tensor
    factor: Tensor
    """``[terms]``."""
    levels: tuple[tuple[Tensor, Tensor, Tensor, Tensor, Tensor], ...]
    """Products of one degree after the other: where they are, their parents, their factors; and
    ``[monomials, products]``, 1 at the parents, and at the factors."""


_MAPS: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def _maps(tables: Any, dims: ContractionDims) -> _Maps:
    if tables.by_path_value not in _MAPS:
        with real_tensors():
            _MAPS[tables.by_path_value] = _make_maps(tables, dims)
    return _MAPS[tables.by_path_value]


def _make_maps(tables: Any, dims: ContractionDims) -> _Maps:
    like = tables.by_path_value
    products, groups, factors = on_host(tables.products), on_host(tables.groups), on_host(tables.factors)
    entries, values = on_host(tables.by_path), on_host(tables.by_path_value)
    terms, monomials = len(factors), 1 + dims.x + len(products)
    prefix, component = (np.repeat(groups[:, n], groups[:, 3]) for n in (0, 1))

    def ones(rows: np.ndarray, count: int) -> Tensor:
        table = np.zeros((count, len(rows)))
        table[rows, np.arange(len(rows))] = 1.0
        return constant(table, like.device, like.dtype)

    coefficients = np.zeros((terms, dims.paths))
    coefficients[entries[:, 1], entries[:, 0]] = values
    degree = [0] + [1] * dims.x
    for parent, _ in products.tolist():
        degree.append(degree[parent] + 1)
    levels = []
    for n in sorted(set(degree) - {0, 1}):
        at = np.flatnonzero(np.array(degree) == n)
        parents, others = products[at - 1 - dims.x].T
        first, second, third = (constant(t.copy(), like.device) for t in (at, parents, others))
        levels.append((first, second, third, ones(parents, monomials), ones(others, monomials)))
    return _Maps(
        constant(coefficients, like.device, like.dtype),
        ones(component, dims.g),
        ones(prefix, monomials),
        ones(factors, monomials),
        constant(prefix, like.device),
        constant(factors.copy(), like.device),
        tuple(levels),
    )


def _monomials(maps: _Maps, x: Tensor, direction: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """``[monomials, nodes, channels]``, and their derivatives along the direction."""
    count = maps.by_prefix.shape[0]
    value = x.new_ones(count, *x.shape[:2])
    value[1 : 1 + x.shape[2]] = x.permute(2, 0, 1)
    tangent = None
    if direction is not None:
        tangent = torch.zeros_like(value)
        tangent[1 : 1 + x.shape[2]] = direction.permute(2, 0, 1)
    for at, parents, others, _, _ in maps.levels:
        value[at] = value[parents] * value[others]
        if tangent is not None:
            tangent[at] = tangent[parents] * value[others] + value[parents] * tangent[others]
    return value, tangent


def _scattered(maps: _Maps, to_prefix: Tensor, to_factor: Tensor) -> Tensor:
    """Gradients of terms in their prefixes and last factors, added up by monomial. By matrix
    products: torch's scatter-sum has no fixed order on a GPU."""
    return _added(maps.by_prefix, to_prefix) + _added(maps.by_factor, to_factor)


def _added(ones: Tensor, rows: Tensor) -> Tensor:
    return torch.einsum("mt,tnc->mnc", ones, rows)


def _pulled(
    maps: _Maps, grad: Tensor, along: Tensor | None, value: Tensor, tangent: Tensor | None, x: Tensor
) -> Tensor:
    """From gradients in monomials, and in their derivatives along a direction, to that in x."""
    for at, parents, others, to_parents, to_others in reversed(maps.levels):
        given = grad[at]
        grad = grad + _added(to_parents, given * value[others]) + _added(to_others, given * value[parents])
        if along is not None and tangent is not None:
            given = along[at]
            grad = grad + _added(to_parents, given * tangent[others]) + _added(to_others, given * tangent[parents])
            along = along + _added(to_parents, given * value[others])
    return grad[1 : 1 + x.shape[2]].permute(1, 2, 0).contiguous()
