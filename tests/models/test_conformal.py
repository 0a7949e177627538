"""Split conformal prediction where its coverage is a theorem, and the classes of blocks."""

import math

import numpy as np
import pytest

from hamfast.errors import DataWarning, HamfastError
from hamfast.models.conformal import ENOUGH, KEPT, BlockScores, Scores


@pytest.mark.parametrize(("count", "level"), [(19, 0.9), (30, 0.5), (99, 0.95)])
def test_coverage_of_exchangeable_scores(count, level):
    """Of continuous ones it is exactly ceil((n + 1) level) / (n + 1), however they spread."""
    rng = np.random.default_rng(0)
    repeats = 5000
    # Exchangeable, not independent: all scores of one repeat share a scale.
    scores = rng.standard_cauchy((repeats, count + 1)) ** 2 * rng.exponential(size=(repeats, 1))
    held = [new <= Scores.of(old).quantile(level) for old, new in zip(scores[:, :-1], scores[:, -1], strict=True)]
    expected = math.ceil((count + 1) * level) / (count + 1)
    assert level <= expected <= level + 1 / (count + 1)
    error = math.sqrt(expected * (1 - expected) / repeats)
    assert np.mean(held) == pytest.approx(expected, abs=4 * error)


def test_a_kept_score_is_never_below_the_exact_one():
    values = np.random.default_rng(0).exponential(size=5 * KEPT)
    scores = Scores.of(values)
    again = Scores.from_state(scores.state())
    assert len(scores.values) == KEPT and scores.count == len(values) and scores.rms == np.sqrt(np.mean(values**2))
    for level in (0.1, 0.5, 0.9, 0.99):
        place = math.ceil((len(values) + 1) * level)
        exact, next_kept = np.sort(values)[[place - 1, min(place + 5, len(values) - 1)]]
        assert exact <= scores.quantile(level) <= next_kept
        assert again.quantile(level) == scores.quantile(level)


def test_errors():
    scores = Scores.of(np.arange(20.0))
    with pytest.raises(HamfastError, match=r"level 0\.99: expected at least 99 held-out errors of each kind, found 20"):
        scores.quantile(0.99)
    for level in (0.0, 1.0, 90, math.nan):
        with pytest.raises(HamfastError, match="level: expected a number between 0 and 1"):
            scores.quantile(level)
    with pytest.raises(HamfastError, match="expected 10 held-out blocks or more, found 9"):
        BlockScores.fit(*np.zeros((2, 9), dtype=int), np.ones(9), np.ones(9))


def test_onsite_blocks_and_hoppings_are_kept_apart():
    """Also where there are few of them; else a warning says what is shared."""
    hoppings = np.linspace(1, 3, 80)
    for onsite in (12, 3):
        length = np.concatenate([np.zeros(onsite), hoppings])
        species, scores = np.zeros(len(length), dtype=int), np.where(length == 0, 5.0, 1.0)
        if onsite == 3:
            with pytest.warns(DataWarning, match="only 3 on-site blocks are held out, expected 10"):
                found = BlockScores.fit(species, species, length, scores)
        else:
            found = BlockScores.fit(species, species, length, scores)
        own = found.classes[int(found.class_of(species[:1], species[:1], np.zeros(1))[0])]
        assert own[0].onsite is (True if onsite == 12 else None) and own[1].count == (12 if onsite == 12 else 83)


def test_classes_of_blocks():
    """Each class has its own scores; small ones are joined; unknown blocks have general ones."""
    many = ENOUGH + 5
    rows = [  # species, species, length, how many, score
        (0, 0, 0.0, many, 1.0),
        (1, 1, 0.0, 3, 7.0),
        (0, 1, 1.5, many, 2.0),
        (1, 0, 2.5, many // 2, 3.0),
        (0, 1, 3.5, many, 4.0),
        (0, 1, 4.5, 2, 5.0),
    ]
    first, second, length, scores = (np.concatenate([np.full(row[3], row[n]) for row in rows]) for n in (0, 1, 2, 4))
    found = BlockScores.fit(first.astype(int), second.astype(int), length, scores)
    again = BlockScores.from_state(found.state())

    def top(a, b, distance):
        which = again.class_of(np.array([a]), np.array([b]), np.array([distance]))
        return found.classes[int(which[0])]

    assert top(0, 0, 0.0)[1].values.tolist() == [1.0] * many
    assert set(top(1, 1, 0.0)[1].values.tolist()) == {1.0, 7.0}  # all on-site blocks
    assert set(top(1, 0, 1.4)[1].values.tolist()) == {2.0}
    assert set(top(0, 1, 2.4)[1].values.tolist()) == {3.0, 4.0, 5.0}  # to the end, as too few are left
    assert top(0, 1, 50.0)[0] == top(1, 0, 2.4)[0]
    assert top(0, 0, 2.0)[0].species is None and top(0, 0, 2.0)[0].onsite is False
