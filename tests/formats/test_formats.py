"""Reading and writing of both DeepH layouts, and what bad files say."""

import inspect
import json
import shutil
from dataclasses import replace

import h5py
import numpy as np
import pytest
from kit import random_snapshot

from hamfast.data import by_name, find_structures, packed, read_snapshot
from hamfast.data.formats import FORMATS, WRITTEN, Format, format_of, has_prediction, read_pairs, read_structure
from hamfast.errors import HamfastError

SHELLS = {42: (0, 1, 2), 16: (0, 0, 3)}


def same_matrix(a, b):
    assert set(a.index) == set(b.index)
    for pair, n in a.index.items():
        np.testing.assert_array_equal(a.block(n), b.block(b.index[pair]))


def test_the_two_layouts_of_one_structure_agree(fixtures, legacy):
    """The legacy copy was written by an independent program."""
    new, old = read_snapshot(fixtures / "graphene_1x1_000"), read_snapshot(legacy)
    assert format_of(fixtures / "graphene_1x1_000").NAME == "deeph"
    assert format_of(legacy).NAME == "deeph-legacy"
    same_matrix(new.hamiltonian, old.hamiltonian)
    same_matrix(new.overlap, old.overlap)
    np.testing.assert_allclose(new.cell, old.cell, atol=1e-12)
    # Positions may differ by lattice vectors only in the new layout; pair vectors must agree.
    np.testing.assert_allclose(
        new.pair_vectors(new.hamiltonian.pairs), old.pair_vectors(new.hamiltonian.pairs), atol=1e-9
    )
    assert new.shells == old.shells
    assert new.fermi_energy == pytest.approx(old.fermi_energy)


@pytest.mark.parametrize("layout", FORMATS, ids=[f.NAME for f in FORMATS])
def test_a_format_has_all_that_the_protocol_asks_for(layout):
    assert isinstance(layout, Format)  # every name
    for name, asked in inspect.getmembers(Format, inspect.isfunction):
        if not name.startswith("_"):  # and of the functions every argument, in order
            parameters = list(inspect.signature(asked).parameters)[1:]
            assert list(inspect.signature(getattr(layout, name)).parameters) == parameters, name
    assert layout.PREDICTION in layout.FILES


@pytest.mark.parametrize("layout", WRITTEN, ids=[f.NAME for f in WRITTEN])
def test_a_written_format_names_the_files_of_its_matrices(layout):
    assert {layout.HAMILTONIAN, layout.OVERLAP, layout.PREDICTION} < set(layout.FILES)


def place(layout, root, label="a"):
    """Of a structure in a set."""
    return root / (packed.STRUCTURES if layout is packed else ".") / label


@pytest.mark.parametrize("layout", WRITTEN, ids=[f.NAME for f in WRITTEN])
def test_pairs_alone_are_those_of_the_whole_matrix(tmp_path, layout):
    snapshot = random_snapshot(SHELLS, [42, 16, 16])
    without = replace(snapshot, hamiltonian=None), replace(snapshot, hamiltonian=None, overlap=None)
    whole, second, bare = (place(layout, tmp_path, label) for label in ("whole", "second", "bare"))
    for one, folder in zip((snapshot, *without), (whole, second, bare), strict=True):
        layout.write(one, folder)
    structure = read_structure(whole)
    np.testing.assert_array_equal(read_pairs(whole, structure), read_snapshot(whole).hamiltonian.pairs)
    np.testing.assert_array_equal(read_pairs(second, structure), read_snapshot(second).overlap.pairs)
    assert read_pairs(bare, structure) is None


@pytest.mark.parametrize("layout", WRITTEN, ids=[f.NAME for f in WRITTEN])
def test_pairs_of_atoms_that_are_not_there(tmp_path, layout):
    layout.write(random_snapshot(SHELLS, [42, 16, 16]), place(layout, tmp_path))
    smaller = random_snapshot(SHELLS, [42, 16])
    with pytest.raises(HamfastError, match="the matrix names atoms 0 to 2, but the structure has 2 atoms"):
        read_pairs(place(layout, tmp_path), smaller)


