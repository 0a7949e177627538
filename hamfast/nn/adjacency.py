"""Sparse adjacency matrices of torch and of torch_sparse, as PyG's layers take and return them.

They are ``adj_t``, ``[receivers, senders]``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

_LAYOUTS = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc)


class Adjacency(NamedTuple):
    """A sparse matrix ``[receivers, senders]`` as a list of edges."""

    given: Any
    pairs: Tensor
    """``[2, edges]`` int64, senders first, in the order that the matrix has them in."""
    features: Tensor | None
    """``[edges, edge_dim]``: values that are rows. Values that are scalars are no features: PyG's
    attention does not read them.
    """

    def with_weights(self, weights: Tensor, pairs: Tensor) -> Any:
        """The matrix with these values ``[edges, heads]``.

        Args:
            pairs: ``[2, edges]``, the edges that have the values. They are the matrix's own, or
            those with
                the self-loops that were added.
        """
        given = self.given
        if not isinstance(given, Tensor):
            if pairs.shape != self.pairs.shape:
                given = given.set_diag()
                weights = weights[_by_row(pairs)]
            return given.set_value(weights, layout="coo")
        size = (*given.shape[:2], weights.shape[1])
        if given.layout == torch.sparse_coo:
            return torch.sparse_coo_tensor(pairs.flip(0), weights, size).coalesce()
        by_row = given.layout == torch.sparse_csr
        order = _by_row(pairs if by_row else pairs.flip(0))
        pairs, weights = pairs[:, order], weights[order]
        own, other = (pairs[1], pairs[0]) if by_row else (pairs[0], pairs[1])
        counts = torch.bincount(own, minlength=size[0 if by_row else 1])
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        make = torch.sparse_csr_tensor if by_row else torch.sparse_csc_tensor
        return make(starts, other, weights, size)


def _by_row(pairs: Tensor) -> Tensor:
    """Order of the edges by receiver, then by sender."""
    order = torch.argsort(pairs[0], stable=True)
    return order[torch.argsort(pairs[1][order], stable=True)]


def is_adjacency(given: Any) -> bool:
    """Is it a sparse matrix?

    That of torch_sparse is known by its name, since it need not be installed.
    """
    if isinstance(given, Tensor):
        return given.layout in _LAYOUTS
    return type(given).__name__ == "SparseTensor" and hasattr(given, "coo")


def read_adjacency(given: Any, num_senders: int, num_receivers: int) -> Adjacency:
    """The edges of a sparse matrix, and its rows of features if it has them.

    Raises:
        ValueError: another size than ``[receivers, senders]``.
    """
    size = [given.size(0), given.size(1)]
    if size != [num_receivers, num_senders]:
        raise ValueError(
            f"edge_index: expected an adjacency [{num_receivers}, {num_senders}], receivers first, found {size}"
        )
    rows, columns, values = _entries(given)
    features = values if values is not None and values.dim() > 1 else None
    return Adjacency(given, torch.stack([columns, rows]).long(), features)


def _entries(given: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """Row and column of every entry, and its value."""
    if not isinstance(given, Tensor):
        return given.coo()
    if given.layout == torch.sparse_coo:
        rows, columns = given._indices()
        return rows, columns, given._values()
    by_row = given.layout == torch.sparse_csr
    starts = given.crow_indices() if by_row else given.ccol_indices()
    other = given.col_indices() if by_row else given.row_indices()
    own = torch.repeat_interleave(torch.arange(len(starts) - 1, device=other.device), starts.diff())
    return (own, other, given.values()) if by_row else (other, own, given.values())
