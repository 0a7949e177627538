"""The general kernel by torch's own operations, for backends without one: any mode, on any device,
in memory of edges x pairs of channels."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from hamfast.constants import constant, on_host, real_tensors
from hamfast.records.choices import Pairing, RowOf, Slot
from hamfast.records.tables import Path

X, Y, W, G = Slot.X, Slot.Y, Slot.W, Slot.G

_einsum_over_edges = torch.ops.hamfast.edge_einsum.default


def add_general(arguments: Any, out: list[Tensor]) -> None:
    """Adds the derivatives that are wanted, by the general kernel's paths, to ``out``.

    Args:
        arguments: of ``hamfast::tensor_product``, as its record reads them.
        out: one tensor for each slot.
    """
    tangents = arguments.tangents
    paths = [Path(*row) for row in on_host(arguments.tables.paths).tolist()]
    for slot in (X, Y, W, G):
        if not arguments.wanted >> slot & 1:
            continue
        # One operand after the other replaced by its tangent; -1: none.
        replaced = [n for n in range(4) if n != slot and tangents[n] is not None]
        if all(t is None for t in tangents):
            replaced = [-1]
        for n in replaced:
            operands = [tangents[i] if i == n else t for i, t in enumerate(arguments.operands)]
            for path in paths:
                if n != W or path.weight_offset >= 0:
                    _add_path(arguments, path, slot, operands, out[slot])


class _End(NamedTuple):
    """One end of the edges: None where operands have a row per edge."""

    row_of: int
    nodes: Tensor | None
    order: Tensor | None
    ptr: Tensor | None


def _add_path(arguments: Any, path: Path, slot: int, operands: list, out: Tensor) -> None:
    x, y, w, g = (None if n == slot else t for n, t in enumerate(operands))
    tables, graph = arguments.tables, arguments.graph
    senders = _End(RowOf.SENDER, graph.senders, graph.sender_order, graph.sender_ptr)
    receivers = _End(RowOf.RECEIVER, graph.receivers, graph.receiver_order, graph.receiver_ptr)
    edges = _End(RowOf.EDGE, None, None, None)
    like = next(t for t in arguments.operands if t is not None)
    coupling = _coupling(tables, path, like.dtype, like.device)
    us, vs = _pairs(path, like.device)
    first, second = (
        (torch.arange(len(us), device=like.device), 0 * vs) if path.pairing == Pairing.TRIANGULAR else (us, vs)
    )
    channels = first * path.out_u + second * path.out_v

    def rows(t, end: _End, offset: int, count: int, d: int):
        t = t[:, offset : offset + count * d].unflatten(1, (count, d))
        return t if end.nodes is None else t[end.nodes]

    xs: Any = None if x is None else rows(x, senders, path.offset1, path.n1, path.d1)[:, us]
    ys: Any = None if y is None else rows(y, edges, path.offset2, path.n2, path.d2)[:, vs]
    gs: Any = None if g is None else rows(g, receivers, path.offset3, path.n3, path.d3)
    if path.weight_offset < 0 or w is None:
        weight = like.new_ones(1, len(us))
    else:
        columns = (len(us), path.n3) if path.mixing else (len(us),)
        size = len(us) * (path.n3 if path.mixing else 1)
        weight = w[..., path.weight_offset : path.weight_offset + size].reshape(-1, *columns)
    if slot == G:
        pairs = torch.einsum("rpi,rpj,ijk->rpk", xs, ys, coupling)
        if path.mixing:
            made = torch.einsum("rpw,rpk->rwk", weight.expand(pairs.shape[0], -1, -1), pairs)
        else:
            made = _sum_pairs(weight.unsqueeze(-1) * pairs, channels, path.n3)
        return _add_rows(graph, out, made, path.offset3, receivers)
    if slot == W:
        if path.weight_offset < 0:
            return None
        pairs = torch.einsum("rpi,rpj,ijk->rpk", xs, ys, coupling)
        if path.mixing:
            made = torch.einsum("rpk,rwk->rpw", pairs, gs).flatten(1)
        else:
            made = (pairs * gs[:, channels]).sum(-1)
        own = out[..., path.weight_offset : path.weight_offset + made.shape[1]]
        own += made.sum(0) if arguments.settings.shared_weights else made
        return None
    if path.mixing:
        gs = torch.einsum("rpw,rwk->rpk", weight.expand(gs.shape[0], -1, -1), gs)
    else:
        gs = weight.unsqueeze(-1) * gs[:, channels]
    if slot == X:
        made = torch.einsum("rpj,rpk,ijk->rpi", ys, gs, coupling)
        made = _sum_pairs(made, us, path.n1)
        return _add_rows(graph, out, made, path.offset1, senders)
    made = torch.einsum("rpi,rpk,ijk->rpj", xs, gs, coupling)
    made = _sum_pairs(made, vs, path.n2)
    return _add_rows(graph, out, made, path.offset2, edges)


_COUPLINGS: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""By a plan's table of coefficients, then by path, dtype and device: copied to the device in the
first call, so that later ones do not wait for the copy."""


def _coupling(tables: Any, path: Path, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The Clebsch-Gordan coefficients of a path, ``[d1, d2, d3]``."""
    kept = _COUPLINGS.setdefault(tables.cg_index, {})
    key = (path, dtype, device)
    if key not in kept:
        index, value = (on_host(t)[path.cg_begin : path.cg_end] for t in (tables.cg_index, tables.cg_value))
        dense = np.zeros((path.d1, path.d2, path.d3))
        dense[tuple(index.T)] = value
        with real_tensors():
            kept[key] = constant(dense, device, dtype)
    return kept[key]


def _pairs(path: Path, device) -> tuple[Tensor, Tensor]:
    """The pairs of channels of x and y that a path couples."""
    if path.pairing == Pairing.TIED:
        us = vs = torch.arange(path.n1, device=device)
    elif path.pairing == Pairing.TRIANGULAR:
        us, vs = torch.triu_indices(path.n1, path.n1, 1, device=device)
    else:
        us = torch.arange(path.n1, device=device).repeat_interleave(path.n2)
        vs = torch.arange(path.n2, device=device).repeat(path.n1)
    return us, vs


def _sum_pairs(values: Tensor, channel: Tensor, count: int) -> Tensor:
    """``[rows, pairs, d]`` to ``[rows, count, d]``: a product with ones and zeros, because
    index_add's order changes on GPUs."""
    belongs = torch.nn.functional.one_hot(channel, count).to(values)
    return torch.einsum("rpk,pn->rnk", values, belongs)


def _add_rows(graph: Any, out: Tensor, made: Tensor, offset: int, end: _End) -> None:
    """Adds a block of columns, summed over the edges of each row in the order of the graph's
    lists."""
    made = made.flatten(1)
    if end.ptr is not None:
        own = (end.nodes, end.order, end.ptr)
        # What the graph lacks is not read; any list will do.
        lists = [t if t is not None else own[n % 3] for n, t in enumerate(graph)]
        summed = [1, 1, made.shape[1]]
        rows_of = [end.row_of, RowOf.EDGE]
        made = _einsum_over_edges(made[:, None, None], None, None, rows_of, summed, *lists)[:, 0, 0]
    out[:, offset : offset + made.shape[1]] += made
