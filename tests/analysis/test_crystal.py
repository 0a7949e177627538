"""From atoms alone to H, S and bands, against the overlap of DFT for a structure not trained on."""

import codecs
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk, graphene
from ase.io import read as ase_read
from ase.io import write as ase_write
from ase.spacegroup import crystal
from kit import tiny_checkpoint
from rich.console import Console

import hamfast
from hamfast.analysis import predict
from hamfast.analysis.crystal import _frames, read_atoms, snapshot_of
from hamfast.analysis.eigen import eigen_problem
from hamfast.analysis.prediction import write_prediction
from hamfast.data import build_graph, read_snapshot
from hamfast.data.blocks import BlockMatrix
from hamfast.data.formats import detect
from hamfast.data.graphs import blocks_from_irreps
from hamfast.errors import DataWarning, HamfastError
from hamfast.training import Run, load_model
from hamfast.training.config import parse_config

GRAPHENE = Path(__file__).parents[2] / "examples" / "graphene"
UNSEEN = GRAPHENE / "dft" / "3x3_023"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A model without a network: what is fitted in closed form."""
    folder = tmp_path_factory.mktemp("crystal")
    content = {
        "output": str(folder / "run"),
        "data": {"root": str(GRAPHENE), "cache": str(folder / "cache")},
        "target": {"shift": "radial"},
        "stage1": None,
        "stage2": None,
        "training": {"stage1": None, "stage2": None},
    }
    return Run(parse_config(content, "test"), Console(quiet=True)).train()


CUBIC = """data_si
_cell_length_a 5.43
_cell_length_b 5.43
_cell_length_c 5.43
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'F d -3 m'
_symmetry_Int_Tables_number 227
loop_
_atom_site_label
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
Si 0 0 0
"""


@pytest.fixture
def structure_file(tmp_path):
    """The atoms of an unseen structure, and nothing else."""
    path = tmp_path / "sheet.cif"
    ase_write(path, read_snapshot(UNSEEN).atoms)
    return path


def test_cifs_are_read_as_ase_reads_them(tmp_path):
    """Also without symmetry, where ASE compares all atoms with each other and hamfast does not."""
    rattled = graphene("C2", a=2.46, size=(3, 3, 1), vacuum=8.0)
    rattled.rattle(0.03, seed=1)
    rattled.positions -= 5.0  # out of the cell
    silicon = crystal("Si", [(0, 0, 0)], spacegroup=227, cellpar=[5.43, 5.43, 5.43, 90, 90, 90])
    cases = {"plain": rattled, "two": [rattled, bulk("Si")], "cubic": silicon}
    for name, atoms in cases.items():
        ase_write(tmp_path / f"{name}.cif", atoms)
    whole = (tmp_path / "plain.cif").read_text()
    (tmp_path / "part.cif").write_text(whole.replace("1.0000\n", "0.5000\n", 1))
    symmetric = whole.replace("'x, y, z'", "'x, y, z'\n  '-x, -y, -z'")
    (tmp_path / "inversion.cif").write_text(symmetric)
    (tmp_path / "group.cif").write_text(CUBIC)
    cases["plain"].positions[1] = cases["plain"].positions[0] + cases["plain"].cell[0]  # the same atom
    ase_write(tmp_path / "twice.cif", cases["plain"])
    assert symmetric != whole
    for path in sorted(tmp_path.glob("*.cif")):
        expected, found = ase_read(path, index=":"), _frames(path)
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert a.pbc.all()
            np.testing.assert_array_equal(a.numbers, b.numbers)
            np.testing.assert_array_equal(a.cell.array, b.cell.array)
            np.testing.assert_array_equal(a.positions, b.positions)
    assert len(ase_read(tmp_path / "inversion.cif")) > len(rattled) and len(ase_read(tmp_path / "group.cif")) == 8
    nameless = tmp_path / "nameless.cif"
    lines = [line for line in whole.splitlines() if "space_group_name" not in line and "IT_number" not in line]
    nameless.write_text("\n".join(lines) + "\n")
    np.testing.assert_array_equal(_frames(nameless)[0].positions, ase_read(tmp_path / "plain.cif").positions)
    marked = tmp_path / "marked.cif"
    for name in ("two", "group"):  # some editors begin a file with a mark, at which ASE stumbles
        marked.write_bytes(codecs.BOM_UTF8 + (tmp_path / f"{name}.cif").read_bytes())
        for a, b in zip(_frames(marked), ase_read(tmp_path / f"{name}.cif", index=":"), strict=True):
            np.testing.assert_array_equal(a.positions, b.positions)


def test_sites_that_are_means_are_refused(checkpoint, structure_file):
    """ASE takes one of their atoms, whole."""
    loaded, whole = load_model(checkpoint), structure_file.read_text()
    structure_file.write_text(whole.replace("1.0000\n", "?\n", 1))
    assert read_atoms(loaded, structure_file)[0].num_atoms == 18
    structure_file.write_text(whole.replace("1.0000\n", "0.5000\n", 1))
    with pytest.raises(HamfastError, match=r"expected one whole atom on each site, found the occupancies C 0\.5;"):
        read_atoms(loaded, structure_file)
    line = next(line for line in whole.splitlines() if line.endswith("1.0000"))
    half = line.replace("1.0000", "0.5000")
    structure_file.write_text(f"{whole.replace(line, half).rstrip()}\n{half.replace(' C ', ' N ')}\n")
    with pytest.raises(HamfastError, match=r"found the occupancies C 0\.5, N 0\.5; choose"):
        read_atoms(loaded, structure_file)


def test_the_overlap_is_that_of_dft(checkpoint):
    overlap = load_model(checkpoint).model.overlap
    expected = read_snapshot(UNSEEN)
    found = overlap.matrix(expected, expected.overlap.pairs)
    np.testing.assert_array_equal(found.pairs, expected.overlap.pairs)
    error = np.abs(found.entries - expected.overlap.entries)
    assert error.mean() < 1e-6 and error.max() < 1e-5
    assert overlap.num_electrons(expected) == pytest.approx(expected.occupation)
    mean, largest = overlap.error
    assert 0 < mean < 1e-6 and largest < 2e-3  # of the validation set, with a shorter bond


def test_bands_with_the_fitted_overlap_are_those_with_dfts(checkpoint):
    """Of the Hamiltonian of DFT; 0.03 meV is what the exact overlap's own rounding makes."""
    snapshot = read_snapshot(UNSEEN)
    points = [(0, 0, 0), (1 / 3, 1 / 3, 0), (0.13, 0.27, 0)]
    expected = eigen_problem(snapshot).levels(points).energies
    snapshot.overlap = load_model(checkpoint).model.overlap.matrix(snapshot, snapshot.overlap.pairs)
    found = eigen_problem(snapshot).levels(points).energies
    near = slice(0, int(snapshot.occupation) // 2 + 10)
    np.testing.assert_allclose(found[:, near], expected[:, near], rtol=0, atol=3e-5)


def test_a_bond_shorter_than_those_of_the_training_is_told(checkpoint):
    with pytest.warns(DataWarning, match=r"its overlap is extrapolated: .* a pair C-C of 1\.23 angstrom"):
        hamfast.load(checkpoint).predict(read_snapshot(GRAPHENE / "dft" / "3x3_022").atoms)


def test_another_basis_of_the_same_shells_is_refused(checkpoint):
    """Overlaps of orbitals that reach less far; those of the training's basis pass."""
    model, snapshot = hamfast.load(checkpoint), read_snapshot(UNSEEN)
    model.predict(snapshot)
    length = np.linalg.norm(snapshot.pair_vectors(snapshot.overlap.pairs), axis=1)
    other = [snapshot.overlap.block(n) * (1.0 if length[n] < 1e-6 else 0.8) for n in range(len(snapshot.overlap.pairs))]
    snapshot.overlap = BlockMatrix.from_blocks(snapshot.overlap.pairs, other)
    with pytest.raises(HamfastError, match="its overlap is not that of the model's orbitals"):
        model.predict(snapshot)


def test_one_line_each(checkpoint):
    model = hamfast.load(checkpoint)
    crystal = model.predict(read_snapshot(UNSEEN))
    assert repr(model).startswith("Model(C; looks ") and repr(crystal) == "Crystal(3x3_023: C18, 234 orbitals)"
    assert "5 k-points, 234 bands" in repr(crystal.bands("GK", points=4))


def test_a_bare_structure_gets_its_bands(checkpoint, structure_file, tmp_path):
    from hamfast.cli import main

    with pytest.raises(SystemExit) as done:
        main(["predict", str(checkpoint), str(structure_file), "--output", str(tmp_path / "out")])
    assert done.value.code == 0
    folder = tmp_path / "out" / "sheet"
    assert detect(folder).NAME == "deeph"
    found = read_snapshot(folder, hamiltonian="prediction")
    expected = predict(load_model(checkpoint), read_snapshot(UNSEEN)).refined
    assert set(expected.index) <= set(found.hamiltonian.index)
    # A CIF has a few decimals, and its atoms may be those of other cells.
    assert found.hamiltonian.norm() == pytest.approx(expected.norm(), rel=1e-6)
    with pytest.raises(SystemExit) as done:
        main(["bands", str(folder), "--kpath", "GK", "--points", "6", "--output", str(tmp_path / "bands")])
    assert done.value.code == 0 and (tmp_path / "bands" / "bands.png").exists()
    with pytest.raises(SystemExit) as done:  # its own earlier prediction is written over
        main(["predict", str(checkpoint), str(structure_file), "--output", str(tmp_path / "out")])
    assert done.value.code == 0


def test_in_python(checkpoint, tmp_path):
    atoms = read_snapshot(UNSEEN).atoms
    crystal = hamfast.load(checkpoint).predict(atoms)
    h, s = crystal.H((0.1, 0.2, 0)), crystal.S((0.1, 0.2, 0))
    np.testing.assert_allclose(h, h.conj().T, atol=1e-9)
    assert np.linalg.eigvalsh(s).min() > 0 and h.shape == s.shape == (234, 234)
    crystal.bands("GK", points=6).plot(tmp_path / "bands.png")
    assert (tmp_path / "bands.png").read_bytes()[:4] == b"\x89PNG"
    again = read_snapshot(crystal.to_deeph(tmp_path / "deeph"))
    np.testing.assert_array_equal(again.hamiltonian.entries, crystal.snapshot.hamiltonian.entries)


def test_several_at_once(tmp_path, fixtures):
    """Cells of other sizes, with a network: each as if it was alone."""
    path = tmp_path / "model.ckpt"
    tiny_checkpoint(path, [fixtures / "graphene_1x1_000", fixtures / "hBN_1x1_000"])
    model = hamfast.load(path)
    folders = [fixtures / name for name in ("graphene_1x1_000", "hBN_1x1_000", "graphene_1x1_001")]
    for folder, found in zip(folders, model.predict(folders), strict=True):
        expected = predict(model.loaded, read_snapshot(folder)).refined
        np.testing.assert_array_equal(found.snapshot.hamiltonian.pairs, expected.pairs)
        np.testing.assert_allclose(found.snapshot.hamiltonian.entries, expected.entries, rtol=0, atol=1e-5)


def test_a_file_and_a_folder_without_overlap(checkpoint, structure_file, tmp_path):
    model = hamfast.load(checkpoint)
    crystal = model.predict(structure_file)
    assert crystal.H((0, 0, 0)).shape == (234, 234)
    with pytest.raises(HamfastError, match="expected ASE's atoms, a folder or a file"):
        model.predict(None)
    folder = GRAPHENE / "dft" / "3x3_007"  # has a Hamiltonian, and no overlap
    write_prediction(model.loaded, folder, tmp_path / "out")
    assert read_snapshot(tmp_path / "out").overlap is not None


def test_a_molecule_in_a_small_box_is_told(checkpoint):
    atoms = read_snapshot(UNSEEN).atoms
    atoms.pbc = (True, True, False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        snapshot_of(load_model(checkpoint), atoms)  # 12 angstrom of vacuum
    atoms.pbc = False
    with pytest.warns(DataWarning, match="not periodic in every direction"):
        snapshot_of(load_model(checkpoint), atoms)


def test_to_sisl_and_back(checkpoint):
    """sisl's own H(k) has the eigenvalues of ours, and a matrix of SIESTA comes back as it went."""
    sisl = pytest.importorskip("sisl")
    import scipy.linalg

    crystal = hamfast.load(checkpoint).predict(UNSEEN)
    there = crystal.to_sisl()
    assert isinstance(there, sisl.Hamiltonian)
    k = (0.13, 0.27, 0)
    expected = scipy.linalg.eigh(crystal.H(k), crystal.S(k), eigvals_only=True)
    np.testing.assert_allclose(there.eigh(k), expected, atol=1e-8)


def test_what_cannot_be_told(checkpoint, tmp_path):
    model = hamfast.load(checkpoint)
    atoms = read_snapshot(UNSEEN).atoms
    dense = atoms.copy()
    dense.set_cell(dense.cell * 0.75, scale_atoms=True)
    with pytest.raises(HamfastError, match=r"overlap cannot be told: .* is a pair C-C of \d\.\d\d angstrom"):
        model.predict(dense)
    other = atoms.copy()
    other.numbers[0] = 7
    with pytest.raises(HamfastError, match="element N is unknown to the model, which knows C"):
        model.predict(other)
    loose = atoms.copy()
    loose.cell = None
    with pytest.raises(HamfastError, match="three lattice vectors"):
        model.predict(loose)
    text = tmp_path / "no.cif"
    text.write_text("nothing")
    from hamfast.analysis.crystal import read_atoms

    with pytest.raises(HamfastError, match=r"no\.cif: ASE cannot read|no\.cif: expected a structure"):
        read_atoms(model.loaded, text)


def test_the_prediction_of_a_network_without_symmetry_is_hermitian(tmp_path):
    """DeepH-E3's blocks are not those of a Hermitian matrix; their Hermitian part has bands."""
    loaded = load_model(tiny_checkpoint(tmp_path / "model.ckpt", [GRAPHENE / "dft" / "3x3_000"]))
    loaded.model.hermitian = False
    snapshot = read_snapshot(UNSEEN)
    graph = build_graph(snapshot, loaded.spec, dtype=torch.float32)
    with torch.no_grad():
        raw = blocks_from_irreps(loaded.model(graph).refined.double(), graph, loaded.spec)
    assert raw.hermiticity_error()[0] > 1e-3
    found = predict(loaded, snapshot).refined
    assert found.hermiticity_error()[0] == 0
    n, m = 5, int(raw.reverse[5])
    expected = (raw.block(n) + raw.block(m).T) / 2
    np.testing.assert_allclose(found.block(found.index[tuple(raw.pairs[n])]), expected, atol=1e-6)
