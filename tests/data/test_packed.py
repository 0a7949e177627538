"""Structures in one file, against the folders they come from, and what sqlite3 and zlib read."""

import json
import multiprocessing
import os
import shutil
import sqlite3
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from kit import cases, random_snapshot, tiny_checkpoint, tree

from hamfast.analysis import prediction
from hamfast.data import GraphDataset, build_graph, dataset_spec, deeph, packed, read_snapshot
from hamfast.data.formats import find_structures, folder_of, has_prediction, read_pairs, read_structure
from hamfast.data.prepared import prepare, states_of
from hamfast.data.store import Store
from hamfast.errors import HamfastError
from hamfast.training.config import Config
from hamfast.training.processes import Processes
from hamfast.training.run_data import RunData

# Random crystals are none that a plausibility check would pass.
pytestmark = pytest.mark.filterwarnings("ignore::hamfast.errors.DataWarning")

SHELLS = {42: (0, 1, 2), 16: (0, 0, 1)}
LABELS = ("graphene_1x1_000", "graphene_1x1_001", "hBN_1x1_000")


def same_matrix(a, b):
    for name in ("pairs", "shapes", "boundaries", "entries"):
        one, other = getattr(a, name), getattr(b, name)
        assert one.dtype == other.dtype, name
        np.testing.assert_array_equal(one, other, strict=True)


def same(a, b):
    """Bit by bit."""
    for name in ("cell", "positions", "numbers"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), strict=True)
    for name in ("shells", "spinful", "fermi_energy", "occupation", "info"):
        assert getattr(a, name) == getattr(b, name), name
    assert list(a.shells) == list(b.shells)
    for name in ("hamiltonian", "overlap"):
        assert (getattr(a, name) is None) == (getattr(b, name) is None), name
        if getattr(a, name) is not None:
            same_matrix(getattr(a, name), getattr(b, name))


@pytest.fixture
def folders(tmp_path, fixtures):
    """A set of three folders; one has a prediction, another no overlap, and there is a split."""
    root = tmp_path / "folders"
    for label in LABELS:
        shutil.copytree(fixtures / label, root / "dft" / label, ignore=shutil.ignore_patterns("bands_cp2k.json"))
    first = root / "dft" / LABELS[0]
    deeph.write_prediction(read_snapshot(first), read_snapshot(first).hamiltonian, first)
    (root / "dft" / LABELS[1] / "overlap.h5").unlink()
    split = {"train": [LABELS[0]], "validate": [LABELS[1]], "test": [LABELS[2]]}
    (root / "dataset_split.json").write_text(json.dumps(split))
    return root


@pytest.fixture
def file(folders, tmp_path, hamfast):
    """The same set in one file."""
    status, _, errors = hamfast("data", "convert", folders, tmp_path / "packed", "--to", "packed")
    assert status == 0, errors
    return tmp_path / "packed" / packed.STRUCTURES


def sql(file, statement, *values):
    with sqlite3.connect(file) as connection:
        return connection.execute(statement, values).fetchall()


# --- what is read
# -------------------------------------------------------------------------------------------------


def test_structures_are_those_of_the_folders(folders, file):
    assert [p.name for p in find_structures(file.parent)] == sorted(LABELS)
    for label in LABELS:
        folder, own = folders / "dft" / label, file / label
        same(read_snapshot(own), read_snapshot(folder))
        structure = read_structure(own)
        same(structure, read_structure(folder))
        np.testing.assert_array_equal(read_pairs(own, structure), read_pairs(folder, structure), strict=True)
        assert has_prediction(own) == has_prediction(folder) == (label == LABELS[0])
    found = read_snapshot(file / LABELS[0], hamiltonian="prediction")
    same(found, read_snapshot(folders / "dft" / LABELS[0], hamiltonian="prediction"))


