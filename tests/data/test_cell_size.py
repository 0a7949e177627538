"""How far networks may look in the cells of a training set, and the words for it."""

import numpy as np
import pytest
from kit import tiny_checkpoint

from hamfast.analysis.prediction import predict
from hamfast.data import read_snapshot
from hamfast.data.cell_size import fitting_environment, half_cell, prediction_warning, training_warning
from hamfast.errors import DataWarning
from hamfast.training import load_model


def test_half_the_way_to_the_nearest_image():
    hexagonal = 7.38 * np.array([[1, 0, 0], [-0.5, 3**0.5 / 2, 0], [0, 0, 3]])
    assert half_cell(hexagonal) == pytest.approx(3.69)
    skewed = np.array([[1, 0, 0], [5, 1, 0], [3, 7, 1]]) @ hexagonal  # another basis of the same lattice
    assert half_cell(skewed) == pytest.approx(3.69)


@pytest.mark.parametrize(
    ("smallest", "longest", "nearest", "expected"),
    [
        (3.7005, 8.0, 1.45, 3.6),
        (3.69, 8.0, 1.45, 3.5),  # at least 0.1 below
        (4.9, 4.25, 1.45, 4.2),  # not beyond the longest pair
        (7.38, 8.0, 1.45, 3.6),  # both stages within half the cell
        (7.0, 8.0, 1.45, 6.9),  # second neighbours would fade
        (16.4, 6.0, 1.45, 6.0),
        (2.467, 8.0, 1.45, 2.3),  # 2 x 2 cells of graphene
        (1.2335, 8.0, 1.45, None),  # 1 x 1
        (3.18, 14.0, 2.45, None),  # 2 x 2 cells of MoS2
        (2.2, 8.0, 1.5, 2.1),
        (2.199, 8.0, 1.5, None),
    ],
)
def test_the_environment_that_cells_determine(smallest, longest, nearest, expected):
    assert fitting_environment(smallest, longest, nearest) == expected


def test_a_network_is_told_how_far_it_may_look():
    assert training_warning(3.6, 3.69) == []
    assert "the model looks 8.0 A far; up to 3.7 A" in training_warning(8.0, 3.69)[0]
    assert prediction_warning(8.0, None, 4.9) is None
    assert prediction_warning(8.0, 3.69, 3.69) is None
    assert prediction_warning(3.6, 3.69, 4.9) is None
    assert "larger than those of the training (3.7 A)" in prediction_warning(8.0, 3.69, 4.9)


def test_predict_says_when_a_cell_is_larger(graphene, tmp_path):
    loaded = load_model(tiny_checkpoint(tmp_path / "model.ckpt", [graphene / "dft" / "3x3_000"]))
    loaded.model.half_cell = read_snapshot(graphene / "dft" / "3x3_000").half_cell
    with pytest.warns(DataWarning, match="4x4_000: its cell"):
        predict(loaded, read_snapshot(graphene / "dft" / "4x4_000"))
