"""python compare_e3tools.py: layers of e3tools before and after accelerate(), and after its undo.

In a process of its own, as its package lies among the peers.
"""

import peers

peers.use()

import e3tools.nn as theirs  # noqa: E402
import torch  # noqa: E402
from e3nn import o3  # noqa: E402

import hamfast  # noqa: E402

torch.set_default_dtype(torch.float64)  # before e3nn makes its couplings
IN, SH, OUT, RADIAL = o3.Irreps("4x0e+2x1o"), o3.Irreps("0e+1o+2e"), o3.Irreps("4x0e+2x1o+2x2e"), 5
NODES, EDGES = 6, 30


def conv(layer=theirs.Conv, **options):
    return layer(IN, OUT, SH, RADIAL, **options)


def attention(layer, **options):
    return layer(IN, OUT, SH, OUT, OUT, RADIAL, **options)


def own_radial(width, weights):
    return torch.nn.Sequential(torch.nn.Linear(width, weights), torch.nn.Tanh())


def with_hook(network):
    network.radial_nn[-2].register_forward_hook(lambda module, given, out: 2 * out)
    return network


def deep_radial(width, weights):
    return theirs.ScalarMLP(width, weights, [7, 6], torch.nn.SiLU, torch.nn.LayerNorm, dropout=0.3, bias=False)


LAYERS = {
    "Conv": conv(),
    "Conv of another radial network": conv(radial_nn=own_radial),
    "Conv of a deeper radial network without biases": conv(radial_nn=deep_radial).eval(),
    "Conv with dropout": conv(radial_nn=deep_radial),
    "Conv whose last radial layer has a hook": with_hook(conv()),
    "SeparableConv": conv(theirs.SeparableConv),
    "Attention": attention(theirs.Attention),
    "MultiheadAttention": attention(theirs.MultiheadAttention, num_heads=2),
    "MultiheadAttention of separable convolutions": attention(
        theirs.MultiheadAttention, num_heads=2, conv=theirs.SeparableConv
    ),
}
LEFT_ALONE = {"Attention that returns its weights": attention(theirs.Attention, return_attention=True)}


def results(layer, inputs):
    """The result, its gradients, and those of their squares."""
    leaves = [t.detach().requires_grad_() if t.is_floating_point() else t for t in inputs]
    torch.manual_seed(1)  # of dropout
    out = layer(*leaves)
    out = out[0] if isinstance(out, tuple) else out
    given = [t for t in (*leaves, *layer.parameters()) if t.requires_grad]
    first = torch.autograd.grad(out.square().sum(), given, create_graph=True, allow_unused=True)
    first = [f for f in first if f is not None]
    second = torch.autograd.grad(sum(f.square().sum() for f in first), given, allow_unused=True)
    return [out, *first, *(s for s in second if s is not None)]


def main():
    torch.manual_seed(0)
    receivers = torch.randint(NODES - 1, (EDGES,))  # the last node has no edges
    edge_index = torch.stack([torch.randint(NODES, (EDGES,)), receivers])
    inputs = (torch.randn(NODES, IN.dim), edge_index, torch.randn(EDGES, RADIAL), torch.randn(EDGES, SH.dim))
    for name, layer in (LAYERS | LEFT_ALONE).items():
        expected, kind = results(layer, inputs), type(layer)
        report = hamfast.accelerate(layer)
        top = report.replacements[0]
        assert top.done == (name in LAYERS), f"{name}: {report}"
        changed = results(layer, inputs)
        report.take_back()
        assert type(layer) is kind, name
        for found in (changed, results(layer, inputs)):
            for a, b in zip(found, expected, strict=True):
                torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9, msg=lambda m, name=name: f"{name}: {m}")
        print(name, "agrees")


if __name__ == "__main__":
    main()
