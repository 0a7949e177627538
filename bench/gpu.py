"""Builds, tests and measures on the GPU of this machine, in one command.

    python bench/gpu.py --machine "one H200"

Works offline and writes bench/results/gpu.csv.
It measures products, convolutions, edge products, attention and training steps of both stages.
They run on the CUDA and the Triton kernels, beside e3nn, PyG and plain torch.
Where they are importable, cuEquivariance and OpenEquivariance are measured, too.
A row has the median of events with a cold L2, the peak of memory, and the fraction of the bound of
bench/roofline.py.
`--device cpu --quick` runs the same code small, to try it where there is no GPU.
It writes nothing.
"""

import argparse
import csv
import datetime
import functools
import importlib.util
import os
import re
import statistics
import subprocess
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "bench" / "results" / "gpu.csv"
COLUMNS = [
    "case",
    "mode",
    "dtype",
    "implementation",
    "median_ms",
    "peak_MB",
    "of_bound",
    "note",
    "machine",
    "torch",
    "date",
]


def build():
    """Installs the package from this folder, without a network."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-build-isolation",
        "--no-deps",
        "--no-index",
        "-e",
        str(ROOT),
    ]
    print("build:", " ".join(command), flush=True)
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    print(f"build: {time.perf_counter() - begin:.0f} s", flush=True)


def run_tests(seconds, processes, chosen, log):
    """Starts the tests in several processes; what they print goes to the file ``log``."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-vv",
        "--tb=short",
        "-p",
        "no:cacheprovider",
        "-m",
        "not slow and not long",
    ]
    command += ["-n", str(processes), "--dist", "worksteal", *chosen]
    with log.open("w") as file:
        return subprocess.Popen(["timeout", str(seconds), *command], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)


def warm_up(options, shares):
    """Starts processes that call everything once: what is compiled at run time goes to the caches.

    Each takes one core, and a share of the cases.
    """
    command = [sys.executable, __file__, "--device", options.device, "--seconds", str(options.test_seconds)]
    command += ["--machine", options.machine, "--no-build", "--no-tests"]
    return [
        subprocess.Popen([*command, "--warm-up", f"{i}/{shares}"], stdout=subprocess.DEVNULL) for i in range(shares)
    ]


