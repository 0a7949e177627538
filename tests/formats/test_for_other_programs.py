"""H and S for other programs: what their own readers make of it has the levels of the DFT code."""

import warnings
from dataclasses import replace

import h5py
import numpy as np
import pytest
import scipy.linalg
import scipy.sparse
from kit import random_snapshot

from hamfast.analysis.eigen import eigen_problem
from hamfast.data import read_snapshot
from hamfast.data.export import export
from hamfast.data.formats import by_name, format_of
from hamfast.errors import HamfastError

SHELLS = {6: (0, 0, 1), 83: (0, 1, 2), 8: (1,)}
CASES = [([6, 83, 8, 6], False), ([83, 6, 83], True)]
K = [[0.1, 0.2, 0.0], [0.5, 0.0, 0.3]]


def levels(snapshot):
    return eigen_problem(snapshot).bands(K)


@pytest.mark.parametrize(("numbers", "spinful"), CASES, ids=["plain", "soc"])
def test_abacus(tmp_path, numbers, spinful):
    """Its reader, which was tested on files of its own, finds the same levels; atoms are sorted."""
    snapshot = random_snapshot(SHELLS, numbers, spinful)
    files = export(snapshot, tmp_path / "out")
    assert [f.name for f in files] == ["hrs1_nao.csr", "srs1_nao.csr", "STRU"]
    assert format_of(tmp_path / "out").NAME == "abacus"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no log
        found = read_snapshot(tmp_path / "out")
    order = np.argsort([list(dict.fromkeys(numbers)).index(z) for z in numbers], kind="stable")
    np.testing.assert_array_equal(found.numbers, np.array(numbers)[order])
    np.testing.assert_allclose(found.positions, snapshot.positions[order], atol=1e-9)
    np.testing.assert_allclose(levels(found), levels(snapshot), atol=1e-8)


@pytest.mark.parametrize(("numbers", "spinful"), CASES, ids=["plain", "soc"])
def test_hdf5(tmp_path, numbers, spinful):
    """As a user would read it: H(k) and S(k) summed by hand."""
    snapshot = replace(random_snapshot(SHELLS, numbers, spinful), occupation=4.0, fermi_energy=0.3)
    export(snapshot, tmp_path / "x.h5")
    with h5py.File(tmp_path / "x.h5") as file:
        size, found = len(file["orbital_l"]), {}
        for name, rows in (("H", size * (2 if spinful else 1)), ("S", size)):
            cells = []
            for n in range(len(file["R"])):
                data, indices, indptr = (file[f"{name}/{n}/{part}"][()] for part in ("data", "indices", "indptr"))
                cells.append(scipy.sparse.csr_matrix((data, indices, indptr), shape=(rows, rows)).toarray())
            phase = np.exp(2j * np.pi * np.array(K) @ file["R"][()].T)
            found[name] = np.einsum("kr,rij->kij", phase, np.array(cells))
        assert file.attrs["occupation"] == 4.0 and file.attrs["fermi_energy"] == 0.3
        np.testing.assert_array_equal(file["numbers"], numbers)
        assert file["orbital_atom"][-1] == len(numbers) - 1
    for h, s, expected in zip(found["H"], found["S"], levels(snapshot), strict=True):
        if spinful:
            s = np.kron(s, np.eye(2))  # up and down of an orbital follow each other
        np.testing.assert_allclose(scipy.linalg.eigh(h, s, eigvals_only=True), expected, atol=1e-9)


def test_sisl(tmp_path):
    """A file of SIESTA's kind, read by sisl."""
    sisl = pytest.importorskip("sisl")
    snapshot = random_snapshot(SHELLS, [6, 83, 8])
    export(snapshot, tmp_path / "x.TSHS")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        there = sisl.get_sile(tmp_path / "x.TSHS").read_hamiltonian()
        for k, expected in zip(K, levels(snapshot), strict=True):
            np.testing.assert_allclose(there.eigh(k), expected, atol=1e-6)
    with pytest.raises(HamfastError, match="sisl does not write a Hamiltonian as .xyz"):
        export(snapshot, tmp_path / "x.xyz")
    assert [p.name for p in tmp_path.iterdir()] == ["x.TSHS"]


def test_what_cannot_be_exported(tmp_path):
    snapshot = random_snapshot(SHELLS, [6])
    with pytest.raises(HamfastError, match="there is no Hamiltonian"):
        export(replace(snapshot, hamiltonian=None), tmp_path / "x.h5")
    with pytest.raises(HamfastError, match="expected H and S, found only one"):
        export(replace(snapshot, overlap=None), tmp_path / "out")
    (tmp_path / "there.h5").write_text("")
    with pytest.raises(HamfastError, match="there.h5: exists already"):
        export(snapshot, tmp_path / "there.h5")
    unsorted = random_snapshot({6: (1, 0)}, [6])
    with pytest.raises(HamfastError, match="sorted by l, C has"):
        export(unsorted, tmp_path / "out")


def test_command(hamfast, tmp_path):
    """The predicted H if there is one, and DFT's on request."""
    snapshot = random_snapshot({6: (0, 0, 1)}, [6, 6])
    folder = tmp_path / "s"
    by_name("deeph").write(snapshot, folder)
    assert "(DFT)" in hamfast("export", folder, tmp_path / "a.h5")[1]
    other = replace(snapshot.hamiltonian, entries=2 * snapshot.hamiltonian.entries)
    by_name("deeph").write_prediction(snapshot, other, folder)
    assert "(predicted)" in hamfast("export", folder, tmp_path / "b.h5")[1]
    assert "(DFT)" in hamfast("export", folder, tmp_path / "c.h5", "--dft")[1]
    values = []
    for name in "abc":
        with h5py.File(tmp_path / f"{name}.h5") as file:
            values.append(file["H/0/data"][()])
    np.testing.assert_allclose(values[1], 2 * values[0], rtol=1e-6)
    np.testing.assert_array_equal(values[2], values[0])
