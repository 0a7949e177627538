"""Foreign values are taken as what they are or refused; signs of exchanged matrices are told; files
stay whole."""

import json
import os
import shutil
import subprocess
import warnings

import h5py
import numpy as np
import pytest
from kit import cases

from hamfast.data import by_name, find_structures, read_snapshot
from hamfast.data.blocks import BlockMatrix
from hamfast.data.formats import format_of
from hamfast.data.h5 import read_json, write_h5
from hamfast.data.plausible import warn_of_mix_ups
from hamfast.data.snapshot import check_snapshot
from hamfast.errors import DataWarning, HamfastError


@pytest.fixture
def new(tmp_path, fixtures):
    return shutil.copytree(fixtures / "hBN_1x1_000", tmp_path / "hBN")


@pytest.fixture
def old(tmp_path, legacy):
    return shutil.copytree(legacy, tmp_path / "old")


def change_info(folder, **changes):
    info = json.loads((folder / "info.json").read_text())
    info |= changes
    (folder / "info.json").write_text(json.dumps(info))


def refused(folder, message):
    with pytest.raises(HamfastError, match=message):
        read_snapshot(folder)


@pytest.mark.parametrize(
    "changes, message",
    cases(
        {
            "spin-as-text": ({"spinful": "false"}, "info.json: spinful: expected true or false, found 'false'"),
            "spin-as-number": ({"spinful": 0}, "info.json: spinful: expected true or false, found 0"),
            "orthogonal-basis": ({"orthogonal_basis": True}, "orthogonal_basis is true; expected false"),
            "no-electrons": (
                {"occupation": 0},
                "occupation: expected electrons per cell, more than 0 and at most the 52 .* found 0",
            ),
            "negative-electrons": ({"occupation": -8}, "found -8"),
            "too-many-electrons": ({"occupation": 53}, "found 53"),
            "electrons-nan": ({"occupation": float("nan")}, "info.json: occupation: expected a number, found nan"),
            "electrons-as-text": ({"occupation": "8"}, "info.json: occupation: expected a number, found '8'"),
            "electrons-true": ({"occupation": True}, "info.json: occupation: expected a number, found True"),
            "fermi-infinite": ({"fermi_energy_eV": float("inf")}, "fermi_energy_eV: expected a number, found inf"),
            "fermi-as-list": ({"fermi_energy_eV": [1]}, r"fermi_energy_eV: expected a number, found \[1\]"),
            "wrong-number-of-atoms": ({"atoms_quantity": 3}, "atoms_quantity is 3, but the atoms of POSCAR are 2"),
            "shells-as-text": (
                {"elements_orbital_map": "s2p2d1"},
                "elements_orbital_map: expected elements with their shells",
            ),
            "shells-of-element-as-text": (
                {"elements_orbital_map": {"B": "s2p2d1", "N": [0]}},
                "B: expected the l of each shell, as .* found 's2p2d1'",
            ),
            "fractional-l": (
                {"elements_orbital_map": {"B": [0, 1.5], "N": [0]}},
                "expected whole numbers l from 0 to 6, found 1.5",
            ),
            "negative-l": ({"elements_orbital_map": {"B": [0, -1], "N": [0]}}, "found -1"),
            "l-true": ({"elements_orbital_map": {"B": [0, True], "N": [0]}}, "found True"),
            "l-too-high": ({"elements_orbital_map": {"B": [0, 9], "N": [0]}}, "found 9"),
            "no-shells": ({"elements_orbital_map": {"B": [], "N": [0]}}, r"found \[\]"),
            "no-element": ({"elements_orbital_map": {"Bq": [0]}}, "'Bq' is not an element"),
            "element-lacks-shells": ({"elements_orbital_map": {"B": [0]}}, "no orbital list for element N"),
        }
    ),
)
def test_info(new, changes, message):
    change_info(new, **changes)
    refused(new, message)


@pytest.mark.parametrize(
    "text, message",
    cases(
        {
            "list": ("[1, 2]", r"info.json: expected a JSON object \{...\}, found list"),
            "key-twice": ('{"spinful": true, "spinful": false}', "not valid JSON .the key 'spinful' is given twice"),
            "cut-off": ("{", "not valid JSON"),
            "empty": ("", "not valid JSON"),
        }
    ),
)
def test_json(new, text, message):
    (new / "info.json").write_text(text)
    refused(new, message)


