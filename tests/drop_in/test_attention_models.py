"""Attention of published networks for atoms, written as their papers state it and as calls of the
op: same numbers, forces and derivatives of forces. On a periodic crystal whose atoms are neighbours
of several images of one another, and of their own.
"""

import math

import pytest
import torch
from kit import assert_close

from hamfast import ops

pytestmark = pytest.mark.usefixtures("double")

ATOMS, HEADS, WIDTH, CUTOFF, CELL = 3, 2, 4, 4.0, 3.1


def crystal():
    positions = torch.rand(ATOMS, 3) * CELL
    edges = [
        (i, j, shift)
        for shift in torch.cartesian_prod(*(torch.arange(-1, 2),) * 3)
        for i in range(ATOMS)
        for j in range(ATOMS)
        if 0 < torch.linalg.norm(positions[j] + CELL * shift - positions[i]) < CUTOFF
    ]
    receivers, senders = (torch.tensor([e[n] for e in edges]) for n in (0, 1))
    return positions.requires_grad_(), senders, receivers, torch.stack([e[2] for e in edges])


def geometry(positions, senders, receivers, shifts):
    vector = positions[senders] + CELL * shifts - positions[receivers]
    length = vector.norm(dim=-1)
    return vector / length[:, None], length, 0.5 * (torch.cos(math.pi * length / CUTOFF) + 1)


def radial(length, heads=HEADS, width=WIDTH):
    """Any smooth function per head and channel."""
    rate = torch.arange(1, heads * width + 1).view(heads, width) / (heads * width)
    return torch.nn.functional.silu(torch.sin(length[:, None, None] * rate) + rate)


def by_receiver(x, receivers):
    return x.new_zeros(ATOMS, *x.shape[1:]).index_add(0, receivers, x)


def compare(found, expected):
    """``(positions) -> tensors``, twice: values, forces, and the gradient of a loss on forces."""
    positions, *graph = crystal()
    results = []
    for function in (found, expected):
        outs = function(positions, *graph)
        (forces,) = torch.autograd.grad(sum(o.pow(2).sum() for o in outs), positions, create_graph=True)
        (second,) = torch.autograd.grad(forces.pow(2).sum(), positions)
        results.append((*outs, forces, second))
    for a, b in zip(*results, strict=True):
        assert_close(a, b, atol=1e-9, rtol=1e-8)


def test_torchmd_net_equivariant_transformer():
    """Thoelke, De Fabritiis (arXiv 2202.02541), eq. 4 to 8: no softmax, filters of the distance,
    vectors of rank one."""
    q, k, v, v1, v2 = torch.randn(5, ATOMS, HEADS, WIDTH)
    vectors = torch.randn(ATOMS, HEADS, 3, WIDTH)

    def published(positions, senders, receivers, shifts):
        direction, length, cutoff = geometry(positions, senders, receivers, shifts)
        dk, dv = radial(length), radial(length, HEADS, 3 * WIDTH)
        attention = torch.nn.functional.silu((q[receivers] * k[senders] * dk).sum(-1)) * cutoff[:, None]
        x, s1, s2 = (torch.cat([v, v1, v2], dim=-1)[senders] * dv).split(WIDTH, dim=-1)
        moved = vectors[senders] * s1[:, :, None] + s2[:, :, None] * direction[:, None, :, None]
        return by_receiver(attention[..., None] * x, receivers), by_receiver(moved, receivers)

    def ours(positions, senders, receivers, shifts):
        direction, length, cutoff = geometry(positions, senders, receivers, shifts)
        graph = ops.edge_index(senders, receivers, ATOMS)
        dk, (dv, dv1, dv2) = radial(length), radial(length, HEADS, 3 * WIDTH).split(WIDTH, dim=-1)
        scalars = ops.graph_attention(
            graph, query_receiver=q, key_sender=k, key_filter=dk, scale=1.0, weight="silu", envelope=cutoff,
            value_sender=v, value_filter=dv,
        )  # fmt: skip
        to = (graph, "receiver", (HEADS, 3, WIDTH))
        turned = ops.edge_einsum(*to, (vectors * v1[:, :, None], "sender"), (dv1[:, :, None], "edge"))
        pointed = ops.edge_einsum(
            *to, (v2[:, :, None], "sender"), (dv2[:, :, None], "edge"), (direction[:, None, :, None], "edge")
        )
        return scalars, turned + pointed

    compare(ours, published)


