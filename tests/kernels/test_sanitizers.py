"""The CPU kernels under the address, undefined-behaviour and thread sanitizers, outside of torch, against the reference."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from hamfast import ops, reference
from hamfast.ops.multilinear import general_tables, make_tables
from hamfast.plan import make_plan

ROOT = Path(__file__).parents[2]
ISAS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx2", "-mfma", "-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw"],
}
SANITIZERS = {"address": "address,undefined", "thread": "thread"}


def supported(isa):
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return isa == "baseline" or {"avx2": "avx2", "avx512": "avx512bw"}[isa] in flags


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """build(isa, sanitizer) -> program, compiled once."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    folder, made = tmp_path_factory.mktemp("sanitizers"), {}

    def build(isa, sanitizer):
        if (isa, sanitizer) not in made:
            program = folder / f"run_products_{isa}_{sanitizer}"
            command = [compiler, "-std=c++20", "-O1", "-g", "-fno-omit-frame-pointer", "-fopenmp-simd", *ISAS[isa]]
            command += [f"-fsanitize={SANITIZERS[sanitizer]}", "-fno-sanitize-recover=all", f"-DHAMFAST_ISA={isa}"]
            command += ["-DHAMFAST_X86"] * (isa != "baseline")
            command += [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'kernels'}", str(ROOT / "tests" / "cpp" / "run_products.cpp")]
            subprocess.run([*command, "-o", str(program), "-pthread"], check=True)
            made[isa, sanitizer] = program
        return made[isa, sanitizer]

    return build


def write_case(path, shared):
    """Odd multiplicities, l up to 4, a path without weight, multi-edges, self-loops, nodes without edges."""
    torch.manual_seed(3)
    instructions = [
        (0, 0, 0, "uvu", True),
        (1, 1, 1, "uvu", True),
        (1, 2, 2, "uvu", True),
        (2, 2, 3, "uvu", True),
        (2, 1, 4, "uvu", False),
        (3, 2, 5, "uvu", True),
    ]
    plan = make_plan("19x0e+3x1o+17x2e+1x4e", "2x0e+1x1o+1x2e", "19x0e+3x0e+3x1o+17x2e+17x1o+1x3e", instructions)
    nodes, count = 9, 40
    edges = ops.edge_index(torch.randint(7, (count,)), torch.randint(nodes, (count,)), nodes)
    x, y = torch.randn(nodes, plan.dim_in1), torch.randn(count, plan.dim_in2)
    w = torch.randn(plan.weight_numel if shared else (count, plan.weight_numel))
    leaves = [t.requires_grad_() for t in (x, y, w)]
    out = reference.tensor_product(*leaves, plan, edges.senders, edges.receivers, nodes)
    g = torch.randn_like(out)
    grads = torch.autograd.grad(out, leaves, g)
    tables = make_tables(plan, "channel", x.dtype, x.device)
    table, index, value, scratch = general_tables(plan, list(plan.instructions))
    dims = list(tables.dims)
    dims[4] = scratch
    graph = (edges.senders, edges.sender_order, edges.sender_ptr)
    graph += (edges.receivers, edges.receiver_order, edges.receiver_ptr)
    arrays = [np.array([*dims, count, nodes, int(shared)]), table, index, value]
    arrays += [t.numpy() for t in (*tables.tensors[3:], *graph)]
    arrays += [t.detach().numpy() for t in (*leaves, g, out, *grads)]
    with path.open("wb") as file:
        for array in arrays:
            content = np.ascontiguousarray(array).tobytes()
            file.write(np.int64(len(content)).tobytes() + content)


@pytest.mark.slow
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("shared", [False, True], ids=["weights-per-edge", "shared-weights"])
@pytest.mark.parametrize(
    ("isa", "sanitizer"), [("baseline", "address"), ("avx2", "address"), ("avx512", "address"), ("baseline", "thread")]
)
def test_kernels(build, tmp_path, isa, sanitizer, shared):
    if not supported(isa):
        pytest.skip(f"this processor has no {isa}")
    write_case(tmp_path / "case", shared)
    done = subprocess.run([build(isa, sanitizer), tmp_path / "case", "4"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
