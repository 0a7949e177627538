"""``hamfast::symmetric_contraction`` on tensors, for the kernels of
kernels/symmetric_contraction.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from hamfast.constants import constant, on_host, real_tensors
from hamfast.kernels.symmetric_contraction import (
    Operands,
    Sizes,
    Table,
    contraction_coefficients,
    contraction_rows,
    contraction_species,
)
from hamfast.records.choices import Slot
from hamfast.records.ops import SYMMETRIC_CONTRACTION
from hamfast.records.tables import ContractionDims
from hamfast.triton.configurations import CONTRACTION
from hamfast.triton.launch import launch, pieces, real_of

X, Y, W, G = Slot.X, Slot.Y, Slot.W, Slot.G


def symmetric_contraction(*flat: Any) -> tuple[Tensor, ...]:
    """The op, with its arguments as its record has them."""
    arguments = SYMMETRIC_CONTRACTION.read(flat)
    x, y, w, g = arguments.operands
    wanted = [bool(arguments.wanted >> slot & 1) for slot in range(4)]
    dims, along = ContractionDims(*arguments.dims), arguments.direction
    made = _tables_of(arguments.tables, dims, along is not None)
    (nodes, channels, _), species = x.shape, w.shape[0]
    starts = np.cumsum([0] + [d for d, _ in on_host(arguments.tables.blocks).tolist()]).tolist()
    coefficients = torch.einsum("tk,skc->stc", made.coefficients, w.to(made.coefficients)).contiguous()
    rows = x if along is None else torch.cat([x, along], dim=2)
    by_component = None
    if g is not None:
        parts = [g[:, a * channels : b * channels].reshape(nodes, channels, b - a) for a, b in pairwise(starts)]
        by_component = _swapped(torch.cat(parts, dim=2)) if parts else g.new_zeros(nodes, 0, channels)
    operands = Operands(_swapped(rows), y.contiguous(), coefficients, by_component)
    terms = made.coefficients.shape[0]
    sizes = Sizes(nodes, species, channels, rows.shape[2], dims.g, terms)
    _, columns = CONTRACTION.cut(channels)
    constants = {"REAL": real_of(x), "CHANNELS": columns}
    tiles = pieces(channels, columns)

    def run(kernel: Any, grid: tuple[int, ...], table: _Entries, out: Tensor, *further: int, **flags: bool) -> Tensor:
        own = constants | flags | {"DEGREE": table.degree}
        launch(kernel, grid, (operands, table.table, sizes, out, *further), own, x, CONTRACTION.num_warps)
        return out

    results = [x.new_empty(0)] * 4
    if wanted[G]:
        out = x.new_empty(nodes, dims.g, channels)
        run(contraction_rows, (nodes, dims.g, tiles), made.by_component, out, dims.g, HAS_G=False)
        blocks = [out[:, a:b].transpose(1, 2).flatten(1) for a, b in pairwise(starts)]
        results[G] = torch.cat(blocks, dim=1) if blocks else x.new_empty(nodes, 0)
    if g is None:
        return tuple(results)
    if wanted[X]:
        out = x.new_empty(nodes, dims.x, channels)
        run(contraction_rows, (nodes, dims.x, tiles), made.by_factor, out, dims.x, HAS_G=True)
        results[X] = _swapped(out)
    if wanted[Y]:
        entries = made.by_term.table.times.shape[0]
        results[Y] = run(contraction_species, (nodes, species), made.by_term, torch.empty_like(operands.y), entries)
    if wanted[W]:
        out = torch.empty_like(coefficients)
        run(contraction_coefficients, (species, terms, tiles), made.by_term, out)
        results[W] = torch.einsum("tk,stc->skc", made.coefficients, out).to(w.dtype).contiguous()
    return tuple(results)


def _swapped(rows: Tensor) -> Tensor:
    """From ``[nodes, channels, components]`` to ``[nodes, components, channels]``, and back."""
    return rows.transpose(1, 2).contiguous()


class _Entries(NamedTuple):
    """A table of the kernels."""

    table: Table
    degree: int


class _Tables(NamedTuple):
    """A plan for the kernels."""

    coefficients: Tensor
    """``[terms, paths]``."""
    by_component: _Entries
    """The result: a row for each of its components."""
    by_factor: _Entries
    """Its gradient in x: a row for each component of x."""
    by_term: _Entries
    """That in the coefficients: a row for each term."""


_TABLES: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def _tables_of(tables: Any, dims: ContractionDims, along: bool) -> _Tables:
    """Of a plan, with or without a direction."""
    made = _TABLES.setdefault(tables.by_path_value, {})
    if along not in made:
        with real_tensors():
            made[along] = _make_tables(tables, dims, along)
    return made[along]


class _Product(NamedTuple):
    """A term, or a part of its derivative."""

    term: int
    component: int
    times: int
    factors: tuple[int, ...]


def _make_tables(tables: Any, dims: ContractionDims, along: bool) -> _Tables:
    like = tables.by_path_value
    exact = like.dtype if like.dtype == torch.float64 else torch.float32
    entries, values = on_host(tables.by_path), on_host(tables.by_path_value)
    factors = on_host(tables.factors)
    coefficients = np.zeros((len(factors), dims.paths))
    coefficients[entries[:, 1], entries[:, 0]] = values
    products = list(_products_of(tables, dims.x))
    if along:  # a component of the direction in place of one of x
        products = [
            part._replace(factors=(*part.factors, factor + dims.x))
            for product in products
            for factor, part in _parts(product)
        ]
    of_x = [(j, part) for product in products for j, part in _parts(product) if j < dims.x]

    def table(keyed: list[tuple[int, _Product]], rows: int) -> _Entries:
        degree = max((len(product.factors) for _, product in keyed), default=0)
        keyed = sorted(keyed, key=lambda entry: entry[0])
        lines = [
            (product.term, product.component, *product.factors, *[-1] * (degree - len(product.factors)))
            for _, product in keyed
        ]
        ptr = np.searchsorted([row for row, _ in keyed], np.arange(rows + 1))
        return _Entries(
            Table(
                constant(ptr.astype(np.int64), like.device),
                constant(np.array(lines, dtype=np.int64).reshape(len(lines), 2 + degree), like.device),
                constant(np.array([product.times for _, product in keyed], dtype=np.float64), like.device, exact),
            ),
            degree,
        )

    return _Tables(
        constant(coefficients, like.device, exact),
        table([(product.component, product) for product in products], dims.g),
        table(of_x, dims.x),
        table([(product.term, product) for product in products], len(factors)),
    )


def _products_of(tables: Any, dim_x: int) -> Iterator[_Product]:
    """The terms of a plan."""
    pairs, last = on_host(tables.products).tolist(), on_host(tables.factors).tolist()
    factors_of: dict[int, tuple[int, ...]] = {0: ()} | {1 + j: (j,) for j in range(dim_x)}
    for n, (parent, factor) in enumerate(pairs):
        factors_of[1 + dim_x + n] = (*factors_of[parent], factor - 1)
    for prefix, component, first, count in on_host(tables.groups).tolist():
        for term in range(first, first + count):
            yield _Product(term, component, 1, tuple(sorted((*factors_of[prefix], last[term] - 1))))


def _parts(product: _Product) -> Iterator[tuple[int, _Product]]:
    """By the product rule: each different factor, and what it is multiplied by in the
    derivative."""
    for factor, times in Counter(product.factors).items():
        others = list(product.factors)
        others.remove(factor)
        yield factor, product._replace(times=product.times * times, factors=tuple(others))
