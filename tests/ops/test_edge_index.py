"""Prepared graphs."""

import pytest
import torch

from hamfast import ops


def test_reverse_edges_of_a_crystal():
    """Every pair within a cutoff under all shifts, own images and repeated edges included, in random order."""
    shifts = torch.cartesian_prod(*(torch.arange(-1, 2),) * 2)
    rows = torch.tensor(
        [(i, j, *s) for s in shifts.tolist() for i in range(3) for j in range(3) if (i, j, *s) != (i, i, 0, 0)]
    )
    rows = torch.cat([rows, rows[:4], rows[:4] * torch.tensor([1, 1, -1, -1])])
    rows[-4:, [0, 1]] = rows[-4:, [1, 0]]  # the ways back of the repeated ones
    rows = rows[torch.randperm(len(rows))]
    edges = ops.edge_index(rows[:, 0].contiguous(), rows[:, 1].contiguous(), 3)
    reverse = ops.reverse_edges(edges, rows[:, 2:])
    assert torch.equal(rows[reverse][:, [1, 0]], rows[:, :2])
    assert torch.equal(rows[reverse][:, 2:], -rows[:, 2:])
    assert torch.equal(reverse.sort().values, torch.arange(len(rows)))


def test_an_edge_without_a_way_back_is_named():
    edges = ops.edge_index(torch.tensor([0, 1, 2]), torch.tensor([1, 0, 1]), 3)
    with pytest.raises(ValueError, match="edge 2, 2 -> 1: expected a way back, found none"):
        ops.reverse_edges(edges)
    first = ops.edge_index(torch.tensor([0, 1, 2]), torch.tensor([2, 2, 1]), 3)
    with pytest.raises(ValueError, match="edge 0, 0 -> 2: expected a way back, found none"):
        ops.reverse_edges(first)
    with pytest.raises(ValueError, match=r"shifts: expected \[3, n\] integers, found \[2, 3\]"):
        ops.reverse_edges(edges, torch.zeros(2, 3, dtype=torch.int64))