def test_text_in_another_encoding(new):
    (new / "info.json").write_bytes('{"a": "ü"}'.encode("latin-1"))
    refused(new, "info.json: expected text in UTF-8, found other bytes at position 7")
    (new / "info.json").unlink()
    (new / "info.json").mkdir()
    refused(new, "info.json: expected a file, found a folder")


def test_json_with_a_mark_of_its_encoding(new):
    path = new / "info.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_json(path)["occupation"] == 8


@pytest.mark.parametrize(
    "line, words, message",
    cases(
        {
            "scale-zero": (1, "0.0", "cell: expected three independent lattice vectors, found lengths 0, 0, 0"),
            "dependent-vectors": (3, "2.5 0 0", "cell: expected three independent lattice vectors"),
            "vector-nan": (2, "nan 0 0", "cell: expected finite numbers, found nan|not a readable POSCAR"),
            "position-nan": (8, "nan 0.1 0.2", "positions: expected finite numbers, found nan|not a readable POSCAR"),
            "one-count-for-two": (6, "2", "expected a number of atoms for each of [BN] [BN], found 2"),
        }
    ),
)
def test_poscar(new, line, words, message):
    lines = (new / "POSCAR").read_text().splitlines()
    lines[line] = words
    if line == 3:
        lines[2] = words
    (new / "POSCAR").write_text("\n".join(lines) + "\n")
    refused(new, message)


def test_atoms_at_one_place(new):
    lines = (new / "POSCAR").read_text().splitlines()
    lines[-1] = lines[-2]
    (new / "POSCAR").write_text("\n".join(lines) + "\n")
    refused(new, r"atoms \d and \d are 0.000 angstrom apart; expected at least 0.3")


@pytest.mark.parametrize(
    "name, change, message",
    cases(
        {
            "positions-transposed": (
                "site_positions.dat",
                lambda t: t.T,
                r"site_positions.dat: expected 3 x N, .* found 2 x 3; is it transposed",
            ),
            "cell-cut-off": ("lat.dat", lambda t: t[:2], r"lat.dat: expected 3 x 3, vectors as columns, found 2 x 3"),
            "cell-transposed": (
                "lat.dat",
                lambda t: t.T,
                r"rlat.dat does not hold the reciprocal vectors of lat.dat; .* transposed",
            ),
            "fractional-element": (
                "element.dat",
                lambda t: t + 0.5,
                r"element.dat: expected atomic numbers from 1 to \d+, found 6.5",
            ),
            "element-zero": ("element.dat", lambda t: t * 0, r"found 0"),
            "elements-as-table": (
                "element.dat",
                lambda t: np.array([[6, 6], [6, 6]]),
                r"element.dat: expected one atomic number per atom, found 2 x 2",
            ),
            "too-many-elements": (
                "element.dat",
                lambda t: np.append(t, 6),
                r"element.dat has 3 atoms, site_positions.dat has 2",
            ),
        }
    ),
)
def test_legacy_tables(old, name, change, message):
    np.savetxt(old / name, change(np.loadtxt(old / name)))
    refused(old, message)


@pytest.mark.parametrize(
    "text, message",
    cases(
        {
            "fractional-l": (
                "0 0 1 1 2\n0 0 1 1.5 2\n",
                "orbital_types.dat: line 2: expected whole numbers l from 0 to 6, found '1.5'",
            ),
            "line-missing": ("0 0 1 1 2\n", "expected one line for each of the 2 atoms, found 1"),
            "shells-as-text": ("s2p2d1\ns2p2d1\n", "line 1: expected whole numbers l from 0 to 6, found 's2p2d1'"),
            "atoms-of-one-element-differ": ("0 0 1 1 2\n0 0 1 1\n", "have different orbitals"),
        }
    ),
)
def test_legacy_orbitals(old, text, message):
    (old / "orbital_types.dat").write_text(text)
    refused(old, message)


def test_legacy_info(old):
    change_info(old, isspinful="false")
    refused(old, "info.json: isspinful: expected true or false, found 'false'")
    (old / "lat.dat").write_text("")
    refused(old, "lat.dat: expected a table of numbers, found an empty file")


