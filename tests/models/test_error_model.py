"""The last layer's spread: against dense regressions, against changed weights, turned."""

import numpy as np
import pytest
import torch
from kit import random_rotation, tiny_checkpoint

from hamfast.analysis.calibration import calibrate
from hamfast.analysis.expected_error import uncertainty_of
from hamfast.data import build_graph, read_snapshot
from hamfast.models.error_model import ErrorModel, HeadSums, hermitian, jackknife, run
from hamfast.models.last_layer import captured_features, last_maps
from hamfast.training import load_model


def designs(rows, features, groups, noise, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, features)) * np.geomspace(0.01, 10, features)
    y = x @ rng.normal(size=(features, 2)) + noise * rng.normal(size=(rows, 2))
    return x, y, np.arange(rows) % groups


def sums(x, y, group, groups):
    gram = np.stack([x[group == g].T @ x[group == g] for g in range(groups)])
    right = np.stack([y[group == g].T @ x[group == g] for g in range(groups)])
    return torch.from_numpy(gram), torch.from_numpy(right)


def test_jackknife_is_that_of_dense_regressions():
    """Each without one group of rows, from the design matrix itself."""
    groups = 6
    x, y, group = designs(60, 5, groups, 0.3)
    found = jackknife(*sums(x, y, group, groups)).numpy()
    fits = np.stack([np.linalg.lstsq(x[group != g], y[group != g], rcond=None)[0].T for g in range(groups)])
    expected = np.sqrt(groups - 1) * (fits - fits.mean(axis=0))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-12)


def test_of_independent_rows_it_is_the_posterior_of_bayesian_regression():
    """Dense, float64: the covariance of the weights is noise^2 (X^T X)^-1.

    Eight sets of data, as an estimate from 40 groups is 20 % off.
    """
    groups, noise, ratios = 40, 0.3, []
    for seed in range(8):
        x, y, group = designs(400, 4, groups, noise, seed)
        found = jackknife(*sums(x, y, group, groups)).numpy()
        posterior = noise**2 * np.linalg.inv(x.T @ x)
        probe = x[:50]
        spread = np.einsum("gcf,rf->grc", found, probe)
        ratios.append(np.mean((spread**2).mean(axis=0) / np.einsum("rf,fh,rh->r", probe, posterior, probe)[:, None]))
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.1)


def test_rows_of_one_structure_are_not_independent():
    """Errors that all rows of a group share: the spread knows, the textbook posterior does not."""
    groups, rng = 50, np.random.default_rng(0)
    ratios = []
    for _ in range(8):
        shared = np.repeat(rng.normal(size=(groups, 1)), 20, axis=0)
        x, group = np.ones((20 * groups, 1)), np.repeat(np.arange(groups), 20)
        found = jackknife(*sums(x, shared, group, groups)).numpy()
        ratios.append(np.mean(found**2) * groups)  # the variance of a mean of 50 numbers is 1 / 50
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.2)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory, fixtures):
    """Random weights in float64, two stages: nothing is trained."""
    folders = [fixtures / "graphene_1x1_000", fixtures / "graphene_1x1_001"]
    found = load_model(tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "m.ckpt", folders), dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for layer in last_maps(found.model):  # a new second stage corrects by nothing
        layer.weight.data = torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64)
    calibrate(found, folders, folders[1:])
    return found


@pytest.fixture(scope="module")
def graph(loaded, fixtures):
    return build_graph(read_snapshot(fixtures / "graphene_1x1_001"), loaded.spec)