def test_and_warm_up(options):
    """The tests that run kernels on a GPU, beside the compilation of what is measured later."""
    cores = os.cpu_count() or 1
    shares = max(1, cores // 3)
    log = ROOT / "build" / "gpu_tests.log"
    begin = time.perf_counter()
    tests = run_tests(options.test_seconds, max(1, cores - shares), ["--gpu", *options.tests.split()], log)
    for process in warm_up(options, shares):
        process.wait()
    print(f"warm-up: {time.perf_counter() - begin:.0f} s", flush=True)
    status = tests.wait()
    text = log.read_text()
    print(f"tests: {time.perf_counter() - begin:.0f} s; all they print is in {log.relative_to(ROOT)}")
    counts = {word: len(re.findall(rf"^\[gw.* {word} ", text, re.M)) for word in ("PASSED", "FAILED", "SKIPPED")}
    print(f"tests: {counts}{', and out of time' if status == 124 else ''}")
    print("\n".join(re.findall(r"^\[gw.* FAILED .*|^(?:FAILED|ERROR) .*", text, re.M)), flush=True)


class Clock:
    """Median milliseconds and peak memory of a function."""

    def __init__(self, device, rounds):
        """No rounds: the function is called once, for what it compiles."""
        self.device, self.rounds = device, rounds
        self.cache = torch.empty(64_000_000 if device == "cuda" else 1, device=device)  # larger than any L2

    def __call__(self, function):
        if not self.rounds:
            function()
            return 0.0, 0.0
        for _ in range(3):
            function()
        times = []
        if self.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        begin = time.perf_counter()
        for n in range(self.rounds):
            if n >= 5 and time.perf_counter() - begin > 1.0:
                break
            self.cache.zero_()
            if self.device == "cuda":
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                function()
                end.record()
                end.synchronize()
                times.append(start.elapsed_time(end))
            else:
                begin = time.perf_counter()
                function()
                times.append(1e3 * (time.perf_counter() - begin))
        peak = (torch.cuda.max_memory_allocated() - before) / 1e6 if self.device == "cuda" else 0.0
        return statistics.median(times), peak


class Run:
    """The rows measured so far, and the settings they are measured with."""

    def __init__(self, options):
        self.device, self.quick, self.machine = options.device, options.quick, options.machine
        self.compiled = options.compiled
        self.warming_up = bool(options.warm_up)
        self.clock = Clock(self.device, 0 if self.warming_up else 3 if self.quick else 20)
        self.deadline = time.perf_counter() + options.seconds
        self.rows = []
        from hamfast.ops.backend import triton_problem

        problem = triton_problem() if self.device == "cuda" else "there is no GPU"
        self.has_triton = not problem
        if problem:
            print(f"the Triton kernels are not measured: {problem}", flush=True)

    def measure(self, case, mode, implementation, make, bound=None, dtype="float32"):
        """``make()`` gives the function to time; hamfast is timed on both of its backends."""
        self.measure_one(case, mode, implementation, make, bound, dtype)
        if implementation == "hamfast" and self.has_triton:
            import hamfast

            with hamfast.backend("triton"):
                self.measure_one(case, mode, "hamfast triton", make, bound, dtype)

    def measure_one(self, case, mode, implementation, make, bound, dtype):
        """A row of the table. What fails becomes one that says why."""
        if self.warming_up and not implementation.startswith("hamfast"):
            return
        if time.perf_counter() > self.deadline:
            print(f"out of time: {case} {mode} {implementation} not measured", flush=True)
            return
        row = dict.fromkeys(COLUMNS, "") | {
            "case": case,
            "mode": mode,
            "dtype": dtype,
            "implementation": implementation,
        }
        try:
            median, peak = self.clock(make())
            row |= {"median_ms": f"{median:.4f}", "peak_MB": f"{peak:.0f}"}
            if bound is not None and median and implementation.startswith("hamfast"):
                row["of_bound"] = f"{bound / 1e3 / median:.2f}"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            row["note"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        row |= {"machine": self.machine, "torch": torch.__version__, "date": datetime.date.today().isoformat()}
        self.rows.append(row)
        print(
            f"{case:36} {mode:16} {dtype:9} {implementation:24} {row['median_ms'] or row['note']} {row['of_bound']}",
            flush=True,
        )

    def write(self):
        """Writes the table; on a CPU and in a quick run nothing is written."""
        if self.device == "cuda" and not self.quick and not self.warming_up:
            with RESULT.open("w", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS)
                writer.writeheader()
                writer.writerows(self.rows)
            print(RESULT)


NAMES = {"forward": "forward", "backward": "forward+backward", "double backward": "double backward"}


def bound_of(run, model, case, mode):
    """Microseconds a step of `mode` needs at least: its own pass and those before it."""
    from roofline import GPUS, MODES

    gpu = next((g for g in GPUS if g.name in run.machine), None)
    if gpu is None:
        return None
    return sum(model(case, m).time(gpu, False)[0] for m in MODES[: MODES.index(mode) + 1])


def openequivariance_convolution(case, senders, receivers):
    """Its convolution with edges in the order of receivers, its faster one (atomics)."""
    import openequivariance as oeq

    a, b, _ = case.irreps
    problem = oeq.TPProblem(a, b, case.irreps_out, case.instructions, shared_weights=False, internal_weights=False)
    convolution = oeq.TensorProductConv(problem, torch_op=True, deterministic=False)
    return lambda x, y, w: convolution(x, y, w, receivers, senders)


def measure_convolution(run, case, dtype, with_layer):
    """Gather, product, scatter-sum; ``with_layer``: and the last layer of the radial network."""
    from cases import RADIAL_WIDTH, random_graph
    from roofline import MODES, convolution, radial
    from test_products import cuequivariance, e3nn_product, step

    from hamfast import ops

    plan, nodes = case.plan(), case.edges // 40
    senders, receivers = (t.to(run.device) for t in random_graph(nodes, 40))
    edges = ops.edge_index(senders, receivers, nodes)
    theirs = e3nn_product(case).to(run.device)
    x, y, w = (t.to(run.device) for t in case.inputs(dtype))
    leaves = [x[:nodes].contiguous(), y, w]
    if with_layer:
        hidden = torch.randn(case.edges, RADIAL_WIDTH, device=run.device)
        leaves[2:] = [hidden, torch.randn(RADIAL_WIDTH, plan.weight_numel, device=run.device) / 8]
    leaves = [t.requires_grad_() for t in leaves]

    def ours(x, y, *w, layout="ir_mul"):
        return ops.tensor_product(x, y, ops.RadialWeights(*w) if with_layer else w[0], plan, edges, layout=layout)

    def scattered(product):
        def function(x, y, *w):
            out = product(x[senders], y, w[0] @ w[1] if with_layer else w[0])
            return out.new_zeros(nodes, out.shape[1]).index_add(0, receivers, out)

        return function

    name = f"{'with radial layer' if with_layer else 'convolution'} {case.name}"
    if dtype == torch.float32:  # nothing is timed that is not right
        with torch.no_grad():
            expected = scattered(theirs)(*leaves)
            error = float((ours(*leaves, layout="mul_ir") - expected).norm() / expected.norm())
        if not error < 1e-4:
            raise RuntimeError(f"{name}: hamfast is off e3nn's result by {error:.1e}, relative")
    for mode in MODES if not with_layer and dtype != torch.bfloat16 else MODES[:2]:
        bound = bound_of(run, radial if with_layer else convolution, case, mode) if dtype == torch.float32 else None
        peers = {"e3nn": lambda: scattered(theirs)} if dtype == torch.float32 else {}
        if peers and not with_layer and importlib.util.find_spec("cuequivariance_torch"):
            peers["cuequivariance"] = lambda: scattered(cuequivariance(case))
        if peers and not with_layer and importlib.util.find_spec("openequivariance"):
            peers["openequivariance"] = lambda: openequivariance_convolution(case, senders, receivers)
        if peers and not with_layer and run.compiled and mode != "double backward":
            peers["e3nn compiled"] = lambda: torch.compile(scattered(theirs), mode="reduce-overhead")  # CUDA graphs
        dtype_name = str(dtype).removeprefix("torch.")
        run.measure(name, mode, "hamfast", functools.partial(step, ours, leaves, NAMES[mode]), bound, dtype_name)
        for peer, make in peers.items():
            run.measure(
                name, mode, peer, lambda make=make, mode=mode: step(make(), leaves, NAMES[mode]), None, dtype_name
            )


def measure_edge_product(run, case):
    """The product with the harmonics of edges in their frames, beside e3nn's."""
    from e3nn import o3
    from roofline import MODES, edge_frame
    from test_products import e3nn_product, step

    from hamfast import ops
    from hamfast.plan import edge_frame_plan

    plan, theirs = edge_frame_plan(case.plan()), e3nn_product(case).to(run.device)
    vectors = torch.randn(case.edges, 3, device=run.device)
    l_max = max(ir.l for irreps in case.irreps for _, ir in irreps)
    x, _, w = (t.to(run.device) for t in case.inputs())
    leaves = [x.requires_grad_(), w.requires_grad_()]

    def ours(x, w):
        return ops.edge_tensor_product(x, w, plan, ops.edge_frames(vectors, l_max), "ir_mul", "edge_frame")

    def e3nn(x, w):
        return theirs(x, o3.spherical_harmonics(case.irreps[1], vectors, True, "component"), w)

    for mode in MODES[:2]:
        bound = bound_of(run, edge_frame, case, mode)
        for implementation, function in (("hamfast", ours), ("e3nn", e3nn)):
            make = functools.partial(step, function, leaves, NAMES[mode])
            run.measure(f"edge_tensor_product {case.name}", mode, implementation, make, bound)


def measure_attention(run, case):
    """Graph attention beside PyG's, in float32 and bfloat16."""
    if not importlib.util.find_spec("torch_geometric"):
        print("attention is not measured: torch_geometric is missing", flush=True)
        return
    from roofline import MODES, attention
    from test_attention import Problem
    from test_products import step

    problem = Problem(run.device, case.nodes)
    functions = problem.functions()
    chosen = {name: functions["op", name] for name in ("hamfast", "pyg")}
    if run.compiled:
        chosen["compiled scatter"] = functions["op", "compiled scatter"]
    with torch.no_grad():
        found, expected = (function(*leaves).flatten(1) for function, leaves in (chosen["hamfast"], chosen["pyg"]))
        error = float((found - expected).norm() / expected.norm())
    if not error < 1e-4:
        raise RuntimeError(f"attention {case.name}: hamfast is off PyG's result by {error:.1e}, relative")
    for mode in MODES:
        for name, (function, leaves) in chosen.items():
            if name == "compiled scatter" and mode == "double backward":
                continue
            make = functools.partial(step, function, leaves, NAMES[mode])
            run.measure(f"attention {case.name}", mode, name, make, bound_of(run, attention, case, mode))
    half = [t.detach().bfloat16().requires_grad_() for t in functions["op", "hamfast"][1]]
    for mode in MODES[:2]:
        make = functools.partial(step, problem.hamfast_op, half, NAMES[mode])
        run.measure(f"attention {case.name}", mode, "hamfast", make, None, "bfloat16")


def measure_edge_update(run, case):
    """The update of edges beside plain torch, in float32 and bfloat16."""
    from roofline import MODES, edge_update
    from test_edge_update import UpdateProblem
    from test_products import step

    problem = UpdateProblem(run.device, case.nodes)
    for mode in MODES[:2]:
        bound = bound_of(run, edge_update, case, mode)
        for name, function in problem.functions(run.compiled).items():
            make = functools.partial(step, function, problem.leaves, NAMES[mode])
            run.measure(f"edge_update {case.name}", mode, name, make, bound)
        half = [t.detach().bfloat16().requires_grad_() for t in problem.leaves[:3]] + problem.leaves[3:]
        make = functools.partial(step, problem.hamfast, half, NAMES[mode])
        run.measure(f"edge_update {case.name}", mode, "hamfast", make, None, "bfloat16")


def measure_networks(run):
    """Training steps of stage 1, of stage 2 on its features, and of both together."""
    from cases import CARBON, NETWORKS, graphene
    from plain_transformer import PlainBlock, choose_blocks

    from hamfast.models import Cascade, CovariantConfig, CovariantNetwork, RefinementTransformer, TransformerConfig
    from hamfast.reference import E3nnNetwork

    graph = graphene(2 if run.quick else 8).to(run.device)

    def measure(case, implementation, predictions):
        def step():
            sum((out - graph.target).square().sum() for out in predictions()).backward()

        run.measure(case, "training step", implementation, lambda: step)

    for size, settings in NETWORKS.items():
        network = CovariantNetwork(CovariantConfig(**settings), CARBON).to(run.device)
        theirs = E3nnNetwork(network).to(run.device)
        measure(f"stage1 {size}", "hamfast", lambda network=network: [network(graph)[0]])
        measure(f"stage1 {size}", "e3nn", lambda theirs=theirs: [theirs(graph)])

    first = CovariantNetwork(CovariantConfig(**NETWORKS["demo"]), CARBON).to(run.device)
    second = RefinementTransformer(TransformerConfig(), CARBON, first.irreps_node, first.irreps_edge).to(run.device)
    torch.nn.init.normal_(second.output.weight, std=0.1)
    with torch.no_grad():
        given = first(graph)
    ours = list(second.blocks)
    for implementation, blocks in (("hamfast", ours), ("plain torch", [PlainBlock(block) for block in ours])):

        def refined(blocks=blocks):
            choose_blocks(second, blocks)
            return [given[0] + second(graph, *given)]

        measure("stage2", implementation, refined)
    both = Cascade(
        CARBON, CovariantConfig(**NETWORKS["demo"]), TransformerConfig(kind="plain"), freeze_stage1=False
    ).to(run.device)
    measure("cascade demo", "hamfast", lambda: both(graph))


def jobs(run):
    """All cases, as functions."""
    from cases import EDGE_PRODUCTS, GPU_PRODUCTS
    from roofline import ATTENTION, EDGE_PRODUCT_EDGES

    for case in GPU_PRODUCTS:
        case = replace(case, edges=400) if run.quick else case
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            yield functools.partial(measure_convolution, run, case, dtype, False)
        yield functools.partial(measure_convolution, run, case, torch.float32, True)
    for case in EDGE_PRODUCTS:
        case = replace(case, edges=400 if run.quick else EDGE_PRODUCT_EDGES)
        yield functools.partial(measure_edge_product, run, case)
    for case in ATTENTION:
        case = replace(case, nodes=40) if run.quick else case
        yield functools.partial(measure_attention, run, case)
        yield functools.partial(measure_edge_update, run, case)
    yield functools.partial(measure_networks, run)


def measure_all(run, share, shares):
    """The jobs of one share, one after the other, until the time is up.

    What fails does not end those after it.
    """
    for number, job in enumerate(jobs(run)):
        if number % shares != share:
            continue
        try:
            job()
        except Exception:
            traceback.print_exc()


def main():
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", default="", help='what it is, in words: "one H200"')
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--quick", action="store_true", help="small problems, few rounds")
    parser.add_argument("--compiled", action="store_true", help="add torch.compile'd e3nn: minutes of compiling")
    parser.add_argument("--no-build", action="store_true")
    parser.add_argument("--no-tests", action="store_true")
    parser.add_argument("--seconds", type=int, default=270, help="for measuring")
    parser.add_argument("--test-seconds", type=int, default=200, help="for the tests")
    parser.add_argument("--tests", default="", help="more arguments for pytest")
    parser.add_argument("--warm-up", default="", metavar="SHARE/SHARES", help="compile, and measure nothing")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU; --device cpu --quick tries the script without one")
    if options.device == "cuda" and not options.machine:
        parser.error("--machine is needed: the name of the GPU goes into the table")
    if not options.no_build:
        build()
    if not options.no_tests:
        test_and_warm_up(options)
    run = Run(options)
    share, shares = map(int, options.warm_up.split("/")) if options.warm_up else (0, 1)
    try:
        measure_all(run, share, shares)
    finally:
        run.write()


if __name__ == "__main__":
    main()
