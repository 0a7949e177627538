"""The plan of a symmetric contraction: its polynomials as sparse terms, and how they are summed.

A polynomial in commuting numbers needs each product of them once. So the coefficients of all orders
of the same factors are added up, which leaves a small part of what the tensors hold.
A term is one such product in one component of the result. Its coefficient is a sum over paths.

Terms are summed in groups, as Horner does: terms of one component whose factors differ in one only
share the product of the others, the *prefix*.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import numpy as np

from hamfast.plan.channel import as_table
from hamfast.records.tables import ContractionBlock, ContractionGroup, Product

MOST = 4
"""Terms of a group. The CPU's kernel is compiled for each number up to it."""

Monomial = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class ContractionPlan:
    """Polynomials in the components of an irreps row, the same for every channel. Make one with
    :func:`contraction_plan`.
    """

    dim_in: int
    """Components of x."""
    dims_out: tuple[int, ...]
    """Components of each block of the result."""
    paths: int
    """Weights per channel."""
    components: np.ndarray = field(repr=False)
    """``[terms]``: the component of the result that a term belongs to."""
    monomials: tuple[Monomial, ...] = field(repr=False)
    """Per term its factors, as components of x in ascending order; one may come several times."""
    entries: np.ndarray = field(repr=False)
    """``[entries, 2]``: term and path of a coefficient."""
    values: np.ndarray = field(repr=False)
    """``[entries]`` float64."""
    id: str = field(init=False)
    """Digest of the plan: equal plans, and only those, have equal ids."""

    def __post_init__(self):
        digest = hashlib.sha256(repr((self.dim_in, self.dims_out, self.paths, self.monomials)).encode())
        for array in (self.components, self.entries, self.values):
            digest.update(np.ascontiguousarray(array).tobytes())
            array.setflags(write=False)
        object.__setattr__(self, "id", digest.hexdigest()[:32])

    def __hash__(self) -> int:
        return hash(self.id)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ContractionPlan) and self.id == other.id

    @property
    def dim_out(self) -> int:
        """Components of the result."""
        return sum(self.dims_out)

    @property
    def degree(self) -> int:
        """The highest number of factors."""
        return max((len(m) for m in self.monomials), default=0)


def contraction_plan(blocks: Sequence[Sequence[np.ndarray]], dim_in: int) -> ContractionPlan:
    """The plan of ``out[i] = sum of w[k] U[i, j1...jv, k] x[j1] ... x[jv]`` over all tensors U,
    j1...jv and k.

    Args:
        blocks: for each block of the result its tensors U, ``[d, dim_in, ..., dim_in, paths]`` of
            any number of axes ``dim_in``. The paths k are numbered tensor by tensor, in this order.
        dim_in: components of x.

    Raises:
        ValueError: a tensor of another shape.
    """
    components: list[np.ndarray] = []
    monomials: list[Monomial] = []
    entries: list[np.ndarray] = [np.zeros((0, 2), dtype=np.int64)]
    values: list[np.ndarray] = [np.zeros(0)]
    dims, first_component, first_path = [], 0, 0
    for n, tensors in enumerate(blocks):
        if not tensors:
            raise ValueError(f"contraction_plan: block {n}: expected a tensor at least, found none")
        d = tensors[0].shape[0]
        for tensor in tensors:
            degree = tensor.ndim - 2
            if degree < 1 or tensor.shape[:-1] != (d, *(dim_in,) * degree):
                raise ValueError(
                    f"contraction_plan: block {n}: expected tensors [{d}, {dim_in}, ..., {dim_in}, paths], "
                    f"found {list(tensor.shape)}"
                )
            terms, pairs, value = _symmetric_terms(tensor)
            entries.append(pairs + np.array([[len(monomials), first_path]]))
            values.append(value)
            components.append(terms[:, 0] + first_component)
            monomials += [tuple(row) for row in terms[:, 1:].tolist()]
            first_path += tensor.shape[-1]
        dims.append(d)
        first_component += d
    return ContractionPlan(
        dim_in,
        tuple(dims),
        first_path,
        np.concatenate(components) if components else np.zeros(0, dtype=np.int64),
        tuple(monomials),
        np.concatenate(entries),
        np.concatenate(values),
    )


