"""Layers against the e3nn modules they stand for, on the same weights."""

import pytest
import torch
from e3nn import nn as e3nn_nn
from e3nn import o3
from kit import assert_close, fully_connected

from hamfast import nn, ops

pytestmark = pytest.mark.usefixtures("double")
IRREPS = "4x0e+2x1o+3x1e+2x2e+1x0o"


@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
def test_linear(layout):
    """Linear against e3nn.o3.Linear, with biases."""
    theirs = o3.Linear(IRREPS, "3x0e+5x1o+2x2e+2x3o+2x0e", biases=True)
    ours = nn.Linear(IRREPS, "3x0e+5x1o+2x2e+2x3o+2x0e", biases=True, layout=layout)
    state = theirs.state_dict()
    ours.load_state_dict({k: state[k] for k in ("weight", "bias")})
    ours.bias.data.normal_()
    theirs.bias.data.copy_(ours.bias.data)
    x = theirs.irreps_in.randn(7, -1)
    found = ours(nn.convert_layout(x, ours.irreps_in, "mul_ir", layout))
    assert_close(nn.convert_layout(found, ours.irreps_out, layout, "mul_ir"), theirs(x))


@pytest.mark.parametrize("species", [1, 3])
@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
def test_species_linear_is_a_product_with_a_one_hot(species, layout):
    """SpeciesLinear against e3nn's product with a one-hot vector."""
    theirs = o3.FullyConnectedTensorProduct(IRREPS, f"{species}x0e", "3x0e+5x1o+2x2e")
    ours = nn.SpeciesLinear(IRREPS, species, "3x0e+5x1o+2x2e", layout=layout)
    ours.weight.data.copy_(theirs.weight)
    x, species_of_row = theirs.irreps_in1.randn(7, -1), torch.randint(species, (7,))
    one_hot = torch.nn.functional.one_hot(species_of_row, species).double()
    found = ours(nn.convert_layout(x, ours.irreps_in, "mul_ir", layout), species_of_row)
    assert_close(nn.convert_layout(found, ours.irreps_out, layout, "mul_ir"), theirs(x, one_hot))


@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
def test_gate(layout):
    """Gate against e3nn's, alone and with a scale per channel."""
    acts = [torch.nn.functional.silu, torch.tanh]
    theirs = e3nn_nn.Gate("4x0e+2x0o", acts, "5x0e", [torch.sigmoid], "2x1o+2x1e+1x2e")
    ours = nn.Gate("4x0e+2x0o", "5x0e", "2x1o+2x1e+1x2e", layout=layout)
    assert ours.irreps_in == theirs.irreps_in.simplify()
    assert ours.irreps_out == theirs.irreps_out
    x = theirs.irreps_in.randn(6, -1)
    found = ours(nn.convert_layout(x, ours.irreps_in, "mul_ir", layout))
    assert_close(nn.convert_layout(found, ours.irreps_out, layout, "mul_ir"), theirs(x), atol=1e-12)
    scale = torch.randn(6, ours.irreps_out.num_irreps)
    scaled = ours(nn.convert_layout(x, ours.irreps_in, "mul_ir", layout), scale)
    expected = o3.ElementwiseTensorProduct(ours.irreps_out, f"{scale.shape[1]}x0e")(theirs(x), scale)
    assert_close(nn.convert_layout(scaled, ours.irreps_out, layout, "mul_ir"), expected, atol=1e-12)


@pytest.mark.parametrize("gates", ["3x0o", "1x0e+2x0o"])
def test_odd_gates_change_the_parity_of_their_channels(gates):
    acts = [torch.sigmoid, torch.tanh] if "+" in gates else [torch.tanh]
    theirs = e3nn_nn.Gate("2x0e", [torch.nn.functional.silu], gates, acts, "3x1o")
    ours = nn.Gate("2x0e", gates, "3x1o")
    assert ours.irreps_out == theirs.irreps_out
    x = theirs.irreps_in.randn(6, -1)
    assert_close(ours(x), theirs(x), atol=1e-12)
    if "+" in gates:
        with pytest.raises(ValueError, match="expected gates of one parity for 3x1o"):
            nn.Gate("2x0e", gates, "3x1o", layout="ir_mul")


@pytest.mark.parametrize("given", [("2x1o", "3x0e", "3x1o"), ("2x0e", "1x1o+2x0e", "3x1o")])
def test_gate_refuses_vectors_in_place_of_scalars(given):
    with pytest.raises(ValueError, match="expected scalars alone, found .*1o"):
        nn.Gate(*given)


