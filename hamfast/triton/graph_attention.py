"""Graph attention's ops on tensors, for the kernels of kernels/graph_attention.py and
kernels/graph_attention_scores.py.

First come scalars per edge and head, then the sums of rows that they weight.
The symbols are those of kernels/graph_attention.cuh.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from torch import Tensor

from hamfast.kernels.graph_attention import Graph, Rows, Summand, Vectors, edge_dots, weighted_sums
from hamfast.kernels.graph_attention_scores import (
    EdgeScalar,
    Gradients,
    Scalars,
    ScoreCall,
    attention_gradients,
    attention_second_gradients,
    attention_weights,
)
from hamfast.ops.attention_kernel import Operands, Shapes
from hamfast.ops.edge_einsum import order_by_end, rows_by_end
from hamfast.records.choices import AttentionWanted, RowOf, Score
from hamfast.records.ops import (
    ATTENTION_OPERANDS,
    GRAPH_ATTENTION,
    GRAPH_ATTENTION_BACKWARD,
    GRAPH_ATTENTION_DOUBLE_BACKWARD,
)
from hamfast.triton.configurations import ATTENTION_DOTS, ATTENTION_SCALARS, ATTENTION_SUMS
from hamfast.triton.launch import contiguous, launch, pieces, real_of

VECTOR_CHUNKS = 64
"""Of the edges, for the gradient of the vector, which all edges share."""

_NO_ROWS = Rows(None, None, None, 0, 0)
_NO_OPERANDS = Operands(*(None for _ in ATTENTION_OPERANDS))
_NO_SCALAR = EdgeScalar(None, 0, 0)


class _RowWeights(NamedTuple):
    """What the gradients of rows are made with: tensors ``[edges, heads]``."""

    grad_z: Tensor
    grad_tangent_z: Tensor | None
    """In the double backward pass alone."""
    value: Tensor
    """w, or tangent_w in the double backward pass."""


class _Call:
    """One call of any of the three ops, as the kernels take it."""

    def __init__(self, arguments: Any, tangents: Any = _NO_OPERANDS):
        self.shapes = Shapes(arguments)
        self.operands = _readable(Operands(*arguments.operands))
        self.tangents = _readable(Operands(*tangents))
        self.graph = contiguous(arguments.graph)
        self.seed, self.settings, self.wanted = arguments.seed, arguments.settings, arguments.wanted
        self.like, self.heads, self.features = self.shapes.like, self.shapes.heads, self.shapes.features
        self.rows = rows_by_end(self.graph)
        queries = (self.operands.query_edge, self.operands.query_sender, self.operands.query_receiver)
        self.width = next((t.shape[2] for t in queries if t is not None), 0)
        """Of queries and keys."""

    @property
    def additive(self) -> bool:
        """Is z a sum over activations?"""
        return self.settings.score == Score.ADDITIVE

    def new_scalars(self) -> Tensor:
        """An empty tensor ``[edges, heads]``."""
        return self.like.new_empty(self.shapes.edges, self.heads, dtype=self.shapes.compute)

    def parts(self, name: str, of: Any = None) -> Rows:
        """Rows of ``query``, ``key`` or ``value``; of: the tangents, or None for the operands."""
        of = self.operands if of is None else of
        tensors = [getattr(of, f"{name}_{end}") for end in RowOf.names()]
        width = self.shapes.value_width if name == "value" else self.width
        return _NO_ROWS if all(t is None for t in tensors) else Rows(*tensors, self.heads * width, width)

    def edge_features(self, of: Any = None) -> Rows:
        """Rows of the edges' features; of: the tangents, or None for the operands."""
        edge = (self.operands if of is None else of).edge
        return _NO_ROWS if edge is None else Rows(edge, None, None, self.features, 0)

    def dots(
        self, out: Tensor, width: int, a: Rows, b: Rows, c: Rows, d: Rows, additive: bool = False, add: bool = False
    ) -> None:
        """``out[edge, head] = <a, b> + <c, d>``; absent rows have no product."""
        absent = [rows is _NO_ROWS for rows in (a, b)]
        if width == 0 or (all(absent) if additive else any(absent)):
            a, b, width = _NO_ROWS, _NO_ROWS, 0
        if c is _NO_ROWS or d is _NO_ROWS:
            c, d = _NO_ROWS, _NO_ROWS
        features = 0 if c is _NO_ROWS else self.features
        if width == features == 0 and add:
            return
        self._dots(out, width, features, (a, b, c, d), additive, False, add)

    def tangent_of_additive_score(self, out: Tensor) -> None:
        """The change of ``<vector, act(q + k)>`` along the tangents of query, key and vector."""
        rows = tuple(self.parts(name, of) for of in (None, self.tangents) for name in ("query", "key"))
        self._dots(out, self.width, 0, rows, True, True, False)

    def _dots(self, out, width, features, rows, additive: bool, along: bool, add: bool) -> None:
        edges, columns = ATTENTION_DOTS.cut(max(width, features))
        constants = {
            "SCORE": Score.ADDITIVE if additive else Score.DOT,
            "ALONG": along,
            "ACT": self.settings.activation if additive else 0,
            "SLOPE": self.settings.slope if additive else 0.0,
            "ADD": add,
            "REAL": real_of(self.like),
            "EDGES": edges,
            "COLUMNS": columns,
        }
        vectors = Vectors(self.operands.vector if additive else None, self.tangents.vector if along else None)
        senders, receivers, count = self.graph.senders, self.graph.receivers, self.shapes.edges
        graph = Graph(senders, receivers, count, self.graph.receiver_order, None)
        arguments = (out, graph, self.heads, width, features, *rows, vectors)
        launch(edge_dots, (pieces(count, edges),), arguments, constants, out, ATTENTION_DOTS.num_warps)

    def sums(
        self, out: Tensor, row_of: int, width: int, weight: Tensor, a: Rows, other_weight: Tensor | None = None,
        b: Rows = _NO_ROWS, summand: int = Summand.ROWS, over_heads: bool = False, add: bool = False, chunks: int = 0,
    ) -> None:  # fmt: skip
        """Weighted sums over the edges of each row of ``out``.

        Args:
            row_of: a choice of RowOf, for the rows of out.
            summand: ``weight a + other_weight b`` for rows. ``weight`` times another summand, plus
                ``other_weight`` times its change along tangents.
            chunks: a row of out is one of so many chunks of all edges.
        """
        order, ptr = order_by_end(self.graph)[row_of]
        elements = width if over_heads else self.heads * width
        if elements == 0:
            return
        edges, columns = ATTENTION_SUMS.cut(elements)
        activates = summand != Summand.ROWS
        constants = {
            "SUMMAND": summand,
            "ACT": self.settings.activation if activates else 0,
            "SLOPE": self.settings.slope if activates else 0.0,
            "OVER_HEADS": over_heads,
            "ADD": add,
            "CHUNKS": chunks,
            "REAL": real_of(self.like),
            "EDGES": edges,
            "COLUMNS": columns,
        }
        vectors, tangent_a, tangent_b = Vectors(None, None), _NO_ROWS, _NO_ROWS
        if summand == Summand.VECTOR_SLOPE:
            vectors = Vectors(self.operands.vector, self.tangents.vector)
        if activates:
            tangent_a, tangent_b = self.parts("query", self.tangents), self.parts("key", self.tangents)
        graph = Graph(self.graph.senders, self.graph.receivers, self.shapes.edges, order, ptr)
        arguments = (out, graph, self.heads, width, weight, a, other_weight, b, tangent_a, tangent_b, vectors)
        programs = chunks or (pieces(self.shapes.edges, edges) if ptr is None else self.rows[row_of])
        grid = (programs, pieces(elements, columns))
        launch(weighted_sums, grid, arguments, constants, out, ATTENTION_SUMS.num_warps)

    def per_receiver(self, kernel: Any, *arguments: Any, **constants: Any) -> None:
        """Launches a kernel of kernels/graph_attention_scores.py, with its first argument."""
        edges, heads = ATTENTION_SCALARS.cut(self.heads)
        clip = None if math.isinf(self.settings.clip) else self.settings.clip
        constants |= {"WEIGHTING": self.settings.weighting, "SCALE": self.settings.scale, "CLIP": clip}
        constants |= {"DROPOUT": self.settings.dropout, "REAL": real_of(self.like), "EDGES": edges, "HEADS": heads}
        order, ptr = self.graph.receiver_order, self.graph.receiver_ptr
        call = ScoreCall(self.raw_scores(), _scalars(self.operands), self.seed, order, ptr, self.heads)
        grid = (self.rows[RowOf.RECEIVER], pieces(self.heads, heads))
        launch(kernel, grid, (call, *arguments), constants, self.like, ATTENTION_SCALARS.num_warps)

    def raw_scores(self) -> Tensor:
        """z"""
        z = self.new_scalars()
        query, key, query_on_edge = self.parts("query"), self.parts("key"), _node_rows(self.operands.query_on_edge)
        if self.settings.score == Score.GIVEN:
            query = key = query_on_edge = _NO_ROWS
        self.dots(z, self.width, query, key, query_on_edge, self.edge_features(), self.additive)
        return z

    def tangent_raw_scores(self) -> Tensor:
        """tangent_z"""
        tangent_z = self.new_scalars()
        query, key, query_on_edge = self.parts("query"), self.parts("key"), _node_rows(self.operands.query_on_edge)
        tangent_query, tangent_key = (self.parts(name, self.tangents) for name in ("query", "key"))
        tangent_query_on_edge = _node_rows(self.tangents.query_on_edge)
        if self.additive:
            self.tangent_of_additive_score(tangent_z)
            tangent_query = tangent_key = _NO_ROWS
        features, tangent_features = self.edge_features(), self.edge_features(self.tangents)
        self.dots(tangent_z, self.width, tangent_query, key, tangent_query_on_edge, features, add=self.additive)
        self.dots(tangent_z, self.width, query, tangent_key, query_on_edge, tangent_features, add=True)
        return tangent_z

    def row_weight_gradients(self, gradients: Any, of: Any = None) -> Tensor:
        """row_grad_w: grad_w without grad_weights. Of the tangents it is tangent_grad_w."""
        row_grad_w = self.new_scalars()
        rows = _node_rows(gradients.grad_out), self.parts("value", of)
        on_edge = _node_rows(gradients.grad_out_on_edge), self.edge_features(of)
        self.dots(row_grad_w, self.shapes.value_width, *rows, *on_edge)
        return row_grad_w

    def row_gradients(self, made: Any, gradients: Any, weights: _RowWeights) -> Any:
        """Makes the gradients of rows.

        made: where the operands' gradients go; None: not wanted. They are returned.
        """
        self._score_gradients(made, weights)
        for row_of, end in enumerate(RowOf.names()):
            grad_value = getattr(made, f"value_{end}")
            if grad_value is not None:
                width = self.shapes.value_width
                self.sums(grad_value, row_of, width, weights.value, _node_rows(gradients.grad_out))
        if made.query_on_edge is not None:
            tangent = self.edge_features(self.tangents)
            other = None if tangent is _NO_ROWS else weights.grad_tangent_z
            rows = (weights.grad_z, self.edge_features(), other, tangent)
            self.sums(made.query_on_edge, RowOf.RECEIVER, self.features, *rows)
        if made.edge is not None:
            self._feature_gradients(made.edge, gradients, weights)
        if made.vector is not None:
            grad_vector = self.like.new_empty(VECTOR_CHUNKS, self.heads, self.width, dtype=self.shapes.compute)
            self._activation_sums(grad_vector, RowOf.EDGE, weights, Summand.ACTIVATION, VECTOR_CHUNKS)
            made = made._replace(vector=grad_vector.sum(0))
        return made

    def _score_gradients(self, made: Any, weights: _RowWeights) -> None:
        """Those of queries and keys."""
        for name, other in (("query", "key"), ("key", "query")):
            for row_of, end in enumerate(RowOf.names()):
                out = getattr(made, f"{name}_{end}")
                if out is None:
                    continue
                if self.additive:
                    self._activation_sums(out, row_of, weights, Summand.VECTOR_SLOPE)
                else:
                    tangent = self.parts(other, self.tangents)
                    other_weight = None if tangent is _NO_ROWS else weights.grad_tangent_z
                    self.sums(out, row_of, self.width, weights.grad_z, self.parts(other), other_weight, tangent)

    def _activation_sums(self, out: Tensor, row_of: int, weights: _RowWeights, summand: int, chunks: int = 0) -> None:
        """What the gradients of additive scores are made of."""
        names = (*(f"{name}_{end}" for name in ("query", "key") for end in RowOf.names()), "vector")
        has_tangents = any(getattr(self.tangents, name) is not None for name in names)
        other_weight = weights.grad_tangent_z if has_tangents else None
        rows = (weights.grad_z, self.parts("query"), other_weight, self.parts("key"))
        self.sums(out, row_of, self.width, *rows, summand, chunks=chunks)

    def _feature_gradients(self, out: Tensor, gradients: Any, weights: _RowWeights) -> None:
        """grad_edge: rows of receivers times scalars per edge and head, summed over heads."""
        pairs = [
            (weights.grad_z, _node_rows(self.operands.query_on_edge)),
            (weights.grad_tangent_z, _node_rows(self.tangents.query_on_edge)),
            (weights.value, _node_rows(gradients.grad_out_on_edge)),
        ]
        given = [(weight, rows) for weight, rows in pairs if weight is not None and rows is not _NO_ROWS]
        if not given:
            out.zero_()
        # What more than one launch adds up is not rounded in between.
        total = out
        if len(given) > 2 and out.dtype != self.shapes.compute:
            total = self.like.new_empty(out.shape, dtype=self.shapes.compute)
        for n in range(0, len(given), 2):
            (weight, rows), (other_weight, other_rows) = (*given[n : n + 2], (None, _NO_ROWS))[:2]
            assert weight is not None
            rest = (other_weight, other_rows)
            self.sums(total, RowOf.EDGE, self.features, weight, rows, *rest, over_heads=True, add=n > 0)
        if total is not out:
            out.copy_(total)

    def aggregate(
        self, out: Tensor | None, out_on_edge: Tensor | None, weight: Tensor, tangents_weight: Tensor | None = None
    ) -> None:
        """``sum weight value + tangents_weight tangent_value``, and alike of the features."""
        for made, width, rows, tangent in (
            (out, self.shapes.value_width, self.parts("value"), self.parts("value", self.tangents)),
            (out_on_edge, self.features, self.edge_features(), self.edge_features(self.tangents)),
        ):
            if made is not None:
                other_weight = None if tangent is _NO_ROWS else tangents_weight
                self.sums(made, RowOf.RECEIVER, width, weight, rows, other_weight, tangent)