@pytest.mark.parametrize("spinful", [False, True], ids=["plain", "soc"])
@pytest.mark.parametrize("layout", WRITTEN, ids=[f.NAME for f in WRITTEN])
def test_round_trip(tmp_path, layout, spinful):
    before = random_snapshot(SHELLS, [42, 16, 16], spinful)
    before.fermi_energy, before.occupation, before.info = -1.5, 26.0, {"note": "kept"}
    folder = place(layout, tmp_path)
    layout.write(before, folder)
    assert not has_prediction(folder)
    layout.write_prediction(before, replace(before.hamiltonian, entries=2 * before.hamiltonian.entries), folder)
    assert has_prediction(folder)
    predicted = read_snapshot(folder, hamiltonian="prediction").hamiltonian
    same_matrix(replace(before.hamiltonian, entries=2 * before.hamiltonian.entries), predicted)
    after = read_snapshot(folder)
    same_matrix(before.hamiltonian, after.hamiltonian)
    same_matrix(before.overlap, after.overlap)
    np.testing.assert_allclose(before.positions, after.positions, atol=1e-12)
    assert (after.shells, after.spinful, after.fermi_energy, after.occupation) == (SHELLS, spinful, -1.5, 26.0)
    assert after.info["note"] == "kept"


def test_legacy_files_on_disk_are_as_the_format_says(tmp_path):
    """Keys, 1-based atoms, OpenMX orbital order, columns as vectors: checked on the raw files."""
    snapshot = random_snapshot({6: (1, 2)}, [6, 6], cutoff=3.5)
    by_name("deeph-legacy").write(snapshot, tmp_path)
    matrix = snapshot.hamiltonian
    a, b, c, i, j = matrix.pairs[3].tolist()
    with h5py.File(tmp_path / "hamiltonians.h5") as file:
        raw = file[f"[{a}, {b}, {c}, {i + 1}, {j + 1}]"][:]
    block = matrix.block(3)
    # standard y, z, x -> OpenMX x, y, z;  xy, yz, z2, xz, x2-y2 -> z2, x2-y2, xy, xz, yz
    order = [2, 0, 1, 3 + 2, 3 + 4, 3 + 0, 3 + 3, 3 + 1]
    np.testing.assert_array_equal(raw, block[np.ix_(order, order)])
    np.testing.assert_allclose(np.loadtxt(tmp_path / "lat.dat"), snapshot.cell.T)
    np.testing.assert_allclose(np.loadtxt(tmp_path / "site_positions.dat"), snapshot.positions.T)
    np.testing.assert_allclose(np.loadtxt(tmp_path / "rlat.dat").T @ snapshot.cell.T, 2 * np.pi * np.eye(3), atol=1e-12)
    assert (tmp_path / "orbital_types.dat").read_text().splitlines() == ["1  2", "1  2"]


def test_new_files_on_disk_are_as_the_format_says(tmp_path):
    snapshot = random_snapshot({6: (0, 1)}, [6, 6], spinful=True)
    by_name("deeph").write(snapshot, tmp_path)
    info = json.loads((tmp_path / "info.json").read_text())
    assert info["elements_orbital_map"] == {"C": [0, 1]}
    assert info["spinful"] is True
    assert info["orbits_quantity"] == 8
    with h5py.File(tmp_path / "hamiltonian.h5") as h, h5py.File(tmp_path / "overlap.h5") as s:
        assert set(h) == {"atom_pairs", "chunk_boundaries", "chunk_shapes", "entries"}
        np.testing.assert_array_equal(h["atom_pairs"][:], s["atom_pairs"][:])
        assert h["entries"].dtype == np.complex128
        assert h["chunk_shapes"][0].tolist() == [8, 8]
        assert s["chunk_shapes"][0].tolist() == [4, 4]


def test_finding_structures(tmp_path, fixtures):
    assert next(f.name for f in find_structures(fixtures.parent)).startswith("MoS2")
    assert find_structures(fixtures / "MoS2_1x1_000") == [fixtures / "MoS2_1x1_000"]
    with pytest.raises(HamfastError, match="no structure folders found"):
        find_structures(tmp_path)
    with pytest.raises(HamfastError, match="folder not found"):
        find_structures(tmp_path / "nowhere")


