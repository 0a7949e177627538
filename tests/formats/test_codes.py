"""Readers of DFT codes' own files, against the band energies that the codes printed.

The files in tests/data/native are of real calculations. There are none of ABACUS and FHI-aims:
their files are written here, in the layout of their documentation, from matrices of another code.
"""

import json
import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg

from hamfast.data import find_structures, read_snapshot
from hamfast.data.blocks import BlockMatrix
from hamfast.data.formats import format_of, read_structure
from hamfast.data.imports import import_calculations
from hamfast.errors import DataWarning, HamfastError

NATIVE = Path(__file__).parents[1] / "data" / "native"
SAMPLES = sorted(path.name.removesuffix(".tar.xz") for path in NATIVE.glob("*.tar.xz"))
TOLERANCE = 1e-3
"""eV; SIESTA prints four decimals, and its .HSX has single precision."""
HARTREE, RYDBERG = 27.2113845, 13.605698


@pytest.fixture(scope="session")
def native(tmp_path_factory):
    """Sample name -> folder of the calculation."""
    root = tmp_path_factory.mktemp("native")
    for path in NATIVE.glob("*.tar.xz"):
        with tarfile.open(path) as archive:
            archive.extractall(root / path.name.removesuffix(".tar.xz"), filter="data")
    return {name: next((root / name).iterdir()) for name in SAMPLES}


@pytest.fixture
def calculation(native, tmp_path):
    """A copy of a sample's folder that a test may spoil."""

    def copy(name):
        return shutil.copytree(native[name], tmp_path / "calculation")

    return copy


def dense(matrix: BlockMatrix, snapshot, k, spins):
    """``sum_R exp(2 pi i k R) M(R)``, with spin as the slowest index."""
    counts = [snapshot.num_orbitals(a) for a in range(snapshot.num_atoms)]
    starts = np.concatenate([[0], np.cumsum(counts)])
    whole = np.zeros((spins, starts[-1], spins, starts[-1]), dtype=complex)
    for n, (a, b, c, i, j) in enumerate(matrix.pairs.tolist()):
        block = matrix.block(n).reshape(spins, counts[i], spins, counts[j])
        phase = np.exp(2j * np.pi * np.dot(k, (a, b, c)))
        whole[:, starts[i] : starts[i + 1], :, starts[j] : starts[j + 1]] += phase * block
    return whole.reshape(spins * starts[-1], -1)


def bands(snapshot, k):
    spins = 2 if snapshot.spinful else 1
    h, s = dense(snapshot.hamiltonian, snapshot, k, spins), dense(snapshot.overlap, snapshot, k, 1)
    return scipy.linalg.eigh(h, np.kron(np.eye(spins), s), eigvals_only=True)


