"""Prepared graphs."""

import pytest
import torch
from e3nn import o3
from kit import assert_close

from hamfast import ops
from hamfast.plan import edge_frame_plan, make_plan
from hamfast.targets import TargetSpec


def test_reverse_edges_of_a_crystal():
    """Every pair within a cutoff under all shifts, own images and repeated edges included, in
    random order."""
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


def test_a_graph_keeps_nothing_of_the_caller():
    """The tensors are overwritten before the product, and again before its gradient."""
    senders, receivers, vector = torch.tensor([0, 1, 1]), torch.tensor([1, 0, 1]), torch.randn(3, 3)
    x = torch.randn(2, 1, 1, 4, requires_grad=True)
    edges, frames = ops.edge_index(senders, receivers, 2), ops.edge_frames(vector, 1)
    senders.numpy()[:] = 0
    receivers.fill_(0)
    out = ops.edge_einsum(edges, "receiver", (1, 1, 4), (x, "sender"))
    senders.fill_(1)
    # Edges 0 -> 1, 1 -> 0 and 1 -> 1.
    expected = torch.stack([x[1], x[0] + x[1]])
    assert_close(out, expected)
    grad = torch.randn_like(out)
    assert_close(torch.autograd.grad(out, x, grad)[0], torch.autograd.grad(expected, x, grad)[0])

    irreps, harmonics = o3.Irreps("1x1o"), o3.Irreps("1x1o")
    plan = edge_frame_plan(make_plan(irreps, harmonics, "1x0e", [(0, 0, 0, "uvw", True)]))
    kept, rows = vector.clone(), torch.randn(3, 3)
    vector.numpy()[:] = 0
    found = ops.edge_tensor_product(rows, torch.ones(1), plan, frames)[:, 0]
    # The product of two vectors, normalised so that its square is 1 on average: x . Y(direction) /
    # sqrt(3), and |Y| = sqrt(3).
    assert_close(found, (rows * kept).sum(1) / kept.norm(dim=1), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_other_integers_and_strides(dtype):
    pairs = torch.tensor([[0, 1], [1, 0], [1, 1]])
    edges = ops.edge_index(*pairs.to(dtype).T, 2)
    assert edges.senders.dtype == torch.int64 and edges.senders.is_contiguous()
    assert torch.equal(torch.stack([edges.senders, edges.receivers], 1), pairs)


def test_what_is_made_in_inference_mode_serves_training():
    """Graphs, frames, matrices, and every table that is made once: of plans that nothing else has
    asked for."""
    spec = TargetSpec.from_mapping({6: [0, 1], 7: [0]}, True)
    irreps = "3x0e+5x1o+7x2e"

    def made():
        senders, receivers = torch.tensor([0, 1, 1]), torch.tensor([1, 0, 1])
        vector, dense = torch.randn(3, 3), torch.eye(4)
        return ops.edge_index(senders, receivers, 2), ops.edge_frames(vector, 2), ops.sparse_matrix(dense).to(dense)

    def run(leaves, edges, frames, matrix):
        x, weight, frame_weight, rows = leaves
        plan = make_plan(irreps, "1x0e+1x1o", "5x1o+3x0e", [(0, 1, 0, "uvw", True), (1, 1, 1, "uvw", True)])
        frame_plan = edge_frame_plan(make_plan(irreps, "1x0e+1x1o", "4x1o", [(0, 1, 0, "uvw", True)]))
        one = ops.tensor_product(x, torch.ones(3, 4), weight, plan, edges)
        two = ops.edge_tensor_product(x[edges.senders], frame_weight, frame_plan, frames)
        three = ops.sparse_map(rows, matrix)
        blocks = spec.to_blocks(rows[:, :1] * spec.component_weight.float() + spec.transpose[1].float(), 0, 1)
        return sum(t.abs().pow(2).sum() for t in (one, two, three, blocks))

    leaves = [torch.randn(n) for n in ((2, 53), (3 * 5 + 5 * 3,), (3 * 4,), (3, 4))]
    with torch.inference_mode():
        prepared = made()
        first = run(leaves, *prepared)
    leaves = [t.requires_grad_() for t in leaves]
    out = run(leaves, *prepared)
    assert_close(out.detach(), first, atol=0, rtol=1e-5)
    gradients = torch.autograd.grad(out, leaves, create_graph=True)
    assert torch.autograd.grad(sum(g.sum() for g in gradients), leaves[3])[0].isfinite().all()
    # A sum of squares of what is linear in each leaf: its derivative along a leaf is known.
    for n, scale in ((1, 2), (2, 2)):
        along = (gradients[n] * leaves[n]).sum()
        others = [t if m != n else 0 * t for m, t in enumerate(leaves)]
        assert_close(along, scale * (out - run(others, *prepared)), atol=1e-3, rtol=1e-4)
