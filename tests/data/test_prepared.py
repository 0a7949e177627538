"""The pass over a data set and its store, against graphs that are made from the files."""

import json
import multiprocessing
import os
import shutil
import signal
import sqlite3
import threading
import time
import warnings
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from kit import cases, random_snapshot

from hamfast.data import GraphDataset, build_graph, by_name, dataset_spec, prepared, read_snapshot, sqlite_file
from hamfast.data.formats import read_structure
from hamfast.data.graph_bytes import pack, unpack
from hamfast.data.prepared import once, prepare, range_of
from hamfast.data.statistics import dataset_statistics, together
from hamfast.data.store import FILE, Store
from hamfast.data.training_range import TrainingRange
from hamfast.errors import HamfastError
from hamfast.targets import TargetSpec

# Random crystals are none that a plausibility check would pass.
pytestmark = pytest.mark.filterwarnings("ignore::hamfast.errors.DataWarning")

SHELLS = {42: (0, 1, 2), 16: (0, 0, 1), 6: (0, 1)}
SETS = ([16, 42], [6], [42, 16, 6], [16], [6, 42, 6])


@pytest.fixture(params=[False, True], ids=["plain", "soc"])
def folders(request, tmp_path):
    """Structures of several sets of elements, in several orders."""
    for n, numbers in enumerate(SETS):
        snapshot = random_snapshot(SHELLS, numbers, request.param, seed=n)
        by_name("deeph").write(snapshot, tmp_path / "dft" / f"s{n}")
    return sorted((tmp_path / "dft").iterdir())


def same(one, other):
    for field in fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        assert (torch.equal(a, b) and a.dtype == b.dtype) if isinstance(a, torch.Tensor) else a == b, field.name


def from_files(folders, dtype=torch.float32):
    spec = dataset_spec(folders)
    return [build_graph(read_snapshot(folder), spec, dtype=dtype) for folder in folders]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_prepared_graphs_are_those_of_the_files(folders, tmp_path, dtype):
    """Bit by bit, also where a structure has some of the elements, in another order."""
    found = prepare(folders, Store(tmp_path), dtype)
    for graph, truth in zip(
        GraphDataset(folders, dataset_spec(folders), found, dtype), from_files(folders, dtype), strict=True
    ):
        same(graph, truth)


def test_statistics_are_those_of_the_files(folders, tmp_path):
    found = prepare(folders, Store(tmp_path), torch.float64, bare=folders[3:])
    own = together({f: a.statistics for f, a in found.about.items()})
    truth = dataset_statistics(folders, measured=folders[:3])
    assert own.shells == truth.shells and own.counts == truth.counts and own.half_cells == truth.half_cells
    assert own.longest_pairs == pytest.approx(truth.longest_pairs, rel=1e-14)
    assert own.nearest == pytest.approx(truth.nearest, rel=1e-14)
    expected = TrainingRange.of(map(read_structure, folders[:3]))
    assert range_of(found.about.values()).state() == expected.state()


def test_a_second_pass_reads_nothing(folders, tmp_path, monkeypatch):
    first = prepare(folders, Store(tmp_path), torch.float32)
    monkeypatch.setattr(prepared, "read_snapshot", lambda folder: pytest.fail("was read again"))
    again = prepare(folders, Store(tmp_path), torch.float32)
    assert (again.numbers, again.states) == (first.numbers, first.states)
    assert [about.text() for about in again.about.values()] == [about.text() for about in first.about.values()]


def counted(monkeypatch):
    read = []
    original = prepared.read_snapshot
    monkeypatch.setattr(prepared, "read_snapshot", lambda folder: (read.append(folder.name), original(folder))[1])
    return read


def test_changed_structures_are_prepared_anew(folders, tmp_path, monkeypatch):
    prepare(folders, Store(tmp_path), torch.float32)
    other = random_snapshot(SHELLS, SETS[1], read_structure(folders[1]).spinful, seed=99)
    by_name("deeph").write(other, folders[1])
    (folders[2] / "hamiltonian_pred.h5").write_bytes(b"a prediction changes nothing")
    os.utime(folders[4] / "POSCAR", ns=(0, 0))
    read = counted(monkeypatch)
    found = prepare(folders, Store(tmp_path), torch.float32)
    assert read == ["s1", "s4"]
    for graph, truth in zip(GraphDataset(folders, dataset_spec(folders), found), from_files(folders), strict=True):
        same(graph, truth)


def test_matrices_that_were_not_needed_are_read_later(folders, tmp_path, monkeypatch):
    prepare(folders, Store(tmp_path), torch.float32, bare=folders[:2])
    read = counted(monkeypatch)
    found = prepare(folders, Store(tmp_path), torch.float32)
    assert read == ["s0", "s1"]
    same(GraphDataset(folders, dataset_spec(folders), found)[0], from_files(folders)[0])