def test_so3krates():
    """Frank, Unke, Mueller, Chmiela (Nature Comm. 15, 6539), eq. 12 to 15: filtered dot products
    weigh features and harmonics."""
    q, k, v = torch.randn(3, ATOMS, HEADS, WIDTH)

    def published(positions, senders, receivers, shifts):
        direction, length, cutoff = geometry(positions, senders, receivers, shifts)
        weight = (q[receivers] * radial(length) * k[senders]).sum(-1) * cutoff[:, None] / math.sqrt(WIDTH)
        features = by_receiver(weight[..., None] * v[senders], receivers)
        return features, by_receiver(weight[:, :, None] * direction[:, None, :], receivers)

    def ours(positions, senders, receivers, shifts):
        direction, length, cutoff = geometry(positions, senders, receivers, shifts)
        graph = ops.edge_index(senders, receivers, ATOMS)
        shared = {
            "query_receiver": q,
            "key_sender": k,
            "key_filter": radial(length),
            "weight": "identity",
            "envelope": cutoff,
        }
        ones = torch.ones(ATOMS, HEADS, 1)
        harmonics = ops.graph_attention(graph, **shared, outer=(direction, ones, "sender"))
        return ops.graph_attention(graph, **shared, value_sender=v), harmonics[..., 0]

    compare(ours, published)


def test_e2former_v2_and_equiformer_v3():
    """Gated scores, a softmax with the cutoff inside its sum and after it, values that are
    irreps."""
    q, k = torch.randn(2, ATOMS, HEADS, WIDTH)
    values = torch.randn(ATOMS, HEADS, 4, WIDTH)

    def published(positions, senders, receivers, shifts):
        _, length, cutoff = geometry(positions, senders, receivers, shifts)
        gate = torch.sigmoid(radial(length, HEADS, 1)[..., 0])
        score = gate * (q[receivers] * k[senders]).sum(-1) / math.sqrt(WIDTH)
        exponential = cutoff[:, None] * torch.exp(score)
        total = by_receiver(exponential, receivers) + 1e-3
        weight = exponential / total[receivers] * (cutoff / length)[:, None]
        return (by_receiver(weight[:, :, None, None] * values[senders], receivers),)

    def ours(positions, senders, receivers, shifts):
        _, length, cutoff = geometry(positions, senders, receivers, shifts)
        gate = torch.sigmoid(radial(length, HEADS, 1)[..., 0])
        graph = ops.edge_index(senders, receivers, ATOMS)
        return (
            ops.graph_attention(
                graph, query_receiver=q, key_sender=k, score_scale=gate, envelope=cutoff, epsilon=1e-3,
                gate=cutoff / length, value_sender=values,
            ),
        )  # fmt: skip

    compare(ours, published)


def test_pair_bias_of_a_graph_transformer():
    """Graphormer's and Uni-Mol's: a learned bias per pair, whose logits the next layer reads."""
    q, k, v = torch.randn(3, ATOMS, HEADS, WIDTH)

    def published(positions, senders, receivers, shifts):
        _, length, _ = geometry(positions, senders, receivers, shifts)
        score = (q[receivers] * k[senders]).sum(-1) / math.sqrt(WIDTH) + radial(length, HEADS, 1)[..., 0]
        weight = torch.exp(score) / by_receiver(torch.exp(score), receivers)[receivers]
        return by_receiver(weight[..., None] * v[senders], receivers), score

    def ours(positions, senders, receivers, shifts):
        _, length, _ = geometry(positions, senders, receivers, shifts)
        out = ops.graph_attention(
            ops.edge_index(senders, receivers, ATOMS), query_receiver=q, key_sender=k, value_sender=v,
            bias=radial(length, HEADS, 1)[..., 0], return_logits=True,
        )  # fmt: skip
        return out.out, out.logits

    compare(ours, published)
