"""The CUDA kernels' source, compiled for the host and run thread by thread under sanitizers
(tests/simt), against the reference.

What this cannot show: see tests/simt/simt.h.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pytest
import torch
from programs import ROOT, compile_program, read_arrays, run_program, write_arrays

from hamfast import ops, reference
from hamfast.ops.layout import convert_layout
from hamfast.ops.multilinear import LAYOUTS, kernel_source, make_tables, mix_blocks
from hamfast.plan import Plan, make_plan
from hamfast.records.choices import Slot, Storage
from hamfast.records.tables import ChannelVariant

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("double")]

X, Y, W, G = Slot.X, Slot.Y, Slot.W, Slot.G
STORAGE = {
    torch.float32: Storage.FLOAT32,
    torch.float64: Storage.FLOAT64,
    torch.bfloat16: Storage.BFLOAT16,
    torch.float16: Storage.FLOAT16,
}
TOLERANCE = {torch.float32: 3e-6, torch.float64: 1e-13, torch.bfloat16: 1e-2, torch.float16: 2e-3}
NODES, EDGES = 7, 30


def odd_plan() -> Plan:
    """Multiplicities of no power of two, two channels of y, a path without weight, a result no path
    reaches."""
    instructions = [
        (0, 0, 0, "uvu", True),
        (1, 1, 1, "uvu", True),
        (1, 2, 2, "uvu", True),
        (2, 2, 3, "uvu", True),
        (2, 1, 4, "uvu", False),
        (3, 2, 5, "uvu", True),
        (2, 0, 3, "uvu", True),
    ]
    return make_plan("41x0e+3x1o+6x2e+1x4e", "2x0e+1x1o+1x2e", "41x0e+3x0e+3x1o+6x2e+6x1o+1x3e+2x0o", instructions)


def mixing_plan() -> Plan:
    instructions = [(0, 0, 0, "uvw", True), (0, 1, 1, "uvw", True), (1, 1, 0, "uvw", True), (1, 2, 1, "uvw", True)]
    return make_plan("5x0e+3x1o", "2x0e+1x1o+1x2e", "4x0e+6x1o", instructions)


class Case(NamedTuple):
    name: str
    forward: bool
    tangents: str = ""
    wanted: str = ""
    """Backward: of x, y, w."""
    dtype: torch.dtype = torch.float64
    layout: str = "mul_ir"
    shared: bool = False
    graph: bool = True
    pairs: bool = False
    hidden: int = 0
    """Numbers per edge that the kernel makes the weights from; 0: it reads them."""


CASES = [
    Case("forward", True),
    Case("forward-rows-float32", True, graph=False, dtype=torch.float32, layout="ir_mul"),
    Case("forward-along", True, tangents="xyw", layout="ir_mul"),
    Case("forward-pairs", True, shared=True, pairs=True),
    Case("backward", False, wanted="xyw"),
    Case("backward-shared-float32", False, wanted="xyw", shared=True, dtype=torch.float32, layout="ir_mul"),
    Case("backward-rows-bfloat16", False, wanted="xyw", graph=False, dtype=torch.bfloat16),
    Case("backward-x-float16", False, wanted="x", dtype=torch.float16),
    Case("backward-along", False, wanted="xyw", tangents="xyw"),
    Case("backward-along-all", False, wanted="xyw", tangents="xywg", layout="ir_mul"),
    Case("backward-along-w-g", False, wanted="xw", tangents="wg"),
    Case("backward-pairs", False, wanted="xy", shared=True, pairs=True),
    Case("forward-weights-made", True, dtype=torch.float32, hidden=20),
    Case("backward-weights-made", False, wanted="xyw", dtype=torch.float32, layout="ir_mul", hidden=20),
]


def bits(letters: str) -> int:
    return sum(1 << "xywg".index(c) for c in letters)


class Problem:
    """Random operands of a case in its dtype; what is true of them in float64; the kernel's
    header."""

    def __init__(self, case: Case):
        torch.manual_seed(5)
        self.case, self.plan = case, mixing_plan() if case.pairs else odd_plan()
        plan, rows = self.plan, NODES if case.graph else EDGES
        self.edges = ops.edge_index(torch.randint(NODES - 1, (EDGES,)), torch.randint(1, NODES, (EDGES,)), NODES, NODES)
        weight = 0 if case.pairs else plan.weight_numel
        out = sum((2 * m.l + 1) * m.pairs for m in mix_blocks(plan)) if case.pairs else plan.dim_out
        shapes = [
            (rows, plan.dim_in1),
            (EDGES, plan.dim_in2),
            (weight,) if case.shared else (EDGES, weight),
            (rows, out),
        ]
        self.operands = [torch.randn(shape).to(case.dtype).double() for shape in shapes]
        self.tangents = [
            torch.randn(shape).to(case.dtype).double() if c in case.tangents else None
            for c, shape in zip("xywg", shapes, strict=True)
        ]
        self.hidden, self.matrix = None, self.operands[W]
        if case.hidden:
            made_of = [(EDGES, case.hidden), (case.hidden, weight)]
            self.hidden, self.matrix = (torch.randn(shape).to(case.dtype).double() for shape in made_of)
            self.operands[W] = self.hidden @ self.matrix
        self.tables = make_tables(plan, "pairs" if case.pairs else "channel", case.dtype, torch.device("cpu"))
        given = "xy" + "w" * (weight > 0) + "g" * (not case.forward)
        layouts = (LAYOUTS[case.layout], LAYOUTS["blocks" if case.pairs else case.layout])
        wanted = "g" if case.forward else case.wanted
        variant = ChannelVariant(
            forward=int(case.forward),
            operands=bits(given),
            tangents=bits(case.tangents),
            wanted=bits(wanted),
            storage=STORAGE[case.dtype],
            x_layout=layouts[0],
            g_layout=layouts[1],
            shared_weights=int(case.shared),
            hidden=case.hidden,
            passes=3,
        )
        text, sizes = kernel_source(self.tables, variant)
        self.header = bytes(text.numpy()).decode()
        self.units, self.shared_bytes = sizes.tolist()

    def product(self, x, y, w):
        """In ``mul_ir``; coupled pairs: block after block, [rows, 2 l + 1, pairs] each."""
        graph = (self.edges.senders, self.edges.receivers, NODES) if self.case.graph else ()
        if not self.case.pairs:
            return reference.tensor_product(x, y, w, self.plan, *graph)
        blocks = []
        for mix in mix_blocks(self.plan):  # every pair is a channel of its own: uvuv without weights
            pairs = []
            for n in mix.instructions:
                ins = self.plan.instructions[n]
                _, l, p = self.plan.irreps_out[mix.i_out]
                n1, n2 = ins.weight_shape[:2]
                irreps = [
                    "+".join(f"{m}x{l}{'e' if p == 1 else 'o'}" for m, l, p in blocks)
                    for blocks in (self.plan.irreps_in1, self.plan.irreps_in2, [(n1 * n2, l, p)])
                ]
                single = make_plan(*irreps, [(ins.i_in1, ins.i_in2, 0, "uvuv", False)], path_normalization="none")
                factor = ins.coefficient / single.instructions[0].coefficient
                out = reference.tensor_product(x, y, None, single, *graph) * factor
                pairs.append(out.view(-1, n1, n2, 2 * l + 1).permute(0, 3, 2, 1).flatten(2))  # v slow, u fast
            blocks.append(torch.cat(pairs, dim=2).flatten(1))
        return torch.cat(blocks, dim=1)

    def truth(self):
        """The wanted results by autograd, in float64 and ``mul_ir``."""
        leaves = [t.clone().requires_grad_() for t in self.operands]
        value = (self.product(*leaves[:3]) * leaves[G]).sum()
        along = [n for n in range(4) if self.tangents[n] is not None]
        if along:
            grads = torch.autograd.grad(value, [leaves[n] for n in along], create_graph=True)
            value = sum((g * self.tangents[n]).sum() for g, n in zip(grads, along, strict=True))
        wanted = ["xywg".index(c) for c in ("g" if self.case.forward else self.case.wanted)]
        return dict(zip(wanted, torch.autograd.grad(value, [leaves[n] for n in wanted]), strict=True))

    def convert(self, t, slot, there):
        """Rows of x or g between ``mul_ir`` and the layout of the case."""
        if t is None or slot not in (X, G):
            return t
        if self.case.pairs and slot == G:  # one matrix [rows, 2 l + 1, pairs] per block, or their rows side by side
            sizes = [(2 * m.l + 1) * m.pairs for m in mix_blocks(self.plan)]
            if there:
                return torch.cat([block.flatten() for block in t.split(sizes, 1)]).view(t.shape)
            blocks = t.flatten().split([size * t.shape[0] for size in sizes])
            return torch.cat([block.view(t.shape[0], -1) for block in blocks], dim=1)
        irreps = self.plan.irreps_in1 if slot == X else self.plan.irreps_out
        layouts = ("mul_ir", self.case.layout) if there else (self.case.layout, "mul_ir")
        return convert_layout(t, irreps, *layouts)

    def stored(self, t, slot):
        t = self.convert(t, slot, True)
        return None if t is None else t.to(self.case.dtype).contiguous().view(torch.uint8).numpy()

    def run(self, program, folder, seed, blocks):
        case, plan, edges = self.case, self.plan, self.edges
        compute = torch.float64 if case.dtype == torch.float64 else torch.float32
        graph = [None] * 4
        rows = EDGES
        if case.graph:
            graph = [edges.senders, edges.receivers, *(edges.by_receiver if case.forward else edges.by_sender)[1:]]
            rows = NODES
        size, wide = case.dtype.itemsize, compute.itemsize
        bytes_of = [0] * 6
        shapes = [t.shape for t in self.operands]
        wanted = ["xywg".index(c) for c in ("g" if case.forward else case.wanted)]
        chunks = blocks * 4 // self.units
        for slot in wanted:
            bytes_of[slot] = shapes[slot].numel() * size
        if Y in wanted:
            bytes_of[Y], bytes_of[4] = 0, self.units * shapes[Y].numel() * wide
        if W in wanted and case.shared:
            bytes_of[W], bytes_of[5] = 0, chunks * plan.weight_numel * wide
        sizes = np.array([rows, EDGES, shapes[X][0], shapes[G][0], blocks, *bytes_of, self.shared_bytes])
        stored = [*self.operands[:W], self.matrix, self.operands[G]]
        operands = [self.stored(t, slot) for slot, t in enumerate(stored)]
        if case.forward:
            operands[G] = None
        arrays = [sizes, *operands, *(self.stored(t, n) for n, t in enumerate(self.tangents)), *graph]
        arrays.append(self.stored(self.hidden, W))
        write_arrays(folder / "case", arrays)
        run_program(program, folder / "case", folder / "out", seed)
        found = read_arrays(folder / "out")
        results = {}
        for slot in wanted:
            if slot == Y:
                results[Y] = torch.frombuffer(found[4], dtype=compute).view(self.units, *shapes[Y]).sum(0).double()
            elif slot == W and case.shared:
                results[W] = torch.frombuffer(found[5], dtype=compute).view(chunks, -1).sum(0).double()
            else:
                t = torch.frombuffer(found[slot], dtype=case.dtype).view(shapes[slot]).double()
                results[slot] = self.convert(t, slot, False)
        return results, found


@pytest.fixture(scope="module")
def programs(tmp_path_factory, request):
    """case -> its problem and program, those of the tests that will run: two compilers at a
    time."""
    chosen = {item.callspec.params["case"] for item in request.session.items if item.path == request.path}

    def make(case):
        folder = root / case.name
        folder.mkdir()
        (folder / "hamfast_plan.h").write_text(problems[case].header)
        options = ["-DHAMFAST_SIMT", f"-I{folder}", f"-I{ROOT / 'tests' / 'simt'}"]
        return compile_program(folder / "program", "simt/run_channel.cpp", options)

    root, before = tmp_path_factory.mktemp("plans"), torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    problems = {case: Problem(case) for case in CASES if case in chosen}
    torch.set_default_dtype(before)
    with ThreadPoolExecutor(2) as pool:
        return {case: (problems[case], made) for case, made in zip(problems, pool.map(make, problems), strict=True)}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_channel_kernel(case, programs, tmp_path):
    problem, program = programs[case]
    blocks = -(-problem.units // 4) * 3
    found, raw = problem.run(program, tmp_path, 1, blocks)
    for slot, expected in problem.truth().items():
        error = (found[slot] - expected).norm() / expected.norm()
        assert error < TOLERANCE[case.dtype], f"{'xywg'[slot]}: {error}"
    # Any order of the threads, the same bits: there is no race.
    assert problem.run(program, tmp_path, 2, blocks)[1] == raw