def check_bands(snapshot, folder, highest=20.0):
    """Compares with the energies of the code, up to ``highest`` eV above its Fermi level."""
    printed = json.loads((folder / "bands.json").read_text())
    for k, energies in zip(printed["k_fractional"], printed["energies_eV"], strict=True):
        expected = np.array([e for e in energies if e < snapshot.fermi_energy + highest])
        np.testing.assert_allclose(bands(snapshot, k)[: len(expected)], expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", SAMPLES)
def test_bands_are_those_that_the_code_printed(native, name):
    if name.startswith("siesta"):
        pytest.importorskip("sisl")
    folder = native[name]
    snapshot = read_snapshot(folder)
    assert name.split("-")[0] == format_of(folder).NAME
    assert snapshot.spinful == name.endswith("soc")
    check_bands(snapshot, folder)
    electrons = {"openmx-bismuthene_1x1_soc": 30, "siesta-bismuthene_1x1_soc": 30}.get(name, 8)
    assert snapshot.occupation == pytest.approx(electrons)


def test_hsx_of_siesta_4_needs_no_other_file_of_matrices(calculation):
    for name in ("siesta-graphene_1x1", "siesta-bismuthene_1x1_soc"):
        folder = calculation(name)
        (folder / "siesta.TSHS").unlink()
        check_bands(read_snapshot(folder), folder, highest=5.0)
        shutil.rmtree(folder)


def test_netcdf_of_siesta(calculation):
    """Written by sisl from the .TSHS, with the Fermi level as the zero of energy."""
    sisl = pytest.importorskip("sisl")
    pytest.importorskip("netCDF4")
    for name in ("siesta-graphene_1x1", "siesta-bismuthene_1x1_soc"):
        folder = calculation(name)
        expected = read_snapshot(folder)
        sisl.get_sile(folder / "siesta.TSHS").read_hamiltonian().write(str(folder / "siesta.nc"))
        for path in folder.iterdir():
            if path.suffix in (".TSHS", ".HSX", ".EIG", ".bands"):
                path.unlink()
        found = read_snapshot(folder)
        assert found.spinful == expected.spinful
        for k in ((0, 0, 0), (0.1, 0.2, 0)):
            levels = bands(expected, k) - expected.fermi_energy
            # Without its own Fermi level beside it SIESTA's rydberg is not known: 8e-6.
            np.testing.assert_allclose(bands(found, k), levels, rtol=1e-5, atol=TOLERANCE)
        shutil.rmtree(folder)


def test_cp2k_with_one_triangle_is_cp2k_with_both(calculation):
    folder = calculation("cp2k-graphene_1x1_text")
    expected = read_snapshot(folder)
    for path in folder.glob("*.csr"):
        kept = [line for line in path.read_text().splitlines() if int(line.split()[0]) <= int(line.split()[1])]
        path.write_text("\n".join(kept) + "\n")
    check_same(read_snapshot(folder), expected)
    shutil.rmtree(folder)


def test_the_structure_alone_is_that_of_the_whole(native):
    for name in SAMPLES:
        if name.startswith("siesta"):
            pytest.importorskip("sisl")
        alone, whole = read_structure(native[name]), read_snapshot(native[name])
        assert alone.hamiltonian is None and alone.shells == whole.shells
        np.testing.assert_array_equal(alone.positions, whole.positions)


# --- codes without a sample: files in their layout, from known matrices
# -------------------------------------------------------------------------------------------------

ABACUS = {0: [(0, 1)], 1: [(0, 1), (1, -1), (-1, -1)], 2: [(0, 1), (1, -1), (-1, -1), (2, 1), (-2, 1)]}
AIMS = {0: [(0, 1)], 1: [(-1, 1), (0, 1), (1, -1)], 2: [(-2, 1), (-1, 1), (0, 1), (1, -1), (2, 1)]}
"""l -> (m, sign) of each orbital of a shell, in the code's order."""


def in_order_of(code, snapshot):
    """The orbitals of the crystal as the code has them: atom, position in hamfast's order, sign,
    and (shell, l, m)."""
    found = []
    for atom, z in enumerate(snapshot.numbers.tolist()):
        start = 0
        for shell, l in enumerate(snapshot.shells[z]):
            found += [(atom, start + l + m, sign, (shell, l, m)) for m, sign in code[l]]
            start += 2 * l + 1
    return found


def elements(matrix, orbitals, spin=None):
    """(R, row, column) -> value, in a code's order; of one of the four spin blocks if asked for."""
    first, found = {}, {}
    for n, (atom, *_) in enumerate(orbitals):
        first.setdefault(atom, n)
    of_atom = {atom: [o for o in orbitals if o[0] == atom] for atom in first}
    for n, (a, b, c, i, j) in enumerate(matrix.pairs.tolist()):
        block = matrix.block(n)
        if spin is not None:
            half = (block.shape[0] // 2, block.shape[1] // 2)
            block = block.reshape(2, half[0], 2, half[1])[spin[0], :, spin[1], :]
        for x, (_, p, sign_p, _) in enumerate(of_atom[i]):
            for y, (_, q, sign_q, _) in enumerate(of_atom[j]):
                if block[p, q] != 0:
                    found[(a, b, c), first[i] + x, first[j] + y] = sign_p * sign_q * block[p, q]
    return found


def write_csr(path, what, values, size):
    """The sparse format of ABACUS."""
    cells = sorted({R for R, _, _ in values})
    lines = ["STEP: 0", f"Matrix Dimension of {what}(R): {size}", f"Matrix number of {what}(R): {len(cells)}"]
    for R in cells:
        own = sorted((row, column, v) for (cell, row, column), v in values.items() if cell == R)
        pointers = [sum(row < n for row, _, _ in own) for n in range(size + 1)]
        numbers = [f"({v.real:.16e},{v.imag:.16e})" if isinstance(v, complex) else f"{v:.16e}" for *_, v in own]
        lines += [f"{R[0]} {R[1]} {R[2]} {len(own)}", " ".join(numbers)]
        lines += [" ".join(str(column) for _, column, _ in own), " ".join(map(str, pointers))]
    path.write_text("\n".join(lines) + "\n")


def write_abacus(folder, snapshot):
    orbitals = in_order_of(ABACUS, snapshot)
    size = len(orbitals) * (2 if snapshot.spinful else 1)
    out = folder / "OUT.ABACUS"
    out.mkdir(parents=True)
    h, s = {}, {}
    if snapshot.spinful:  # orbital and spin alternate
        for a in range(2):
            for b in range(2):
                for (R, row, column), v in elements(snapshot.hamiltonian, orbitals, (a, b)).items():
                    h[R, 2 * row + a, 2 * column + b] = complex(v) / RYDBERG
            for (R, row, column), v in elements(snapshot.overlap, orbitals).items():
                s[R, 2 * row + a, 2 * column + a] = complex(v)
    else:
        h = {key: float(v) / RYDBERG for key, v in elements(snapshot.hamiltonian, orbitals).items()}
        s = {key: float(v) for key, v in elements(snapshot.overlap, orbitals).items()}
    write_csr(out / "data-HR-sparse_SPIN0.csr", "H", h, size)
    write_csr(out / "data-SR-sparse_SPIN0.csr", "S", s, size)
    (out / "running_scf.log").write_text(
        f" charge density convergence is achieved\n EFERMI = {snapshot.fermi_energy} eV\n"
    )
    bohr = 0.529177249
    lines = ["ATOMIC_SPECIES"]
    symbols = list(dict.fromkeys(snapshot.atoms.get_chemical_symbols()))
    lines += [f"{symbol} 1.0 {symbol}.upf" for symbol in symbols] + ["", "NUMERICAL_ORBITAL"]
    for z in snapshot.elements:
        counted = "".join(f"{snapshot.shells[z].count(l)}{'spd'[l]}" for l in sorted(set(snapshot.shells[z])))
        lines.append(f"X_gga_7au_100Ry_{counted}.orb")
    lines += ["", "LATTICE_CONSTANT", f"{1 / bohr}", "", "LATTICE_VECTORS"]
    lines += [" ".join(f"{x:.14f}" for x in vector) for vector in snapshot.cell] + ["", "ATOMIC_POSITIONS", "Direct"]
    fractions = snapshot.positions @ np.linalg.inv(snapshot.cell)
    for z, symbol in zip(snapshot.elements, symbols, strict=True):
        own = fractions[snapshot.numbers == z]
        lines += ["", symbol, "0.0", str(len(own))] + [" ".join(f"{x:.14f}" for x in f) + " 1 1 1" for f in own]
    (folder / "STRU").write_text("\n".join(lines) + "\n")


def write_aims(folder, snapshot):
    orbitals = in_order_of(AIMS, snapshot)
    folder.mkdir(parents=True)
    fortran = []
    for n, (atom, _, _, (shell, l, m)) in enumerate(orbitals, 1):
        fortran.append(f"{n:5d} atomic {atom + 1:3d} {shell + l + 1:3d} {l:3d} {m:3d}")
    (folder / "basis-indices.out").write_text("\n  fn.   type   at.   n   l   m\n" + "\n".join(fortran) + "\n")
    lines = ["lattice_vector " + " ".join(f"{x:.14f}" for x in v) for v in snapshot.cell]
    for position, symbol in zip(snapshot.positions, snapshot.atoms.get_chemical_symbols(), strict=True):
        lines.append("atom " + " ".join(f"{x:.14f}" for x in position) + f" {symbol}")
    (folder / "geometry.in").write_text("\n".join(lines) + "\n")
    h, s = elements(snapshot.hamiltonian, orbitals), elements(snapshot.overlap, orbitals)
    cells = sorted({R for R, _, _ in h}, key=lambda R: (R != (0, 0, 0), R))
    size, places, columns, hamiltonian, overlap = len(orbitals), {}, [], [], []
    for c, cell in enumerate(cells):
        for row in range(size):
            begin = len(columns)
            for column in range(row, size):  # half of the elements, a row in the cell R, a column at home
                key = (tuple(-x for x in cell), row, column)
                if key in h:
                    columns.append(column + 1)
                    hamiltonian.append(h[key] / HARTREE)
                    overlap.append(s.get(key, 0.0))
            places[c, row] = (begin + 1, len(columns)) if len(columns) > begin else (0, -1)
    text = [f"n_hamiltonian_matrix_size: {len(columns) + 1}", f"n_cells_in_hamiltonian: {len(cells) + 1}"]
    text += [f"n_basis: {size}", "cell_index", *(" ".join(map(str, R)) for R in cells), "999999999 " * 3]
    for which in range(2):
        text.append(f"index_hamiltonian({which + 1},:,:)")
        text += [" ".join(str(places[c, row][which]) for row in range(size)) for c in range(len(cells))]
        text.append(" ".join(["0" if which == 0 else "-1"] * size))
    text += ["column_index_hamiltonian", *map(str, columns), "0"]
    (folder / "rs_indices.out").write_text("\n".join(text) + "\n")
    (folder / "rs_hamiltonian.out").write_text("\n".join(f"{v:.16e}" for v in [*hamiltonian, 0.0]) + "\n")
    (folder / "rs_overlap.out").write_text("\n".join(f"{v:.16e}" for v in [*overlap, 0.0]) + "\n")
    (folder / "aims.out").write_text(
        "Invoking FHI-aims ...\n Self-consistency cycle converged.\n"
        f"  | Chemical potential (Fermi level) in eV                 :  {snapshot.fermi_energy:.12f}\n Have a nice day.\n"
    )


def check_same(found, expected, tolerance=1e-7):
    assert found.shells == expected.shells and found.spinful == expected.spinful
    assert found.fermi_energy == pytest.approx(expected.fermi_energy)
    np.testing.assert_allclose(found.positions, expected.positions, atol=1e-9)
    for mine, theirs in ((found.hamiltonian, expected.hamiltonian), (found.overlap, expected.overlap)):
        assert set(mine.index) >= {tuple(p) for n, p in enumerate(theirs.pairs.tolist()) if theirs.block(n).any()}
        for pair, n in mine.index.items():
            np.testing.assert_allclose(mine.block(n), theirs.block(theirs.index[pair]), atol=tolerance)


@pytest.mark.parametrize("name", ["openmx-graphene_1x1", "cp2k-hBN_1x1_binary", "openmx-bismuthene_1x1_soc"])
def test_abacus(native, tmp_path, name):
    expected = read_snapshot(native[name])
    write_abacus(tmp_path / "run", expected)
    found = read_snapshot(tmp_path / "run")
    assert format_of(tmp_path / "run").NAME == "abacus"
    check_same(found, expected)


@pytest.mark.parametrize("name", ["openmx-graphene_1x1", "cp2k-hBN_1x1_binary"])
def test_fhi_aims(native, tmp_path, name):
    expected = read_snapshot(native[name])
    write_aims(tmp_path / "run", expected)
    found = read_snapshot(tmp_path / "run")
    assert format_of(tmp_path / "run").NAME == "fhi-aims"
    check_same(found, expected)


def test_fhi_aims_with_cells_the_other_way_round_is_refused(native, tmp_path):
    write_aims(tmp_path / "run", read_snapshot(native["openmx-graphene_1x1"]))
    path = tmp_path / "run" / "rs_indices.out"
    before, cells, after = re.split(r"(?<=cell_index\n)(.*?)(?=999999999)", path.read_text(), flags=re.DOTALL)
    flipped = "\n".join(" ".join(str(-int(x)) for x in line.split()) for line in cells.splitlines())
    path.write_text(f"{before}{flipped}\n{after}")
    with pytest.raises(HamfastError, match="large overlaps belong to distant atoms"):
        read_snapshot(tmp_path / "run")


def test_two_spin_channels_are_the_two_blocks_of_a_spinful_matrix(native, tmp_path):
    """Of FHI-aims, with the second channel 0.5 eV S above the first."""
    one = read_snapshot(native["cp2k-hBN_1x1_binary"])
    write_aims(tmp_path / "run", one)
    hamiltonian, overlap = (np.loadtxt(tmp_path / "run" / f"rs_{name}.out") for name in ("hamiltonian", "overlap"))
    np.savetxt(tmp_path / "run" / "rs_hamiltonian_up.out", hamiltonian)
    np.savetxt(tmp_path / "run" / "rs_hamiltonian_dn.out", hamiltonian + 0.5 / HARTREE * overlap)
    (tmp_path / "run" / "rs_hamiltonian.out").unlink()
    found = read_snapshot(tmp_path / "run")
    assert found.spinful
    single = bands(one, (0.1, 0.2, 0))
    np.testing.assert_allclose(bands(found, (0.1, 0.2, 0)), np.sort([*single, *(single + 0.5)]), atol=1e-6)


@pytest.fixture(scope="session")
def chain():
    """A chain of CH+ of PySCF, with a density from three k points."""
    gto, dft = pytest.importorskip("pyscf.pbc.gto"), pytest.importorskip("pyscf.pbc.dft")
    atoms = [["C", (0.1, 0.0, 0.0)], ["H", (1.35, 0.3, 0.2)]]
    shape = np.diag([3.0, 7.0, 7.0])
    cell = gto.M(a=shape, atom=atoms, unit="A", basis="gth-szv", pseudo="gth-pade", verbose=0, ke_cutoff=40.0, charge=1)
    mean_field = dft.KRKS(cell, cell.make_kpts([3, 1, 1]), xc="lda,vwn").smearing(0.01, "fermi")
    mean_field.kernel()
    return mean_field


@pytest.mark.filterwarnings("error")  # such as of overlaps that do not point along their bond
def test_pyscf(chain):
    from hamfast.data.codes.pyscf import from_mean_field
    from hamfast.data.plausible import warn_of_mix_ups

    snapshot = from_mean_field(chain, [9, 1, 1])
    warn_of_mix_ups(snapshot, "chain")
    assert snapshot.shells == {6: (0, 1), 1: (0,)} and snapshot.occupation == 4
    points = [(0.13, 0, 0), (0.4, 0, 0), (0, 0, 0)]
    expected = 27.211386245988 * np.array(chain.get_bands(chain.cell.get_abs_kpts(points))[0])
    for k, energies in zip(points, expected, strict=True):
        np.testing.assert_allclose(bands(snapshot, k), energies, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("kind", "points"), [("KRKS", 7), ("KUKS", 7), ("KRKS", 4)])
def test_checkpoint_of_pyscf(tmp_path, kind, points):
    gto, dft = pytest.importorskip("pyscf.pbc.gto"), pytest.importorskip("pyscf.pbc.dft")
    atoms = [["H", (0.1, 0.0, 0.0)], ["H", (0.8, 0.3, 0.2)]]
    shape = np.diag([4.0, 6.0, 6.0])
    cell = gto.M(a=shape, atom=atoms, unit="A", basis="gth-szv", pseudo="gth-pade", verbose=0, ke_cutoff=25.0)
    mean_field = getattr(dft, kind)(cell, cell.make_kpts([points, 1, 1]), xc="lda,vwn")
    mean_field.chkfile = str(tmp_path / "run.chk")
    mean_field.kernel()
    if points == 4:
        with pytest.raises(HamfastError, match="full mesh of k points around Gamma with odd numbers"):
            read_snapshot(tmp_path)
        return
    with pytest.warns(DataWarning, match="does not say whether the SCF converged"):
        found = read_snapshot(tmp_path)
    assert found.occupation == 2 and found.spinful == (kind == "KUKS")
    expected = np.asarray(mean_field.mo_energy) * 27.211386245988
    for n, k in enumerate(cell.get_scaled_kpts(mean_field.kpts)):
        np.testing.assert_allclose(bands(found, k), np.sort(expected[..., n, :].ravel()), rtol=0, atol=TOLERANCE)


def test_pyscf_with_a_mesh_that_does_not_reach(chain):
    from hamfast.data.codes.pyscf import from_mean_field

    with pytest.raises(HamfastError, match="do not reach as far as H"):
        from_mean_field(chain, [3, 1, 1])
    with pytest.raises(HamfastError, match="three odd numbers"):
        from_mean_field(chain, [4, 1, 1])
    with pytest.raises(HamfastError, match="periodic mean field"):
        from_mean_field(object(), [3, 1, 1])


# --- what is wrong with a calculation
# -------------------------------------------------------------------------------------------------


def test_a_file_that_ends_too_early(calculation):
    folder = calculation("openmx-graphene_1x1")
    content = (folder / "openmx.scfout").read_bytes()
    for size in (3, 100, len(content) // 2, len(content) - 5000):
        (folder / "openmx.scfout").write_bytes(content[:size])
        with pytest.raises(HamfastError, match=r"openmx\.scfout: "):
            read_snapshot(folder)


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "words"),
    [
        ("cp2k-graphene_1x1_text", "cp2k.out", "SCF run converged in", "SCF run NOT converged in", "did not converge"),
        ("cp2k-graphene_1x1_text", "cp2k.out", "KS CSR write|", "KS |", "KS CSR write"),
        ("siesta-graphene_1x1", "siesta.out", "Job completed", "", "did not end"),
        ("siesta-graphene_1x1", "siesta.out", ">> End of run", "SCF_NOT_CONV", "did not converge"),
    ],
)
def test_an_unfinished_calculation(calculation, name, file, old, new, words):
    folder = calculation(name)
    text = (folder / file).read_text().replace(old, new)
    (folder / file).write_text(text.replace(">> End of run", "") if words == "did not end" else text)
    with pytest.raises(HamfastError, match=re.escape(words)):
        read_snapshot(folder)


def test_files_of_two_calculations(calculation):
    folder = calculation("cp2k-graphene_1x1_text")
    (folder / "g-KS_SPIN_1_R_3-1_0.csr").write_text("")
    with pytest.raises(HamfastError, match="is empty"):
        read_snapshot(folder)
    shutil.rmtree(folder)
    folder = calculation("cp2k-graphene_1x1_text")
    for path in folder.glob("*.csr"):
        path.rename(folder / path.name.replace("-1_0.csr", "-1_7.csr"))
    with pytest.raises(HamfastError, match="of step 7 of a relaxation"):
        read_snapshot(folder)


def test_a_missing_file(calculation, tmp_path):
    folder = calculation("cp2k-graphene_1x1_text")
    (folder / "g-S_SPIN_1_R_7-1_0.csr").unlink()
    with pytest.raises(HamfastError, match=r"g-S_SPIN_1_R_7-1_0\.csr: expected a file for each lattice vector"):
        read_snapshot(folder)


# --- trees
# -------------------------------------------------------------------------------------------------


def test_a_tree_is_imported_restarted_and_reported(native, tmp_path):
    tree, target = tmp_path / "tree", tmp_path / "set"
    good = shutil.copytree(native["openmx-graphene_1x1"], tree / "a" / "001")
    shutil.copytree(native["cp2k-hBN_1x1_binary"], tree / "b" / "deep" / "001")
    bad = shutil.copytree(native["openmx-graphene_1x1"], tree / "a" / "002")
    (bad / "openmx.scfout").write_bytes((bad / "openmx.scfout").read_bytes()[:5000])
    done = import_calculations(tree, target, processes=1)
    assert sorted(done.written) == ["a__001", "b__deep__001"] and list(done.skipped) == ["a__002"]
    assert "ends in the middle" in done.skipped["a__002"]
    assert json.loads((target / "import.json").read_text())["skipped"] == done.skipped
    assert [p.name for p in find_structures(target)] == ["a__001", "b__deep__001"]
    check_bands(read_snapshot(target / "dft" / "a__001"), good)
    # The calculation is mended, and the import started again.
    shutil.copyfile(good / "openmx.scfout", bad / "openmx.scfout")
    again = import_calculations(tree, target, processes=2)
    assert list(again.written) == ["a__002"] and sorted(again.there) == ["a__001", "b__deep__001"] and not again.skipped
    # A calculation that has changed is not taken for the one that is there.
    content = (good / "openmx.scfout").read_bytes()
    (good / "openmx.scfout").write_bytes(content + b" ")
    assert "earlier state" in import_calculations(tree, target, processes=1).skipped["a__001"]


def test_links_are_followed_and_nothing_is_found_twice(native, tmp_path):
    tree = tmp_path / "tree"
    (tree / "real").mkdir(parents=True)
    shutil.copytree(native["cp2k-hBN_1x1_binary"], tree / "real" / "one")
    outside = shutil.copytree(native["cp2k-graphene_1x1_text"], tmp_path / "outside")
    (tree / "linked").symlink_to(outside)
    (tree / "loop").symlink_to(tree)
    done = import_calculations(tree, tmp_path / "set", processes=1)
    assert sorted(done.written) == ["linked", "real__one"]


def test_two_codes_in_a_folder_have_to_be_told_apart(native, tmp_path):
    tree = shutil.copytree(native["openmx-graphene_1x1"], tmp_path / "tree")
    shutil.copytree(native["cp2k-hBN_1x1_binary"], tree, dirs_exist_ok=True)
    assert "say which by --code" in import_calculations(tree, tmp_path / "any", processes=1).skipped["tree"]
    import_calculations(tree, tmp_path / "set", "cp2k", processes=1)
    assert read_snapshot(tmp_path / "set" / "dft" / "tree").elements == (5, 7)


def test_a_folder_without_calculations(tmp_path):
    with pytest.raises(HamfastError, match="no calculation found"):
        import_calculations(tmp_path, tmp_path / "set")
    with pytest.raises(HamfastError, match="--code: expected one of openmx"):
        import_calculations(tmp_path, tmp_path / "set", "vasp")
