"""python compare_torchmdnet.py: attention layers of TorchMD-NET before and after accelerate(), and
after its undo.

In a process of its own, as its package lies among the peers.
"""

import torch
import torchmdnet_network  # noqa: F401  (TorchMD-NET without its search for neighbours)
from torchmdnet.models.torchmd_et import EquivariantMultiHeadAttention

import hamfast
from hamfast.nn.adapters import torchmdnet

NODES, EDGES, WIDTH, RADIAL, HEADS = 6, 30, 8, 5, 2


def layer(influence="both", attention="silu", vector_cutoff=False, lower=0.0):
    made = EquivariantMultiHeadAttention(
        WIDTH, RADIAL, influence, HEADS, torch.nn.SiLU, attention, lower, 4.0, vector_cutoff, torch.float64
    )
    for parameter in made.parameters():  # biases are zero at first
        parameter.data.normal_()
    return made


def with_hook(made):
    made.dv_proj.register_forward_hook(lambda module, given, out: 2 * out)
    return made


class Changed(EquivariantMultiHeadAttention):
    """A subclass, of which nothing is known."""


def changed():
    made = layer()
    made.__class__ = Changed
    return made


LAYERS = {
    "filtered keys and values": layer,
    "filtered keys": lambda: layer("keys"),
    "filtered values": lambda: layer("values"),
    "no filters": lambda: layer("none"),
    "sigmoid": lambda: layer(attention="sigmoid"),
    "vectors with a cutoff": lambda: layer(vector_cutoff=True),
    "vectors with a cutoff, no filters": lambda: layer("none", vector_cutoff=True),
    "a lower cutoff": lambda: layer(lower=1.0),
}
LEFT_ALONE = {
    "tanh": (lambda: layer(attention="tanh"), "the activation of its attention is Tanh, neither SiLU nor Sigmoid"),
    "hook": (lambda: with_hook(layer()), "it has hooks (_forward_hooks)"),
    "subclass": (changed, "Changed is a subclass, whose changes would be lost"),
}


def results(made, inputs):
    """The result, its gradients, and those of their squares."""
    leaves = [t.detach().requires_grad_() if t.is_floating_point() else t for t in inputs]
    out = made(*leaves)
    given = [t for t in (*leaves, *made.parameters()) if t.requires_grad]
    first = torch.autograd.grad(sum(o.square().sum() for o in out), given, create_graph=True, allow_unused=True)
    second = torch.autograd.grad(sum(f.square().sum() for f in first if f is not None), given, allow_unused=True)
    return [*out, *(torch.zeros(()) if g is None else g for g in (*first, *second))]


def agree(name, found, expected):
    for a, b in zip(found, expected, strict=True):
        a, b = torch.broadcast_tensors(a, b)  # what does not count has no gradient, or one of zeros
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9, msg=lambda m: f"{name}: {m}")
    print(name, "agrees")


def main():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    # Each node has a loop, as in TorchMD-NET.
    edge_index = torch.cat([torch.randint(NODES, (2, EDGES - NODES)), torch.arange(NODES).expand(2, -1)], dim=1)
    features = (torch.randn(NODES, WIDTH), torch.randn(NODES, 3, WIDTH))
    edges = (5 * torch.rand(EDGES), torch.randn(EDGES, RADIAL), torch.randn(EDGES, 3))
    inputs = (*features, edge_index, *edges)
    for name, make in LAYERS.items():
        made = make()
        expected = results(made, inputs)
        report = hamfast.accelerate(made)
        assert report.replaced == ["(the module itself)"], f"{name}: {report}"
        for few in (0, 10**9):
            torchmdnet.FEW = few
            agree(f"{name}, few edges: {few}", results(made, inputs), expected)
        torchmdnet.FEW = 0
        agree(f"{name}, scripted", torch.jit.script(made)(*inputs), expected[:2])
        report.take_back()
        assert type(made) is EquivariantMultiHeadAttention, name
        agree(f"{name}, taken back", results(made, inputs), expected)
    for name, (make, reason) in LEFT_ALONE.items():
        found = hamfast.accelerate(make()).replacements[0]
        assert not found.done and found.text == reason, f"{name}: {found}"


if __name__ == "__main__":
    main()
