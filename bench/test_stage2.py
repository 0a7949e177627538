"""A training step of stage 2 on the bundled graphene set, beside the same network on the same weights from plain torch ops.

`dense products`: nothing but the matrix products of hamfast's linear layers, forward and backward. No kernel can be faster than that.
"""

from pathlib import Path

import pytest
import torch

from hamfast.data import GraphDataset, dataset_spec
from hamfast.models import CovariantConfig, CovariantNetwork
from hamfast.models import transformer as stage2

FOLDER = Path(__file__).parent.parent / "examples" / "graphene" / "dft" / "3x3_000"
CONFIG = stage2.TransformerConfig()


class PlainBlock(torch.nn.Module):
    """A block as one writes it without kernels: every operand concatenated per edge, softmax by scatter."""

    def __init__(self, block: stage2.TransformerBlock):
        super().__init__()
        self.block = block

    def linear(self, split, x):
        weight = torch.cat([split.source.weight, split.edge.weight, split.target.weight], dim=1)
        return torch.nn.functional.linear(x, weight, split.edge.bias)

    def forward(self, node, edge, harmonics, gaussians, edges):
        block, config = self.block, self.block.config
        parts = (block.merge_edge(edge), block.merge_harmonics(harmonics), block.merge_length(gaussians))
        merged = block.merge(torch.cat(parts, dim=-1))
        target, count = edges.receivers, edges.num_receivers
        if node is None:
            degree = torch.bincount(target, minlength=count).clamp(min=1).to(merged).unsqueeze(-1)
            node = merged.new_zeros(count, merged.shape[1]).index_add(0, target, merged) / degree
        x = torch.cat([node[edges.senders], merged, node[target]], dim=-1)
        heads = (config.num_heads, config.hidden // config.num_heads)
        q, k, v = (self.linear(split, x).unflatten(-1, heads) for split in (block.query, block.key, block.value))
        score = ((q * k).sum(-1) / heads[1] ** 0.5).clamp(-config.score_clip, config.score_clip)
        weight = torch.exp(score)
        total = weight.new_zeros(count, heads[0]).index_add(0, target, weight)
        weight = weight / total[target]
        attended = v.new_zeros(count, *heads).index_add(0, target, weight.unsqueeze(-1) * v).flatten(1)
        node = block.attention_norm(block.attention_out(attended) + node)
        node = node + block.ffn(node)
        x = torch.cat([node[edges.senders], merged, node[target]], dim=-1)
        return node, edge + block.edge_out(self.linear(block.edge_in, x))


def dense_products(network, run):
    """A function that does the matrix products of the linear layers of one step."""
    operands = []

    def note(layer, inputs, output):
        x = inputs[0].detach()
        operands.append((x, layer.weight.detach(), torch.randn(*x.shape[:-1], layer.out_features)))

    hooks = [m.register_forward_hook(note) for m in network.modules() if isinstance(m, torch.nn.Linear)]
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()

    def products():
        for x, weight, grad in operands:
            torch.mm(x, weight.T), torch.mm(grad, weight), torch.mm(grad.T, x)

    return products


@pytest.mark.parametrize("implementation", ["hamfast", "plain torch", "dense products"])
def test_training_step(measure, implementation):
    torch.manual_seed(0)
    spec = dataset_spec([FOLDER])
    graph = GraphDataset([FOLDER], spec, None)[0]
    first = CovariantNetwork(CovariantConfig(irreps_mid="32x0e+16x1o+8x2e+4x3o+4x4e", l_max=4, embed_dim=32), spec)
    with torch.no_grad():
        baseline, nodes, features = first(graph)
    network = stage2.RefinementTransformer(CONFIG, spec, first.irreps_node, first.irreps_edge)
    torch.nn.init.normal_(network.output.weight, std=0.1)
    ours = list(network.blocks)
    plain = [PlainBlock(block) for block in ours]

    def run(blocks):
        network.blocks._modules = {str(n): block for n, block in enumerate(blocks)}
        return network(graph, baseline, nodes, features)

    with torch.no_grad():
        torch.testing.assert_close(run(ours), run(plain), atol=1e-4, rtol=1e-4)
    if implementation == "dense products":
        return measure(implementation, "stage2", "training step", dense_products(network, lambda: run(ours)), rounds=8)
    blocks = ours if implementation == "hamfast" else plain

    def step():
        (baseline + run(blocks) - graph.target).square().sum().backward()

    measure(implementation, "stage2", "training step", step, rounds=8)