def _symmetric_terms(tensor: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Terms ``[n, 1 + degree]`` (component, factors) of one tensor; term and path ``[m, 2]``, and
    value ``[m]``, of the coefficients."""
    # What is left of exact zeros by the arithmetic that made the tensor.
    noise = np.abs(tensor).max(initial=0.0) * 8 * np.finfo(tensor.dtype).eps
    found = np.argwhere(np.abs(tensor) > noise)
    value = tensor[tuple(found.T)].astype(np.float64)
    found[:, 1:-1] = np.sort(found[:, 1:-1], axis=1)
    places, where = np.unique(found, axis=0, return_inverse=True)
    total = np.zeros(len(places))
    np.add.at(total, where.reshape(-1), value)
    kept = np.abs(total) > noise
    places, total = places[kept], total[kept]
    terms, where = np.unique(places[:, :-1], axis=0, return_inverse=True)
    return terms, np.stack([where.reshape(-1), places[:, -1]], axis=1), total


@cache
def derivative_plan(plan: ContractionPlan) -> ContractionPlan:
    """The plan of the derivative along a direction: polynomials in x and the direction, whose
    components follow those of x.
    """
    components: list[int] = []
    monomials: list[Monomial] = []
    sources: list[int] = []
    factors: list[int] = []
    for n, monomial in enumerate(plan.monomials):
        for factor, times in Counter(monomial).items():
            others = list(monomial)
            others.remove(factor)
            components.append(plan.components[n])
            monomials.append((*others, factor + plan.dim_in))
            sources.append(n)
            factors.append(times)
    by_source = defaultdict(list)
    for term, source in enumerate(sources):
        by_source[source].append(term)
    rows = [
        (term, path, value * factors[term])
        for (source, path), value in zip(plan.entries.tolist(), plan.values.tolist(), strict=True)
        for term in by_source[source]
    ]
    return ContractionPlan(
        2 * plan.dim_in,
        plan.dims_out,
        plan.paths,
        np.array(components, dtype=np.int64),
        tuple(monomials),
        np.array([row[:2] for row in rows], dtype=np.int64).reshape(-1, 2),
        np.array([row[2] for row in rows], dtype=np.float64),
    )


class ContractionTables(NamedTuple):
    """What kernels read. Monomials are numbered: 0 is 1, then come the components of x, then the
    products.
    """

    products: np.ndarray
    """``[products, Product]``."""
    groups: np.ndarray
    """``[groups, ContractionGroup]``, ordered by how many terms they have."""
    buckets: np.ndarray
    """``[MOST + 1]``: where the groups of more than n terms begin, n = 0 ... MOST."""
    factors: np.ndarray
    """``[terms]``: the monomial that a term multiplies its group's prefix with."""
    path_ptr: np.ndarray
    """``[paths + 1]``: where the entries of each path begin."""
    by_path: np.ndarray
    """``[entries, ContractionEntry]``: from paths to terms."""
    by_path_value: np.ndarray
    """``[entries]``."""
    term_ptr: np.ndarray
    """``[terms + 1]``: where the entries of each term begin."""
    by_term: np.ndarray
    """``[entries, ContractionEntry]``: from terms to paths."""
    by_term_value: np.ndarray
    """``[entries]``."""
    blocks: np.ndarray
    """``[blocks, ContractionBlock]``."""


@cache
def contraction_tables(plan: ContractionPlan) -> ContractionTables:
    """The tables of a plan."""
    prefixes = _choose_prefixes(plan)
    number: dict[Monomial, int] = {(): 0} | {(j,): 1 + j for j in range(plan.dim_in)}
    products: list[Product] = []

    def number_of(monomial: Monomial) -> int:
        if monomial not in number:
            parent = number_of(monomial[:-1])
            products.append(Product(parent, 1 + monomial[-1]))
            number[monomial] = plan.dim_in + len(products)
        return number[monomial]

    groups: dict[tuple[int, Monomial], list[int]] = defaultdict(list)
    for n, prefix in enumerate(prefixes):
        groups[int(plan.components[n]), prefix].append(n)
    pieces = [
        (component, prefix, terms[at : at + MOST])
        for (component, prefix), terms in groups.items()
        for at in range(0, len(terms), MOST)
    ]
    # Neighbours of different components: each adds to numbers that the one before has not touched.
    rank: Counter[tuple[int, int]] = Counter()
    keyed = []
    for component, prefix, terms in sorted(pieces, key=lambda piece: piece[:2]):
        turn = rank[len(terms), component]
        rank[len(terms), component] += 1
        keyed.append(((len(terms), turn, component), component, prefix, terms))
    keyed.sort(key=lambda piece: piece[0])
    rows: list[ContractionGroup] = []
    places: list[int] = []
    order: list[int] = []
    for _, component, prefix, terms in keyed:
        rows.append(ContractionGroup(number_of(prefix), component, len(places), len(terms)))
        for n in terms:
            rest = list(plan.monomials[n])
            for factor in prefix:
                rest.remove(factor)
            places.append(1 + rest[0])
            order.append(n)
    place = np.zeros(len(order), dtype=np.int64)
    place[np.array(order, dtype=np.int64)] = np.arange(len(order))
    entries = np.stack([plan.entries[:, 1], place[plan.entries[:, 0]]], axis=1)
    by_path, by_term = np.lexsort((entries[:, 1], entries[:, 0])), np.lexsort((entries[:, 0], entries[:, 1]))
    counts = [row.terms for row in rows]
    starts = np.cumsum([0, *plan.dims_out])
    return ContractionTables(
        as_table(products, Product),
        as_table(rows, ContractionGroup),
        np.searchsorted(counts, np.arange(MOST + 1), side="right").astype(np.int64),
        np.array(places, dtype=np.int64),
        np.searchsorted(entries[by_path, 0], np.arange(plan.paths + 1)).astype(np.int64),
        entries[by_path],
        plan.values[by_path],
        np.searchsorted(entries[by_term, 1], np.arange(len(order) + 1)).astype(np.int64),
        entries[by_term][:, ::-1].copy(),
        plan.values[by_term],
        as_table(
            [ContractionBlock(d, int(start)) for d, start in zip(plan.dims_out, starts, strict=False)], ContractionBlock
        ),
    )


def _choose_prefixes(plan: ContractionPlan) -> list[Monomial]:
    """Of each term: all of its factors but one. Chosen so that few groups and few products are
    made: the prefix that serves most terms for what it costs comes first (greedy set cover)."""
    chosen: list[Monomial] = [()] * len(plan.monomials)
    waiting: dict[Monomial, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))

    def candidates(monomial: Monomial) -> list[Monomial]:
        return [monomial[:n] + monomial[n + 1 :] for n in range(len(monomial)) if monomial.index(monomial[n]) == n]

    for n, monomial in enumerate(plan.monomials):
        if len(monomial) > 1:
            for prefix in candidates(monomial):
                waiting[prefix][int(plan.components[n])].add(n)

    def gain(prefix: Monomial) -> tuple[float, Monomial]:
        by_component = waiting[prefix]
        cost = len(by_component) + (1 if len(prefix) > 1 else 0)
        return sum(map(len, by_component.values())) / cost, prefix

    while waiting:
        best = max(waiting, key=gain)
        for component, terms in list(waiting[best].items()):
            for n in sorted(terms):
                chosen[n] = best
                for other in candidates(plan.monomials[n]):
                    if other == best:
                        continue
                    left = waiting[other][component]
                    left.discard(n)
                    if not left:
                        del waiting[other][component]
                    if not waiting[other]:
                        del waiting[other]
        del waiting[best]
    return chosen
