"""Writes the tables of README.md and docs/ from bench/results/*.csv.

python bench/readme.py      # from the source folder
"""

import csv
import re
import textwrap
from functools import partial
from pathlib import Path

from cases import EDGE_PRODUCTS, PRODUCTS
from lowerings import read as read_lowerings
from test_yardsticks import COPIED, SQUARE

from hamfast.plan import edge_frame_plan

RESULTS = Path("bench/results")


def read(name):
    """The rows of bench/results/NAME.csv."""
    with (RESULTS / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def table(header, rows):
    """A table in Markdown."""
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def medians(threads, name="cpu"):
    """(case, mode) -> {implementation: ms}, in the order of the run."""
    groups: dict[tuple[str, str], dict[str, float]] = {}
    for row in read(name):
        if row["threads"] == str(threads):
            groups.setdefault((row["case"], row["mode"]), {})[row["implementation"]] = float(row["median_ms"])
    return groups


def note(*sentences):
    """The text below a table: a sentence begins a line, and lines have at most 100 columns."""
    lines = [line for s in sentences for line in textwrap.wrap(s, 100, break_long_words=False, break_on_hyphens=False)]
    return "\n\n" + "\n".join(lines)


def source(name):
    """The sentence below a table: machine, version and date of a result."""
    first = read(name)[0]
    return f"Medians of one run on {first['machine']}, torch {first['torch']}, {first['date']} (`bench/results/{name}.csv`)."


def attention_source():
    """The same for attention and stage 2, which have a file of their own."""
    return f"Attention and stage 2: {read('attention')[0]['date']} (`bench/results/attention.csv`)."


# The rows of the README: work of the sizes people train with, and with it what gains least.
HEADLINES = {
    ("convolution b_large", "forward+backward"): "convolution of a MACE-type layer: gather, product, scatter-sum",
    ("edge_tensor_product C", "forward+backward"): "product with the edge's harmonics, DeepH-E3's size",
    ("stage1 published", "training step"): "training step of DeepH-E3's published network",
    ("attention A op", "forward+backward"): "graph attention with edge features",
}

HEADLINE_MODELS = (
    "MACE 128x0e+128x1o", "MACE 128x0e+128x1o+128x2e", "NequIP 64, l 2", "SevenNet 64, l 2", "Allegro 32, l 2",
    "Equiformer MD17, l 2",
)  # fmt: skip
DEEPH = "DeepH-E3's network"


def speed_rows() -> dict[tuple[str, str], list[str]]:
    """Hamfast beside the reference of each case: ms, peer, ms, ratio with two threads, with one."""
    two, one = ({**medians(threads), **medians(threads, "attention")} for threads in (2, 1))
    rows = {}
    for key, found in two.items():
        peer = next((name for name in ("e3nn", "pyg", "plain torch") if name in found), None)
        if peer is None:
            continue
        single = one.get(key)
        alone = f"{single[peer] / single['hamfast']:.1f}x" if single else ""
        ratio = f"{found[peer] / found['hamfast']:.1f}x"
        rows[key] = [f"{found['hamfast']:.1f}", peer, f"{found[peer]:.1f}", ratio, alone]
    return rows


_SPEED = ["hamfast ms", "peer", "peer ms", "ratio, 2 threads", "1 thread"]


def headline_table() -> str:
    """The README's rows, and the range of all comparisons with e3nn."""
    found = speed_rows()
    rows = [[text, *found[key]] for key, text in HEADLINES.items()]
    ratios = [float(row[3][:-1]) for row in found.values() if row[1] == "e3nn"]
    closing = (
        f"All {len(ratios)} comparisons with e3nn range from {min(ratios):.0f}x to {max(ratios):.0f}x:",
        "[performance](docs/performance.md), also with compiled code, cuEquivariance and DGL.",
    )
    return table(["work (float32)", *_SPEED], rows) + note(source("cpu"), attention_source(), *closing)


def speed_table() -> str:
    """All comparisons with the reference of each case."""
    rows = [[*key, *row] for key, row in speed_rows().items()]
    sentences = (source("cpu"), attention_source(), "The cases are in `bench/cases.py`.")
    return table(["work (float32)", "step", *_SPEED], rows) + note(*sentences)


def peers_table() -> str:
    """Compiled e3nn, cuEquivariance, and stored weights."""
    compiled = {(r["case"], r["mode"]): r["compile_s"] for r in read("cpu") if r["compile_s"]}
    rows = []
    for (case, mode), found in medians(2).items():
        others = [name for name in found if name in ("e3nn compiled", "cuequivariance", "hamfast, weights stored")]
        for peer in others:
            seconds = compiled.get((case, mode), "") if peer == "e3nn compiled" else ""
            rows.append(
                [
                    case,
                    mode,
                    peer,
                    f"{found['hamfast']:.1f}",
                    f"{found[peer]:.1f}",
                    f"{found[peer] / found['hamfast']:.1f}x",
                    seconds,
                ]
            )
    return table(["work", "step", "against", "hamfast ms", "ms", "ratio", "compile s"], rows) + note(source("cpu"))


def attention_table() -> str:
    """Every peer, with what autograd keeps for the backward pass."""
    kept = {(r["case"], r["implementation"]): r["kept_MB"] for r in read("attention") if r["kept_MB"]}
    one = medians(1, "attention")
    rows = []
    for (case, mode), found in medians(2, "attention").items():
        for peer, ms in found.items():
            if peer == "hamfast":
                continue
            alone = one.get((case, mode), {})
            rows.append(
                [
                    case,
                    mode,
                    peer,
                    f"{found['hamfast']:.1f}",
                    f"{ms:.1f}",
                    f"{ms / found['hamfast']:.1f}x",
                    f"{alone[peer] / alone['hamfast']:.1f}x" if peer in alone else "",
                    kept.get((case, "hamfast"), ""),
                    kept.get((case, peer), ""),
                ]
            )
    header = ["work", "step", "against", "hamfast ms", "ms", "ratio", "1 thread", "hamfast keeps MB", "keeps MB"]
    growth = ", ".join(
        f"{case.split()[1]}: {found['hamfast']:.0f} ms"
        for (case, mode), found in medians(2, "attention").items()
        if "edges" in case
    )
    return table(header, rows) + note(f"Forward + backward by number of edges: {growth}.", source("attention"))


def bounds_table() -> str:
    """Fractions of the copy bandwidth (channel-wise) and of the SGEMM rate (edge frame), both
    measured in the same run.
    """
    found = medians(2)
    copy = 2 * 4 * COPIED / next(v["torch"] for (case, _), v in found.items() if case == "yardstick copy") / 1e6
    sgemm = 2 * SQUARE**3 / next(v["torch"] for (case, _), v in found.items() if case == "yardstick sgemm") / 1e6
    rows = []
    for case in PRODUCTS:
        plan = case.plan()
        moved = 4e-6 * case.edges * (plan.dim_in1 + plan.dim_in2 + plan.weight_numel + plan.dim_out)
        back = 4e-6 * case.edges * (2 * (plan.dim_in1 + plan.dim_in2 + plan.weight_numel) + plan.dim_out)
        for mode, mb in (("forward", moved), ("forward+backward", moved + back)):
            ms = found[f"tensor_product {case.name}", mode]["hamfast"]
            rows.append(
                [
                    f"tensor_product {case.name}",
                    mode,
                    f"{mb:.0f} MB",
                    f"{mb / copy:.1f}",
                    f"{ms:.1f}",
                    f"{mb / copy / ms:.0%} of copy",
                ]
            )
    for case in EDGE_PRODUCTS:
        gflop = 2e-9 * case.edges * edge_frame_plan(case.plan()).operations()
        for mode, factor in (("forward", 1), ("forward+backward", 3)):
            ms = found[f"edge_tensor_product {case.name}", mode]["hamfast"]
            bound = 1e3 * factor * gflop / sgemm
            rows.append(
                [
                    f"edge_tensor_product {case.name}",
                    mode,
                    f"{factor * gflop:.2f} GFLOP",
                    f"{bound:.1f}",
                    f"{ms:.1f}",
                    f"{bound / ms:.0%} of SGEMM",
                ]
            )
    return table(["work", "step", "least", "bound ms", "hamfast ms", "reached"], rows) + note(
        f"Copy: {copy:.0f} GB/s read and written. SGEMM of {SQUARE}: {sgemm:.0f} GFLOP/s.",
        "Both in the same run, 2 threads.",
    )


def memory_table() -> str:
    """Peak memory beside e3nn, MB."""
    groups: dict[str, dict[str, str]] = {}
    for row in read("memory"):
        groups.setdefault(row["case"], {})[row["implementation"]] = row["peak_mb"]
    rows = [[case, v["hamfast"], v.get("hamfast, weights stored", ""), v["e3nn"]] for case, v in groups.items()]
    first = read("memory")[0]
    return table(["work", "hamfast", "hamfast, weights stored", "e3nn"], rows) + note(
        "MB above the operands, forward + backward in a fresh process.",
        f"{first['machine']}, {first['date']} (`bench/memory.py`).",
    )


def md_table() -> str:
    """Molecular dynamics: energy before and after ``accelerate``."""
    rows = read("md")
    header = ["calculator", "version", "dtype", "exchanged", "drift as it is", "drift accelerated"]
    names = ["exchanged_energy", "as_it_is_drift", "accelerated_drift"]
    lines = [[r["calculator"], r["version"], r["dtype"], *(r[f"{n}_mev_per_atom"] for n in names)] for r in rows]
    first = rows[0]
    return table(header, lines) + note(
        f"meV per atom; {first['steps']} steps of {first['time_step_fs']} fs, {first['atoms']} atoms.",
        f"{first['machine']}, torch {first['torch']}, {first['date']} (`bench/md.py`).",
    )


def csv_table(name, columns) -> str:
    """Some columns of a result as they are."""
    return table(columns, [[row[c] for c in columns] for row in read(name)])


def latency_note() -> str:
    """The sentence below the table of latencies."""
    first = read("latency")[0]
    return note(
        f"{first['machine']}, torch {first['torch']}, e3nn {first['e3nn']}, {first['date']} (`bench/latency.py`)."
    )


def lowerings_table() -> str:
    """Milliseconds of every lowering of each product, with derivatives, and of e3nn's code."""
    names = ["channel", "mix", "edge_frame", "einsum", "general", "e3nn"]
    rows = []
    for (in1, in2, _, mode, shared, harmonics), by_rows in read_lowerings().items():
        for count, times in by_rows.items():
            first = [f"{in1} x {in2}", mode, "shared" if shared else "per row", "yes" if harmonics else "", count]
            rows.append([*first, *(f"{times[name][1]:.1f}" if name in times else "" for name in names)])
    first = read("lowerings")[0]
    return table(["product", "mode", "weights", "harmonics", "rows", *names], rows) + note(
        "Milliseconds of CPU time: forward + backward, and once more with double backward, summed.",
        f"{first['machine']}, one thread, {first['date']} (`bench/lowerings.py`).",
    )


def models_table(name: str = "models") -> str:
    """Whole models before and after accelerate, one thread on a CPU, and the ratio of two."""
    rows = []
    on_cpu = name == "models"
    found = [r for r in read(name) if not r["step"].startswith("first")]
    two = {model_step(r): f"{float(r['ratio']):.2f}x" for r in found if on_cpu and r["threads"] == "2"}
    for r in found:
        if on_cpu and r["threads"] != "1":
            continue
        memory = " to ".join(r[peak] for peak in ("as_it_is_peak_mb", "accelerated_peak_mb") if r[peak])
        ms = [f"{float(r[time]):.{0 if on_cpu else 1}f}" for time in ("as_it_is_ms", "accelerated_ms")]
        ratio = f"{float(r['ratio']):.2f}x"
        row = [r["model"], r["version"], r["atoms"], r["step"], *ms, ratio]
        rows.append([*row, *([two.get(model_step(r), "")] if on_cpu else []), r["difference"], memory])
    first = read(name)[0]
    header = ["model", "version", "atoms", "step", "as it is, ms", "accelerated, ms", "ratio"]
    header += [*(["2 threads"] if on_cpu else []), "difference", "peak MB"]
    clock = "Least CPU time of a few rounds, one thread" if on_cpu else "Least time of a few rounds"
    return table(header, rows) + note(
        f"{clock}, float32.",
        *(["2 threads: the ratio of times on the clock."] if two else []),
        "The difference is the largest, relative to the largest number of forces or gradients.",
        f"{first['machine']}, torch {first['torch']}, {first['date']} (`bench/models.py`).",
    )


def model_step(row) -> tuple[str, ...]:
    """What a row of models.csv is about."""
    return row["model"], row["atoms"], row["step"]


def first_steps_table() -> str:
    """Seconds from a model that is built to the end of its first step."""
    found = {model_step(r): r for r in read("models") if r["step"].startswith("first") and r["threads"] == "1"}
    rows = []
    for model, atoms in dict.fromkeys(key[:2] for key in found):
        times = [
            f"{float(found[model, atoms, f'first {step}'][ms]) / 1e3:.1f}"
            for step in ("force", "training")
            for ms in ("as_it_is_ms", "accelerated_ms")
        ]
        rows.append([model, atoms, *times])
    if not found:
        return "Not measured yet."
    header = ["model", "atoms", *(f"{s}, {f}" for s in ("force", "training") for f in ("as it is", "accelerated"))]
    first = next(iter(found.values()))
    return table(header, rows) + note(
        "Seconds of CPU time, one thread, float32.",
        f"{first['machine']}, torch {first['torch']}, {first['date']} (`bench/models.py --first`).",
    )


def alternatives_table() -> str:
    """What others offer in the place of accelerate, beside it."""
    if not (RESULTS / "alternatives.csv").exists():
        return "Not measured yet."
    found = read("alternatives")
    rows = []
    for r in found:
        ms = [
            f"{float(r[f'{form}_ms']):.0f}" if r[f"{form}_ms"] else ""
            for form in ("as_it_is", "alternative", "accelerated")
        ]
        first = [f"{float(r[c]):.1f}" if r[c] else "" for c in ("first_alternative_s", "first_accelerated_s")]
        rows.append([r["model"], r["alternative"], r["atoms"], r["step"], *ms, *first, r["difference"], r["says"]])
    header = ["model", "alternative", "atoms", "step", "as it is, ms", "alternative, ms", "accelerated, ms"]
    header += ["first, s", "first accelerated, s", "difference", "what it says"]
    first = found[0]
    versions = ", ".join(dict.fromkeys(f"{r['alternative']} {r['alternative_version']}" for r in found))
    return table(header, rows) + note(
        "Least CPU time of a few rounds, one thread, float32."
        if first["threads"] == "1"
        else "Least time on the clock of a few rounds, float32.",
        f"{versions}; {first['threads']} thread{'s' if first['threads'] != '1' else ''}, {first['machine']},"
        f" torch {first['torch']}, {first['date']} (`bench/alternatives.py`).",
    )


def models_headline() -> str:
    """The README's rows: how many times faster the steps of whole models are, by size."""
    one_thread = [r for r in read("models") if r["threads"] == "1"]
    found = {(r["model"], r["step"], r["atoms"]): f"{float(r['ratio']):.1f}x" for r in one_thread}
    sizes = ("32", "216")
    cells = [(step, atoms) for step in ("force", "training") for atoms in sizes]
    rows = [[model, *(found.get((model, *cell), "") for cell in cells)] for model in HEADLINE_MODELS]
    rows.append([f"{DEEPH}, 18 atoms", "", "", found[DEEPH, "training", "18"], ""])
    first = read("models")[0]
    header = [
        "whole model after `accelerate`",
        *(f"{what}, {n} atoms" for what in ("forces", "training") for n in sizes),
    ]
    ratios = [float(r["ratio"]) for r in one_thread if not r["step"].startswith("first")]
    return table(header, rows) + note(
        f"One thread, {first['machine']}, {first['date']} (`bench/models.py`). All {len(ratios)} steps of {len({r['model'] for r in one_thread})} models,"
        f" among them TorchMD-NET's and PyG's small layers, range from {min(ratios):.1f}x to {max(ratios):.0f}x:"
        " [performance](docs/performance.md#whole-models)."
    )


def cascade_table() -> str:
    """The cascade beside stage 1 alone."""
    rows = read("cascade")
    columns = ["model", "epochs", "seconds", "MAE_all_meV", "MAE_onsite_meV", "equivariance_error"]
    first = rows[0]
    return table(
        ["model", "epochs", "training s", "MAE of H (meV)", "on-site (meV)", "equivariance error"],
        [[row[c] for c in columns] for row in rows],
    ) + note(
        f"The test set has {first['test_structures']} structures; one of them is a larger cell than any of the training.",
        f"{first['machine']}, torch {first['torch']}, {first['date']} (`bench/results/cascade.csv`, `bench/cascade.py`).",
    )


def roofline_table() -> str:
    """The bounds of data sheets, without a measurement."""
    header = [
        "work (float32)",
        "step",
        "edges",
        "MB",
        "GFLOP",
        "in matrix products",
        "H200 us",
        "bound by",
        "with tf32",
        "A100 us",
    ]
    columns = [
        "case",
        "mode",
        "edges",
        "MB",
        "GFLOP",
        "GFLOP in matrix products",
        "H200 us",
        "H200 bound",
        "H200 us tf32",
        "A100 us",
    ]
    rows = [[row[c] for c in columns] for row in read("roofline")]
    return table(header, rows) + note(
        "Least microseconds, from data sheets: nothing here was run (`bench/roofline.py`)."
    )


def gpu_groups(dtype) -> dict[tuple[str, str], dict[str, dict[str, str]]]:
    """(case, step) -> implementation -> row of what was measured on a GPU."""
    groups: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    for row in read("gpu"):
        if row["dtype"] == dtype and row["median_ms"]:
            groups.setdefault((row["case"], row["mode"]), {})[row["implementation"]] = row
    return groups


def gpu_note() -> str:
    """The sentence below a table of GPU times."""
    first = read("gpu")[0]
    return note(
        f"Medians of one run on {first['machine']}, torch {first['torch']}, {first['date']}, caches emptied before"
        " each call (`bench/results/gpu.csv`, `bench/gpu.py`).",
        "A step includes those before it: backward is forward and backward.",
    )


def gpu_table() -> str:
    """Hamfast's kernels beside e3nn, PyG and plain torch on a GPU."""
    others = {dtype: gpu_groups(dtype) for dtype in ("bfloat16", "float64")}
    rows = []
    for key, found in gpu_groups("float32").items():
        peer = next((name for name in ("e3nn", "pyg", "plain torch") if name in found), None)
        ours = {name: float(row["median_ms"]) for name, row in found.items()}
        cells = [f"{ours['hamfast']:.2f}", f"{ours['hamfast triton']:.2f}" if "hamfast triton" in ours else ""]
        cells += [peer, f"{ours[peer]:.1f}", f"{ours[peer] / ours['hamfast']:.1f}x"] if peer else ["", "", ""]
        share = found["hamfast"]["of_bound"]
        cells.append(f"{float(share):.0%}" if share else "")
        for groups in others.values():
            cells.append(f"{float(groups[key]['hamfast']['median_ms']):.2f}" if key in groups else "")
        rows.append([*key, *cells])
    header = ["work", "step", "CUDA ms", "Triton ms", "peer", "peer ms", "CUDA beside peer", "of bound", *others]
    return table(header, rows) + note("float32, but for the last two columns (CUDA, ms).") + gpu_note()


GPU_HEADLINES = {
    ("convolution mace-large", "backward"): "a MACE-type convolution",
    ("edge_tensor_product C", "backward"): "the product with the edge's harmonics",
    ("attention A x 10", "backward"): "graph attention (800,000 edges)",
    ("stage1 published", "training step"): "a training step of DeepH-E3's published network",
}


def gpu_sentence() -> str:
    """The README's sentence of the GPU's table."""
    found, parts = gpu_groups("float32"), []
    for key, text in GPU_HEADLINES.items():
        group = {name: float(row["median_ms"]) for name, row in found[key].items()}
        peer = next(name for name in ("e3nn", "pyg", "plain torch") if name in group)
        parts.append(f"{text} {group[peer] / group['hamfast']:.1f}x ({peer})")
    models = {(r["model"], r["step"]): r["ratio"] for r in read("models_gpu") if int(r["atoms"]) > 1000}
    whole = [float(models["MACE 128x0e+128x1o", f"{step}, CUDA graph"]) for step in ("force", "training")]
    first = read("gpu")[0]
    return note(
        f"**On {first['machine']}** (torch {first['torch']}, {first['date']}) forward + backward is faster:"
        f" {', '.join(parts)}."
        f" MACE 128x0e+128x1o, 2,016 atoms, as CUDA graphs: {whole[0]:.1f}x and {whole[1]:.1f}x (a training step).",
        "All rows, and how far each is from its bound: [CUDA](docs/cuda.md#measured).",
    ).strip()


def profile_table() -> str:
    """What the hardware's counters say of each kernel."""
    columns = ["case", "step", "kernel", "us", "registers", "occupancy", "memory", "L2", "units", "issued_per_cycle"]
    rows = [[row[c] for c in columns] for row in read("gpu_profile")]
    header = ["work", "step", "kernel", "us", "registers", "occupancy %", "memory %", "L2 %", "units %", "issued"]
    first = read("gpu_profile")[0]
    return table(header, rows) + note(
        f"{first['machine']}, {first['date']} (`bench/gpu_profile.py`, Nsight Compute).",
        "Per cent of the peak; issued: instructions per cycle and scheduler, 1 at most.",
    )


VARIANTS = {
    "deeph-e3": "(a) DeepH-E3 as published",
    "stage1": "(b) hamfast's stage 1",
    "plain": "(c) the paper's cascade",
    "cascade": "(d) hamfast's cascade",
    "joint": "(e) the same, trained at once",
}


ACCURACY_SETS = (
    "graphene",
    "graphene-mixed",
    "graphene-openmx",
    "hBN",
    "graphene-hBN",
    "bilayer",
    "bismuthene",
)
LEVERS_BUDGET = "4min"


def accuracy_table(name) -> str:
    """Errors of each network on one data set, by the size of the test cells."""
    columns = ["MAE_meV", "MAE_onsite_meV", "bands_meV", "gap_meV", "MAE_rotated_meV"]
    found = [row for row in read("accuracy") if row["set"] == name and row["budget"] != LEVERS_BUDGET]
    rows = []
    for row in found:
        numbers = [f"{float(row[c]):.2f}" if row[c] else "" for c in columns]
        model = VARIANTS[row["variant"]] + (
            ": its stage 1" if row["stage"] == "stage 1" and row["variant"] not in ("deeph-e3", "stage1") else ""
        )
        model += "" if row["seed"] == "0" else f", seed {row['seed']}"
        cpu = f"{float(row['cpu_s']) / 60:.1f}"
        rows.append([model, cpu, row["epochs"], row["formula"], *numbers, row["equivariance_error"]])
    header = ["network", "CPU min", "epochs", "cell", "H", "on-site", "bands", "gap", "H, rotated", "equivariance"]
    if not found:
        return "Not measured yet."
    first = found[0]
    return table(header, rows) + note(
        f"Mean errors in meV; {first['train_structures']} structures in the training. One thread,"
        f" {first['machine']}, torch {first['torch']}, {first['date']} (`bench/results/accuracy.csv`,"
        " `bench/accuracy.py`)."
    )


def levers_table() -> str:
    """What one changed setting does to stage 1, on graphene: errors on small and larger cells."""
    found = [row for row in read("accuracy") if row["set"] == "graphene" and row["budget"] == LEVERS_BUDGET]
    by_lever: dict[str, dict[str, dict[str, str]]] = {}
    for row in found:
        by_lever.setdefault(row["variant"].partition("+")[2] or "none", {})[row["formula"]] = row
    rows = []
    for lever, cells in by_lever.items():
        small, large = cells["C18"], cells["C32"]
        numbers = [
            f"{float(cell[c]):.2f}" for cell in (small, large) for c in ("MAE_meV", "MAE_onsite_meV", "bands_meV")
        ]
        rows.append([lever, small["epochs"], *numbers])
    header = ["changed", "epochs", "H", "on-site", "bands", "H, C32", "on-site, C32", "bands, C32"]
    first = found[0]
    return table(header, rows) + note(
        f"Mean errors in meV after {LEVERS_BUDGET[:-3]} CPU minutes; {first['train_structures']} structures of 18 atoms"
        f" in the training. One seed, one thread, {first['machine']}, torch {first['torch']}, {first['date']}"
        " (`bench/results/accuracy.csv`, `bench/accuracy.py`, `bench/accuracy/levers.json`)."
    )


KINDS = {"on-site": "on-site", "near": "hoppings up to 4 A", "far": "longer hoppings", "bands": "levels"}


def uncertainty_table() -> str:
    """What the intervals hold, by the cells of the validation set and of the test."""
    found = read("uncertainty")
    rows = [
        [row["validation_atoms"], row["atoms"], KINDS[row["kind"]], row["count"], f"{float(row['level']):.0%}"]
        + [f"{float(row[c]):.0%}" for c in ("coverage", "coverage_of_worst_structure")]
        + [f"{float(row[c]):.2f}" for c in ("mean_half_width_meV", "mean_error_meV")]
        + [f"{float(row['rank_correlation']):.2f}" if row["rank_correlation"] else ""]
        for row in found
    ]
    header = ["validated on", "atoms", "errors of", "number", "stated", "held", "worst structure"]
    header += ["half-width", "error", "rank corr."]
    seconds = next(row["calibration_s"] for row in found if row["calibration_s"])
    first = found[0]
    return table(header, rows) + note(
        "Atoms are those of a cell, of the validation set and of the test; means in meV.",
        f"A calibration took {float(seconds):.0f} s of CPU time. One thread, {first['machine']}, other work beside,"
        f" torch {first['torch']}, {first['date']} (`bench/results/uncertainty.csv`, `bench/uncertainty.py`).",
    )


def structures_table() -> str:
    """The cascade's errors against the number of structures in the training."""
    header = ["structures", "CPU min", "epochs", "cell", "H", "on-site", "bands"]
    sets = ("graphene-10", "graphene-20", "graphene")
    found = [r for r in read("accuracy") if r["set"] in sets and (r["variant"], r["stage"]) == ("joint", "cascade")]
    longest = {name: max(float(r["cpu_s"]) for r in found if r["set"] == name) for name in {r["set"] for r in found}}
    found = sorted(
        (r for r in found if float(r["cpu_s"]) == longest[r["set"]]),
        key=lambda r: (r["train_structures"], int(r["atoms"])),
    )
    rows = []
    for row in found:
        numbers = [f"{float(row[c]):.2f}" for c in ("MAE_meV", "MAE_onsite_meV", "bands_meV")]
        rows.append(
            [row["train_structures"], f"{float(row['cpu_s']) / 60:.0f}", row["epochs"], row["formula"], *numbers]
        )
    if not found:
        return "Not measured yet."
    return table(header, rows) + note(f"Network (e), mean errors in meV, {found[0]['date']} (`bench/accuracy.py`).")


def large_table() -> str:
    """What predictions of large sheets take, and levels of them."""
    columns = ["step", "atoms", "orbitals", "cpu_s", "peak_mb", "file_mb"]
    rows = [
        [r["step"], f"{int(r['atoms']):,}", f"{int(r['orbitals']):,}", *(r[c] for c in columns[3:])]
        for r in read("large")
    ]
    first = read("large")[0]
    return table(["step", "atoms", "orbitals", "CPU s", "peak MB", "files MB"], rows) + note(
        f"{first['machine']}, one thread, other work beside, torch {first['torch']}, {first['date']}"
        " (`bench/large.py`)."
    )


def held_table() -> str:
    """How large a structure a device would hold, computed."""
    columns = ["model", "edges_per_atom", "kB_per_edge", "kB_per_atom", "atoms_at_once", "atoms_in_pieces"]
    rows = [[f"{float(r[c]):,.0f}" if c.startswith("atoms") else r[c] for c in columns] for r in read("large_held")]
    return table(
        ["model", "edges of an atom", "kB for an edge", "kB for an atom", "atoms at once", "atoms in pieces"], rows
    )


TABLES = {
    "docs/large_systems.md": {"large": large_table, "held": held_table},
    "docs/accuracy.md": {name: partial(accuracy_table, name) for name in ACCURACY_SETS}
    | {"structures": structures_table, "levers": levers_table},
    "docs/uncertainty.md": {"uncertainty": uncertainty_table},
    "README.md": {"demo": cascade_table, "models": models_headline, "bench": headline_table, "gpu": gpu_sentence},
    "docs/performance.md": {
        "bench": speed_table,
        "peers": peers_table,
        "attention": attention_table,
        "bounds": bounds_table,
        "memory": memory_table,
        "md": md_table,
        "lowerings": lowerings_table,
        "models": models_table,
        "first": first_steps_table,
        "alternatives": alternatives_table,
        "latency": lambda: csv_table("latency", ["call", "mode", "median_us", "min_us"]) + latency_note(),
        "harmonics": lambda: (
            csv_table(
                "harmonics",
                ["l_max", "mode", "implementation", "median_ms"],
            )
            + note("100,000 points, 2 threads (`bench/harmonics.py`).")
        ),
    },
    "docs/cuda.md": {
        "roofline": roofline_table,
        "gpu": gpu_table,
        "profile": profile_table,
        "models": partial(models_table, "models_gpu"),
    },
    "docs/ops.md": {
        "precision": lambda: csv_table(
            "precision", ["lowering", "dtype", "out", "grad_x", "grad_y", "grad_w", "equivariance"]
        ),
    },
}


def main():
    """Writes each table between its markers.

    Raises:
        SystemExit: a page does not have the markers of a table once.

    """
    for name, tables in TABLES.items():
        path = Path(name)
        text = path.read_text()
        for marker, make in tables.items():
            text, found = re.subn(
                f"(<!-- {marker} -->\n).*?(<!-- /{marker} -->)",
                lambda m, t=make(): f"{m[1]}{t}\n{m[2]}",
                text,
                flags=re.S,
            )
            if found != 1:
                raise SystemExit(f"{name}: expected the table {marker} once, found {found} pairs of markers")
        path.write_text(text)


if __name__ == "__main__":
    main()
