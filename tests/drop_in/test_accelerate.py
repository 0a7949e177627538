"""accelerate() and e3nn_backend() on e3nn modules: same numbers, same state, honest report."""

import copy
import pickle

import pytest
import torch
from e3nn import o3
from kit import assert_close

import hamfast
from hamfast.nn import drop_in
from hamfast.nn.attention_call import RunsTransformer
from hamfast.nn.evaluation import evaluate

pytestmark = pytest.mark.usefixtures("double")


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.full = o3.FullyConnectedTensorProduct("4x0e+3x1o", "1x0e+1x1o", "4x0e+2x1o+2x1e")
        self.gate = o3.ElementwiseTensorProduct("3x0e+2x1o", "3x0e+2x0e")

    def forward(self, x, y, a, b):
        return self.full(x, y), self.gate(a, b)


def inputs():
    return torch.randn(2, 5, 13), torch.randn(5, 4), torch.randn(6, 9), torch.randn(6, 5)


def test_accelerate_keeps_numbers_and_state():
    torch.manual_seed(1)
    model = Block()
    args = inputs()
    expected, state = model(*args), copy.deepcopy(model.state_dict())
    report = hamfast.accelerate(model)
    assert report.replaced == ["full", "gate"]
    text = str(report)
    assert "2 of 2 layers run on hamfast" in text
    assert "FullyConnectedTensorProduct: tensor product on hamfast" in text
    assert "ElementwiseTensorProduct: tensor product on hamfast" in text
    for a, b in zip(model(*args), expected, strict=True):
        assert_close(a, b)
    assert model.state_dict().keys() == state.keys()
    assert any("_w3j" in key for key in state)  # e3nn keeps tables in the state
    with hamfast.e3nn_backend():
        assert Block().state_dict().keys() == state.keys()
    model.load_state_dict(state)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.state_dict().keys() == state.keys()
        assert_close(other(*args)[0], expected[0])


def test_gradients_reach_parameters_and_inputs():
    model, args = Block(), [t.requires_grad_() for t in inputs()]
    leaves = [*model.parameters(), *args]

    def gradients():
        return torch.autograd.grad(sum(out.pow(2).sum() for out in model(*args)), leaves)

    expected = gradients()
    hamfast.accelerate(model)
    for a, b in zip(gradients(), expected, strict=True):
        assert_close(a, b)


def test_backend_is_scoped_and_permanent_switch_works():
    def built_on_hamfast():
        product = o3.FullyConnectedTensorProduct("2x0e", "1x0e", "2x0e")
        return type(product._compiled_main_left_right).__name__.startswith("hamfast")

    assert not built_on_hamfast()
    with hamfast.e3nn_backend():
        assert built_on_hamfast()
        with hamfast.e3nn_backend():
            pass
        assert built_on_hamfast()
    assert not built_on_hamfast()
    hamfast.set_e3nn_backend()
    assert built_on_hamfast()
    hamfast.set_e3nn_backend(False)
    assert not built_on_hamfast()


def test_torchscript_saves_and_loads(tmp_path):
    with hamfast.e3nn_backend():
        product = o3.FullyConnectedTensorProduct("4x0e+3x1o", "1x0e+1x1o", "4x0e+2x1o")
    x, y = torch.randn(5, 13), torch.randn(5, 4)
    torch.jit.script(product).save(tmp_path / "product.pt")
    assert_close(torch.jit.load(tmp_path / "product.pt")(x, y), product(x, y))


def test_scripted_modules_are_reported():
    model = torch.nn.ModuleDict({"tp": torch.jit.script(o3.FullyConnectedTensorProduct("2x0e", "1x0e", "2x0e"))})
    report = hamfast.accelerate(model)
    assert report.replaced == []
    assert "left alone, it is TorchScript" in str(report)
    assert "found no tensor products" in str(hamfast.accelerate(torch.nn.Linear(2, 2)))


def test_strict_allows_what_is_not_slow():
    """Gates run on torch's operations, which are the fastest there."""
    gate = o3.ElementwiseTensorProduct("2x1o", "2x1o")
    hamfast.accelerate(gate)
    x = torch.randn(3, 6)
    with hamfast.strict():
        gate(x, x)


