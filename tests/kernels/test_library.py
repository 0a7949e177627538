"""The compiled library: instruction sets, the stable ABI, CUDA registrations."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import torch

from hamfast import _library, _native, environment, ops  # noqa: F401  (ops: their fakes and autograd are registered)

OPS = [
    "tensor_product",
    "rotate_to_edge",
    "rotate_from_edge",
    "edge_frame_weights",
    "edge_einsum",
    "edge_update",
    "edge_update_backward",
    "edge_update_double_backward",
    "sparse_map",
    "graph_attention",
    "graph_attention_backward",
    "graph_attention_double_backward",
]
PROGRAM = """
import torch
from hamfast import _native, ops, reference
from hamfast.plan import make_plan, edge_frame_plan
torch.manual_seed(0)
plan = make_plan("8x0e+5x1o+3x2e", "1x0e+1x1o+1x2e", "8x0e+5x1o+3x2e",
                 [(0,0,0,"uvw",True),(0,1,1,"uvw",True),(1,1,0,"uvw",True),(1,2,1,"uvw",True),(2,2,2,"uvw",True)])
x, v, w = torch.randn(9, plan.dim_in1), torch.randn(9, 3), torch.randn(plan.weight_numel)
truth = reference.edge_tensor_product(x.double(), w.double(), plan, v.double())
edge = ops.edge_tensor_product(x, w, edge_frame_plan(plan), ops.edge_frames(v, 2))
assert (edge - truth).abs().max() < 1e-4, (edge - truth).abs().max()
q, k, u = torch.randn(3, 9, 2, 17).double()
index = torch.randint(4, (2, 9))
out = ops.graph_attention(ops.edge_index(index[0], index[1], 4), query_edge=q, key_edge=k, value_edge=u)
true = reference.graph_attention(index[0], index[1], 4, query_edge=q, key_edge=k, value_edge=u)[0]
assert (out - true).abs().max() < 1e-12
print(_native.isa())
"""


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_gives_the_same_numbers(isa):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=os.environ | {"HAMFAST_ISA": isa}
    )
    assert done.returncode == 0, done.stderr
    available = done.stdout.strip()
    if available != isa:
        pytest.skip(f"this processor has no {isa}, the kernels chose {available}")


@pytest.mark.skipif(shutil.which("objdump") is None, reason="no objdump")
def test_baseline_kernels_use_no_later_instructions():
    """A wheel must not die on an older processor: no AVX register in any function of the baseline's
    namespace."""
    if os.uname().machine != "x86_64":
        pytest.skip("x86-64 only")
    symbols = subprocess.run(["nm", "-C", str(_library.PATH)], capture_output=True, text=True).stdout
    assert "hamfast::baseline::" in symbols
    text = subprocess.run(
        ["objdump", "-d", "-C", "--no-show-raw-insn", str(_library.PATH)], capture_output=True, text=True
    )
    function, checked = "", 0
    for line in text.stdout.splitlines():
        header = re.match(r"[0-9a-f]+ <(.*)>:$", line)
        if header:
            function = header[1]
            checked += "hamfast::baseline::" in function
        elif not re.search(r"hamfast::avx(2|512)::", function):
            assert not re.search(r"%[yz]mm\d", line), f"{function}: {line}"
    assert checked > 3


def test_only_the_stable_abi_is_needed():
    """Undefined symbols of torch are its C shims; nothing of at::, c10:: or CUDA's runtime."""
    out = subprocess.run(
        ["nm", "-D", "-C", "--undefined-only", str(_library.PATH)], capture_output=True, text=True
    ).stdout
    names = [line.split(maxsplit=1)[1].split("@")[0] for line in out.splitlines()]
    assert any(n.startswith("aoti_torch_") for n in names)
    foreign = [n for n in names if re.match(r"(at|c10|torch)::|cuda[A-Z]|cu[A-Z]|Py", n)]
    assert foreign == []


@pytest.mark.parametrize("op", OPS)
def test_registrations(op):
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    assert has(f"hamfast::{op}", "CPU")
    assert has(f"hamfast::{op}", "Meta")
    assert has(f"hamfast::{op}", "CUDA") == bool(_native.cuda_architectures())


def test_cuda_kernels_are_compiled_where_nvcc_is():
    if shutil.which("nvcc") is None or environment.text("HAMFAST_CUDA") == "0":
        pytest.skip("no nvcc")
    assert _native.cuda_architectures() == "80,90,100"


def test_a_cuda_tensor_without_cuda_says_so():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    from hamfast.training import Run
    from hamfast.training.config import parse_config

    with pytest.raises(Exception, match="torch sees no GPU"):
        Run(parse_config({"output": "o", "accelerator": "gpu", "data": {"root": "r"}}, "test"))
