"""Structures in one file against structures in folders: size, and CPU time to write and read one.

    python bench/packed.py --machine "2 CPU cores"

Writes bench/results/packed.csv. The structures are copies of two of graphene, of 2 and of 18 atoms,
with H and S in float32. Rounds of both formats alternate in one process, and medians are written,
without the checks that reading does in any format. A set's list with its states is what a training
asks for first. The files are in the cache of the system.
"""

import argparse
import csv
import datetime
import sqlite3
import statistics
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

from hamfast.data import find_structures, packed, read_snapshot
from hamfast.data.formats import by_name
from hamfast.data.prepared import states_of

HERE = Path(__file__).parent
RESULT = HERE / "results" / "packed.csv"
SOURCES = {
    HERE.parent / "tests" / "data" / "fixtures" / "dft" / "graphene_1x1_000": 500,
    HERE.parent / "examples" / "graphene" / "dft" / "3x3_000": 100,
}
"""A structure -> how many copies of it."""
TOGETHER = 50
"""So many structures are written to the file at a time."""
FIELDS = ["format", "atoms", "structures", "size_kB", "write_ms", "read_ms", "structure_ms", "pairs_ms", "list_ms"]
FIELDS += ["read_against_folders", "machine", "versions", "date"]


def write(layout, snapshot, root, count):
    """A set of copies."""
    if layout == "deeph":
        for n in range(count):
            by_name(layout).write(snapshot, root / "dft" / f"s{n}")
        return
    for first in range(0, count, TOGETHER):
        rows = [packed.row_of(snapshot, f"s{n}") for n in range(first, min(first + TOGETHER, count))]
        packed.keep(root / packed.STRUCTURES, rows)


def measure(layout, snapshot, root, count, seed):
    """CPU ms for each structure, and kB of the disk."""
    begun, times = time.process_time(), {}

    def done(what):
        nonlocal begun
        times[what] = 1e3 * (time.process_time() - begun) / count
        begun = time.process_time()

    write(layout, snapshot, root, count)
    done("write_ms")
    found = find_structures(root)
    states_of(found)
    done("list_ms")
    np.random.default_rng(seed).shuffle(found)
    reader = by_name(layout)
    begun = time.process_time()
    for what, read in (
        ("read_ms", reader.read),
        ("structure_ms", reader.read_structure),
        ("pairs_ms", reader.read_pairs),
    ):
        for folder in found:
            read(folder)
        done(what)
    files = [p for p in root.rglob("*") if not p.name.startswith(".")]
    return times | {"size_kB": sum(p.stat().st_blocks * 512 for p in files) / 1e3 / count}


def rows(source, count, rounds):
    """One for each format."""
    snapshot, found = read_snapshot(source), {"packed": [], "deeph": []}
    for turn in range(rounds):
        for layout, own in found.items():
            with tempfile.TemporaryDirectory() as scratch:
                own.append(measure(layout, snapshot, Path(scratch), count, turn))
    for layout, own in found.items():
        medians = {name: statistics.median(one[name] for one in own) for name in own[0]}
        ratios = [one["read_ms"] / other["read_ms"] for one, other in zip(own, found["deeph"], strict=True)]
        yield {
            "format": layout,
            "atoms": snapshot.num_atoms,
            "structures": count,
            **{name: f"{value:.3g}" for name, value in medians.items()},
            "read_against_folders": f"{statistics.median(ratios):.2f}",
        }


def main():
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machine", required=True, help="what runs it, in words")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    versions = f"SQLite {sqlite3.sqlite_version}, h5py {h5py.__version__}, NumPy {np.__version__}"
    about = {"machine": options.machine, "versions": versions, "date": datetime.date.today().isoformat()}
    with options.result.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        for source, count in SOURCES.items():
            for row in rows(source, count, options.rounds):
                writer.writerow(row | about)
                print(row, flush=True)


if __name__ == "__main__":
    main()
