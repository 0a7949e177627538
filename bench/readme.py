"""Writes the tables of README.md from bench/results/*.csv: `python bench/readme.py`, from the source folder."""

import csv
import re
from pathlib import Path

RESULTS = Path("bench/results")


def speed_table() -> str:
    with (RESULTS / "cpu.csv").open() as file:
        rows = list(csv.DictReader(file))
    groups: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        groups.setdefault((row["case"], row["mode"]), {})[row["implementation"]] = float(row["median_ms"])
    lines = ["| work (float32) | step | hamfast ms | peer | peer ms | ratio |", "|---|---|---|---|---|---|"]
    for (case, mode), medians in groups.items():
        ours = medians.pop("hamfast")
        for peer, theirs in medians.items():
            lines.append(f"| {case} | {mode} | {ours:.1f} | {peer} | {theirs:.1f} | {theirs / ours:.1f}x |")
    first = rows[0]
    lines += [
        "",
        f"Medians of one run on {first['machine']}, {first['threads']} threads, torch {first['torch']}, e3nn {first['e3nn']}, "
        f"{first['date']} (`bench/results/cpu.csv`, made by `bench/`; the cases are in `bench/cases.py`). "
        "The kernels of this release are right before they are fast; the CUDA kernels have not been timed.",
    ]
    return "\n".join(lines)


def cascade_table() -> str:
    with (RESULTS / "cascade.csv").open() as file:
        rows = list(csv.DictReader(file))
    lines = [
        "| model | epochs | training s | MAE of H (meV) | on-site (meV) | equivariance error |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['model']} | {row['epochs']} | {row['seconds']} | {row['MAE_all_meV']} | {row['MAE_onsite_meV']} | "
            f"{row['equivariance_error']} |"
        )
    first = rows[0]
    lines += [
        "",
        f"Test set of {first['test_structures']} structures, one of them a larger cell than any of the training; {first['machine']}, "
        f"torch {first['torch']}, {first['date']} (`bench/results/cascade.csv`, made by `bench/cascade.py`).",
    ]
    return "\n".join(lines)


def main():
    path = Path("README.md")
    text = path.read_text()
    for name, table in (("demo", cascade_table()), ("bench", speed_table())):
        text = re.sub(
            f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda m, t=table: f"{m[1]}{t}\n{m[2]}", text, flags=re.S
        )
    path.write_text(text)


if __name__ == "__main__":
    main()
