"""The symmetric contraction as its formula says it. Slow and obvious: this is what is true."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_LETTERS = "abdefghj"


def symmetric_contraction(x: Tensor, weight: Tensor, y: Tensor, blocks: Sequence[Sequence[Tensor]]) -> Tensor:
    """``out[n, c, i] = sum of w[n, k, c] U[i, j1...jv, k] x[n, c, j1] ... x[n, c, jv]`` over the
    block's tensors U, j1...jv and k, with ``w[n] = sum_s y[n, s] weight[s]``.

    Equations 10 and 11 of Batatia et al., MACE (arXiv 2206.07697).

    Args:
        x: ``[nodes, channels, dim_in]``.
        weight: ``[species, paths, channels]``; the paths of one tensor after the other.
        y: ``[nodes, species]``.
        blocks: for each block of the result its tensors ``[d, dim_in, ..., dim_in, paths]``.

    Returns:
        ``[nodes, channels * sum d]``: block after block ``[channels, d]``.
    """
    mixed = torch.einsum("ns,skc->nkc", y, weight)
    results, first = [], 0
    for tensors in blocks:
        total = x.new_zeros(x.shape[0], x.shape[1], tensors[0].shape[0])
        for tensor in tensors:
            factors = _LETTERS[: tensor.dim() - 2]
            w = mixed[:, first : first + tensor.shape[-1]]
            first += tensor.shape[-1]
            operands = ",".join([f"i{factors}k", "nkc", *(f"nc{letter}" for letter in factors)])
            total = total + torch.einsum(f"{operands}->nci", tensor.to(x), w, *(x for _ in factors))
        results.append(total.flatten(1))
    return torch.cat(results, dim=1)
