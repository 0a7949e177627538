"""Every layer through torch.export into a file, and from there into another process; and through
TorchScript, or why not.
"""

import os
import subprocess
import sys

import pytest
import torch
from kit import assert_close
from layers import LAYERS

LOAD = """
import sys
import torch
import hamfast.ops  # registers the ops
for path in sys.argv[1:]:
    case = torch.load(path + ".inputs")
    torch.save(torch.export.load(path + ".pt2").module()(*case), path + ".out")
"""
SCRIPTED = ("GaussianBasis", "RadialMLP")


@pytest.mark.slow
def test_exported_layers_run_in_another_process(tmp_path):
    """A process that loads only the ops gives the same results."""
    expected = {}
    for n, make in enumerate(LAYERS.values()):
        layer, inputs = make()
        path = str(tmp_path / str(n))
        torch.export.save(torch.export.export(layer.eval(), inputs), path + ".pt2")
        torch.save(inputs, path + ".inputs")
        expected[path] = layer(*inputs)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *expected],
        capture_output=True,
        text=True,
        env={**os.environ, "HAMFAST_POISON": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for path, out in expected.items():
        assert_close(torch.load(path + ".out"), out.detach(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", list(LAYERS))
def test_torchscript_or_why_not(name):
    """A layer can be scripted, or says what to use instead."""
    layer, inputs = LAYERS[name]()
    if name in SCRIPTED:
        assert torch.equal(torch.jit.script(layer)(*inputs), layer(*inputs))
        return
    with pytest.raises(NotImplementedError, match=r"^hamfast: \w+ cannot be scripted, .* expected torch.jit.trace"):
        torch.jit.script(layer)


@pytest.mark.parametrize("name", ["FullyConnectedTensorProduct", "Linear", "GraphTransformerConv"])
def test_traced_as_the_message_says(name):
    """torch.jit.trace works where scripting does not."""
    layer, inputs = LAYERS[name]()
    traced = torch.jit.trace(layer.eval(), inputs, check_trace=False)  # tables that the first call makes differ for it
    assert_close(traced(*inputs), layer(*inputs), atol=1e-6, rtol=1e-5)
