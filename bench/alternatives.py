"""Whole models by what others offer in the place of ``hamfast.accelerate``: ``torch.compile``,
MACE's conversion to cuEquivariance, symmetrix-xl.

    python bench/alternatives.py --machine "2 CPU cores"                  # all, about an hour
    python bench/alternatives.py --machine "2 CPU cores" --only cue --sizes 30

Writes bench/results/alternatives.csv; rows that were not run stay as they were.
Where an alternative fails, the row has its words. Each runs in a process of its own, in which the
model as it is, the alternative and the accelerated model take turns; ``--limit`` ends those that
compile for too long. Times are CPU time, of compilers too; with more threads those on the clock.
symmetrix-xl is looked for in a folder of its own:

    pip install --no-deps --target .venv/symmetrix symmetrix-xl==0.1.1
"""

import argparse
import contextlib
import csv
import datetime
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
from models import MODELS, SIZES, alternating, clock_of, steps

HERE = Path(__file__).parent
RESULT = HERE / "results" / "alternatives.csv"
SYMMETRIX = str(HERE.parent / ".venv" / "symmetrix")
COLUMNS = [
    "model", "version", "alternative", "alternative_version", "atoms", "step", "as_it_is_ms", "alternative_ms",
    "accelerated_ms", "ratio", "difference", "first_alternative_s", "first_accelerated_s", "says", "threads", "machine",
    "torch", "date",
]  # fmt: skip
MACE = "MACE 128x0e+128x1o"
KEY = ("model", "alternative", "atoms", "step")


class Plain:
    """A model as it is, on a graph."""

    package = "torch"
    same_parameters = True
    structures = 1
    """In a batch."""

    def __init__(self, name, size):
        module_name, _, _, self.options = MODELS[name]
        self.module = importlib.import_module(module_name)
        self.data = self.graph(SIZES[size])

    def graph(self, cells):
        """The graph that all forms of the model are called with."""
        return self.module.graph(torch.float32, cells)

    def network(self):
        """A new model, of the same weights."""
        return self.module.network(torch.float32, **self.options)

    def steps(self, model):
        """Steps by name, of a model that is prepared."""
        return steps(self.module, model, self.data)

    def alternative(self):
        """Steps by name, of the alternative."""
        raise NotImplementedError


class Compiled(Plain):
    """``torch.compile`` of each layer, which e3tools and PyG document for theirs."""

    def alternative(self):
        from e3nn import set_optimization_defaults

        # What torch.compile asks for: no TorchScript inside, and buffers to be read twice.
        set_optimization_defaults(jit_script_fx=False)
        torch._functorch.config.donated_buffer = False
        model = self.network()
        for layer in model.layers:
            layer.compile()
        return self.steps(model)


class CompiledMACE(Plain):
    """As ``MACECalculator(compile_mode="default")`` does it, with forces as in a training."""

    def alternative(self):
        from mace.tools.compile import prepare

        model = torch.compile(prepare(self.network)(), mode="default", fullgraph=True)
        made = self.steps(model)

        def force():
            _, forces = self.module.evaluate(model, self.data, training=True)
            return [forces.detach().flatten()]

        return {"force": force, "training": made["training"]}


class CompiledNequIP(Plain):
    """``compile_mode="compile"`` of NequIP's builders, for batches of two structures or more."""

    structures = 2

    def graph(self, cells):
        from nequip.data import AtomicDataDict

        one = self.module.graph(torch.float32, cells)
        return AtomicDataDict.batched_from_list([one, one])

    def alternative(self):
        from nequip.model import override_model_compile_mode

        with override_model_compile_mode("compile"):
            return self.steps(self.network())


class ToCuEquivariance(Plain):
    """MACE's own conversion."""

    package = "cuequivariance-torch"
    same_parameters = False

    def alternative(self):
        from mace.cli.convert_e3nn_cueq import run

        return self.steps(run(self.network(), device="cpu", return_model=True))


class BySymmetrix(Plain):
    """An export of the model, read by symmetrix-xl, in its mode without a compiler.

    It is a calculator of ASE, so all three forms are: search for neighbours and stress are in.
    """

    package = "symmetrix-xl"

    def graph(self, cells):
        import peers

        return peers.crystal(cells)

    def steps(self, model):
        from mace.calculators import MACECalculator

        return self.of_calculator(MACECalculator(models=model, default_dtype="float32"))

    def alternative(self):
        sys.path.append(SYMMETRIX)
        from symmetrix import Symmetrix
        from symmetrix.extract_mace_data import extract_mace_data

        with tempfile.TemporaryDirectory() as folder:
            checkpoint, exported = Path(folder) / "model.pt", Path(folder) / "model.json"
            torch.save(self.network(), checkpoint)
            exported.write_text(json.dumps(extract_mace_data(str(checkpoint))))
            return self.of_calculator(Symmetrix(str(exported), dtype="float32", streamed_edges="non-compiled"))

    def of_calculator(self, calculator):
        """The force step of a calculator."""

        def force():
            calculator.reset()
            return [torch.tensor(calculator.get_property("forces", self.data), dtype=torch.float32).flatten()]

        return {"force": force}


ALTERNATIVES = [
    *((name, "torch.compile", CompiledMACE) for name in ("MACE 128x0e", MACE)),
    *((name, "torch.compile", CompiledNequIP) for name in ("NequIP 64, l 2", "Allegro 32, l 2")),
    *(
        (name, "torch.compile", Compiled)
        for name in ("e3tools Conv", "e3tools TransformerBlock", "PyG TransformerConv")
    ),
    (MACE, "cuEquivariance", ToCuEquivariance),
    (MACE, "symmetrix-xl", BySymmetrix),
]