@pytest.mark.parametrize(
    "key",
    cases(
        {
            "word": "abc",
            "number": "5",
            "too-short": "[0, 0, 0, 1]",
            "fraction": "[0, 0, 0, 1, 1.5]",
            "text": '[0, 0, 0, "1", 1]',
            "true": "[0, 0, 0, true, 1]",
        }
    ),
)
def test_legacy_block_names(old, key):
    with h5py.File(old / "hamiltonians.h5", "r+") as file:
        file[key] = np.eye(13)
    refused(old, r"hamiltonians.h5: expected block names like \[0, 0, 0, 1, 2\], found")


def put(path, name, data, **options):
    with h5py.File(path, "r+") as file:
        del file[name]
        file.create_dataset(name, data=data, **options)


def test_h5_of_another_type_or_size(new):
    path = new / "overlap.h5"
    for name in ("atom_pairs", "chunk_shapes", "chunk_boundaries", "entries"):
        with h5py.File(path) as file:
            before = file[name][:]
        wrong = before.astype(float) if name != "entries" else before.astype("S4")
        put(path, name, wrong)
        refused(new, f"overlap.h5: {name}: expected (whole|real or complex) numbers, found type")
        put(path, name, np.zeros(0, dtype=before.dtype))
        refused(new, "overlap.h5: ")
        with h5py.File(path, "r+") as file:
            del file[name]
            file.create_dataset(
                name, shape=(2_000_000_000, *before.shape[1:]), dtype=before.dtype, chunks=(1000, *before.shape[1:])
            )
        refused(new, f"overlap.h5: {name} declares [0-9,]+ numbers, but only 0 bytes are stored")
        with h5py.File(path, "r+") as file:
            del file[name]
            file.create_group(name)
        refused(new, f"overlap.h5: {name}: expected a data set, found a group")
        with h5py.File(path, "r+") as file:
            del file[name]
            file[name] = before
    read_snapshot(new)


def test_blocks_that_begin_anywhere(new):
    path = new / "overlap.h5"
    with h5py.File(path) as file:
        boundaries = file["chunk_boundaries"][:]
    put(path, "chunk_boundaries", boundaries + 1)
    refused(new, "chunk_boundaries do not fit chunk_shapes")
    with h5py.File(path) as file:
        shapes = file["chunk_shapes"][:]
    put(path, "chunk_shapes", -shapes)
    refused(new, "expected blocks of one row and column or more, found -13")


def test_complex_numbers_without_spin(new):
    with h5py.File(new / "hamiltonian.h5") as file:
        entries = file["entries"][:]
    put(new / "hamiltonian.h5", "entries", entries.astype(np.complex64))
    assert read_snapshot(new).hamiltonian is not None
    put(new / "hamiltonian.h5", "entries", entries * (1 + 0.1j))
    refused(new, "the Hamiltonian is complex, its imaginary part reaches .* expected real numbers without spin-orbit")


def test_a_file_is_a_folder(new):
    (new / "overlap.h5").unlink()
    (new / "overlap.h5").mkdir()
    refused(new, "overlap.h5: expected an HDF5 file, found a folder")


# --- exchanged matrices
# -------------------------------------------------------------------------------------------------


def exchanged(snapshot, how):
    pairs = {
        "i and j": lambda p: p[:, [0, 1, 2, 4, 3]],
        "R": lambda p: p * [-1, -1, -1, 1, 1],
    }
    if how in pairs:
        for name in ("hamiltonian", "overlap"):
            m = getattr(snapshot, name)
            if m is not None:
                setattr(snapshot, name, BlockMatrix(pairs[how](m.pairs), m.shapes, m.boundaries, m.entries))
    elif how == "atoms":
        snapshot.positions = snapshot.positions[::-1].copy()
    elif how in ("bohr", "in bohr"):
        factor = 0.529 if how == "bohr" else 1.89
        snapshot.positions, snapshot.cell = snapshot.positions * factor, snapshot.cell * factor
    elif how in ("x and y", "x, y and z"):
        axes = [1, 0, 2] if how == "x and y" else [1, 2, 0]
        snapshot.positions, snapshot.cell = snapshot.positions[:, axes], snapshot.cell[:, axes]
    elif how == "another":
        snapshot.positions = (
            snapshot.positions + np.array([[0, 0, 0], [0.08, -0.05, 0.03], [0, 0, 0]])[: len(snapshot.positions)]
        )
    elif how == "elements":
        one, other = snapshot.elements
        snapshot.numbers = np.where(snapshot.numbers == one, other, one)
    return snapshot