def test_a_deviation_is_what_changed_weights_do(loaded, graph):
    """The same change of the weights, in the network itself."""
    model, generator = loaded.model, torch.Generator().manual_seed(1)
    before, features, scale = run(model, graph)
    heads = {key: torch.zeros(1, *head.shape[1:]).double() for key, head in loaded.model.error_model.heads.items()}
    kept = [layer.weight.data.clone() for layer in last_maps(model)]
    for layer, offset_of in zip(last_maps(model), (None, last_maps(model)[0]), strict=True):
        change = torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64)
        layer.weight.data += change
        changes = torch.split(change * layer.scale, layer.sizes)
        for (i, o), own in zip(layer.plan.pairs, changes, strict=True):
            mul, ir = layer.irreps_in[i]
            channel = sum(other == ir for _, other in layer.irreps_out[:o])
            start = sum(m for m, other in layer.irreps_in[:i] if other == ir)
            start += 0 if offset_of is None else offset_of.irreps_in.count(ir)
            for onsite in (False, True) if offset_of is None else (True,):
                heads[(onsite, 0), ir][0, channel, start : start + mul] += own
    after, _, _ = run(model, graph)
    for layer, weight in zip(last_maps(model), kept, strict=True):
        layer.weight.data = weight
    errors = ErrorModel(loaded.spec, loaded.model.error_model.noise, heads)
    (found,) = errors.deviations(model, graph, features, scale)
    torch.testing.assert_close(found, after - before, rtol=0, atol=1e-10)
    assert (after - before).abs().max() > 1e-3
    spread = errors.spread(model, graph, features, scale)
    blocks = loaded.spec.to_blocks(found, 0, 0)
    torch.testing.assert_close(spread.shared, blocks.square().mean((1, 2)), rtol=1e-9, atol=1e-15)


def test_the_sums_know_the_noise(loaded, graph):
    """Errors with a known size of each channel; the features are those of the graph."""
    with captured_features(loaded.model) as features:
        loaded.model(graph)
    head_sums, sizes = HeadSums(loaded.spec, 1), torch.linspace(0.5, 2, len(loaded.spec.irreps)).double()
    error = torch.randn(graph.num_edges, loaded.spec.dim, dtype=torch.float64).sign()
    head_sums.add(graph, features, error * sizes[loaded.model.normalization.irrep_of], 0)
    torch.testing.assert_close(head_sums.noise(), sizes.expand(2, 1, -1))


def test_half_widths_turn_with_the_structure(loaded, graph):
    """They are the same numbers for the turned structure, and for both directions of a pair."""
    found = []
    for turned in (graph, graph.rotated(random_rotation(3))):
        _, features, _ = run(loaded.model, turned)
        found.append(uncertainty_of(loaded.model, turned, features, 0.8).half_width)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-9)
    np.testing.assert_allclose(found[0][graph.reverse.numpy()], found[0], rtol=1e-9)
    assert found[0].min() > 0 and np.ptp(found[0]) > 0.01 * found[0].mean()


def test_shared_errors_are_hermitian_and_as_large_as_they_say(loaded, graph):
    _, features, _ = run(loaded.model, graph)
    uncertainty = uncertainty_of(loaded.model, graph, features, 0.8)
    assert len(uncertainty.shared) == loaded.model.error_model.num_heads == 2
    for matrix in uncertainty.shared:
        assert matrix.hermiticity_error()[0] < 1e-12 * np.abs(matrix.entries).max()
    square = np.mean([[np.mean(m.block(n) ** 2) for n in range(len(m))] for m in uncertainty.shared], axis=0)
    classes = loaded.model.error_model.blocks
    species = graph.species.numpy()
    which = classes.class_of(species[graph.i], species[graph.j], graph.length.numpy())
    factor = classes.quantiles(0.8)[which] / np.array([s.rms for _, s in classes.classes])[which]
    expected = factor * np.sqrt(square + uncertainty.independent**2)
    np.testing.assert_allclose(uncertainty.half_width, expected, rtol=1e-9)


def test_in_a_checkpoint(loaded, graph):
    """Weights of the spread are kept in single precision."""
    again = ErrorModel.from_state(loaded.spec, loaded.model.error_model.state())
    output, features, scale = run(loaded.model, graph)
    before, after = (e.spread(loaded.model, graph, features, scale) for e in (loaded.model.error_model, again))
    torch.testing.assert_close(after.independent, before.independent, rtol=1e-6, atol=0)
    torch.testing.assert_close(after.shared, before.shared, rtol=1e-4, atol=1e-18)
    assert again.mixing == loaded.model.error_model.mixing and again.bands.count == loaded.model.error_model.bands.count
    torch.testing.assert_close(hermitian(loaded.model, graph, output), output)
