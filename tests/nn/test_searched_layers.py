"""Layers at multiplicities, rows and channels of 0 and 1, on operands of any storage.

They are compared to the second derivative; the truth is e3nn's and PyG's layers.
A short search runs here, a long one with ``-m long``.
"""

import pytest
import torch
from e3nn import nn as e3nn_nn
from e3nn import o3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kit import STORAGES, compare, derivatives, fully_connected, pick

from hamfast import nn, ops

geometric = pytest.importorskip("torch_geometric.nn")
pytestmark = [
    pytest.mark.usefixtures("double"),
    pytest.mark.filterwarnings("ignore::hamfast.ops.notice.SlowPathWarning"),
]


def irreps(sizes, name="a"):
    """Of three entries, some of multiplicity 0."""
    return o3.Irreps([(sizes[f"{name}{n}"], (n, (-1) ** n)) for n in range(3)])


def linear(sizes):
    """Linear, e3nn's formula, and the shapes of the inputs."""
    given, out = irreps(sizes, "a"), irreps(sizes, "b")
    ours = nn.Linear(given, out, biases=True)
    ours.bias.data.normal_()

    def truth(x):
        """e3nn's formula: one matrix per irrep, over the root of its number of inputs. Its own code
        takes no empty blocks.
        """
        blocks, weight, made = torch.split(x, [mul_ir.dim for mul_ir in given], -1), ours.weight, []
        for (mul, ir), block, (mul_out, _) in zip(given, blocks, out, strict=True):
            matrix, weight = weight[: mul * mul_out].view(mul, mul_out), weight[mul * mul_out :]
            row = torch.einsum("zui,uw->zwi", block.unflatten(-1, (mul, ir.dim)), matrix) / max(mul, 1) ** 0.5
            made.append((row + ours.bias[:, None] if ir.l == 0 else row).flatten(1))
        return torch.cat(made, 1)

    return ours, truth, [(sizes["rows"], given.dim)]


def species_linear(sizes):
    """SpeciesLinear, e3nn's product with a one-hot vector, and the shapes."""
    given, out, species = irreps(sizes, "a"), irreps(sizes, "b"), 2
    theirs = o3.FullyConnectedTensorProduct(given, f"{species}x0e", out)
    ours = nn.SpeciesLinear(given, species, out)
    ours.weight.data.copy_(theirs.weight)
    species_of_row = torch.randint(species, (sizes["rows"],))
    one_hot = torch.nn.functional.one_hot(species_of_row, species).double()
    return (lambda x: ours(x, species_of_row)), (lambda x: theirs(x, one_hot)), [(sizes["rows"], given.dim)]


def tensor_product(sizes):
    """TensorProduct, e3nn's, and the shapes."""
    one, two, out = irreps(sizes, "a"), o3.Irreps(f"{min(sizes['b0'], 1)}x0e+1x1o"), irreps(sizes, "b")
    instructions = fully_connected(one, two, out)
    theirs, ours = o3.TensorProduct(one, two, out, instructions), nn.TensorProduct(one, two, out, instructions)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs, [(sizes["rows"], one.dim), (sizes["rows"], two.dim)]


def edge_tensor_product(sizes):
    """EdgeTensorProduct, e3nn's product with harmonics, and the shapes."""
    one, sh, out = irreps(sizes, "a"), o3.Irreps.spherical_harmonics(2), irreps(sizes, "b")
    ours = nn.EdgeTensorProduct(one, 2, out)
    theirs = o3.TensorProduct(one, sh, out, fully_connected(one, sh, out), internal_weights=False)
    left, right, full = ours.weight1, ours.weight2, []
    for ins in theirs.instructions:
        n1, _, n3 = ins.path_shape
        full.append((left[: n1 * n3].view(n1, n3) * right[:n3]).flatten())
        left, right = left[n1 * n3 :], right[n3:]
    weight = torch.cat([left[:0], *full])
    vectors = torch.randn(sizes["rows"], 3)
    y = o3.spherical_harmonics(sh, vectors, True, "component")
    frames = ops.edge_frames(vectors, 2)
    return (lambda x: ours(x, frames)), (lambda x: theirs(x, y, weight)), [(sizes["rows"], one.dim)]


def gate(sizes):
    """Gate, e3nn's, and the shapes."""
    gated = o3.Irreps(f"{max(sizes['a1'], 1)}x1o+{sizes['a2']}x2e")
    count = gated.num_irreps
    scalars = o3.Irreps(f"{max(sizes['a0'], 1)}x0e")
    theirs = e3nn_nn.Gate(scalars, [torch.nn.functional.silu], f"{count}x0e", [torch.sigmoid] if count else [], gated)
    ours = nn.Gate(scalars, f"{count}x0e", gated)
    return ours, theirs, [(sizes["rows"], theirs.irreps_in.dim)]


def attention(sizes):
    """An attention layer, PyG's, and the shapes."""
    nodes, edge_dim = sizes["rows"], pick([None, max(sizes["a0"], 1)])  # PyG takes 0 for "not known yet"
    edges = sizes["edges"] if nodes else 0
    layer = pick(["TransformerConv", "GATv2Conv"])
    options = {"heads": pick([1, 3]), "concat": pick([True, False]), "edge_dim": edge_dim}
    options |= {"add_self_loops": pick([True, False])} if layer == "GATv2Conv" else {"beta": pick([True, False])}
    channels = max(sizes["a1"], 1)
    theirs = getattr(geometric, layer)(channels, 1 + sizes["a2"], **options)
    ours = {"TransformerConv": nn.GraphTransformerConv, "GATv2Conv": nn.GATv2Conv}[layer](
        channels, 1 + sizes["a2"], **options
    )
    ours.load_state_dict(theirs.state_dict())
    pairs = torch.randint(max(nodes, 1), (2, edges))
    shapes = [(nodes, channels), *([] if edge_dim is None else [(edges, edge_dim)])]
    return (lambda x, *e: ours(x, pairs, *e)), (lambda x, *e: theirs(x, pairs, *e)), shapes


LAYERS = {f.__name__: f for f in (linear, species_linear, tensor_product, edge_tensor_product, gate, attention)}


def search(name, examples):
    """Compares a layer and its truth on so many random examples."""
    names = [f"{side}{n}" for side in "ab" for n in range(3)]

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        sizes=st.fixed_dictionaries(
            {name: st.sampled_from([0, 1, 3]) for name in names}
            | {"rows": st.sampled_from([0, 1, 2, 5]), "edges": st.sampled_from([0, 1, 6])}
        ),
        storages=st.lists(st.sampled_from(sorted(STORAGES)), min_size=1, max_size=2),
        seed=st.integers(0, 2**16),
    )
    def run(sizes, storages, seed):
        torch.manual_seed(seed)
        ours, theirs, shapes = LAYERS[name](sizes)
        leaves = [torch.randn(s, requires_grad=True) for s in shapes]
        storage = [STORAGES[storages[n % len(storages)]] for n in range(len(shapes))]

        def of(layer):
            return lambda *t: layer(*(lay(x) for lay, x in zip(storage, t, strict=True)))

        out = of(theirs)(*leaves)
        tangents = [torch.randn_like(t) for t in (out, *leaves)]
        compare(derivatives(of(ours), leaves, tangents), derivatives(of(theirs), leaves, tangents), 1e-9)

    run()


@pytest.mark.parametrize("name", list(LAYERS))
def test_short(name):
    """A few examples of each layer."""
    search(name, 8)


@pytest.mark.long
@pytest.mark.parametrize("name", list(LAYERS))
def test_long(name):
    """Many examples of each layer."""
    search(name, 500)