def test_the_bytes_are_as_the_page_says(folders, file):
    """docs/data_formats.md, read without hamfast."""
    ((content,),) = sql(
        file,
        "SELECT content FROM parts JOIN structures ON structure = id WHERE label = ? AND name = ?",
        LABELS[0],
        "hamiltonian.entries",
    )
    sign, checksum, length = struct.unpack("<8sII", content[:16])
    assert sign == b"hamfast1" and checksum == zlib.crc32(content[12:])
    header = json.loads(content[16 : 16 + length])
    assert header["label"] == LABELS[0] and header["part"] == "hamiltonian.entries" and header["compressed"]
    ((name, dtype, shape),) = header["arrays"]
    planes = np.frombuffer(zlib.decompress(content[16 + length :]), np.uint8).reshape(np.dtype(dtype).itemsize, -1)
    entries = np.frombuffer(planes.T.tobytes(), dtype).reshape(shape)
    with h5py.File(folders / "dft" / LABELS[0] / "hamiltonian.h5") as original:
        assert name == "entries"
        np.testing.assert_array_equal(entries, original["entries"][()], strict=True)


@pytest.mark.parametrize(
    ("spinful", "dtype"),
    cases({"float32": (False, "f4"), "float64": (False, "f8"), "complex64": (True, "c8"), "complex128": (True, "c16")}),
)
def test_numbers_keep_their_type(tmp_path, spinful, dtype):
    """Also those that do not compress, an odd order of elements, and what info holds."""
    before = random_snapshot(SHELLS, [16, 42, 16], spinful)
    before.hamiltonian = replace(before.hamiltonian, entries=before.hamiltonian.entries.astype(dtype))
    before.fermi_energy, before.occupation = -0.1, 1 / 3
    before.info = {"note": "ä\"'", "list": [1, None, 0.1, True], "deep": {"x": 1e-300}}
    packed.write(before, tmp_path / packed.STRUCTURES / "s")
    same(read_snapshot(tmp_path / packed.STRUCTURES / "s"), before)


def test_only_what_is_wanted_is_read(file):
    """What is destroyed is not missed until it is read."""
    own = file / LABELS[0]
    sql(file, "UPDATE parts SET content = x'00' WHERE name LIKE '%.entries'")
    structure = read_structure(own)
    assert len(read_pairs(own, structure)) > 100
    with pytest.raises(HamfastError, match=rf"{packed.STRUCTURES}/{LABELS[0]}: damaged"):
        read_snapshot(own)
    sql(file, "UPDATE parts SET content = x'00' WHERE name LIKE '%.pairs'")
    read_structure(own)
    with pytest.raises(HamfastError, match=rf"{packed.STRUCTURES}/{LABELS[0]}: damaged"):
        read_pairs(own, structure)


@pytest.mark.parametrize(
    "label",
    ["with space", "a'b\"c", "[red]", "50%", "a#b?c=d", "größe", "日本", "a;DROP TABLE parts", "a\\b", "x" * 300, "*"],
)
def test_odd_labels(tmp_path, label):
    before = random_snapshot(SHELLS, [16])
    file = tmp_path / "a [x]" / packed.STRUCTURES
    packed.write(before, file / label)
    packed.write_prediction(before, before.overlap, file / label)
    assert find_structures(file.parent) == [file / label]
    assert read_snapshot(file / label).label == label and has_prediction(file / label)


@pytest.mark.parametrize("label", ["", ".", "..", ".hidden", "a/b", "a\nb", "a\0b", "\udcff"])
def test_labels_that_cannot_be_any(label):
    with pytest.raises(HamfastError, match="expected a label"):
        packed.row_of(random_snapshot(SHELLS, [16]), label)


def test_a_structure_that_is_not_there(file):
    for read in (read_snapshot, read_structure, packed.read_pairs, has_prediction):
        with pytest.raises(HamfastError, match=rf"{packed.STRUCTURES}: no structure 'none' in it"):
            read(file / "none")
    snapshot = read_snapshot(file / LABELS[0])
    with pytest.raises(HamfastError, match="no structure 'none'"):
        packed.write_prediction(snapshot, snapshot.hamiltonian, file / "none")


def test_a_matrix_that_is_too_large(monkeypatch):
    monkeypatch.setattr(packed, "LARGEST", 1000)
    with pytest.raises(HamfastError, match=r"s: hamiltonian.entries has [\d,]+ bytes; .* takes 1,000 at most"):
        packed.row_of(random_snapshot(SHELLS, [42, 16]), "s")


# --- sets
# -------------------------------------------------------------------------------------------------


