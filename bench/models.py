"""Whole models of other packages as they are, against themselves after ``hamfast.accelerate``.

    python bench/models.py --machine "2 CPU cores"                    # all, some 20 minutes
    python bench/models.py --machine "2 CPU cores" --only nequip --sizes 30
    python bench/models.py --machine "2 CPU cores" --threads 2
    python bench/models.py --machine "2 CPU cores" --first --sizes 30   # times of first steps alone
    python bench/models.py --machine "one H200" --device cuda --profile models.txt

Writes bench/results/models.csv, on a GPU models_gpu.csv.
Rows of models that were not run stay as they were.
A force step is energy and forces; a training step is the gradient of a loss on both.
Each model runs in a process of its own, in which both forms of it take turns.
With ``--first`` each form and step has a process of its own. It builds the model; what counts is
from then to the end of the first step, with ``import hamfast`` and ``accelerate`` where they are.
What others offer in the place of ``accelerate`` is in bench/alternatives.py.
The networks are those of tests/drop_in, larger.
"""

import argparse
import csv
import datetime
import importlib
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from importlib.metadata import distribution
from pathlib import Path

import torch

HERE = Path(__file__).parent
RESULTS = {"cpu": HERE / "results" / "models.csv", "cuda": HERE / "results" / "models_gpu.csv"}
sys.path.insert(0, str(HERE.parent / "tests" / "drop_in"))

import peers  # noqa: E402

# Name -> module in tests/drop_in, package (and its distribution), arguments of its ``network``.
MODELS = {
    "MACE 128x0e": ("mace_network", "mace", "mace-torch", {"hidden": "128x0e", "correlation": 3}),
    "MACE 128x0e+128x1o": ("mace_network", "mace", "mace-torch", {"hidden": "128x0e+128x1o", "correlation": 3}),
    "MACE 128x0e+128x1o+128x2e": (
        "mace_network",
        "mace",
        "mace-torch",
        {"hidden": "128x0e+128x1o+128x2e", "correlation": 3},
    ),
    "NequIP 64, l 2": ("nequip_network", "nequip", "nequip", {"features": 64}),
    "SevenNet 64, l 2": ("sevenn_network", "sevenn", "sevenn", {"channels": 64}),
    "Allegro 32, l 2": ("allegro_network", "allegro", "nequip-allegro", {"features": 32}),
    "TorchMD-NET ET 128": ("torchmdnet_network", "torchmdnet", "torchmd-net", {"width": 128, "layers": 6}),
    "e3tools Conv": ("own_network", "e3tools", "e3tools", {"layer": "Conv"}),
    "e3tools SeparableConv": ("own_network", "e3tools", "e3tools", {"layer": "SeparableConv"}),
    "e3tools TransformerBlock": ("own_network", "e3tools", "e3tools", {"layer": "TransformerBlock"}),
    "PyG TransformerConv": ("own_network", None, "torch-geometric", {"layer": "TransformerConv"}),
    "PyG GATv2Conv": ("own_network", None, "torch-geometric", {"layer": "GATv2Conv"}),
    "DeepH-E3's network": ("deeph_e3_network", None, "e3nn", {}),
    "Equiformer MD17, l 2": ("equiformer_network", None, "e3nn", {}),
}
SIZES = {"30": (2, 2, 1), "200": (3, 3, 3), "2000": (6, 6, 7)}
ONE_SIZE = ("DeepH-E3's network",)
"""Models that run on a structure of their own, of 18 atoms."""
COLUMNS = [
    "model", "version", "atoms", "step", "as_it_is_ms", "accelerated_ms", "ratio", "difference",
    "as_it_is_peak_mb", "accelerated_peak_mb", "exchanged", "threads", "machine", "torch", "date",
]  # fmt: skip

KEY = ("model", "atoms", "step", "threads")


def steps(module, model, data):
    """Name of a step -> a function without arguments, which returns what it computed."""
    parameters = [p for p in model.parameters() if p.requires_grad]

    def force():
        energy, forces = module.evaluate(model, data)
        return [energy.detach().flatten()] if forces is None else [forces.detach().flatten()]

    def training():
        energy, forces = module.evaluate(model, data, training=True)
        loss = energy.sum() if forces is None else energy.sum() + forces.square().sum()
        grads = torch.autograd.grad(loss, parameters, allow_unused=True)
        return [g.flatten() for g in grads if g is not None]

    return {"force": force, "training": training}


def moved(data, device):
    """A network's input on another device: tensors, what has ``to``, and what holds such."""
    if isinstance(data, dict):
        return {key: moved(value, device) for key, value in data.items()}
    if isinstance(data, tuple):
        return tuple(moved(value, device) for value in data)
    return data.to(device) if hasattr(data, "to") else data


