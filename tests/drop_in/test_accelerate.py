"""accelerate() and e3nn_backend() on e3nn modules: same numbers, same state, honest report."""

import copy
import pickle

import pytest
import torch
from e3nn import o3
from kit import assert_close

import hamfast

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


def test_strict_forbids_the_general_kernel():
    gate = o3.ElementwiseTensorProduct("2x1o", "2x1o")
    hamfast.accelerate(gate)
    x = torch.randn(3, 6)
    with hamfast.strict(), pytest.raises(RuntimeError, match=r"2x1o x 2x1o -> 2x0e \(mode uuu\).*strict"):
        gate(x, x)