def _readable(operands: Any) -> Any:
    """Rows contiguous. Those of receivers may lie anywhere, and scalars have strides."""
    on_edge = _with_contiguous_rows(operands.query_on_edge)
    scalars = {name: getattr(operands, name) for name in Scalars._fields}
    return contiguous(operands)._replace(query_on_edge=on_edge, **scalars)


def _readable_gradients(gradients: Any) -> Any:
    """Those of the results."""
    on_edge = _with_contiguous_rows(gradients.grad_out_on_edge)
    return contiguous(gradients)._replace(grad_out_on_edge=on_edge)


def _with_contiguous_rows(t: Tensor | None) -> Tensor | None:
    return t if t is None or t.stride(2) == 1 else t.contiguous()


def _node_rows(t: Tensor | None) -> Rows:
    """``[receivers, heads, columns]``"""
    return _NO_ROWS if t is None else Rows(None, None, t, t.stride(0), t.stride(1))


def _scalars(operands: Any) -> Scalars:
    """The operands, or tangents, that are scalars per edge and head."""
    given = (getattr(operands, name) for name in Scalars._fields)
    return Scalars(*(_NO_SCALAR if t is None else EdgeScalar(t, t.stride(0), t.stride(1)) for t in given))


def _gradients_of_scalars(made: Any) -> Scalars:
    """Where the gradients of scalars go; None: not wanted."""
    return Scalars(*(getattr(made, name) for name in Scalars._fields))


