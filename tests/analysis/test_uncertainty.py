"""Errors of bands against finite differences, the file, and the commands' way from a checkpoint to
bands with an uncertainty."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from kit import random_snapshot, tiny_checkpoint

import hamfast as package
from hamfast.analysis.band_uncertainty import band_half_width, level_errors
from hamfast.analysis.bloch import BlochMatrix
from hamfast.analysis.calibration import HeldOut, calibrate_file, choose_mixing
from hamfast.analysis.eigen import eigen_problem
from hamfast.analysis.uncertainty import Uncertainty
from hamfast.data import read_snapshot
from hamfast.data.blocks import BlockMatrix
from hamfast.errors import HamfastError
from hamfast.models.conformal import BlockScores
from hamfast.training import load_model

KPOINTS = np.array([(0, 0, 0), (0.5, 0, 0), (0.13, 0.27, 0)])


def random_hermitian(matrix, sizes, rng):
    """Normal numbers with mean square ``sizes``^2 for each element, symmetric or Hermitian: the
    diagonal of a symmetric block of one atom has twice the variance."""
    blocks = []
    for n in range(len(matrix)):
        shape = matrix.shapes[n]
        block = rng.normal(size=shape)
        if np.iscomplexobj(matrix.entries):
            block = (block + 1j * rng.normal(size=shape)) / np.sqrt(2)
        blocks.append(sizes[n] * block)
    for n, m in enumerate(matrix.reverse.tolist()):
        if n == m:
            blocks[n] = (blocks[n] + blocks[n].conj().T) / np.sqrt(2)
        elif n < m:
            blocks[m] = blocks[n].conj().T
    return BlockMatrix.from_blocks(matrix.pairs, blocks)


def plus(matrix, change, factor):
    return BlockMatrix(matrix.pairs, matrix.shapes, matrix.boundaries, matrix.entries + factor * change.entries)


def symmetric(values, matrix):
    return np.maximum(values, values[matrix.reverse])


@pytest.mark.parametrize("spinful", [False, True])
def test_shared_errors_move_levels_as_finite_differences_say(spinful):
    snapshot = random_snapshot({6: (0, 1), 5: (0,)}, [6, 5, 6], spinful)
    h, rng = snapshot.hamiltonian, np.random.default_rng(1)
    shared = tuple(random_hermitian(h, np.ones(len(h)), rng) for _ in range(2))
    nothing = np.zeros(len(h))
    problem = eigen_problem(snapshot)
    levels = level_errors(snapshot, problem, Uncertainty(0.9, h.pairs, nothing, nothing, shared, 1.0), KPOINTS)
    np.testing.assert_allclose(levels.energies, problem.bands(KPOINTS), atol=1e-10)
    step = 1e-6
    for n, change in enumerate(shared):
        up, down = (eigen_problem(snapshot, plus(h, change, s)).bands(KPOINTS) for s in (step, -step))
        np.testing.assert_allclose(levels.shared[n], (up - down) / (2 * step), atol=1e-6)
    assert not levels.independent.any()


@pytest.mark.parametrize("spinful", [False, True])
def test_independent_errors_move_levels_as_samples_of_them_do(spinful):
    """The variance of c^+ dH c over random dH, which are assembled as any H(k)."""
    snapshot = random_snapshot({6: (0, 1), 5: (0,)}, [6, 5, 6], spinful)
    h, rng = snapshot.hamiltonian, np.random.default_rng(2)
    sizes = symmetric(rng.uniform(0.5, 2, len(h)), h)
    problem = eigen_problem(snapshot)
    levels = level_errors(snapshot, problem, Uncertainty(0.9, h.pairs, sizes, sizes, (), 1.0), KPOINTS)
    rows = np.array([snapshot.num_orbitals(a) for a in range(snapshot.num_atoms)]) * (1 + spinful)
    states = [problem.states(k)[1] for k in KPOINTS]
    samples = []
    for _ in range(600):
        bloch = BlochMatrix(random_hermitian(h, sizes, rng), rows)
        samples.append(
            [np.sum(c.conj() * (bloch.at(k) @ c), axis=0).real for c, k in zip(states, KPOINTS, strict=True)]
        )
    found = np.mean(np.square(samples), axis=0)
    np.testing.assert_allclose(found, levels.independent, rtol=5 * np.sqrt(2 / 600))


def test_a_common_shift_is_no_error():
    """Errors that are a multiple of S move all levels alike."""
    snapshot = random_snapshot({6: (0, 1)}, [6, 6])
    s, nothing = snapshot.overlap, np.zeros(len(snapshot.overlap))
    levels = level_errors(
        snapshot, eigen_problem(snapshot), Uncertainty(0.9, s.pairs, nothing, nothing, (s,), 1.0), KPOINTS
    )
    np.testing.assert_allclose(levels.shared, 1.0, atol=1e-9)
    assert levels.spread(np.ones(levels.energies.shape, bool)).max() < 1e-9


def test_of_another_hamiltonian():
    snapshot = random_snapshot({6: (0, 1)}, [6, 6])
    h = snapshot.hamiltonian
    pairs = h.pairs + np.array([7, 0, 0, 0, 0])
    uncertainty = Uncertainty(0.9, pairs, np.ones(len(h)), np.ones(len(h)), (), 1.0)
    with pytest.raises(HamfastError, match="blocks that the predicted Hamiltonian lacks"):
        band_half_width(snapshot, h, uncertainty, None)


def test_of_the_file(tmp_path):
    snapshot = random_snapshot({6: (0, 1)}, [6, 6])
    h, rng = snapshot.hamiltonian, np.random.default_rng(0)
    width = symmetric(rng.uniform(size=len(h)), h)
    single = BlockMatrix(h.pairs, h.shapes, h.boundaries, h.entries.astype(np.float32))
    for factor in (None, 2.5):
        before = Uncertainty(0.8, h.pairs, width, width / 2, (single, single), factor)
        before.write(tmp_path)
        after = Uncertainty.read(tmp_path)
        assert (after.level, after.band_factor, len(after.shared)) == (0.8, factor, 2)
        for name in ("pairs", "half_width", "independent"):
            np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
        np.testing.assert_array_equal(after.shared[1].entries, single.entries)
    onsite = [h.index[0, 0, 0, a, a] for a in range(2)]
    np.testing.assert_array_equal(before.of_atoms(), width[onsite])
    with h5py.File(tmp_path / "uncertainty_pred.h5", "r+") as file:
        del file["half_width"]
        file["half_width"] = width[1:]
    with pytest.raises(HamfastError, match="expected as many half-widths as pairs"):
        Uncertainty.read(tmp_path)
    assert Uncertainty.read(tmp_path / "nowhere") is None


@pytest.fixture(scope="module")
def journey(tmp_path_factory, fixtures):
    """A data set of 1x1 cells, and a model calibrated on it: the one that comes along."""
    root = tmp_path_factory.mktemp("journey") / "set"
    names = {"a": "graphene_1x1_000", "b": "graphene_1x1_001", "c": "graphene_1x1_000", "d": "graphene_1x1_001"}
    for name, label in names.items():
        shutil.copytree(fixtures / label, root / "dft" / name)
    (root / "dataset_split.json").write_text(json.dumps({"train": ["a"], "validate": ["b", "c"], "test": ["d"]}))
    return root


def held_out(structures, t, seed=0):
    """Structures whose errors are normal numbers, with a known weight of the shared part."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(structures):
        independent, shared = rng.uniform(0.5, 1.5, 120), rng.exponential(size=120) ** 2
        error = np.abs(rng.normal(size=120)) * np.sqrt(independent + t**2 * shared)
        species = np.zeros(120, dtype=int)
        found.append(HeldOut(species, species, np.full(120, 2.5), error, independent, shared))
    together = [np.concatenate(parts) for parts in zip(*found, strict=True)]
    return found, BlockScores.fit(*together[:3], np.ones(len(together[3])))


