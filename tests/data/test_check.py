"""What spoils a training is found in sets that are made wrong on purpose."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from kit import random_snapshot, rotated_orbitals

from hamfast.data import read_snapshot
from hamfast.data.blocks import BlockMatrix
from hamfast.data.check import check_set
from hamfast.data.copies import CONVENTIONS, copy_of, disagreement
from hamfast.data.formats import by_name
from hamfast.ops import rotation_from_euler

ROTATION = rotation_from_euler(torch.tensor([0.4, 1.1, 2.0], dtype=torch.float64))


@pytest.fixture
def crystal(fixtures):
    return read_snapshot(fixtures / "hBN_1x1_000")


def changed(matrix, of):
    """Each block by a function of its atoms."""
    blocks = [of(matrix.block(n), int(i), int(j)) for n, (i, j) in enumerate(matrix.pairs[:, 3:])]
    return BlockMatrix.from_blocks(matrix.pairs, blocks)


def turned(snapshot, rotation=ROTATION, orbitals=None):
    """A turned copy; its orbitals turn by Wigner matrices of e3nn's, made in the test kit."""
    r = rotation.numpy()
    wigner = {z: rotated_orbitals(ls, rotation if orbitals is None else orbitals) for z, ls in snapshot.shells.items()}

    def turn(block, i, j):
        left, right = (np.asarray(wigner[int(snapshot.numbers[a])]) for a in (i, j))
        return left @ block @ right.T

    return replace(
        snapshot,
        cell=snapshot.cell @ r.T,
        positions=snapshot.positions @ r.T,
        hamiltonian=changed(snapshot.hamiltonian, turn),
        overlap=changed(snapshot.overlap, turn),
    )


def in_order_of(snapshot, order):
    """The matrices as a code with other orbitals has them."""
    maps = {}
    for z, ls in snapshot.shells.items():
        size = sum(2 * l + 1 for l in ls)
        matrix, start = np.zeros((size, size)), 0
        for l in ls:
            position, sign = order.of(l)
            for m in range(2 * l + 1):  # the code's orbital position[m] is sign[m] times hamfast's m
                matrix[start + position[m], start + m] = sign[m]
            start += 2 * l + 1
        maps[z] = matrix

    def turn(block, i, j):
        return maps[int(snapshot.numbers[i])] @ block @ maps[int(snapshot.numbers[j])].T

    return replace(snapshot, hamiltonian=changed(snapshot.hamiltonian, turn))


def cause(first, second):
    copy = copy_of(first, second)
    assert copy is not None
    found = disagreement(first, second, copy)
    return None if found is None else found[1]


def test_a_turned_copy_agrees(crystal):
    """Also one whose atoms are listed in other cells, and a mirrored one."""
    assert cause(crystal, turned(crystal)) is None
    assert cause(crystal, turned(crystal, -ROTATION)) is None
    other = turned(crystal)
    cells = np.array([[0, 0, 0], [1, -1, 0]])
    pairs = other.hamiltonian.pairs.copy()
    pairs[:, :3] += cells[pairs[:, 3]] - cells[pairs[:, 4]]
    moved = replace(
        other,
        positions=other.positions + cells @ other.cell + [0.3, 0.1, 0.2],
        hamiltonian=replace(other.hamiltonian, pairs=pairs),
    )
    copy = copy_of(crystal, moved)
    np.testing.assert_allclose(copy.rotation, ROTATION.numpy(), atol=1e-9)
    assert disagreement(crystal, moved, copy) is None


def test_causes(crystal):
    other = turned(crystal)

    def scaled(snapshot, factor):
        h = snapshot.hamiltonian
        return replace(snapshot, hamiltonian=replace(h, entries=h.entries * factor))

    assert "energies of the second are in hartree" in cause(crystal, scaled(other, 1 / 27.211386))
    assert "energies of the first are in rydberg" in cause(scaled(crystal, 1 / 13.605693), other)
    shifted = replace(
        other, hamiltonian=replace(other.hamiltonian, entries=other.hamiltonian.entries + 1.7 * other.overlap.entries)
    )
    assert "zeros of energy differ by 1.700 eV" in cause(crystal, shifted)
    unturned = replace(other, hamiltonian=crystal.hamiltonian, overlap=crystal.overlap)
    assert "matrices were not turned with the structure" in cause(crystal, unturned)
    mirrored = turned(crystal, orbitals=ROTATION @ torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)))
    assert "axes of the orbitals have another sign" in cause(crystal, mirrored)
    for name, order in CONVENTIONS.items():
        both = cause(in_order_of(crystal, order), in_order_of(other, order))
        assert both is not None and both.startswith("the orbitals of both have the order"), name
    assert "of the second have the order and the signs of OpenMX" in cause(
        crystal, in_order_of(other, CONVENTIONS["OpenMX (p: x, y, z)"])
    )