class Forces(torch.nn.Module):
    """An energy of positions with a product of e3nn inside, as a dict."""

    def __init__(self):
        super().__init__()
        self.product = o3.FullyConnectedTensorProduct("1x0e+1x1o", "1x0e+1x1o", "3x0e")

    def forward(self, data):
        x = torch.cat([torch.ones(len(data["positions"]), 1), data["positions"]], dim=1)
        data["seen"] = True  # models write into what they are given
        return {"energy": self.product(x, x).pow(2).sum(), "n": len(x)}


def batch():
    return {"positions": torch.randn(5, 3, requires_grad=True)}


def test_verify_compares_energy_forces_and_the_gradient_of_a_force_loss():
    model, data = Forces(), batch()
    report = hamfast.accelerate(model, verify=data)
    assert report.agrees and report.replaced == ["product"] and set(data) == {"positions"}
    assert [c.what for c in report.comparisons] == ["output energy", "forces", "gradient of a force loss"]
    assert all(c.difference < 1e-12 for c in report.comparisons)
    assert "verified" in str(report) and "forces: agrees" in str(report)


def test_the_gradient_of_a_force_loss_is_that_of_autograd():
    """Against torch on the model as it is, step by step."""
    model, data = Forces(), batch()
    energy = model(dict(data))["energy"]
    forces = -torch.autograd.grad(energy, data["positions"], create_graph=True)[0]
    loss = energy.square() + forces.square().sum()
    (expected,) = torch.autograd.grad(loss, model.product.weight)
    assert_close(evaluate(model, data)["gradient of a force loss"], expected)


@pytest.mark.parametrize("wrong", ["product", "attention"])
def test_a_model_whose_results_differ_is_put_back(monkeypatch, wrong):
    """A wrong kernel is simulated: the results that it spoils must not stay."""
    if wrong == "product":
        model, data = Forces(), batch()
        right = drop_in.broadcast_tensor_product
        monkeypatch.setattr(drop_in, "broadcast_tensor_product", lambda *a: 1.001 * right(*a))
    else:
        pyg = pytest.importorskip("torch_geometric.nn")
        monkeypatch.setattr("hamfast.nn.adapters.pyg.FEW", {True: 0, False: 0})
        model = torch.nn.ModuleDict({"conv": pyg.TransformerConv(4, 4)})
        model.forward = lambda x, pairs: model["conv"](x, pairs)
        data = (torch.randn(3, 4), torch.tensor([[0, 1, 2], [1, 2, 0]]))
        right = RunsTransformer.forward
        monkeypatch.setattr(RunsTransformer, "forward", lambda *a: 1.001 * right(*a))
    before, expected = dict(model.named_modules()), evaluate(model, data)
    report = hamfast.accelerate(model, verify=data)
    assert not report.agrees and report.replaced == []
    assert "put back as it was" in str(report)
    worst = max(c.difference for c in report.comparisons)
    assert 1e-4 < worst < 1e-2 and "DIFFERS, difference" in str(report)
    assert {name: id(m) for name, m in before.items()} == {name: id(m) for name, m in model.named_modules()}
    for what, value in evaluate(model, data).items():
        assert torch.equal(value, expected[what])


def test_batches_of_several_sorts():
    """A tuple of arguments, one tensor, and PyG's data; leaves of the batch keep no gradient."""
    product = o3.FullyConnectedTensorProduct("1x0e+1x1o", "1x0e+1x1o", "3x0e")
    x = torch.randn(4, 4, requires_grad=True)
    assert hamfast.accelerate(product, verify=(x, x)).agrees and x.grad is None
    data = pytest.importorskip("torch_geometric.data").Data(positions=torch.randn(5, 3).requires_grad_())
    report = hamfast.accelerate(OfData(), verify=data)
    assert [c.what for c in report.comparisons] == ["output energy", "forces", "gradient of a force loss"]


class OfData(Forces):
    def forward(self, data):
        return super().forward({"positions": data.positions})


def test_profile_says_where_the_time_goes():
    report = hamfast.accelerate(Forces(), profile=batch())
    assert report.times is not None and sum(report.times.after.values()) > 0
    assert any(name.startswith("hamfast::") for name in report.times.after)
    assert not any(name.startswith("hamfast::") for name in report.times.before)
    assert "% of what remains" in str(report)
