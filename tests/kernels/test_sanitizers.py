"""The CPU kernels under the address, undefined-behaviour and thread sanitizers, outside of torch, against the reference."""

from pathlib import Path

import numpy as np
import pytest
import torch
from programs import compile_program, run_program, write_arrays

from hamfast import ops, reference
from hamfast.ops.multilinear import general_tables, make_tables
from hamfast.plan import make_plan

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
    folder, made = tmp_path_factory.mktemp("sanitizers"), {}

    def build(isa, sanitizer):
        if (isa, sanitizer) not in made:
            options = [*ISAS[isa], f"-DHAMFAST_ISA={isa}", *["-DHAMFAST_X86"] * (isa != "baseline")]
            program = folder / f"run_products_{isa}_{sanitizer}"
            made[isa, sanitizer] = compile_program(program, "cpp/run_products.cpp", options, SANITIZERS[sanitizer])
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
    write_arrays(path, arrays)


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
    run_program(build(isa, sanitizer), tmp_path / "case", 4)
