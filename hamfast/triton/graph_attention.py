"""Graph attention's ops on tensors, for the kernels of kernels/graph_attention*.py: numbers per edge and head, then weighted sums."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hamfast.kernels.graph_attention import edge_dots, weighted_sums
from hamfast.kernels.graph_attention_scores import attention_gradients, attention_second_gradients, attention_weights
from hamfast.triton.configurations import ATTENTION_DOTS, ATTENTION_NUMBERS, ATTENTION_SUMS
from hamfast.triton.launch import launch, pieces, real_of

# Operands in the order of the schema: csrc/library.cpp.
QUERY, KEY, VALUE, ON_EDGE, EDGE, VECTOR, BIAS = 0, 3, 6, 9, 10, 11, 12
COUNT = 16
AT_EDGE, AT_SENDER, AT_RECEIVER = range(3)

_DOT, _ADDITIVE, _GIVEN = range(3)
_ALONG = 2
"""The change of additive scores, for edge_dots."""
_LINEAR, _ACTIVATION, _ACTIVATION_SLOPE = range(3)
_VECTOR_PARTS = 64


class _Rows(NamedTuple):
    """Rows as kernels/graph_attention.py takes them."""

    on_edge: Tensor | None
    of_sender: Tensor | None
    of_receiver: Tensor | None
    row_stride: int
    head_stride: int

    def __bool__(self) -> bool:
        return any(t is not None for t in self[:3])


_NO_ROWS = _Rows(None, None, None, 0, 0)


class _Attention:
    """One call: operands, graph and settings of any of the three ops."""

    def __init__(self, arguments: Sequence, directions: Sequence[Tensor | None] | None = None):
        operands, seed, graph = arguments[:COUNT], arguments[COUNT], arguments[COUNT + 1 : COUNT + 7]
        self.operands = [_readable(n, t) for n, t in enumerate(operands)]
        self.directions = [_readable(n, t) for n, t in enumerate(directions or [None] * COUNT)]
        self.seed = seed
        self.senders, self.sender_order, self.sender_ptr, *rest = (t.contiguous() for t in graph)
        self.receivers, self.receiver_order, self.receiver_ptr = rest
        kinds, numbers, self.wanted = arguments[COUNT + 7 :]
        self.heads, self.score, self.activation, self.weight = kinds
        self.slope, self.scale, self.clip, self.epsilon, self.dropout = numbers
        self.like = next(t for t in self.operands if t is not None)
        # Rows may be of half precision, numbers per edge and head are not: as csrc/graph_attention/graph_attention_call.h has it.
        self.stored = next((t for n, t in enumerate(self.operands) if t is not None and _is_stored(n)), self.like).dtype
        self.number = torch.float64 if self.stored == torch.float64 else torch.float32
        self.edges = self.senders.shape[0]
        self.rows = (self.edges, self.sender_ptr.shape[0] - 1, self.receiver_ptr.shape[0] - 1)
        edge = self.operands[EDGE]
        self.features = 0 if edge is None else edge.shape[1]

    def width(self, first: int) -> int:
        return next((t.shape[2] for t in self.operands[first : first + 3] if t is not None), 0)

    def new(self, *shape: int) -> Tensor:
        return self.like.new_empty(shape, dtype=self.number)

    def new_rows(self, *shape: int) -> Tensor:
        return self.like.new_empty(shape, dtype=self.stored)

    def numbers(self) -> Tensor:
        return self.new(self.edges, self.heads)

    def parts(self, first: int, of: Sequence[Tensor | None] | None = None) -> _Rows:
        """The three parts of query, key or value, or of their directions."""
        tensors = (self.operands if of is None else of)[first : first + 3]
        width = self.width(first)
        on_edge, of_sender, of_receiver = tensors
        rows = _Rows(on_edge, of_sender, of_receiver, self.heads * width, width)
        return rows or _NO_ROWS

    def edge_features(self, of: Sequence[Tensor | None] | None = None) -> _Rows:
        edge = (self.operands if of is None else of)[EDGE]
        return _NO_ROWS if edge is None else _Rows(edge, None, None, self.features, 0)

    def _constants(self) -> dict:
        return {"REAL": real_of(self.like)}

    def dots(
        self, out: Tensor, a: _Rows, b: _Rows, width: int, c: _Rows, d: _Rows, additive: bool = False, add: bool = False
    ) -> None:
        """``out[edge, head] = <a, b> + <c, d>``; absent rows have no product."""
        has_first = width > 0 and (bool(a or b) if additive else bool(a and b))
        if not has_first:
            a, b, width = _NO_ROWS, _NO_ROWS, 0
        if not (c and d):
            c, d = _NO_ROWS, _NO_ROWS
        features = self.features if c else 0
        if not (add and width == features == 0):
            self._dots(out, _ADDITIVE if additive else _DOT, width, features, (*a, *b, *c, *d), add)

    def dots_along(self, out: Tensor) -> None:
        """The change of additive scores along directions of query, key and vector."""
        rows = (self.parts(n, of) for of in (None, self.directions) for n in (QUERY, KEY))
        self._dots(out, _ALONG, self.width(QUERY), 0, [argument for part in rows for argument in part], False)

    def _dots(self, out: Tensor, score: int, width: int, features: int, rows: Sequence, add: bool) -> None:
        edges, columns = ATTENTION_DOTS.cut(max(width, features))
        additive = score != _DOT
        constants = self._constants() | {
            "SCORE": score,
            "ACTIVATION": self.activation if additive else 0,
            "SLOPE": self.slope if additive else 0.0,
            "ADD": add,
            "EDGES": edges,
            "COLUMNS": columns,
        }
        vectors = (self.operands[VECTOR] if additive else None, self.directions[VECTOR] if score == _ALONG else None)
        graph = (self.senders, self.receivers, self.receiver_order, self.edges)
        arguments = (out, *graph, self.heads, width, features, *rows, *vectors)
        launch(edge_dots, (pieces(self.edges, edges),), arguments, constants, out, ATTENTION_DOTS.num_warps)

    def sums(
        self, out: Tensor, place: int, width: int, weight: Tensor, a: _Rows, more: Tensor | None = None, b: _Rows = _NO_ROWS,
        kind: int = _LINEAR, over_heads: bool = False, add: bool = False, parts: int = 0,
    ) -> None:  # fmt: skip
        """Sums of ``weight a + more b`` over the edges of each row of ``out``, whose place is an edge, a sender or a receiver."""
        order = (None, self.sender_order, self.receiver_order)[place]
        ptr = (None, self.sender_ptr, self.receiver_ptr)[place]
        elements = width if over_heads else self.heads * width
        if elements == 0:
            return
        edges, columns = ATTENTION_SUMS.cut(elements)
        constants = self._constants() | {
            "KIND": kind,
            "ACTIVATION": self.activation if kind else 0,
            "SLOPE": self.slope if kind else 0.0,
            "OVER_HEADS": over_heads,
            "ADD": add,
            "PARTS": parts,
            "EDGES": edges,
            "COLUMNS": columns,
        }
        turns = parts or (self.rows[place] if ptr is not None else pieces(self.edges, edges))
        graph = (self.senders, self.receivers, order, ptr, self.edges)
        vector, tangent_vector, along = None, None, (_NO_ROWS, _NO_ROWS)
        if kind == _ACTIVATION_SLOPE:
            vector, tangent_vector = self.operands[VECTOR], self.directions[VECTOR]
        if kind != _LINEAR:
            along = self.parts(QUERY, self.directions), self.parts(KEY, self.directions)
        arguments = (out, *graph, self.heads, width, weight, *a, more, *b, vector, *along[0], *along[1], tangent_vector)
        launch(weighted_sums, (turns, pieces(elements, columns)), arguments, constants, out, ATTENTION_SUMS.num_warps)

    def per_receiver(self, kernel, arguments: tuple, constants: dict, with_directions: bool = False) -> None:
        """A kernel of numbers per edge and head: what all of them take comes after ``arguments``."""
        edges, heads = ATTENTION_NUMBERS.cut(self.heads)
        scalars: list = []
        for tensors in (self.operands, self.directions) if with_directions else (self.operands,):
            for t in tensors[BIAS : BIAS + 4]:
                scalars += [None, 0, 0] if t is None else [t, t.stride(0), t.stride(1)]
        clip = None if math.isinf(self.clip) else self.clip
        constants = self._constants() | constants | {"SCALE": self.scale, "CLIP": clip, "DROPOUT": self.dropout}
        constants |= {"EDGES": edges, "HEADS": heads}
        graph = (self.receiver_order, self.receiver_ptr, self.heads, self.seed)
        grid = (self.rows[AT_RECEIVER], pieces(self.heads, heads))
        launch(kernel, grid, (*arguments, *graph, *scalars), constants, self.like, ATTENTION_NUMBERS.num_warps)

    def raw_scores(self) -> Tensor:
        """z"""
        z = self.numbers()
        query, key = (_NO_ROWS, _NO_ROWS) if self.score == _GIVEN else (self.parts(QUERY), self.parts(KEY))
        query_on_edge = _NO_ROWS if self.score == _GIVEN else _node_rows(self.operands[ON_EDGE])
        additive = self.score == _ADDITIVE
        self.dots(z, query, key, self.width(QUERY), query_on_edge, self.edge_features(), additive)
        return z

    def incoming(
        self, grad_out: Tensor | None, grad_out_on_edge: Tensor | None, of: Sequence[Tensor | None] | None = None
    ) -> Tensor:
        """a: the weights' gradients; along directions of the operands, b."""
        a = self.numbers()
        rows = _node_rows(grad_out), self.parts(VALUE, of)
        self.dots(a, *rows, self.width(VALUE), _node_rows(grad_out_on_edge), self.edge_features(of))
        return a

    def gradients_of(self, n: int) -> Tensor:
        """Room for an operand's gradient, empty if it is not wanted."""
        new = self.new_rows if _is_stored(n) else self.new
        if not self.wanted >> n & 1:
            return new(0)
        if n >= BIAS:
            return self.numbers()
        operand = self.operands[n]
        assert operand is not None
        return new(*operand.shape)

    def optional(self, gradients: list[Tensor], n: int) -> Tensor | None:
        return gradients[n] if self.wanted >> n & 1 else None

    def add_up_gradients(
        self, out: list[Tensor], grad_z: Tensor, weight: Tensor, grad_out: Tensor | None, grad_out_on_edge: Tensor | None,
        grad_tangent_z: Tensor | None = None,
    ) -> None:  # fmt: skip
        """The gradients of rows, from dz, w and, along directions, dz'."""
        additive = self.score == _ADDITIVE
        both = self.parts(QUERY), self.parts(KEY)
        is_along = any(self.directions[n] is not None for n in (*range(VALUE), VECTOR))
        of_activation = grad_tangent_z if is_along else None
        for first, other in ((QUERY, KEY), (KEY, QUERY)):
            for place in range(3):
                if not self.wanted >> first + place & 1:
                    continue
                to, width = out[first + place], self.width(QUERY)
                if additive:
                    self.sums(to, place, width, grad_z, both[0], of_activation, both[1], _ACTIVATION_SLOPE)
                else:
                    along = self.parts(other, self.directions)
                    more = grad_tangent_z if along else None
                    self.sums(to, place, width, grad_z, self.parts(other), more, along)
        for place in range(3):
            if self.wanted >> VALUE + place & 1:
                self.sums(out[VALUE + place], place, self.width(VALUE), weight, _node_rows(grad_out))
        if self.wanted >> ON_EDGE & 1:
            along = self.edge_features(self.directions)
            more = grad_tangent_z if along else None
            self.sums(out[ON_EDGE], AT_RECEIVER, self.features, grad_z, self.edge_features(), more, along)
        if self.wanted >> EDGE & 1:
            query, change = _node_rows(self.operands[ON_EDGE]), _node_rows(self.directions[ON_EDGE])
            self._sums_of_nodes(
                out[EDGE], [(grad_z, query), (grad_tangent_z, change), (weight, _node_rows(grad_out_on_edge))]
            )
        if self.wanted >> VECTOR & 1:
            width = self.width(QUERY)
            parts = self.new(_VECTOR_PARTS, self.heads, width)
            self.sums(parts, AT_EDGE, width, grad_z, both[0], of_activation, both[1], _ACTIVATION, parts=_VECTOR_PARTS)
            out[VECTOR] = parts.sum(0)

    def _sums_of_nodes(self, out: Tensor, terms: list[tuple[Tensor | None, _Rows]]) -> None:
        """The gradient of edges' features, summed over heads: rows of receivers times numbers per edge and head."""
        given = [(weight, rows) for weight, rows in terms if weight is not None and rows]
        if not given:
            out.zero_()
        # What more than one launch adds up is not rounded in between.
        total = out if len(given) <= 2 or out.dtype == self.number else self.new(*out.shape)
        for n in range(0, len(given), 2):
            (weight, rows), (more, others) = (*given[n : n + 2], (None, _NO_ROWS))[:2]
            assert weight is not None
            self.sums(total, AT_EDGE, self.features, weight, rows, more, others, over_heads=True, add=n > 0)
        if total is not out:
            out.copy_(total)

    def aggregate(self, out: Tensor | None, on_edge: Tensor | None, weight: Tensor, more: Tensor | None = None) -> None:
        """``sum weight v (+ more v')``, and the same of the edges' features."""
        if out is not None:
            along = self.parts(VALUE, self.directions) if more is not None else _NO_ROWS
            self.sums(out, AT_RECEIVER, self.width(VALUE), weight, self.parts(VALUE), more if along else None, along)
        if on_edge is not None:
            along = self.edge_features(self.directions) if more is not None else _NO_ROWS
            more = more if along else None
            self.sums(on_edge, AT_RECEIVER, self.features, weight, self.edge_features(), more, along)