@pytest.mark.parametrize(("t", "expected"), [(0.0, (0.0,)), (10.0, (3.0, 10.0)), (100.0, (10.0, 30.0, 100.0))])
def test_the_weight_of_shared_errors_is_found(t, expected):
    """The smallest that explains the data as well as the best."""
    assert choose_mixing(*held_out(20, t), False) in expected
    assert choose_mixing(*held_out(20, t), True) == 1.0  # there is no on-site block
    assert choose_mixing(*held_out(9, t), False) == 1.0  # of too few structures


def once(folder):
    """How many blocks a structure has, each and its reverse once."""
    h = read_snapshot(folder).hamiltonian
    return int(np.sum(np.arange(len(h)) <= h.reverse))


def test_a_checkpoint_without_calibration(hamfast, fixtures, tmp_path):
    path = tiny_checkpoint(tmp_path / "model.ckpt", [fixtures / "graphene_1x1_000"])
    status, _, errors = hamfast("predict", path, fixtures / "graphene_1x1_001", "--uncertainty", "--output", tmp_path)
    assert status == 1 and "found one without; `hamfast model calibrate FILE` adds them" in errors
    assert "none: `hamfast model calibrate` adds it" in hamfast("model", "info", path)[1]
    status, _, errors = hamfast("model", "calibrate", path)
    assert status == 1 and "its data set nowhere is not here; expected --root" in errors
    status, _, errors = hamfast("model", "calibrate", "graphene", "--root", fixtures)
    assert status == 1 and "graphene: expected the file of a checkpoint, or --output" in errors