def test_tensor_product_loads_the_state_of_e3nn():
    """The product layers give e3nn's results from e3nn's state."""
    irreps = o3.Irreps(IRREPS), o3.Irreps("1x0e+2x1o"), o3.Irreps("3x0e+2x1o+1x2o")
    instructions = fully_connected(*irreps)
    for theirs, ours in [
        (o3.TensorProduct(*irreps, instructions), nn.TensorProduct(*irreps, instructions)),
        (o3.FullyConnectedTensorProduct(*irreps), nn.FullyConnectedTensorProduct(*irreps)),
    ]:
        ours.load_state_dict(theirs.state_dict())
        x, y = irreps[0].randn(2, 5, -1), irreps[1].randn(2, 5, -1)
        assert_close(ours(x, y), theirs(x, y))
    separate = nn.TensorProduct(*irreps, instructions, shared_weights=False)
    weight = torch.randn(5, separate.weight_numel)
    theirs = o3.TensorProduct(*irreps, instructions, shared_weights=False)
    assert_close(separate(x[0], y[0], weight), theirs(x[0], y[0], weight))


def test_edge_tensor_product_is_deeph_e3s_separate_weights():
    """EdgeTensorProduct against e3nn's product with the weights W1 W2."""
    irreps = o3.Irreps("3x0e+2x1o+1x2e"), o3.Irreps.spherical_harmonics(3), o3.Irreps("4x0e+2x1o+1x2e")
    ours = nn.EdgeTensorProduct(irreps[0], 3, irreps[2])
    theirs = o3.TensorProduct(*irreps, fully_connected(*irreps), internal_weights=False)
    one, two, full = ours.weight1, ours.weight2, []
    for ins in theirs.instructions:
        n1, _, n3 = ins.path_shape
        full.append((one[: n1 * n3].view(n1, 1, n3) * two[:n3].view(1, 1, n3)).flatten())
        one, two = one[n1 * n3 :], two[n3:]
    vectors, x = torch.randn(6, 3), irreps[0].randn(6, -1)
    harmonics = o3.spherical_harmonics(irreps[1], vectors, True, "component")
    assert_close(ours(x, ops.edge_frames(vectors, 3)), theirs(x, harmonics, torch.cat(full)), atol=1e-11)


@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
def test_layer_norm_by_its_definition(layout):
    """EquivariantLayerNorm against its formula, block by block."""
    irreps = o3.Irreps("3x0e+2x1o")
    norm = nn.EquivariantLayerNorm(irreps, layout=layout)
    norm.weight.data.uniform_(0.5, 2)
    norm.bias.data.normal_()
    x, graph = irreps.randn(7, -1), torch.tensor([0, 0, 0, 1, 1, 1, 1])
    expected = torch.empty_like(x)
    for g in (0, 1):
        rows = graph == g
        scalars, vectors = x[rows, :3], x[rows, 3:].view(-1, 2, 3)
        scalars = scalars - scalars.mean()
        scalars = scalars / (scalars.square().mean().sqrt() + 1e-5)
        vectors = vectors - vectors.mean((0, 1))
        expected[rows, :3] = scalars * norm.weight[:3] + norm.bias
        expected[rows, 3:] = (vectors * norm.weight[3:, None]).flatten(1)
    found = norm(nn.convert_layout(x, irreps, "mul_ir", layout), graph, 2)
    assert_close(nn.convert_layout(found, irreps, layout, "mul_ir"), expected)


def test_gaussian_basis_and_envelope():
    """Values at points where they are known."""
    basis = nn.GaussianBasis(0.0, 6.0, 4)
    assert_close(basis(torch.tensor([2.0]))[0], torch.exp(-0.5 * torch.tensor([1.0, 0.0, 1.0, 4.0])))
    r = torch.linspace(0, 3, 7, requires_grad=True)
    envelope = nn.polynomial_envelope(r, 3.0)
    assert envelope[0] == 1
    assert envelope[-1] == 0
    slope = torch.autograd.grad(envelope.sum(), r)[0]
    assert slope[0] == 0
    assert slope[-1] == 0


def test_unknown_layout():
    """A layout that does not exist is refused."""
    with pytest.raises(ValueError, match="expected mul_ir or ir_mul, found 'imu'"):
        nn.Linear("1x0e", "1x0e", layout="imu")


def test_tensor_product_keeps_ir_mul_between_layers():
    """Both layouts give the same function."""
    irreps = o3.Irreps("3x0e+2x1o"), o3.Irreps("1x0e+1x1o"), o3.Irreps("2x0e+3x1o")
    slow = nn.FullyConnectedTensorProduct(*irreps)
    fast = nn.FullyConnectedTensorProduct(*irreps, layout="ir_mul")
    fast.load_state_dict(slow.state_dict())
    x, y = torch.randn(4, irreps[0].dim), torch.randn(4, irreps[1].dim)
    found = fast(nn.convert_layout(x, irreps[0], "mul_ir", "ir_mul"), y)
    assert_close(nn.convert_layout(found, irreps[2], "ir_mul", "mul_ir"), slow(x, y))


def test_layers_of_float32_that_become_ones_of_float64():
    ours, theirs = (make("5x0e+3x1o", "7x0e+3x1o").float().double() for make in (nn.Linear, o3.Linear))
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(4, 14, dtype=torch.float64)
    assert_close(ours(x), theirs(x))