def wall_clock_of_gpu():
    """Seconds, once all that was asked of the GPU is done."""
    torch.cuda.synchronize()
    return time.perf_counter()


def peak_mb(step, device):
    """By how many MB one step raises the peak of memory: on a CPU in a copy of this process."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        step()
        os.write(write, str((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024).encode())
        os._exit(0)
    os.close(write)
    _, status = os.waitpid(child, 0)
    text = os.read(read, 100).decode()
    os.close(read)
    if status or not text:
        raise SystemExit("a step failed in the process that measures memory")
    return float(text)


def alternating(functions, rounds, clock):
    """Least milliseconds of each function, one after the other in each round."""
    best = [float("inf")] * len(functions)
    for _ in range(rounds):
        for n, function in enumerate(functions):
            begin = clock()
            function()
            best[n] = min(best[n], 1e3 * (clock() - begin))
    return best


def captured(step):
    """A step as a CUDA graph, which is launched at once; None where it cannot be captured."""
    try:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = step()
    except RuntimeError as error:
        print(f"not captured: {error}".splitlines()[0], file=sys.stderr)
        torch.cuda.synchronize()
        return None

    def replay():
        graph.replay()
        return results

    return replay


def profile(step, title, path):
    """Appends to a file where the time of a step goes: its kernels by their share."""
    from torch.profiler import ProfilerActivity

    with torch.profiler.profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as run:
        begin = wall_clock_of_gpu()
        for _ in range(5):
            step()
        wall = wall_clock_of_gpu() - begin
    kernels = [e for e in run.key_averages() if e.device_type == torch.autograd.DeviceType.CUDA]
    busy = sum(e.self_device_time_total for e in kernels)
    with open(path, "a") as file:
        print(f"{title}: {wall / 5 * 1e3:.2f} ms, GPU busy {busy / 5e3:.2f} ms,", file=file, end=" ")
        print(f"{sum(e.count for e in kernels) // 5} kernels and copies", file=file)
        for e in sorted(kernels, key=lambda e: -e.self_device_time_total)[:14]:
            print(f"  {e.self_device_time_total / 5e3:9.3f} ms {e.count // 5:5} x {e.key[:110]}", file=file)


def measure(name, size, threads, seconds, device, log):
    """Rows of one model: force step and training step."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    module_name, _, _, options = MODELS[name]
    module = importlib.import_module(module_name)
    import hamfast

    models = [module.network(torch.float32, **options) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    models = [model.to(device) for model in models]
    report = hamfast.accelerate(models[1])
    data = moved(module.graph(torch.float32, SIZES[size]), device)
    atoms = len(peers.crystal(SIZES[size])) if name not in ONE_SIZE else len(data.species)
    both = [steps(module, model, data) for model in models]
    clock = clock_of(threads, device)
    plain = list(both[0])
    rows = []
    peaks = {step: [peak_mb(of[step], device) for of in both] for step in plain} if threads == 1 else {}
    for step in [*plain, *(f"{step}, CUDA graph" for step in plain if device == "cuda")]:
        eager = [of[step.split(",")[0]] for of in both]
        functions = eager
        if step not in plain:
            ours = captured(eager[1])
            if ours is None:
                continue
            theirs = captured(eager[0])
            functions = [theirs or eager[0], ours]
            step += "" if theirs else " of ours alone"
        begin = clock()
        expected, found = (torch.cat(f()) for f in functions)
        once = clock() - begin
        for f in functions:  # whatever is prepared in the first calls
            f()
        difference = float((expected - found).abs().max() / expected.abs().max())
        as_it_is, ours = alternating(functions, min(max(3, int(seconds / once)), 100), clock)
        memory = [f"{mb:.0f}" for mb in peaks[step]] if step in peaks else ["", ""]
        ratio = as_it_is / ours
        if log and device == "cuda":
            for form, function in zip(("as it is", "accelerated"), functions, strict=True):
                profile(function, f"{name}, {atoms} atoms, {step}, {form}", log)
        rows.append(
            [
                atoms,
                step,
                f"{as_it_is:.2f}",
                f"{ours:.2f}",
                f"{ratio:.2f}",
                f"{difference:.1e}",
                *memory,
                report.exchanged,
            ]
        )
    return rows


def first_step(name, size, form, step, threads, device):
    """Milliseconds from a model that is built to the end of its first step."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    module_name, _, _, options = MODELS[name]
    module = importlib.import_module(module_name)
    model = module.network(torch.float32, **options).to(device)
    data = moved(module.graph(torch.float32, SIZES[size]), device)
    clock = clock_of(threads, device)
    begin = clock()
    if form == "accelerated":
        import hamfast

        hamfast.accelerate(model)
    steps(module, model, data)[step]()
    return 1e3 * (clock() - begin)


def clock_of(threads, device):
    """CPU time of one thread; of more, whose times count together, the clock on the wall."""
    if device == "cuda":
        return wall_clock_of_gpu
    return time.process_time if threads == 1 else time.perf_counter


def first_steps(name, size, options):
    """Rows of the times to the first steps, each from a process of its own."""
    rows = []
    for step in ("force", "training"):
        found = []
        for form in ("as it is", "accelerated"):
            command = [sys.executable, __file__, "--one-first", name, size, form, step]
            command += ["--threads", str(options.threads), "--device", options.device]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{name}, {size} atoms, first {step} {form}: {done.stderr[-1500:]}")
            found.append(float(done.stdout.splitlines()[-1]))
        atoms = len(peers.crystal(SIZES[size])) if name not in ONE_SIZE else 18
        as_it_is, ours = found
        rows.append([atoms, f"first {step}", f"{as_it_is:.0f}", f"{ours:.0f}", f"{as_it_is / ours:.2f}", *[""] * 4])
    return rows


def installed(package, dist):
    """The version of a package; None where it is missing."""
    if package is not None and not peers.available(package):
        return None
    peers.use()
    return distribution(dist).version


def keep(kept, rows, name, version, options):
    """Writes the rows of one model in the place of those that are there; returns all."""
    for row in rows:
        made = [name, version, *map(str, row), str(options.threads), options.machine]
        made += [torch.__version__, str(datetime.date.today())]
        print(*made[:11], flush=True)
        key = [made[COLUMNS.index(c)] for c in KEY]
        kept = [k for k in kept if [k[COLUMNS.index(c)] for c in KEY] != key]
        kept.append(made)
    order = list(MODELS)
    kept.sort(key=lambda k: (k[11], order.index(k[0]), int(k[2]), k[3]))
    with RESULTS[options.device].open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *kept])
    return kept


def main():
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machine", help="what runs it, in words")
    parser.add_argument("--threads", type=int, default=1, help="1 measures CPU time, more the clock on the wall")
    parser.add_argument("--only", default="", help="models whose name contains it")
    parser.add_argument(
        "--sizes", nargs="+", choices=list(SIZES), help="atoms, about; 30 and 200, on a GPU 200 and 2000"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of each comparison, at least 3 rounds")
    parser.add_argument("--device", default="cpu", choices=list(RESULTS))
    parser.add_argument("--profile", default="", help="on a GPU: a file for the kernels of each step")
    parser.add_argument("--first", action="store_true", help="the times to the first steps, and nothing else")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--one-first", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.sizes = options.sizes or (["200", "2000"] if options.device == "cuda" else ["30", "200"])
    settings = [options.threads, options.seconds, options.device, options.profile]
    if options.one:
        name, *sizes = options.one
        print(json.dumps([row for size in sizes for row in measure(name, size, *settings)]))
        return
    if options.one_first:
        print(first_step(*options.one_first, options.threads, options.device))
        return
    result = RESULTS[options.device]
    kept = []
    if result.exists():
        with result.open() as file:
            kept = [[row[c] for c in COLUMNS] for row in csv.DictReader(file)]
    failed = []
    for name, (_, package, dist, _) in MODELS.items():
        if options.only.lower() not in name.lower():
            continue
        version = installed(package, dist)
        if version is None:
            print(f"{name}: skipped, {package} is not in {peers.PEERS}; tools/setup_peers.sh puts it there", flush=True)
            continue
        sizes = options.sizes[:1] if name in ONE_SIZE else options.sizes
        # On a GPU one process for all: what is prepared there takes long, and memory is told apart.
        for chosen in [sizes] if options.device == "cuda" else [[size] for size in sizes]:
            if options.first:
                found = [row for size in chosen for row in first_steps(name, size, options)]
                kept = keep(kept, found, name, version, options)
                continue
            command = [sys.executable, __file__, "--one", name, *chosen]
            for option in ("threads", "seconds", "device", "profile"):
                command += [f"--{option}", str(getattr(options, option))]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                failed.append(f"{name}, {' and '.join(chosen)} atoms: {done.stderr}")
                print(failed[-1][-1500:], flush=True)
                continue
            kept = keep(kept, json.loads(done.stdout.splitlines()[-1]), name, version, options)
    if failed:
        sys.exit(f"{len(failed)} failed")


if __name__ == "__main__":
    main()
