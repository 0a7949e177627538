"""What a training set has, against crystals whose distances, angles and neighbours are known."""

import json

import numpy as np
import pytest
from ase.build import bulk, graphene, make_supercell
from kit import tiny_checkpoint

from hamfast.analysis.prediction import predict
from hamfast.data import read_snapshot
from hamfast.data.snapshot import Snapshot
from hamfast.data.training_range import TrainingRange
from hamfast.errors import DataWarning
from hamfast.training import load_model


def crystal(atoms):
    numbers = atoms.numbers.astype(np.int64)
    shells = {int(z): (0,) for z in np.unique(numbers)}
    return Snapshot("x", atoms.cell.array, atoms.positions, numbers, shells)


def sheet(a=2.46, size=3):
    atoms = graphene(a=a, vacuum=8.0)
    atoms.pbc = True
    return make_supercell(atoms, np.diag([size, size, 1]))


@pytest.fixture
def trained():
    return TrainingRange.of(crystal(sheet(a)) for a in (2.42, 2.46, 2.50))


def test_what_a_sheet_has(trained):
    """Graphene: three bonds of a / sqrt 3 at 120 degrees; 3, 9, 12 neighbours up to 2, 2.6, 3 A."""
    assert trained.structures == 3 and trained.atoms == (18, 18) and trained.bonds == {6: {3}}
    assert trained.shortest[6, 6] == pytest.approx(2.42 / 3**0.5)
    np.testing.assert_array_equal(trained.neighbours[6, 6][:, :2], [[3, 12], [3, 12]])
    assert trained.half_cells == pytest.approx((3 * 2.42 / 2, 3 * 2.50 / 2))
    assert trained.angles[6] <= {23, 24}  # 120 degrees, rounded to either side


def test_like_structures_are_inside(trained):
    assert trained.outside(crystal(sheet(2.45, 4))) == []
    rattled = sheet(2.46, 4)
    rattled.rattle(0.01, seed=0)
    assert trained.outside(crystal(rattled)) == []


def test_what_lies_outside(trained):
    """Compressed, another allotrope, two layers, another element, a vacancy: each is named."""
    assert "C-C distance of 1.33 angstrom, the shortest was 1.40" in " ".join(trained.outside(crystal(sheet(2.30))))
    words = " ".join(trained.outside(crystal(bulk("C", "diamond", a=3.57, cubic=True))))
    assert "C atoms with 4 bonds (8 of 8)" in words and "angles at C as 109 degrees" in words
    two = sheet()
    upper = two.copy()
    upper.positions += [0.3, 0.2, 3.35]
    assert "within 4 angstrom" in " ".join(trained.outside(crystal(two + upper)))
    doped = sheet()
    doped.numbers[0] = 7
    assert "C and N within 6 angstrom of each other" in trained.outside(crystal(doped))
    vacancy = sheet()
    del vacancy[0]
    assert "C atoms with 2 bonds (3 of 17)" in " ".join(trained.outside(crystal(vacancy)))


def test_kept_and_joined(trained):
    """As plain numbers in a checkpoint; and two sets together are one of all."""
    again = TrainingRange.from_state(json.loads(json.dumps(trained.state())))
    assert again.state() == trained.state()
    more = TrainingRange.of([crystal(sheet(2.30)), crystal(bulk("C", "diamond", a=3.57, cubic=True))])
    both = TrainingRange.together([trained, more])
    assert both.structures == 5 and both.atoms == (8, 18) and both.bonds[6] == {3, 4}
    assert (
        both.outside(crystal(sheet(2.30))) == [] and TrainingRange.together([trained, None]).state() == trained.state()
    )


def test_predict_warns(graphene, tmp_path):
    """A structure that is unlike those of the training."""
    folder = graphene / "dft" / "3x3_000"
    loaded = load_model(tiny_checkpoint(tmp_path / "model.ckpt", [folder]))
    snapshot = read_snapshot(folder)
    loaded.model.training_range = TrainingRange.of([crystal(sheet(2.60))])
    with pytest.warns(DataWarning, match="unlike the structures of the training, it has a C-C distance of"):
        predict(loaded, snapshot)