@pytest.fixture
def dataset(tmp_path, fixtures):
    """Writes a set of snapshots; returns its folder."""

    def write(split=None, **snapshots):
        for label, snapshot in snapshots.items():
            by_name("deeph").write(snapshot, tmp_path / "set" / "dft" / label)
        if split:
            (tmp_path / "set" / "dataset_split.json").write_text(json.dumps(split))
        return tmp_path / "set"

    return write


def found(root):
    return {f.kind: f for f in check_set(root).findings}


def test_a_good_set(dataset, fixtures):
    folders = [fixtures / name for name in ("hBN_1x1_000", "graphene_1x1_000", "graphene_1x1_001")]
    root = dataset(**{f.name: read_snapshot(f) for f in folders}, turned=turned(read_snapshot(folders[0])))
    report = check_set(root)
    assert report.findings == [] and report.structures == 4 and report.turned == 1


def test_copies(dataset, crystal):
    """A copy in the test set; one with the orbitals in another order."""
    root = dataset({"train": ["a"], "validate": ["c"], "test": ["b"]}, a=crystal, b=turned(crystal), c=turned(crystal))
    kinds = found(root)
    assert set(kinds) == {"copies in two subsets", "duplicates"}
    by_name("deeph").write(in_order_of(turned(crystal), CONVENTIONS["SIESTA"]), root / "dft" / "d")
    finding = found(root)["H does not turn with the structure"]
    assert "d" in finding.labels and "the order and the signs of SIESTA" in finding.text


def test_levels_and_electrons(dataset, fixtures):
    crystal, other = (read_snapshot(fixtures / f"graphene_1x1_00{n}") for n in range(2))
    h, s = crystal.hamiltonian, crystal.overlap
    jump = replace(h, entries=h.entries + 2.0 * s.entries)
    root = dataset(
        o=other,
        p=replace(other, positions=other.positions + [0.0, 0.0, 0.01] * np.array([[0], [1]])),
        a=crystal,
        b=replace(crystal, hamiltonian=jump),
        c=replace(crystal, occupation=9.0),
    )
    report = check_set(root)
    kinds = {f.kind: f for f in report.findings}
    assert kinds["levels jump"].labels == ("b",) and "eV, of the others" in kinds["levels jump"].text
    assert kinds["electrons differ"].text == "the same atoms have 8 and 9 electrons"
    assert "zeros of energy differ by 2.000 eV" in " ".join(f.text for f in report.findings)


def test_orbitals(dataset, crystal, fixtures):
    """An element with other shells, and spin in one structure alone."""
    kit = {7: (0, 1), 5: (0, 1)}
    root = dataset(a=crystal, b=random_snapshot(kit, [5, 7]), c=random_snapshot(kit, [5, 7], True))
    kinds = found(root)
    assert "in a [0, 0, 1, 1, 2]" in kinds["orbitals differ"].text
    assert kinds["spin differs"].labels == ("c", "a")


def test_matrices(dataset, crystal, fixtures):
    """H and S cut off, no overlap, a file that cannot be read."""
    length = np.linalg.norm(crystal.pair_vectors(crystal.hamiltonian.pairs), axis=1)
    kept = np.flatnonzero(length < 3.0)

    def short(matrix):
        return BlockMatrix.from_blocks(matrix.pairs[kept], [matrix.block(n) for n in kept])

    cut = replace(crystal, hamiltonian=short(crystal.hamiltonian), overlap=short(crystal.overlap))
    root = dataset(a=crystal, b=cut, c=replace(crystal, overlap=None), d=crystal)
    (root / "dft" / "d" / "hamiltonian.h5").write_bytes(b"nothing")
    kinds = found(root)
    assert kinds["H is cut off"].labels == ("b",) and kinds["no overlap"].labels == ("c",)
    assert kinds["cannot be read"].labels == ("d",) and "hamiltonian.h5" in kinds["cannot be read"].text


def test_command(hamfast, dataset, crystal):
    root = dataset(a=crystal, b=turned(crystal))
    status, output, _ = hamfast("data", "check", root)
    assert status == 0 and "2 structures, no findings; H turns with the structure in 1 turned copies" in output
    by_name("deeph").write(crystal, root / "dft" / "c")
    status, output, _ = hamfast("data", "check", root, "--json")
    assert status == 1 and json.loads(output)["findings"][0]["kind"] == "duplicates"