LIKELY = {
    "i and j": "are i and j exchanged",
    "R": "is R reversed",
    "atoms": "atoms or coordinates in another order",
    "elements": "are the two elements exchanged",
    "bohr": "are lengths in another unit",
    "in bohr": "are lengths in bohr",
    "x and y": "another structure, or axes",
    "x, y and z": "another structure, or axes",
    "another": "another structure, or axes",
}
DIRECTIONS = ("x and y", "x, y and z", "another")
"""Only overlaps know them."""


@pytest.mark.parametrize(
    "label, how, there",
    [
        (label, how, there)
        for there in ("both", "hamiltonian", "overlap")
        for label in ("graphene_1x1_001", "hBN_1x1_000", "MoS2_1x1_000")
        for how in LIKELY
        if (label, how) != ("graphene_1x1_001", "elements")  # it has one
        and not (how in DIRECTIONS and there == "hamiltonian")
    ],
)
def test_what_looks_exchanged_is_told_with_its_cause(fixtures, label, how, there):
    snapshot = read_snapshot(fixtures / label)
    snapshot.info = {}
    if there != "both":
        setattr(snapshot, {"hamiltonian": "overlap", "overlap": "hamiltonian"}[there], None)
    snapshot = exchanged(snapshot, how)
    if label.startswith("MoS2") and how in ("i and j", "elements"):  # other shells: blocks do not fit
        with pytest.raises(HamfastError, match="has shape"):
            check_snapshot(snapshot, "here")
        return
    check_snapshot(snapshot, "here")
    with pytest.warns(DataWarning, match=f"here: .*{LIKELY[how]}"):
        warn_of_mix_ups(snapshot, "here")


def test_the_cutoff_in_info_json_is_compared(fixtures):
    snapshot = read_snapshot(fixtures / "graphene_1x1_000")
    snapshot.info["cutoff_radius_A"] = 5.0
    with pytest.warns(DataWarning, match="pairs of the Hamiltonian are up to 7.9. angstrom long, but cutoff_radius_A"):
        warn_of_mix_ups(snapshot, "here")


def test_onsite_overlap_is_looked_at(fixtures):
    snapshot = read_snapshot(fixtures / "graphene_1x1_000")
    n = snapshot.overlap.index[0, 0, 0, 1, 1]
    snapshot.overlap.block(n)[0, 1] += 0.1
    snapshot.overlap.block(n)[1, 0] += 0.1
    with pytest.warns(DataWarning, match="atoms 0 and 1 are both C, but their on-site overlaps differ by 0.1"):
        warn_of_mix_ups(snapshot, "here")
    snapshot.overlap.block(n)[0, 0] = 3
    with pytest.warns(DataWarning, match="the overlap of orbital 0 of atom 1 with itself is 3, expected 1"):
        warn_of_mix_ups(snapshot, "here")


@pytest.mark.parametrize(
    "scale",
    cases(
        {
            "zero": 0.0,
            "hartree": 1 / 27.2114,
        }
    ),
)
def test_energies_in_another_unit_or_none(fixtures, scale):
    snapshot = read_snapshot(fixtures / "hBN_1x1_000")
    h = snapshot.hamiltonian
    snapshot.hamiltonian = BlockMatrix(h.pairs, h.shapes, h.boundaries, h.entries * scale)
    with pytest.warns(DataWarning, match="in hartree or rydberg" if scale else "all elements of the Hamiltonian are 0"):
        warn_of_mix_ups(snapshot, "here")
    snapshot.hamiltonian = snapshot.overlap
    with pytest.warns(DataWarning, match="the Hamiltonian is the overlap matrix"):
        warn_of_mix_ups(snapshot, "here")


def test_shells_in_another_order(fixtures):
    snapshot = read_snapshot(fixtures / "hBN_1x1_000")
    snapshot.shells = {5: (0, 1, 0, 1, 2), 7: (0, 0, 1, 1, 2)}
    with pytest.warns(
        DataWarning, match=r"are the shells of B in another order than \[0, 1, 0, 1, 2\]|or the p orbitals"
    ):
        warn_of_mix_ups(snapshot, "here")


@pytest.mark.parametrize("key", ["cutoff_tolerance", "cutoff_Ry", "cutoffs"])
def test_other_keys_are_no_cutoff(fixtures, key):
    snapshot = read_snapshot(fixtures / "graphene_1x1_000")
    snapshot.info[key] = 1e-6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_mix_ups(snapshot, "here")