def seconds_of(threads):
    """A clock: of one thread CPU time, with that of compilers, processes that have ended."""
    return time.perf_counter if threads > 1 else lambda: sum(os.times()[:4])


def timed(function, clock):
    """What a function returns, and the seconds that it took."""
    begin = clock()
    out = function()
    return out, clock() - begin


def measure(number, size, threads, seconds):
    """Prints rows of one alternative, one a line, as soon as they are there."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    clock = seconds_of(threads)
    name, _, kind = ALTERNATIVES[number]
    with contextlib.redirect_stdout(sys.stderr):
        work = kind(name, size)
        plain = work.steps(work.network())
        expected = {step: torch.cat(function()) for step, function in plain.items()}  # and all is loaded
        import hamfast

        def accelerated():
            model = work.network()
            hamfast.accelerate(model)
            return work.steps(model)

        ours, our_seconds = timed(accelerated, clock)
        theirs, their_seconds = timed(work.alternative, clock)
        their_seconds += timed(theirs["force"], clock)[1]
        our_seconds += timed(ours["force"], clock)[1]
    atoms = len(importlib.import_module("peers").crystal(SIZES[size])) * kind.structures
    for step in plain:
        if step not in theirs:
            continue
        row = {"atoms": atoms, "step": step}
        try:
            with contextlib.redirect_stdout(sys.stderr):
                functions = [plain[step], theirs[step], ours[step]]
                once = sum(timed(f, clock)[1] for f in functions)
                found = torch.cat(functions[1]())
                times = alternating(
                    functions, min(max(3, int(seconds / max(once, 0.01))), 100), clock_of(threads, "cpu")
                )
        except Exception as error:
            print("ROW" + json.dumps(row | {"says": words(error)}), flush=True)
            continue
        row |= {
            f"{form}_ms": f"{ms:.2f}"
            for form, ms in zip(("as_it_is", "alternative", "accelerated"), times, strict=True)
        }
        row["ratio"] = f"{times[1] / times[2]:.2f}"
        if step == "force" or work.same_parameters:
            row["difference"] = f"{float((found - expected[step]).abs().max() / expected[step].abs().max()):.1e}"
        if step == "force":
            row |= {"first_alternative_s": f"{their_seconds:.1f}", "first_accelerated_s": f"{our_seconds:.1f}"}
        print("ROW" + json.dumps(row), flush=True)


def words(error):
    """The first sentence of an error, for a table."""
    text = f"{type(error).__name__}: {error}".strip().splitlines()
    return " ".join(text)[:160].replace("|", "/")


def rows_of(number, size, options):
    """Rows of one alternative, from a process of its own; one of words where it failed."""
    command = [sys.executable, __file__, "--one", str(number), size]
    command += ["--threads", str(options.threads), "--seconds", str(options.seconds)]
    says = ""
    # One compiler at a time, in this process's time.
    environment = os.environ | ({"TORCHINDUCTOR_COMPILE_THREADS": "1"} if options.threads == 1 else {})
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=options.limit, env=environment)
        out = done.stdout
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
            errors = [line for line in lines if "Error" in line.split(":")[0]]
            says = (errors or lines)[-1][:160].replace("|", "/")
    except subprocess.TimeoutExpired as error:
        out, says = (error.stdout or b"").decode(), f"not done after {options.limit:.0f} s"
    rows = [json.loads(line[3:]) for line in out.splitlines() if line.startswith("ROW")]
    # Steps come in this order: what ended it, ended the first of those that are missing.
    missing = [step for step in ("force", "training") if step not in {row["step"] for row in rows}]
    return [*rows, *({"atoms": "", "step": step, "says": says} for step in missing[:1] if says)]


def version_of(package):
    """Of a package; None where it is missing."""
    sys.path.append(SYMMETRIX)
    try:
        return distribution(package).version
    except PackageNotFoundError:
        return None
    finally:
        sys.path.remove(SYMMETRIX)


def main():
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machine", help="what runs it, in words")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="models or alternatives whose name contains it")
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["30", "200"], help="atoms, about")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each comparison, at least 3 rounds")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for one alternative, with its compilation")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        measure(int(options.one[0]), options.one[1], options.threads, options.seconds)
        return
    import peers

    peers.use()
    kept = {}
    if RESULT.exists():
        with RESULT.open() as file:
            kept = {tuple(row[c] for c in KEY): row for row in csv.DictReader(file)}
    for number, (name, alternative, kind) in enumerate(ALTERNATIVES):
        if options.only.lower() not in f"{name} {alternative}".lower():
            continue
        versions = [version_of(MODELS[name][2]), version_of(kind.package)]
        if None in versions:
            print(f"{name}, {alternative}: skipped, as {MODELS[name][2]} or {kind.package} is missing", flush=True)
            continue
        for size in options.sizes:
            for row in rows_of(number, size, options):
                made = dict.fromkeys(COLUMNS, "") | row | {"model": name, "alternative": alternative}
                made["atoms"] = str(made["atoms"] or len(peers.crystal(SIZES[size])) * kind.structures)
                made |= {"version": versions[0], "alternative_version": versions[1], "threads": str(options.threads)}
                made |= {"machine": options.machine, "torch": torch.__version__, "date": str(datetime.date.today())}
                kept[tuple(made[c] for c in KEY)] = made
                print(*(made[c] for c in COLUMNS[:14]), flush=True)
            order = [(name, alternative) for name, alternative, _ in ALTERNATIVES]
            rows = sorted(
                kept.values(), key=lambda r: (order.index((r["model"], r["alternative"])), int(r["atoms"]), r["step"])
            )
            with RESULT.open("w", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS)
                writer.writeheader()
                writer.writerows(rows)


if __name__ == "__main__":
    main()