def _is_stored(n: int) -> bool:
    return n < ON_EDGE or n == EDGE


def _readable(n: int, t: Tensor | None) -> Tensor | None:
    """Rows contiguous; those of receivers (ON_EDGE) may lie anywhere, and numbers per edge have strides of their own."""
    if t is None or n >= BIAS:
        return t
    return _with_contiguous_rows(t) if n == ON_EDGE else t.contiguous()


def _with_contiguous_rows(t: Tensor | None) -> Tensor | None:
    return t if t is None or t.stride(2) == 1 else t.contiguous()


def _node_rows(t: Tensor | None) -> _Rows:
    """``[receivers, heads, columns]``"""
    return _NO_ROWS if t is None else _Rows(None, None, t, t.stride(0), t.stride(1))


def _contiguous(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


def graph_attention(edge_key_weight, *arguments):
    """``hamfast::graph_attention``: see csrc/library.cpp. ``edge_key_weight`` is for the backward pass."""
    call = _Attention(arguments)
    receivers, heads = call.rows[AT_RECEIVER], call.heads
    out, lse, weights = call.new_rows(receivers, heads, call.width(VALUE)), call.new(receivers, heads), call.numbers()
    on_edge = call.new(receivers, heads, call.features) if call.wanted & 4 else None
    logits = call.numbers() if call.wanted & 2 else None
    constants = {"WEIGHT": call.weight, "LOG_EPSILON": math.log(call.epsilon) if call.epsilon > 0 else -math.inf}
    call.per_receiver(attention_weights, (call.raw_scores(), lse, weights, logits), constants)
    call.aggregate(out, on_edge, weights)
    return (
        out,
        call.new(0) if on_edge is None else on_edge,
        lse,
        weights if call.wanted & 1 else call.new(0),
        call.new(0) if logits is None else logits,
    )


def graph_attention_backward(grad_out, grad_out_on_edge, grad_lse, grad_weights, grad_logits, lse, *arguments):
    """``hamfast::graph_attention_backward``: see csrc/library.cpp."""
    call = _Attention(arguments)
    grad_out, grad_out_on_edge = _contiguous(grad_out), _with_contiguous_rows(grad_out_on_edge)
    out = [call.gradients_of(n) for n in range(COUNT)]
    grad_z, weight = call.numbers(), call.numbers()
    call.per_receiver(
        attention_gradients,
        (
            call.raw_scores(),
            call.incoming(grad_out, grad_out_on_edge),
            lse.contiguous(),
            *(_contiguous(t) for t in (grad_lse, grad_weights, grad_logits)),
            grad_z,
            weight,
            *(call.optional(out, BIAS + n) for n in range(4)),
        ),
        {"WEIGHT": call.weight},
    )
    call.add_up_gradients(out, grad_z, weight, grad_out, grad_out_on_edge)
    return tuple(out)


def graph_attention_double_backward(*arguments):
    """``hamfast::graph_attention_double_backward``: see csrc/library.cpp."""
    directions, gradients, lse = arguments[:COUNT], arguments[COUNT : COUNT + 5], arguments[COUNT + 5]
    call = _Attention(arguments[COUNT + 6 :], directions)
    grad_out, grad_out_on_edge = _contiguous(gradients[0]), _with_contiguous_rows(gradients[1])
    wanted = [call.wanted >> COUNT + n & 1 for n in range(5)]
    rows, numbers = (call.rows[AT_RECEIVER], call.heads), (call.edges, call.heads)
    shapes = [(*rows, call.width(VALUE)), (*rows, call.features), rows, numbers, numbers]
    to_gradients = [
        (call.new if n else call.new_rows)(*(shape if is_wanted else (0,)))
        for n, (shape, is_wanted) in enumerate(zip(shapes, wanted, strict=True))
    ]
    to_out, to_on_edge, *to_numbers = (
        t if is_wanted else None for t, is_wanted in zip(to_gradients, wanted, strict=True)
    )
    out = [call.gradients_of(n) for n in range(COUNT)]
    along = call.directions
    tangent_z = call.numbers()
    query_on_edge, tangent_query_on_edge = (_node_rows(t[ON_EDGE]) for t in (call.operands, along))
    both = (QUERY, KEY)
    (query, key), (tangent_query, tangent_key) = ([call.parts(n, of) for n in both] for of in (None, along))
    width, additive = call.width(QUERY), call.score == _ADDITIVE
    if additive:
        call.dots_along(tangent_z)
        tangent_query = tangent_key = _NO_ROWS
    call.dots(tangent_z, tangent_query, key, width, tangent_query_on_edge, call.edge_features(), add=additive)
    call.dots(tangent_z, query, tangent_key, width, query_on_edge, call.edge_features(along), add=True)
    grad_z, grad_tangent_z, changed_weight, weight = (call.numbers() for _ in range(4))
    call.per_receiver(
        attention_second_gradients,
        (
            call.raw_scores(),
            call.incoming(grad_out, grad_out_on_edge),
            tangent_z,
            call.incoming(grad_out, grad_out_on_edge, along),
            lse.contiguous(),
            *(_contiguous(t) for t in gradients[2:]),
            grad_z,
            grad_tangent_z,
            changed_weight,
            weight,
            *to_numbers,
            *(call.optional(out, BIAS + n) for n in range(4)),
        ),
        {"WEIGHT": call.weight},
        with_directions=True,
    )
    call.add_up_gradients(out, grad_z, changed_weight, grad_out, grad_out_on_edge, grad_tangent_z)
    call.aggregate(to_out, to_on_edge, changed_weight, weight)
    return *to_gradients, *out
