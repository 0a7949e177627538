"""Where prepared graphs are kept: SQLite, LMDB, HDF5 shards, single files; written and read.

    python bench/stores.py --machine "2 CPU cores"

Writes bench/results/stores.csv: CPU time to write a graph, to read one at random, and to read one
while four processes read; the size on disk. The graphs are random numbers in the bytes that
hamfast keeps (hamfast/data/graph_bytes.py), of two sizes. Rounds of all stores alternate, and
medians are written. LMDB is measured where tools/setup_peers.sh has installed it.
"""

import argparse
import csv
import datetime
import importlib
import importlib.util
import io
import multiprocessing
import os
import shutil
import sqlite3
import statistics
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import torch

from hamfast.data.store import Prepared, Store
from hamfast.graph import CrystalGraph

HERE = Path(__file__).parent
RESULT, PEERS = HERE / "results" / "stores.csv", HERE.parent / ".venv" / "peers"
FIELDS = ["store", "edges", "graph_kB", "graphs", "readers", "write_ms", "read_ms", "against_sqlite", "size_MB"]
FIELDS += ["machine", "versions", "date"]
SIZES = {156: 1000, 1418: 200}
"""Edges of a graph, those of graphene's cells of 2 and of 18 atoms -> how many graphs."""
TOGETHER = 50
"""So many graphs are written at a time."""
SHARD = 500
"""So many are in one file of HDF5."""
READERS = (1, 4)


class Sqlite:
    """What hamfast uses."""

    def __init__(self, folder):
        self.store, self.numbers = Store(folder), {}

    def write(self, first, contents):
        """Some graphs, the first of which has this number."""
        rows = [Prepared(str(first + n), "", "", content) for n, content in enumerate(contents)]
        for folder, entry in self.store.keep("float32", rows).items():
            self.numbers[int(folder)] = entry.id

    def read(self, number):
        """The bytes of a graph."""
        return self.store.graph(self.numbers[number])


class Opened:
    """A store with open files, which each process opens for itself."""

    found: dict

    def close(self):
        """Before a fork: LMDB refuses to open what the parent has open."""
        while self.found:
            self.found.popitem()[1].close()


class Lmdb(Opened):
    """A memory-mapped B-tree."""

    def __init__(self, folder):
        folder.mkdir()
        self.folder, self.found = folder, {}

    def environment(self):
        """Of this process: it must not be carried over a fork."""
        lmdb = importlib.import_module("lmdb")
        if os.getpid() not in self.found:
            self.found[os.getpid()] = lmdb.open(str(self.folder), map_size=2**34)
        return self.found[os.getpid()]

    def write(self, first, contents):
        """As that of SQLite."""
        with self.environment().begin(write=True) as file:
            for n, content in enumerate(contents):
                file.put(b"%d" % (first + n), content)

    def read(self, number):
        """As that of SQLite."""
        with self.environment().begin() as file:
            return file.get(b"%d" % number)


class Hdf5(Opened):
    """Files with many data sets each; a reader keeps them open."""

    def __init__(self, folder):
        folder.mkdir()
        self.folder, self.found = folder, {}

    def write(self, first, contents):
        """As that of SQLite."""
        with h5py.File(self.folder / f"{first // SHARD}.h5", "a") as file:
            for n, content in enumerate(contents):
                file[str(first + n)] = np.frombuffer(content, np.uint8)

    def read(self, number):
        """As that of SQLite."""
        key = os.getpid(), number // SHARD
        if key not in self.found:
            self.found[key] = h5py.File(self.folder / f"{key[1]}.h5", "r")
        return self.found[key][str(number)][()].tobytes()


class Files:
    """A file for each graph."""

    def __init__(self, folder):
        folder.mkdir()
        self.folder = folder

    def write(self, first, contents):
        """As that of SQLite."""
        for n, content in enumerate(contents):
            (self.folder / f"{first + n}.graph").write_bytes(content)

    def read(self, number):
        """As that of SQLite."""
        return (self.folder / f"{number}.graph").read_bytes()


class TorchFiles(Files):
    """A file for each graph, by torch.save."""

    def write(self, first, contents):
        """As that of SQLite."""
        for n, content in enumerate(contents):
            tensors = {"graph": torch.frombuffer(bytearray(content), dtype=torch.uint8)}
            torch.save(tensors, self.folder / f"{first + n}.graph")

    def read(self, number):
        """As that of SQLite."""
        image = io.BytesIO((self.folder / f"{number}.graph").read_bytes())
        return torch.load(image, weights_only=True)["graph"].numpy().tobytes()


