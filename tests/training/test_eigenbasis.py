"""Errors in the basis of the DFT's eigenvectors, against levels that are solved anew."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from kit import random_snapshot
from runs import losses

from hamfast.analysis.bloch import BlochMatrix
from hamfast.data.formats import by_name
from hamfast.data.graphs import build_graph
from hamfast.errors import HamfastError
from hamfast.graph import batch_graphs
from hamfast.targets import TargetSpec
from hamfast.training import Run
from hamfast.training.config import parse_config
from hamfast.training.eigenbasis import HEIGHT, EigenbasisError

SHELLS = {6: (0, 0, 1), 83: (0, 1, 2)}
CASES = [([6, 83, 6], False), ([83, 6], True)]


def written(folder, numbers, spinful, seed):
    """A random structure with a Fermi level in the middle of its bands, as a folder."""
    snapshot = replace(random_snapshot(SHELLS, numbers, spinful, seed), fermi_energy=0.0)
    by_name("deeph").write(snapshot, folder)
    return snapshot


def perturbed(matrix, seed):
    """Another Hermitian matrix on the same pairs."""
    rng = np.random.default_rng(seed)
    entries = rng.normal(size=matrix.entries.shape)
    if np.iscomplexobj(matrix.entries):
        entries = entries + 1j * rng.normal(size=matrix.entries.shape)
    return replace(matrix, entries=entries).hermitian_part()


def levels(snapshot, hamiltonian, k):
    """Energies, vectors and the Bloch matrix of H at k, by scipy."""
    sizes = np.array([snapshot.num_orbitals(a) for a in range(snapshot.num_atoms)])
    spins = 2 if snapshot.spinful else 1
    h = BlochMatrix(hamiltonian, sizes * spins).at(k).toarray()
    return scipy.linalg.eigh(h, BlochMatrix(snapshot.overlap, sizes, spins).at(k).toarray())


@pytest.mark.parametrize(("numbers", "spinful"), CASES, ids=["plain", "soc"])
def test_first_order_of_the_levels(tmp_path, numbers, spinful):
    """The diagonal is the shift of each level, divided by its height."""
    spec = TargetSpec.from_mapping(SHELLS, spinful)
    folders = [tmp_path / str(seed) for seed in range(2)]
    snapshots = [written(folder, numbers, spinful, seed) for seed, folder in enumerate(folders)]
    errors = EigenbasisError(folders, spec)
    changes = [perturbed(s.hamiltonian, 7 + n) for n, s in enumerate(snapshots)]
    graph = batch_graphs([build_graph(s, spec) for s in snapshots])
    difference = torch.cat(
        [build_graph(replace(s, hamiltonian=c), spec).target for s, c in zip(snapshots, changes, strict=True)]
    )
    step = 1e-4
    for n, (snapshot, change) in enumerate(zip(snapshots, changes, strict=True)):
        kpoints, _ = errors._basis(n)
        for k, found in zip(kpoints, errors.matrices(graph, difference, n, n), strict=True):
            moved = [
                levels(
                    snapshot, replace(change, entries=snapshot.hamiltonian.entries + sign * step * change.entries), k
                )
                for sign in (1, -1)
            ]
            energies = levels(snapshot, snapshot.hamiltonian, k)[0]
            expected = (moved[0][0] - moved[1][0]) / (2 * step) / (1 + np.maximum(0, energies) / HEIGHT)
            apart = np.diff(energies).min()
            assert apart > 100 * step  # first order holds
            np.testing.assert_allclose(np.diag(found.numpy()).real, expected, atol=3e-3)
    both = errors.of(graph, difference, [0, 1], 1)
    assert both.shape == (2,)


def test_norm_is_that_of_all_states(tmp_path, double):
    """c^+ dH c of all states together has the norm of L^-1 dH L^-+, with S = L L^+ of Cholesky."""
    spec = TargetSpec.from_mapping(SHELLS, False)
    snapshot = replace(random_snapshot(SHELLS, [6, 83, 6]), fermi_energy=1e6)  # no state lies above
    by_name("deeph").write(snapshot, tmp_path / "one")
    errors = EigenbasisError([tmp_path / "one"], spec)
    change = perturbed(snapshot.hamiltonian, 3)
    graph = build_graph(snapshot, spec)
    found = errors.of(graph, build_graph(replace(snapshot, hamiltonian=change), spec).target, [0], 2)
    sizes = np.array([snapshot.num_orbitals(a) for a in range(snapshot.num_atoms)])
    expected = []
    for k in errors._basis(0)[0]:
        lower = np.linalg.cholesky(BlochMatrix(snapshot.overlap, sizes).at(k).toarray())
        half = np.linalg.solve(lower, BlochMatrix(change, sizes).at(k).toarray())
        expected.append(np.mean(np.abs(np.linalg.solve(lower, half.conj().T)) ** 2))
    torch.testing.assert_close(float(found[0]), float(np.mean(expected)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("loss", ["mae", "mse"])
def test_objective_of_a_training(settings, tmp_path, loss):
    """With a rate that changes nothing, its weight times the mean error is what the loss gains."""
    settings["stage2"] = None
    settings["training"]["stage2"] = None
    phase = settings["training"]["stage1"]
    phase |= {"epochs": 1, "loss": loss, "learning_rate": 1e-12}
    objective = {}
    for weight in (0.0, 2.0):
        phase["eigenbasis_weight"] = weight
        settings["output"] = str(tmp_path / f"run{weight}")
        path = Run(parse_config(settings, "test")).train()
        objective[weight] = losses(settings["output"])[0]
    power = 1 if loss == "mae" else 2
    expected = 2.0 * 1e3**power * _error(path, settings, power)
    np.testing.assert_allclose(objective[2.0] - objective[0.0], expected, rtol=1e-3)


def _error(path, settings, power):
    """Of a checkpoint: the mean over the training set, in eV^power."""
    from hamfast.training import load_model

    loaded = load_model(path)
    folders = [Path(settings["data"]["root"]) / "dft" / n for n in ("graphene_1x1_000a", "graphene_1x1_001a")]
    errors = EigenbasisError(folders, loaded.model.spec)
    total = 0.0
    for n, folder in enumerate(folders):
        graph = build_graph(by_name("deeph").read(folder), loaded.model.spec).to(dtype=torch.get_default_dtype())
        with torch.no_grad():
            difference = loaded.model(graph, refine=False).refined - graph.target
        total += float(errors.of(graph, difference, [n], power)[0]) / len(folders)
    return total


def test_without_overlap(settings, fixtures, tmp_path):
    root = Path(settings["data"]["root"])
    for folder in list((root / "dft").iterdir()):
        source = folder.resolve()
        folder.unlink()
        folder.mkdir()
        for file in source.iterdir():
            if file.name != "overlap.h5":
                (folder / file.name).write_bytes(file.read_bytes())
    settings["training"]["stage1"]["eigenbasis_weight"] = 1.0
    with pytest.raises(HamfastError, match="has no overlap, without which there are no eigenvectors"):
        Run(parse_config(settings, "test")).train()
