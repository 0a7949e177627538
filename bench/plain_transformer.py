"""The blocks of the cascade's second stage as one writes them without kernels.

Also what no kernel can take away from them: their matrix products.
"""

import torch

from hamfast.models import transformer as stage2


class PlainBlock(torch.nn.Module):
    """A block as one writes it without kernels.

    Every operand is concatenated per edge, and the softmax is made by scatter.
    """

    def __init__(self, block: stage2.TransformerBlock):
        super().__init__()
        self.block = block

    def linear(self, split, x):
        """One matrix product with the columns of sender, edge and receiver side by side."""
        weight = torch.cat([split.sender.weight, split.edge.weight, split.receiver.weight], dim=1)
        return torch.nn.functional.linear(x, weight, split.edge.bias)

    def norm_act(self, layer, x):
        """Linear layer, norm and SiLU."""
        return torch.nn.functional.silu(layer.norm(layer.linear(x)))

    def forward(self, node, edge, harmonics, gaussians, edges):
        """The block's new rows of nodes and of edges, as those of ``TransformerBlock``."""
        block, config = self.block, self.block.config
        inputs = ((block.merge_edge, edge), (block.merge_harmonics, harmonics), (block.merge_length, gaussians))
        merged = self.norm_act(block.merge, torch.cat([self.norm_act(layer, x) for layer, x in inputs], dim=-1))
        receivers, count = edges.receivers, edges.num_receivers
        if node is None:
            degree = torch.bincount(receivers, minlength=count).clamp(min=1).to(merged).unsqueeze(-1)
            node = merged.new_zeros(count, merged.shape[1]).index_add(0, receivers, merged) / degree
        x = torch.cat([node[edges.senders], merged, node[receivers]], dim=-1)
        heads = (config.num_heads, config.hidden // config.num_heads)
        q, k, v = (self.linear(split, x).unflatten(-1, heads) for split in (block.query, block.key, block.value))
        score = ((q * k).sum(-1) / heads[1] ** 0.5).clamp(-config.score_clip, config.score_clip)
        weight = torch.exp(score)
        total = weight.new_zeros(count, heads[0]).index_add(0, receivers, weight)
        weight = weight / total[receivers]
        attended = v.new_zeros(count, *heads).index_add(0, receivers, weight.unsqueeze(-1) * v).flatten(1)
        node = block.attention_norm(block.attention_out(attended) + node)
        node = node + block.ffn(node)
        x = torch.cat([node[edges.senders], merged, node[receivers]], dim=-1)
        update = torch.nn.functional.silu(block.edge_norm(self.linear(block.edge_in, x)))
        return node, edge + block.edge_out(update)


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


def choose_blocks(network, blocks):
    """Makes ``network`` run on these: its own, or plain ones around them."""
    network.blocks._modules = {str(n): block for n, block in enumerate(blocks)}