STORES = {"SQLite": Sqlite, "LMDB": Lmdb, "HDF5 shards": Hdf5, "files": Files, "files of torch": TorchFiles}


def graphs(edges, count):
    """Bytes of random graphs with the width of targets of 13 orbitals."""
    from hamfast.data.graph_bytes import pack
    from hamfast.targets import TargetSpec

    spec = TargetSpec.from_mapping({6: (0, 0, 1, 1, 2)}, False)
    atoms = max(2, edges // 78)
    for seed in range(count):
        torch.manual_seed(seed)
        i, j = torch.randint(atoms, (2, edges))
        graph = CrystalGraph(
            species=torch.zeros(atoms, dtype=torch.int64),
            i=i,
            j=j,
            shift=torch.randint(-3, 4, (edges, 3)),
            vector=torch.randn(edges, 3),
            reverse=torch.randperm(edges),
            atom_graph=torch.zeros(atoms, dtype=torch.int64),
            edge_graph=torch.zeros(edges, dtype=torch.int64),
            target=torch.randn(edges, spec.dim),
        )
        yield pack(graph, spec)


def read_some(store, order):
    """CPU seconds to read these graphs."""
    begun = time.process_time()
    for number in order:
        assert len(store.read(number)) > 1000
    return time.process_time() - begun


def in_processes(store, count, readers, seed):
    """Mean CPU ms of a read, of so many processes at once."""
    orders = [np.random.default_rng(seed + n).permutation(count).tolist() for n in range(readers)]
    if isinstance(store, Opened):
        store.close()
    if readers == 1:
        return 1e3 * read_some(store, orders[0]) / count
    with multiprocessing.get_context("fork").Pool(readers) as pool:
        return 1e3 * sum(pool.starmap(read_some, [(store, order) for order in orders])) / (readers * count)


def measure(edges, count, rounds, scratch):
    """Rows of all stores."""
    contents = list(graphs(edges, count))
    there = {name: kind for name, kind in STORES.items() if name != "LMDB" or importlib.util.find_spec("lmdb")}
    written, read, sizes = {}, {}, {}
    for turn in range(rounds):
        stores = {}
        for name, kind in there.items():
            folder = scratch / f"{edges}-{turn}-{name.replace(' ', '-')}"
            stores[name] = kind(folder)
            begun = time.process_time()
            for first in range(0, count, TOGETHER):
                stores[name].write(first, contents[first : first + TOGETHER])
            written.setdefault(name, []).append(1e3 * (time.process_time() - begun) / count)
            sizes[name] = sum(p.stat().st_blocks * 512 for p in folder.rglob("*") if p.is_file()) / 1e6
        for readers in READERS:
            for name, store in stores.items():
                read.setdefault((name, readers), []).append(in_processes(store, count, readers, turn))
        shutil.rmtree(scratch)
        scratch.mkdir()
    for (name, readers), times in read.items():
        ratio = statistics.median(t / own for t, own in zip(times, read["SQLite", readers], strict=True))
        yield {
            "store": name,
            "edges": edges,
            "graph_kB": f"{len(contents[0]) / 1e3:.0f}",
            "graphs": count,
            "readers": readers,
            "write_ms": f"{statistics.median(written[name]):.3f}",
            "read_ms": f"{statistics.median(times):.3f}",
            "against_sqlite": f"{ratio:.2f}",
            "size_MB": f"{sizes[name]:.1f}",
        }


def main():
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machine", required=True, help="what runs it, in words")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    sys.path.append(str(PEERS))
    versions = f"SQLite {sqlite3.sqlite_version}, h5py {h5py.__version__}, torch {torch.__version__}"
    if importlib.util.find_spec("lmdb"):
        versions += f", lmdb {importlib.import_module('lmdb').__version__}"
    else:
        print(f"LMDB is left out: {PEERS} has no lmdb; tools/setup_peers.sh installs it", file=sys.stderr)
    about = {"machine": options.machine, "versions": versions, "date": datetime.date.today().isoformat()}
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for edges, count in SIZES.items():
            (Path(scratch) / str(edges)).mkdir()
            for row in measure(edges, count, options.rounds, Path(scratch) / str(edges)):
                rows.append(row | about)
                print(row, flush=True)
    with options.result.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