def _only_wanted(room: Any, wanted: int) -> Any:
    """Tensors whose bits are set, and None for the others."""
    return type(room)(*(t if wanted >> n & 1 else None for n, t in enumerate(room)))


def graph_attention(*flat: Any) -> tuple[Tensor, ...]:
    """The op, with its arguments as its record has them."""
    arguments = GRAPH_ATTENTION.read(flat)
    call, wanted = _Call(arguments), arguments.wanted
    results = call.shapes.results(wanted)
    w = results.weights if wanted & AttentionWanted.WEIGHTS else call.new_scalars()
    logits = results.logits if wanted & AttentionWanted.LOGITS else None
    epsilon = arguments.settings.epsilon
    log_epsilon = math.log(epsilon) if epsilon > 0 else -math.inf
    call.per_receiver(attention_weights, results.lse, w, logits, LOG_EPSILON=log_epsilon)
    call.aggregate(results.out, results.out_on_edge if wanted & AttentionWanted.OUT_ON_EDGE else None, w)
    return tuple(results)


def graph_attention_backward(*flat: Any) -> tuple[Tensor, ...]:
    """The op, with its arguments as its record has them."""
    arguments = GRAPH_ATTENTION_BACKWARD.read(flat)
    call, gradients = _Call(arguments), _readable_gradients(arguments.gradients)
    room = call.shapes.gradients(arguments.wanted)
    made = _only_wanted(room, arguments.wanted)
    grad_z, w = call.new_scalars(), call.new_scalars()
    call.per_receiver(
        attention_gradients,
        call.row_weight_gradients(gradients),
        arguments.lse.contiguous(),
        Gradients(gradients.grad_lse, gradients.grad_weights, gradients.grad_logits),
        grad_z,
        w,
        _gradients_of_scalars(made),
    )
    made = call.row_gradients(made, gradients, _RowWeights(grad_z, None, w))
    return tuple(empty if t is None else t for t, empty in zip(made, room, strict=True))