def test_there_and_back(folders, file, tmp_path, hamfast):
    """The files are those of a copy from folders to folders, byte by byte."""
    for source, target in ((file.parent, "back"), (file, "back from the file"), (folders, "direct")):
        assert hamfast("data", "convert", source, tmp_path / target)[0] == 0
    assert tree(tmp_path / "back") == tree(tmp_path / "back from the file") == tree(tmp_path / "direct")
    status, _, errors = hamfast("data", "convert", folders, file.parent, "--to", "packed")
    assert status == 1 and "not empty; choose another target" in errors


def test_files_without_a_place_are_named(folders, tmp_path, hamfast):
    other = folders / "dft" / LABELS[1] / "notes.txt"
    other.write_text("kept where it is")
    output = hamfast("data", "convert", folders, tmp_path / "new", "--to", "packed")[1]
    assert f"left behind: {other}" in output and output.count("left behind") == 1


def test_the_file_and_folders_in_one_set(folders, file):
    inside = shutil.copy(file, folders)
    with pytest.raises(HamfastError, match=f"{LABELS[0]}: the same label as .*dft/{LABELS[0]}"):
        find_structures(folders)
    shutil.rmtree(folders / "dft" / LABELS[0])
    sql(inside, f"DELETE FROM structures WHERE label != '{LABELS[0]}'")
    assert sql(inside, "SELECT count(DISTINCT structure) FROM parts") == [(1,)]
    where = [Path(inside) / LABELS[0], folders / "dft" / LABELS[1], folders / "dft" / LABELS[2]]
    assert find_structures(folders) == where and list(states_of(where)) == where
    assert find_structures(inside) == where[:1] and find_structures(where[0]) == where[:1]


def test_finding_and_states_are_one_query_each(file):
    connection = packed._opened(file).connection()
    statements = []
    connection.set_trace_callback(statements.append)
    found = find_structures(file.parent)
    states = states_of(found)
    connection.set_trace_callback(None)
    assert len(statements) == 2 and set(states) == set(found)


def test_states_change_with_structures_alone(file):
    found = find_structures(file)
    before, snapshot = states_of(found), read_snapshot(found[0])
    packed.write_prediction(snapshot, snapshot.hamiltonian, found[0])
    packed.write(read_snapshot(found[1]), found[1])
    assert states_of(found) == before
    snapshot.hamiltonian.entries[0] += 1e-3
    packed.write(snapshot, found[0])
    after = states_of(found)
    assert after[found[0]] != before[found[0]] and after[found[1]] == before[found[1]]
    assert not has_prediction(found[0])  # it was one of another structure


def test_graphs_are_those_of_the_folders(folders, file, tmp_path):
    paths = [folders / "dft" / label for label in LABELS[:2]]
    spec = dataset_spec(paths)
    inside = [file / label for label in LABELS[:2]]
    found = prepare(inside, Store(tmp_path / "cache"), torch.float64)
    for graph, folder in zip(GraphDataset(inside, spec, found, torch.float64), paths, strict=True):
        truth = build_graph(read_snapshot(folder), spec, dtype=torch.float64)
        assert torch.equal(graph.target, truth.target) and torch.equal(graph.vector, truth.vector)
        assert graph.labels == truth.labels


def test_the_data_of_a_run(folders, file):
    """The set may be named by its file, and the split and what is prepared lie beside that."""
    found = []
    for root in (folders, file.parent, file):
        config = Config.model_validate({"output": "runs/x", "data": {"root": str(root)}})
        data = RunData(config, Processes(0, 1, 1), torch.float32)
        found.append(({name: [p.name for p in own] for name, own in data.split.items()}, data.spec))
        assert data.prepared.store.path.parent == folder_of(root) / ".hamfast_cache"
    assert found[0] == found[1] == found[2]


# --- damage
# -------------------------------------------------------------------------------------------------


def everything(file, labels=LABELS):
    """All that a file holds, by every way of reading."""
    states_of(find_structures(file))
    found = [read_snapshot(file / label) for label in labels]
    for label in labels:
        read_pairs(file / label, read_structure(file / label))
    return found