def test_processes_share_the_work(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(prepared, "FEW", 1)
    monkeypatch.setattr(prepared, "cores", lambda: 3)
    told = []
    found = prepare(folders, Store(tmp_path), torch.float32, report=lambda *numbers: told.append(numbers))
    assert told == [(n + 1, 5) for n in range(5)]
    for graph, truth in zip(GraphDataset(folders, dataset_spec(folders), found), from_files(folders), strict=True):
        same(graph, truth)


def test_an_error_names_the_structure_and_the_others_are_kept(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(prepared, "FEW", 1)
    monkeypatch.setattr(prepared, "cores", lambda: 2)
    content = (folders[3] / "info.json").read_bytes()
    (folders[3] / "info.json").write_text("{")
    with pytest.raises(HamfastError, match="s3.*not valid JSON"):
        prepare(folders, Store(tmp_path), torch.float32)
    (folders[3] / "info.json").write_bytes(content)
    (folders[4] / "hamiltonian.h5").unlink()
    with pytest.raises(HamfastError, match="s4: there is no Hamiltonian; expected one to learn from"):
        prepare(folders, Store(tmp_path), torch.float32)
    assert {Path(key).name for key in Store(tmp_path).entries("float32")} == {"s0", "s1", "s2", "s3"}


def in_a_fork(do, *arguments):
    """A process that does something: a copy of this one, which need not import anything again.

    It leads a group of its own, with whatever processes it starts.
    """

    def child():
        os.setsid()
        torch.set_num_threads(1)  # the threads of this process are not in a copy of it
        warnings.simplefilter("ignore")
        do(*arguments)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    return process


def slow_pass(root, cache):
    """By two processes; each structure is written when it is done."""
    original = prepared.prepare_one
    prepared.prepare_one = lambda *arguments: (time.sleep(0.05), original(*arguments))[1]
    sqlite_file.SECONDS, prepared.FEW, prepared.cores = 0.0, 1, lambda: 2
    prepare(sorted(root.iterdir()), Store(cache), torch.float32)


def test_a_pass_that_is_killed_goes_on(fixtures, tmp_path):
    root = tmp_path / "dft"
    for n in range(24):
        shutil.copytree(fixtures / "graphene_1x1_000", root / f"s{n:02}")
    killed = 0
    while True:
        begun, before = time.monotonic(), len(kept(tmp_path))
        process = in_a_fork(slow_pass, root, tmp_path)
        while process.is_alive() and len(kept(tmp_path)) < before + 10 and time.monotonic() - begun < 300:
            time.sleep(0.05)
        if not process.is_alive():
            assert process.exitcode == 0
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
        killed += 1
        assert len(kept(tmp_path)) >= before + 10  # what was kept stays
    assert killed >= 2 and len(kept(tmp_path)) == 24
    folders = sorted(root.iterdir())
    found = prepare(folders, Store(tmp_path), torch.float32)
    truth = from_files(folders[:1])[0]
    for graph in GraphDataset(folders, dataset_spec(folders[:1]), found):
        assert torch.equal(graph.target, truth.target)


def kept(folder):
    try:
        with sqlite3.connect(f"file:{folder / FILE}?mode=ro", uri=True, timeout=10) as file:
            return [row[0] for row in file.execute("SELECT folder FROM structures")]
    except sqlite3.OperationalError:  # not there, no tables yet, or what was killed is to be undone
        return []


def sums(folders, cache, results):
    """Of the targets of all graphs, read ten times from the store."""
    found = prepare(folders, Store(cache), torch.float32)
    data = GraphDataset(folders, dataset_spec(folders), found)
    results.put([sum(float(graph.target.abs().sum()) for graph in data) for _ in range(10)])


@pytest.mark.parametrize("folders", [False], indirect=True, ids=["plain"])
def test_many_processes_read_while_one_writes(folders, tmp_path, monkeypatch):
    store = Store(tmp_path)
    prepare(folders, store, torch.float32)
    expected = sum(float(graph.target.abs().sum()) for graph in from_files(folders))
    monkeypatch.setattr(GraphDataset, "_prepare", lambda self, folder: pytest.fail("was not read from the store"))
    results = multiprocessing.get_context("fork").SimpleQueue()
    running = [in_a_fork(sums, folders, tmp_path, results) for _ in range(3)]
    number = 0
    while any(process.is_alive() for process in running):
        number += 1
        store.keep_result(f"r{number % 7}", b"x" * 300_000)
        time.sleep(0.01)  # who waits for a lock looks for it rarely
    assert number > 1
    for process in running:
        assert process.exitcode == 0 and results.get() == pytest.approx([expected] * 10, rel=1e-5)


def test_one_prepares_and_others_wait(folders, tmp_path, monkeypatch):
    read, original = counted(monkeypatch), prepared.prepare_one
    monkeypatch.setattr(sqlite_file, "SECONDS", 0.0)
    monkeypatch.setattr(prepared, "prepare_one", lambda *arguments: (time.sleep(0.4), original(*arguments))[1])
    found = []
    other = threading.Thread(target=lambda: found.append(prepare(folders, Store(tmp_path), torch.float32, wait=True)))
    other.start()
    first = prepare(folders, Store(tmp_path), torch.float32)
    other.join(timeout=60)
    assert read == [folder.name for folder in folders] and found[0].numbers == first.numbers


def test_who_waits_in_vain_does_it_himself(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(prepared, "PATIENCE", 0.1)
    found = prepare(folders, Store(tmp_path), torch.float32, wait=True)
    same(GraphDataset(folders, dataset_spec(folders), found)[0], from_files(folders)[0])


# --- damage
# -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", cases({"text": b"hello, this is a text", "npz": b"PK\x03\x04" * 40, "sqlite": None})
)
def test_a_file_of_others_is_refused(tmp_path, content):
    if content is None:
        with sqlite3.connect(tmp_path / FILE) as file:
            file.execute("CREATE TABLE mine (a)")
        content = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(HamfastError, match="expected prepared structures of hamfast, found another file; move it away"):
        Store(tmp_path)
    assert (tmp_path / FILE).read_bytes() == content


def test_a_folder_of_that_name_is_refused(tmp_path):
    (tmp_path / FILE).mkdir()
    with pytest.raises(HamfastError, match="expected a file of prepared structures, found a folder"):
        Store(tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "zeros", "format", "empty"])
def test_a_damaged_store_is_made_anew(folders, tmp_path, damage):
    prepare(folders, Store(tmp_path), torch.float32).store.close()
    path = tmp_path / FILE
    content = path.read_bytes()
    if damage == "format":
        with sqlite3.connect(path) as file:
            file.execute("PRAGMA user_version = 77")
    elif damage == "zeros":  # all but the first 200 bytes
        path.write_bytes(content[:200] + bytes(len(content) - 200))
    else:
        path.write_bytes(content[:70_000] if damage == "truncated" else b"")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = prepare(folders, Store(tmp_path), torch.float32)
    warned = [str(word.message) for word in told if "all structures are prepared again" in str(word.message)]
    assert len(warned) == (damage != "empty")
    for graph, truth in zip(GraphDataset(folders, dataset_spec(folders), found), from_files(folders), strict=True):
        same(graph, truth)


def test_a_damaged_graph_is_made_again(folders, tmp_path):
    found = prepare(folders, Store(tmp_path), torch.float32)
    with found.store.writing() as file:
        file.execute("UPDATE graphs SET content = CAST(substr(content, 1, 400) || zeroblob(800) AS BLOB)")
    data = GraphDataset(folders, dataset_spec(folders), found)
    with pytest.warns(UserWarning, match=r"damaged \(a wrong checksum\); .*s2 is prepared again"):
        same(data[2], from_files(folders)[2])


def test_any_changed_byte_is_noticed():
    spec = TargetSpec.from_mapping({6: (0, 1)}, False)
    graph = build_graph(random_snapshot({6: (0, 1)}, [6, 6]), spec, dtype=torch.float32)
    content = pack(graph, spec)
    same(unpack(content, spec, "a"), graph.__class__(**{**graph.__dict__, "labels": ("a",)}))
    numbers = np.random.default_rng(0)
    for place in numbers.integers(len(content), size=300):
        changed = bytearray(content)
        changed[place] ^= int(numbers.integers(1, 256))
        with pytest.raises(ValueError, match="checksum"):
            unpack(bytes(changed), spec, "a")
    for length in (0, 5, len(content) - 1):
        with pytest.raises(ValueError):
            unpack(content[:length], spec, "a")
    with pytest.raises(ValueError, match="elements or orbitals"):
        unpack(content, TargetSpec.from_mapping({6: (0, 1, 1), 7: (0,)}, False), "a")


def test_results_are_made_once(tmp_path):
    store, made = Store(tmp_path), []
    for _ in range(3):
        assert once(store, "a", lambda: made.append(0) or b"1") == b"1"
    assert once(store, "b", lambda: made.append(1) or b"2", wait=True, patience=0.0) == b"2"
    assert made == [0, 1] and json.loads(Store(tmp_path).result("b")) == 2