def graph_attention_double_backward(*flat: Any) -> tuple[Tensor, ...]:
    """The op, with its arguments as its record has them."""
    arguments = GRAPH_ATTENTION_DOUBLE_BACKWARD.read(flat)
    call, gradients = _Call(arguments, arguments.tangents), _readable_gradients(arguments.gradients)
    room = call.shapes.gradients(arguments.wanted)
    made = _only_wanted(room, arguments.wanted)
    of_gradients = arguments.wanted >> len(ATTENTION_OPERANDS)
    room_of_gradients = call.shapes.result_gradients(of_gradients)
    grad_gradients = _only_wanted(room_of_gradients, of_gradients)
    grad_z, grad_tangent_z, tangent_w, w = (call.new_scalars() for _ in range(4))
    call.per_receiver(
        attention_second_gradients,
        call.row_weight_gradients(gradients),
        call.tangent_raw_scores(),
        call.row_weight_gradients(gradients, call.tangents),
        arguments.lse.contiguous(),
        _scalars(call.tangents),
        Gradients(gradients.grad_lse, gradients.grad_weights, gradients.grad_logits),
        grad_z,
        grad_tangent_z,
        tangent_w,
        w,
        Gradients(grad_gradients.lse, grad_gradients.weights, grad_gradients.logits),
        _gradients_of_scalars(made),
    )
    made = call.row_gradients(made, gradients, _RowWeights(grad_z, grad_tangent_z, tangent_w))
    call.aggregate(grad_gradients.out, grad_gradients.out_on_edge, tangent_w, w)
    return *room_of_gradients, *(empty if t is None else t for t, empty in zip(made, room, strict=True))