@pytest.mark.parametrize(
    "dtype",
    cases(
        {
            "half": np.float16,
            "long-double": np.longdouble,
            "big-endian": ">f8",
            "single-complex": np.complex64,
            "big-endian-complex": ">c16",
        }
    ),
)
def test_numbers_of_another_precision(new, dtype):
    with h5py.File(new / "hamiltonian.h5") as file:
        entries = file["entries"][:]
    put(new / "hamiltonian.h5", "entries", entries.astype(dtype))
    found = read_snapshot(new).hamiltonian.entries
    assert found.dtype in (np.float32, np.float64)
    np.testing.assert_allclose(found, entries, atol=0.03 if dtype == np.float16 else 1e-6)


def test_a_legacy_folder_with_a_poscar(old, fixtures):
    shutil.copyfile(fixtures / "graphene_1x1_000" / "POSCAR", old / "POSCAR")
    assert format_of(old).NAME == "deeph-legacy"


def test_a_poscar_without_symbols(new):
    lines = (new / "POSCAR").read_text().splitlines()
    del lines[5]
    (new / "POSCAR").write_text("\n".join(lines) + "\n")
    refused(new, "POSCAR: line 6: expected the symbols of the elements, found their numbers")


def test_own_values_are_written_over_foreign_keys(tmp_path, fixtures):
    """A folder that went through another layout may have that layout's keys."""
    snapshot = read_snapshot(fixtures / "hBN_1x1_000")
    snapshot.info |= {"fermi_level": 99.5, "isspinful": True, "nsites": 7, "fermi_energy_eV": 98.5, "spinful": True}
    for layout in ("deeph", "deeph-legacy"):
        by_name(layout).write(snapshot, tmp_path / layout)
        found = read_snapshot(tmp_path / layout)
        assert (found.fermi_energy, found.spinful, found.num_atoms) == (snapshot.fermi_energy, False, 2)


def test_incomplete_folders_are_named(tmp_path, fixtures):
    for label in ("a", "b"):
        shutil.copytree(fixtures / "hBN_1x1_000", tmp_path / "dft" / label)
    (tmp_path / "dft" / "b" / "info.json").unlink()
    with pytest.warns(
        DataWarning, match=r"b: passed over; it has POSCAR, hamiltonian.h5, overlap.h5, but a structure needs"
    ):
        assert [f.name for f in find_structures(tmp_path)] == ["a"]


def test_real_data_is_not_suspected(fixtures, graphene, legacy):
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        for folder in [*fixtures.iterdir(), *(graphene / "dft").iterdir(), legacy]:
            read_snapshot(folder)


# --- writing
# -------------------------------------------------------------------------------------------------


def test_a_disk_that_is_full_when_an_h5_file_is_written(tmp_path):
    """In a process of its own: the HDF5 library crashes where a disk is full when it closes a
    file."""
    code = f"""
import numpy as np, os, resource
from pathlib import Path
from hamfast.data.h5 import write_h5
from hamfast.errors import HamfastError
path = Path({str(tmp_path / "a.h5")!r})
write_h5(path, lambda file: file.create_dataset("x", data=np.arange(3)))
before = path.read_bytes()
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then a write beyond the limit fails as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
try:
    write_h5(path, lambda file: file.create_dataset("x", data=np.random.rand(100000)))
except HamfastError as error:
    assert "could not be written" in str(error) and "untouched" in str(error), error
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["a.h5"]
    print("fine")
"""
    done = subprocess.run(
        [os.sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": ""}
    )
    assert done.stdout == "fine\n", (done.returncode, done.stderr)


@pytest.mark.parametrize("layout", ["deeph", "deeph-legacy"])
@pytest.mark.parametrize("compress", [False, True], ids=["plain", "compressed"])
def test_predictions_compressed_or_not(tmp_path, fixtures, layout, compress):
    snapshot = read_snapshot(fixtures / "graphene_1x1_000")
    by_name(layout).write(snapshot, tmp_path)
    by_name(layout).write_prediction(snapshot, snapshot.hamiltonian, tmp_path, compress)
    found = read_snapshot(tmp_path, hamiltonian="prediction").hamiltonian
    for pair, n in snapshot.hamiltonian.index.items():
        np.testing.assert_array_equal(found.block(found.index[pair]), snapshot.hamiltonian.block(n))


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "a.h5", tmp_path / "folder"):
        with pytest.raises(HamfastError, match="could not be written"):
            write_h5(path, lambda file: None)
