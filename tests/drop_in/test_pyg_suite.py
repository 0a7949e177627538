"""PyG's own tests of TransformerConv and GATv2Conv pass with hamfast at work in them.

They are not in PyG's distributions. They are taken from ``pytorch_geometric`` beside the other
packages, where somebody put a checkout of it, or else from its repository.
"""

import os
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from peers import PEERS

geometric = pytest.importorskip("torch_geometric")

FILES = ["test_transformer_conv.py", "test_gatv2_conv.py"]
ADDRESS = "https://raw.githubusercontent.com/pyg-team/pytorch_geometric/{version}/test/nn/conv/{file}"

PLUGIN = """
import torch_geometric.nn
import hamfast
from hamfast.nn import attention_call
from hamfast.nn.adapters import pyg

pyg.FEW = {True: 0, False: 0}  # the graphs of the tests are small
calls = 0
run = attention_call.graph_attention

def counted(*args, **kwargs):
    global calls
    calls += 1
    return run(*args, **kwargs)

attention_call.graph_attention = counted

def accelerated(theirs):
    def make(*args, **kwargs):
        layer = theirs(*args, **kwargs)
        assert hamfast.accelerate(layer).replaced
        return layer
    return make

for name in ("TransformerConv", "GATv2Conv"):
    setattr(torch_geometric.nn, name, accelerated(getattr(torch_geometric.nn, name)))

def pytest_sessionfinish(session):
    print(f"hamfast ran {calls} times")
"""


def fetch(file):
    """The text of one of the files; skips if it cannot be had."""
    checkout = PEERS / "pytorch_geometric" / "test" / "nn" / "conv" / file
    if checkout.is_file():
        return checkout.read_text()
    address = ADDRESS.format(version=geometric.__version__, file=file)
    try:
        with urllib.request.urlopen(address, timeout=20) as answer:
            return answer.read().decode()
    except (urllib.error.URLError, TimeoutError) as error:
        pytest.skip(f"PyG's tests cannot be had: {address}: {error}")


def test_pygs_tests_pass_after_accelerate(tmp_path):
    for file in FILES:
        (tmp_path / file).write_text(fetch(file))
    (tmp_path / "hamfast_plugin.py").write_text(PLUGIN)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-s", "-W", "ignore", "-p", "hamfast_plugin", *FILES],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    ran = int(done.stdout.split("hamfast ran ")[1].split()[0])
    assert ran > 20, f"hamfast ran only {ran} times"
