"""Paths that are not channel-wise, by torch's own operations: any mode, on any device, in memory of edges x pairs of channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hamfast.triton.launch import on_host

X, Y, W, G = range(4)

_einsum_over_edges = torch.ops.hamfast.edge_einsum.default


class _Path(NamedTuple):
    """Row of the table of kernels/tensor_product.cuh."""

    pairing: int
    mixing: int
    n1: int
    n2: int
    n3: int
    d1: int
    d2: int
    d3: int
    x: int
    y: int
    g: int
    weight: int
    out_u: int
    out_v: int
    begin: int
    end: int


def add_general(call, tables: list[Tensor], out: list[Tensor]) -> None:
    """Adds the derivatives that ``call`` (hamfast/triton/tensor_product.py) wants to ``out``."""
    for slot in range(4):
        if not call.wants(slot):
            continue
        replaced = [n for n in range(4) if n != slot and call.directions[n] is not None]
        if all(d is None for d in call.directions):
            replaced = [-1]
        for n in replaced:
            operands = [call.directions[i] if i == n else t for i, t in enumerate(call.operands)]
            for numbers in on_host(tables[0]).tolist():
                path = _Path(*numbers)
                if n != W or path.weight >= 0:
                    _add_path(call, path, tables, slot, operands, out[slot])


def _add_path(call, path: _Path, tables: list[Tensor], slot: int, operands: list, out: Tensor) -> None:
    x, y, w, g = (None if n == slot else t for n, t in enumerate(operands))
    index, value = (on_host(t)[path.begin : path.end] for t in tables[1:])
    like = call.like
    coupling = torch.zeros(path.d1, path.d2, path.d3, dtype=like.dtype)
    coupling[tuple(torch.as_tensor(index.T.copy()))] = torch.as_tensor(value, dtype=like.dtype)
    coupling = coupling.to(like.device)
    us, vs = _pairs(path, like.device)
    first, second = (torch.arange(len(us), device=like.device), 0 * vs) if path.pairing == 2 else (us, vs)
    channels = first * path.out_u + second * path.out_v

    def rows(t, ends: Sequence[Tensor | None], offset: int, count: int, d: int):
        t = t[:, offset : offset + count * d].unflatten(1, (count, d))
        return t if ends[0] is None else t[ends[0]]

    xs: Any = None if x is None else rows(x, call.senders, path.x, path.n1, path.d1)[:, us]
    ys: Any = None if y is None else rows(y, (None,), path.y, path.n2, path.d2)[:, vs]
    gs: Any = None if g is None else rows(g, call.receivers, path.g, path.n3, path.d3)
    if path.weight < 0 or w is None:
        weight = like.new_ones(1, len(us))
    else:
        columns = (len(us), path.n3) if path.mixing else (len(us),)
        size = len(us) * (path.n3 if path.mixing else 1)
        weight = w[..., path.weight : path.weight + size].reshape(-1, *columns)
    if slot == G:
        pairs = torch.einsum("rpi,rpj,ijk->rpk", xs, ys, coupling)
        if path.mixing:
            made = torch.einsum("rpw,rpk->rwk", weight.expand(pairs.shape[0], -1, -1), pairs)
        else:
            made = _sum_pairs(weight.unsqueeze(-1) * pairs, channels, path.n3)
        return _add_rows(call, out, made, path.g, call.receivers, 2)
    if slot == W:
        if path.weight < 0:
            return None
        pairs = torch.einsum("rpi,rpj,ijk->rpk", xs, ys, coupling)
        if path.mixing:
            made = torch.einsum("rpk,rwk->rpw", pairs, gs).flatten(1)
        else:
            made = (pairs * gs[:, channels]).sum(-1)
        part = out[..., path.weight : path.weight + made.shape[1]]
        part += made.sum(0) if call.shared else made
        return None
    if path.mixing:
        gs = torch.einsum("rpw,rwk->rpk", weight.expand(gs.shape[0], -1, -1), gs)
    else:
        gs = weight.unsqueeze(-1) * gs[:, channels]
    if slot == X:
        made = torch.einsum("rpj,rpk,ijk->rpi", ys, gs, coupling)
        made = _sum_pairs(made, us, path.n1)
        return _add_rows(call, out, made, path.x, call.senders, 1)
    made = torch.einsum("rpi,rpk,ijk->rpj", xs, gs, coupling)
    made = _sum_pairs(made, vs, path.n2)
    return _add_rows(call, out, made, path.y, (None,) * 3, 0)


def _pairs(path: _Path, device) -> tuple[Tensor, Tensor]:
    """The pairs of channels of x and y that a path couples."""
    if path.pairing == 1:
        us = vs = torch.arange(path.n1, device=device)
    elif path.pairing == 2:
        us, vs = torch.triu_indices(path.n1, path.n1, 1, device=device)
    else:
        us = torch.arange(path.n1, device=device).repeat_interleave(path.n2)
        vs = torch.arange(path.n2, device=device).repeat(path.n1)
    return us, vs


def _sum_pairs(values: Tensor, channel: Tensor, count: int) -> Tensor:
    """``[rows, pairs, d]`` to ``[rows, count, d]``: a product with ones and zeros, because index_add's order changes on GPUs."""
    belongs = torch.nn.functional.one_hot(channel, count).to(values)
    return torch.einsum("rpk,pn->rnk", values, belongs)


def _add_rows(call, out, made: Tensor, offset: int, ends, place: int) -> None:
    """Adds a block of columns, summed over the edges of each row in the order of the graph's lists."""
    made = made.flatten(1)
    if ends[2] is not None:
        graph = (*call.senders, *call.receivers)
        graph = tuple(own if own is not None else ends[n % 3] for n, own in enumerate(graph))
        made = _einsum_over_edges(made[:, None, None], None, None, [place, 0], [1, 1, made.shape[1]], *graph)[:, 0, 0]
    out[:, offset : offset + made.shape[1]] += made