@pytest.mark.parametrize("part", ["structure", "hamiltonian.pairs", "hamiltonian.entries", "overlap.entries"])
def test_a_damaged_part_is_a_sentence(file, part):
    where = "name = ? AND structure = (SELECT id FROM structures WHERE label = ?)"
    ((content,),) = sql(file, f"SELECT content FROM parts WHERE {where}", part, LABELS[0])
    for n in (3, 9, 20, len(content) // 2, len(content) - 1):
        flipped = content[:n] + bytes([content[n] ^ 4]) + content[n + 1 :]
        sql(file, f"UPDATE parts SET content = ? WHERE {where}", flipped, part, LABELS[0])
        with pytest.raises(HamfastError, match=rf"{packed.STRUCTURES}/{LABELS[0]}: damaged \(a wrong checksum\)"):
            read_snapshot(file / LABELS[0])
    sql(file, f"DELETE FROM parts WHERE {where}", part, LABELS[0])
    with pytest.raises(HamfastError, match=f"{LABELS[0]}: damaged .there is no part {part}"):
        read_snapshot(file / LABELS[0])
    # That of another structure, as if a page pointed to it.
    other = f"SELECT content FROM parts WHERE {where}"
    ((content,),) = sql(file, other, part, LABELS[2])
    query = "INSERT INTO parts SELECT id, ?, ? FROM structures WHERE label = ?"
    sql(file, query, part, content, LABELS[0])
    with pytest.raises(HamfastError, match=f"{LABELS[0]}: damaged .{part} is that of {LABELS[2]}"):
        read_snapshot(file / LABELS[0])


def test_flipped_bytes_are_never_believed(tmp_path):
    """A right result, or a sentence that names the file."""
    labels, file = ("a", "b"), tmp_path / packed.STRUCTURES
    truth = [random_snapshot({6: (0, 1)}, [6, 6], seed=n, cutoff=3.0) for n in range(2)]
    packed.keep(file, [packed.row_of(one, label) for one, label in zip(truth, labels, strict=True)])
    whole, rng, refused = file.read_bytes(), np.random.default_rng(0), 0
    for _ in range(150):
        n = int(rng.integers(len(whole)))
        changed = bytearray(whole)
        changed[n] ^= 1 << int(rng.integers(8))
        file.unlink()
        file.write_bytes(changed[: n if rng.random() < 0.2 else None])
        try:
            for one, expected in zip(everything(file, labels), truth, strict=True):
                same(one, expected)
        except HamfastError as error:
            refused += 1
            assert packed.STRUCTURES in str(error) and "\n" not in str(error)
    assert 20 < refused < 150


@pytest.mark.parametrize(
    ("spoil", "words"),
    cases(
        {
            "text": (lambda p: p.write_text("not a database, and longer than its header is" * 3), "found another file"),
            "empty": (lambda p: p.write_bytes(b""), "format 1, found an empty file"),
            "foreign": (lambda p: (p.unlink(), sql(p, "CREATE TABLE structures (x)")), "found another file"),
            "prepared": (lambda p: (p.unlink(), shutil.move(Store(p.parent).path, p)), "found another file"),
            "later": (lambda p: sql(p, "PRAGMA user_version = 7"), "format 1, found format 7"),
        }
    ),
)
def test_another_file_of_that_name(file, spoil, words):
    packed._FILES.pop(file).close()  # as another process would find it
    spoil(file)
    before = file.read_bytes()
    if words != "format 1, found an empty file":  # which an import fills
        with pytest.raises(HamfastError, match=words):
            packed.make(file)
    for read in (lambda: find_structures(file.parent), lambda: read_snapshot(file / LABELS[0])):
        with pytest.raises(HamfastError, match=f"{packed.STRUCTURES}: expected structures.*{words}"):
            read()
    assert file.read_bytes() == before


def test_a_disk_that_is_full(file):
    table = packed._opened(file).connection()
    table.execute(f"PRAGMA max_page_count = {table.execute('PRAGMA page_count').fetchone()[0] + 10}")
    truth, large = everything(file), random_snapshot(SHELLS, [42] * 6)
    with pytest.raises(HamfastError, match=rf"{packed.STRUCTURES}: cannot be written \(database or disk is full\)"):
        packed.keep(file, [packed.row_of(large, label) for label in ("new", LABELS[0])])
    with pytest.raises(HamfastError, match=rf"{LABELS[0]}: cannot be written \(database or disk is full\)"):
        packed.write_prediction(large, large.hamiltonian, file / LABELS[0])
    for one, expected in zip(everything(file), truth, strict=True):
        same(one, expected)
    assert len(find_structures(file)) == len(LABELS)


def test_a_file_that_takes_the_place_of_another(file, tmp_path):
    assert len(find_structures(file)) == 3
    packed.write(random_snapshot(SHELLS, [16]), tmp_path / "other" / packed.STRUCTURES / "s")
    os.replace(tmp_path / "other" / packed.STRUCTURES, file)
    assert find_structures(file) == [file / "s"] and read_snapshot(file / "s").num_atoms == 1


# --- several processes
# -------------------------------------------------------------------------------------------------


def in_a_fork(do, *arguments):
    process = multiprocessing.get_context("fork").Process(target=do, args=arguments)
    process.start()
    return process


def write_some(file, name, count):
    snapshot = random_snapshot(SHELLS, [16])
    for n in range(count):
        packed.write(snapshot, file / f"{name}{n}")


def test_two_write_and_one_reads(file):
    everything(file)  # the connection of this process is not that of the others
    writers = [in_a_fork(write_some, file, name, 15) for name in "xy"]
    seen = 0
    while any(process.is_alive() for process in writers):
        found = find_structures(file)
        assert len(found) >= seen
        read_snapshot(found[-1])
        seen = len(found)
    assert [process.exitcode for process in writers] == [0, 0]
    expected = sorted([*LABELS, *(f"{name}{n}" for name in "xy" for n in range(15))])
    assert [p.name for p in find_structures(file)] == expected
    for path in find_structures(file):
        read_snapshot(path)


# --- commands
# -------------------------------------------------------------------------------------------------


def test_commands(folders, file, tmp_path, hamfast, monkeypatch):
    def done(*arguments):
        status, output, errors = hamfast(*arguments)
        assert status == 0, errors
        return output

    own = file / LABELS[2]
    model = tiny_checkpoint(tmp_path / "model.ckpt", [folders / "dft" / label for label in LABELS[2:]])
    words = done("data", "info", folders).replace(str(folders), str(file.parent)).replace("3 deeph", "3 packed")
    assert (
        done("data", "info", file.parent) == done("data", "info", file).replace(f"{file}/", f"{file.parent}/") == words
    )
    assert hamfast("data", "check", file)[1] == hamfast("data", "check", folders)[1]
    done("data", "split", file, "--overwrite", "--fractions", 0.4, 0.3, 0.3)
    assert (file.parent / "dataset_split.json").exists()
    assert f"wrote {own / packed.PREDICTION}" in done("predict", model, own)
    done("predict", model, folders / "dft" / LABELS[2])
    inside, outside = (read_snapshot(p, hamiltonian="prediction") for p in (own, folders / "dft" / LABELS[2]))
    np.testing.assert_allclose(inside.hamiltonian.entries, outside.hamiltonian.entries, atol=1e-6)
    done("predict", model, own, "--output", tmp_path / "out")
    copy = tmp_path / "out" / LABELS[2]
    same_matrix(read_snapshot(copy).hamiltonian, read_snapshot(own).hamiltonian)
    path = ["--kpath", "A 0 0 0, B 1/2 0 0", "--points", 3, "--fermi", 0]
    done("bands", own, *path)
    done("bands", folders / "dft" / LABELS[2], *path)
    found = [
        json.loads((folder / "bands.json").read_text())
        for folder in (file.parent / "bands" / LABELS[2], folders / "dft" / LABELS[2] / "bands")
    ]
    for name in ("DFT", "predicted"):
        energies = (np.array(one[name]["energies"], dtype=float) for one in found)  # None: not found
        np.testing.assert_allclose(*energies, atol=1e-4)
    done("evaluate", model, own, "--output", tmp_path / "e.json", "--no-eigenvalues")
    done("export", own, tmp_path / "x.h5")
    # A prediction in pieces, and an uncertainty, have no place in the file.
    monkeypatch.setattr(prediction, "predicted_parts", lambda *arguments: iter(()))
    status, _, errors = hamfast("predict", model, own)
    assert status == 1 and "choose a folder with --output" in errors
    with pytest.raises(HamfastError, match="an uncertainty is a file of its own; choose a folder for it with --output"):
        prediction.write_prediction(None, own, own, level=0.9)  # it comes before the model is asked
