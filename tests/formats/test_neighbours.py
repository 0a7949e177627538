"""A trained network sees the neighbours of its training, whatever list a structure's files have."""

import warnings

import numpy as np
import pytest
import torch
from kit import cases, random_snapshot

from hamfast.analysis import predict
from hamfast.data import read_snapshot
from hamfast.data.blocks import BlockMatrix
from hamfast.data.graphs import build_graph
from hamfast.errors import DataWarning, HamfastError
from hamfast.models import Cascade, CovariantConfig
from hamfast.targets import TargetSpec
from hamfast.training.checkpoint import LoadedModel

REACH = 8.0
"""Angstrom: graphene's fixtures hold every pair up to it."""


@pytest.fixture(scope="module")
def loaded():
    spec = TargetSpec.from_mapping({6: (0, 0, 1, 1, 2)}, False)
    torch.manual_seed(0)
    config = CovariantConfig("4x0e+2x1o+2x2e+1x3o+1x4e", num_basis=8, embed_dim=4, num_blocks=2)
    model = Cascade(spec, config, None, r_max=REACH).double().eval()
    return LoadedModel(model, None, np.full((1, 1), REACH + 1e-3), {})


def selection(matrix, keep):
    which = np.flatnonzero(keep)
    return BlockMatrix.from_blocks(matrix.pairs[which], [matrix.block(n) for n in which])


def read(fixtures, *, hamiltonian=False, overlap=None, label="graphene_1x1_000"):
    """The structure with S's pairs up to ``overlap`` angstrom (None: no S), and H or none."""
    snapshot = read_snapshot(fixtures / label)
    if not hamiltonian:
        snapshot.hamiltonian = None
    s = snapshot.overlap
    length = np.linalg.norm(snapshot.pair_vectors(s.pairs), axis=1)
    snapshot.overlap = None if overlap is None else selection(s, length < overlap)
    return snapshot


def blocks(matrix):
    return {pair: matrix.block(n) for pair, n in matrix.index.items()}


@pytest.mark.parametrize(
    "overlap",
    cases(
        {
            "2-angstrom": 2.0,
            "5-angstrom": 5.0,
            "7.5-angstrom": 7.5,
        }
    ),
)
def test_a_short_overlap_changes_no_number(fixtures, loaded, overlap):
    """The whole graph is what the neighbour list of ASE gives within the trained distance."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = blocks(predict(loaded, read(fixtures)).refined)
        same = blocks(predict(loaded, read(fixtures, overlap=99.0)).refined)
    with pytest.warns(
        DataWarning, match=r"the overlap has \d+ pairs, but \d+ more lie within the distances .* were added"
    ):
        found = blocks(predict(loaded, read(fixtures, overlap=overlap)).refined)
    assert set(found) == set(expected) == set(same)
    for pair, block in expected.items():
        np.testing.assert_allclose(found[pair], block, atol=1e-12)
        np.testing.assert_allclose(same[pair], block, atol=1e-12)


def test_a_hamiltonian_that_was_cut_short_changes_no_number(fixtures, loaded):
    snapshot = read(fixtures, hamiltonian=True)
    length = np.linalg.norm(snapshot.pair_vectors(snapshot.hamiltonian.pairs), axis=1)
    snapshot.hamiltonian = selection(snapshot.hamiltonian, length < 5.0)
    with pytest.warns(DataWarning, match="the Hamiltonian has .* were added"):
        found = blocks(predict(loaded, snapshot).refined)
    for pair, block in blocks(predict(loaded, read(fixtures)).refined).items():
        np.testing.assert_allclose(found[pair], block, atol=1e-12)


def test_a_hamiltonian_without_its_smallest_blocks_is_taken_as_it_is(fixtures, loaded):
    """Codes that drop small blocks drop them in the training, too: their lists are no balls. A word
    is said all the same."""
    snapshot = read(fixtures, hamiltonian=True)
    h = snapshot.hamiltonian
    norm = np.array([np.abs(h.block(n)).max() for n in range(len(h))])
    snapshot.hamiltonian = selection(h, (norm > np.quantile(norm, 0.1)) & (norm[h.reverse] > np.quantile(norm, 0.1)))
    assert len(snapshot.hamiltonian) < len(h)
    with pytest.warns(DataWarning, match=r"\d+ more lie within the distances .* its list was kept"):
        found = predict(loaded, snapshot).refined
    assert set(found.index) == set(snapshot.hamiltonian.index)


def test_a_hamiltonian_with_holes_changes_no_number(fixtures, loaded):
    """No code drops near neighbours and keeps far ones."""
    snapshot = read(fixtures, hamiltonian=True)
    h = snapshot.hamiltonian
    length = np.linalg.norm(snapshot.pair_vectors(h.pairs), axis=1)
    snapshot.hamiltonian = selection(h, (length < 2.0) | (length > 3.5))
    with pytest.warns(DataWarning, match="the Hamiltonian has .* were added"):
        found = blocks(predict(loaded, snapshot).refined)
    for pair, block in blocks(predict(loaded, read(fixtures)).refined).items():
        np.testing.assert_allclose(found[pair], block, atol=1e-12)


def test_pairs_beyond_the_training_are_zero_and_do_not_disturb(fixtures, loaded):
    short = LoadedModel(loaded.model, None, np.full((1, 1), 4.6), {})
    expected = blocks(predict(short, read(fixtures)).refined)
    with pytest.warns(DataWarning, match=r"longer than those that the model was trained on, up to 7\.9. .* as zero"):
        found = blocks(predict(short, read(fixtures, overlap=99.0)).refined)
    for pair, block in found.items():
        np.testing.assert_allclose(block, expected.get(pair, 0 * block), atol=1e-12)
    assert len(found) > len(expected)


def test_pairs_that_are_barely_longer_are_neighbours_too(fixtures, loaded):
    """A code's own cutoff lies a little beyond the longest pair of a few structures."""
    snapshot = read(fixtures, overlap=99.0)
    longest = np.linalg.norm(snapshot.pair_vectors(snapshot.overlap.pairs), axis=1).max()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph = build_graph(snapshot, loaded.model.spec, pair_cutoffs=np.full((1, 1), longest - 0.05))
    assert graph.num_edges == len(snapshot.overlap)


def test_every_pair_of_species_has_its_own_distance():
    snapshot = random_snapshot({6: (0,), 8: (0,)}, [6, 8, 8], cutoff=4.0)
    snapshot.overlap = None
    spec = TargetSpec.from_mapping(snapshot.shells, False)
    cutoffs = np.array([[3.2, 2.5], [2.5, 4.0]])
    snapshot.hamiltonian = None
    graph = build_graph(snapshot, spec, pair_cutoffs=cutoffs)
    limit = torch.tensor(cutoffs)[graph.species[graph.receivers], graph.species[graph.senders]]
    assert bool((graph.length <= limit).all())
    assert graph.num_edges > 3


def test_a_prediction_that_is_no_number_is_not_written(fixtures, loaded):
    import copy

    broken = copy.deepcopy(loaded.model)
    with torch.no_grad():
        next(broken.stage1.output.parameters()).fill_(float("nan"))
    with pytest.raises(HamfastError, match="the model's prediction is not finite; expected numbers"):
        predict(LoadedModel(broken, None, loaded.pair_cutoffs, {}), read(fixtures))