def test_commands(journey, hamfast, tmp_path):
    model, structure = tmp_path / "model.ckpt", journey / "dft" / "d"
    before = load_model("graphene").model.state_dict()
    status, output, errors = hamfast("model", "calibrate", "graphene", "--root", journey, "--output", model)
    assert status == 0, errors
    assert "blocks of 2 held-out structures, 1 of the training" in output
    after = load_model(model).model
    assert all((after.state_dict()[name] == weight).all() for name, weight in before.items())
    counts = {label: once(journey / "dft" / label) for label in "bcd"}
    words = f"uncertainty: {counts['b'] + counts['c']} blocks of 2 held-out structures"
    assert words in hamfast("model", "info", model)[1]
    status, output, errors = hamfast("predict", model, structure, "--uncertainty", "--level", "0.8")
    assert status == 0, errors
    assert "on-site: 80% half-width" in output and "C-C, 1.4" in output
    assert (structure / "uncertainty_pred.h5").exists()
    status, output, errors = hamfast("bands", structure, "--kpath", "GK", "--points", "6")
    assert status == 0, errors
    assert "80% of levels within" in output
    bands = json.loads((structure / "bands" / "bands.json").read_text())["predicted"]
    assert np.shape(bands["half_width"]) == np.shape(bands["energies"]) and np.min(bands["half_width"]) > 0
    status, output, errors = hamfast("evaluate", model, structure, "--output", tmp_path / "e.json")
    assert status == 0, errors
    found = json.loads((tmp_path / "e.json").read_text())["uncertainty"]
    # The very structure that was held out: of n scores the ceil((n + 1) 0.9) smallest are within.
    assert (
        found["level"] == 0.9
        and found["near"]["count"] + found["far"]["count"] + found["on-site"]["count"] == counts["d"]
    )
    assert found["bands"]["coverage"] > 0.5 and "rank corr." in output
    # A prediction without one leaves no old one behind.
    assert hamfast("predict", model, structure)[0] == 0
    assert not (structure / "uncertainty_pred.h5").exists()
    with pytest.raises(HamfastError, match=f"found {counts['b'] + counts['c']}; use a lower level"):
        package.load(model).predict(structure, uncertainty=True, level=0.999)


def test_in_python(journey, tmp_path):
    target = tmp_path / "model.ckpt"
    calibrate_file(Path("graphene"), target, journey)
    crystal = package.load(target).predict(read_snapshot(journey / "dft" / "d").atoms, uncertainty=True)
    assert crystal.uncertainty.level == 0.9 and len(crystal.uncertainty.of_atoms()) == 2
    bands = crystal.bands("GK", points=5)
    assert bands.half_width.shape == bands.structure.energies.shape
    bands.plot(tmp_path / "bands.png")
    assert (tmp_path / "bands.png").read_bytes()[:4] == b"\x89PNG"
    assert package.load(target).predict(journey / "dft" / "d").bands("GK", points=5).half_width is None
