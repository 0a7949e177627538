"""The edges of a graph, sorted once for every op and every derivative."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hamfast.constants import is_traced, outside_inference_mode
from hamfast.ops.checks import INTEGERS, check_count, check_tensor, found
from hamfast.records.ops import GRAPH

_Graph = GRAPH.fields


@dataclass(frozen=True)
class EdgeIndex:
    """Directed edges ``senders[e] -> receivers[e]`` with their order by either end. Make one with
    :func:`edge_index`.

    Multi-edges, self-loops and nodes without edges are all allowed; edges may come in any order.
    """

    senders: Tensor
    """``[edges]`` int64."""
    receivers: Tensor
    """``[edges]`` int64."""
    num_senders: int
    num_receivers: int
    sender_order: Tensor
    """``[edges]``: edges sorted by sender (stable)."""
    sender_ptr: Tensor
    """``[num_senders + 1]``: where each sender's edges begin in ``sender_order``."""
    receiver_order: Tensor
    receiver_ptr: Tensor

    @property
    def by_sender(self) -> tuple[Tensor, Tensor, Tensor]:
        """Senders, order and pointers, as the ops take them."""
        return self.senders, self.sender_order, self.sender_ptr

    @property
    def by_receiver(self) -> tuple[Tensor, Tensor, Tensor]:
        """Receivers, order and pointers, as the ops take them."""
        return self.receivers, self.receiver_order, self.receiver_ptr

    @property
    def graph(self) -> Any:
        """Both ends, as the records of the ops name them."""
        return _Graph(*self.by_sender, *self.by_receiver)

    @property
    def rows(self) -> dict[str, int]:
        """How many rows an operand has that has one per edge, per sender or per receiver."""
        return {"edge": self.num_edges, "sender": self.num_senders, "receiver": self.num_receivers}

    @property
    def num_edges(self) -> int:
        """How many edges there are."""
        return self.senders.shape[0]

    def to(self, device) -> EdgeIndex:
        """The same edges on another device."""
        with outside_inference_mode():
            tensors = {k: v.to(device) for k, v in self.__dict__.items() if isinstance(v, Tensor)}
        return replace(self, **tensors)  # type: ignore[arg-type]


def edge_index(senders: Tensor, receivers: Tensor, num_senders: int, num_receivers: int | None = None) -> EdgeIndex:
    """Checks, copies and sorts an edge list.

    Args:
        senders, receivers: ``[edges]`` integers. They are copied: writing to them later changes
            nothing here.
        num_senders: number of nodes that edges leave.
        num_receivers: number of nodes that edges reach, ``num_senders`` by default.

    Returns:
        Tensors of int64, also inside ``torch.inference_mode()`` ones that training may use.

    Raises:
        TypeError: no tensors, or numbers of nodes that are no integers; the message names the
            argument.
        ValueError: wrong shape or dtype, or an index out of range; the message names the argument.
    """
    num_receivers = num_senders if num_receivers is None else num_receivers
    for name, index, count in (("senders", senders, num_senders), ("receivers", receivers, num_receivers)):
        check_tensor("edge_index", name, index)
        check_count("edge_index", f"num_{name}", count)
        if index.dim() != 1 or index.dtype not in INTEGERS:
            raise ValueError(f"{name}: expected [edges] int64, found {list(index.shape)} {index.dtype}")
        if is_traced():  # values are not known yet: they are checked when they are
            inside = ((index >= 0) & (index < count)).all()
            torch._assert_async(inside, f"{name}: expected indices below the number of nodes, found others")
        elif index.numel() and not 0 <= int(index.min()) <= int(index.max()) < count:
            raise ValueError(
                f"{name}: expected indices in [0, {count}), found {int(index.min())} to {int(index.max())}"
            )
    if senders.shape != receivers.shape:
        raise ValueError(f"receivers: expected {senders.shape[0]} edges as in senders, found {receivers.shape[0]}")

    def sort(index, count):
        # Not bincount: torch.compile cannot tell the length of its result.
        ptr = torch.zeros(count + 1, dtype=torch.int64, device=index.device)
        ptr = ptr.scatter_add(0, index + 1, torch.ones_like(index)).cumsum(0)
        return torch.argsort(index, stable=True), ptr

    with outside_inference_mode():
        senders, receivers = (index.to(torch.int64, copy=True).contiguous() for index in (senders, receivers))
        num_senders, num_receivers = (
            n if isinstance(n, torch.SymInt) else int(n) for n in (num_senders, num_receivers)
        )
        by_sender, by_receiver = sort(senders, num_senders), sort(receivers, num_receivers)
    return EdgeIndex(senders, receivers, num_senders, num_receivers, *by_sender, *by_receiver)


def check_graph(op: str, edges: EdgeIndex, name: str = "edges") -> None:
    """``edges`` must be prepared."""
    if not isinstance(edges, EdgeIndex):
        raise TypeError(f"{op}: {name}: expected an EdgeIndex from hamfast.ops.edge_index, found {found(edges)}")


def reverse_edges(edges: EdgeIndex, shifts: Tensor | None = None) -> Tensor:
    """For each edge s -> t its way back t -> s: ``[edges]`` int64, its own inverse. ``H_ji =
    H_ij^T`` and symmetric sums need it.

    Args:
        shifts: ``[edges, n]`` integers, what tells the edges of one pair apart: lattice vectors R
            of a crystal, which the way back has negated. Of edges that are alike in all of that,
            the n-th goes with the n-th.

    Raises:
        TypeError: another type of graph; shifts that are no tensor.
        ValueError: an edge has no way back; the message names one.
    """
    check_graph("reverse_edges", edges)
    there, back = torch.stack([edges.senders, edges.receivers]), torch.stack([edges.receivers, edges.senders])
    if shifts is not None:
        check_tensor("reverse_edges", "shifts", shifts)
        if shifts.shape[:1] != edges.senders.shape or shifts.dim() != 2 or shifts.is_floating_point():
            raise ValueError(
                f"shifts: expected [{edges.num_edges}, n] integers, found {list(shifts.shape)} {shifts.dtype}"
            )
        there, back = torch.cat([there, shifts.T.long()]), torch.cat([back, -shifts.T.long()])
    order = [torch.arange(edges.num_edges, device=there.device)] * 2
    for n, keys in enumerate((there, back)):
        for key in keys.flip(0):  # stable: the first key counts most
            order[n] = order[n][torch.argsort(key[order[n]], stable=True)]
    differ = (there[:, order[0]] != back[:, order[1]]).any(0)
    if bool(differ.any()):
        first = int(torch.nonzero(differ)[0])
        one, other = int(order[0][first]), int(order[1][first])
        # The smaller of the two stands in one list only.
        edge = other if back[:, other].tolist() < there[:, one].tolist() else one
        raise ValueError(
            f"edge {edge}, {int(edges.senders[edge])} -> {int(edges.receivers[edge])}: expected a way back, found none"
        )
    reverse = torch.empty_like(order[0])
    reverse[order[1]] = order[0]
    return reverse