@pytest.fixture
def copy(tmp_path, fixtures):
    return shutil.copytree(fixtures / "MoS2_1x1_000", tmp_path / "MoS2")


def change_entries(folder, change, name="hamiltonian.h5"):
    with h5py.File(folder / name, "r+") as file:
        entries = file["entries"][:]
        change(entries)
        file["entries"][:] = entries


def test_truncated_file(copy):
    path = copy / "hamiltonian.h5"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(HamfastError, match=r"hamiltonian.h5: not a readable HDF5 file, perhaps truncated"):
        read_snapshot(copy)


def test_missing_data_set_in_file(copy):
    with h5py.File(copy / "hamiltonian.h5", "r+") as file:
        del file["chunk_shapes"]
    with pytest.raises(HamfastError, match="expected the data set chunk_shapes"):
        read_snapshot(copy)


def test_nan(copy):
    change_entries(copy, lambda e: e.__setitem__(1000, np.nan))
    with pytest.raises(HamfastError, match=r"1 entries of the Hamiltonian are NaN or infinite, the first at R = \("):
        read_snapshot(copy)


def test_not_hermitian(copy):
    change_entries(copy, lambda e: e.__setitem__(5, e[5] + 0.1))
    with pytest.raises(
        HamfastError, match="the Hamiltonian is not Hermitian: block R = .* by 0.1, expected at most 0.001"
    ):
        read_snapshot(copy)


def test_orbital_list_does_not_fit(copy):
    info = json.loads((copy / "info.json").read_text())
    info["elements_orbital_map"]["S"] = [0, 0, 1]
    (copy / "info.json").write_text(json.dumps(info))
    with pytest.raises(HamfastError, match=r"has shape .* expected .* from the orbital lists .*S \[0, 0, 1\]"):
        read_snapshot(copy)


def test_overlap_with_pairs_that_h_lacks(copy):
    from hamfast.data.deeph import read_matrix, write_matrix

    h = read_matrix(copy / "hamiltonian.h5")
    far = h.pairs[-1]
    drop = {tuple(far), tuple([*(-far[:3]), far[4], far[3]])}
    keep = [n for n, p in enumerate(map(tuple, h.pairs.tolist())) if p not in drop]
    write_matrix(type(h).from_blocks(h.pairs[keep], [h.block(n) for n in keep]), copy / "hamiltonian.h5")
    with pytest.raises(HamfastError, match="the overlap has 2 atom pairs that the Hamiltonian lacks"):
        read_snapshot(copy)


def test_h_with_more_pairs_than_s_is_fine(copy):
    from hamfast.data.deeph import read_matrix, write_matrix

    s = read_matrix(copy / "overlap.h5")
    keep = [n for n, p in enumerate(s.pairs.tolist()) if p[:3] == [0, 0, 0]]
    write_matrix(type(s).from_blocks(s.pairs[keep], [s.block(n) for n in keep]), copy / "overlap.h5")
    snapshot = read_snapshot(copy)
    assert len(snapshot.hamiltonian) > len(snapshot.overlap)


def test_missing_reverse_pair(copy):
    from hamfast.data.deeph import read_matrix, write_matrix

    for name in ("hamiltonian.h5", "overlap.h5"):
        m = read_matrix(copy / name)
        write_matrix(type(m).from_blocks(m.pairs[:-1], [m.block(n) for n in range(len(m) - 1)]), copy / name)
    with pytest.raises(HamfastError, match="has no reverse pair"):
        read_snapshot(copy)


def test_missing_files(copy, tmp_path):
    (copy / "info.json").unlink()
    with pytest.raises(HamfastError, match="not a structure folder"):
        read_snapshot(copy)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    from hamfast.data.h5 import replacing

    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(HamfastError, match=r"could not be written \(No space left on device\)"), replacing(path) as t:
        t.write_text("half")
        raise OSError(28, "No space left on device")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
