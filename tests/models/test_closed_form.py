"""The shift by environment: covariant whatever its coefficients are, and a good start."""

from dataclasses import replace

import pytest
import torch
from kit import random_rotation, random_snapshot
from test_covariant import CARBON, HEAVY, small

from hamfast.data import GraphDataset, build_graph, dataset_spec, read_snapshot
from hamfast.models import ClosedForm, TargetNormalization, closed_form
from hamfast.models.least_squares import NormalEquations
from hamfast.targets import TargetSpec

double = pytest.mark.usefixtures("double")


def random(spec, r_max=8.5, environment=3.0, **options):
    """A model with random coefficients."""
    model = ClosedForm(spec, r_max, environment, **options)
    for name, coefficients in model.state_dict().items():
        torch.nn.init.normal_(coefficients)
        assert name.startswith(("onsite_", "hopping_"))
    return model


@pytest.fixture
def hbn(fixtures):
    folder = fixtures / "hBN_1x1_000"
    spec = dataset_spec([folder])
    return spec, build_graph(read_snapshot(folder), spec)


@double
@pytest.mark.parametrize("inversion", [False, True], ids=["rotation", "inversion"])
@pytest.mark.parametrize("material", ["hBN", "MoS2", "soc"])
def test_irreps_rotate_with_the_structure(material, inversion, fixtures):
    if material == "soc":
        spec = TargetSpec.from_mapping({83: [0, 1], 34: [0, 1]}, True)
        graph = build_graph(random_snapshot({83: (0, 1), 34: (0, 1)}, [83, 34], True, cutoff=5.0), spec)
    else:
        folder = fixtures / f"{material}_1x1_000"
        spec = dataset_spec([folder])
        graph = build_graph(read_snapshot(folder), spec)
    model = random(spec, r_max=15.0)
    rotation = random_rotation() * (-1 if inversion else 1)
    order = [1, 2, 0]  # of e3nn's axes
    matrices = spec.irreps.D_from_matrix(rotation[order][:, order])
    here, there = model(graph), model(graph.rotated(rotation))
    torch.testing.assert_close(there, here @ matrices.T, atol=1e-10 * float(here.abs().max()), rtol=0)
    if material == "MoS2":  # features that mix parities: unnatural ones are there, too
        for _, own in (
            (ir, s) for (_, ir), s in zip(spec.irreps, spec.irreps.slices(), strict=True) if ir.p != (-1) ** ir.l
        ):
            assert here[:, own].abs().max() > 1e-3


@double
def test_order_of_atoms_and_of_edges_changes_nothing(hbn):
    spec, graph = hbn
    model = random(spec)
    expected = model(graph)
    atoms, edges = torch.tensor([1, 0]), torch.randperm(graph.num_edges)
    where = torch.argsort(edges)
    relabelled = replace(
        graph,
        species=graph.species[atoms],
        i=atoms[graph.i][edges],
        j=atoms[graph.j][edges],
        vector=graph.vector[edges],
        reverse=where[graph.reverse[edges]],
        target=None,
    )
    torch.testing.assert_close(model(relabelled), expected[edges], atol=1e-10 * float(expected.abs().max()), rtol=0)


@double
def test_another_home_cell_changes_nothing(hbn, fixtures):
    spec, graph = hbn
    snapshot = read_snapshot(fixtures / "hBN_1x1_000")
    moved = build_graph(replace(snapshot, positions=snapshot.positions + 0.3), spec)
    model = random(spec)
    expected = model(graph)
    torch.testing.assert_close(model(moved), expected, atol=1e-10 * float(expected.abs().max()), rtol=0)


@double
def test_a_batch_is_its_structures(fixtures):
    from hamfast.graph import batch_graphs

    folders = [fixtures / f"graphene_1x1_00{n}" for n in range(2)]
    spec = dataset_spec(folders)
    graphs = [build_graph(read_snapshot(folder), spec) for folder in folders]
    model = random(spec)
    expected = torch.cat([model(graph) for graph in graphs])
    torch.testing.assert_close(model(batch_graphs(graphs)), expected, atol=1e-10 * float(expected.abs().max()), rtol=0)


@double
def test_fit_recovers_what_it_can_represent(hbn, fixtures, monkeypatch):
    """Targets of a model with random coefficients; nothing is left but the ridge's error."""
    monkeypatch.setattr(closed_form, "DENSITY_RADIAL", 2)
    monkeypatch.setattr(closed_form, "BOND_RADIAL", 3)
    spec, graph = hbn
    source, fitted = random(spec), ClosedForm(spec, 8.5, 3.0)
    graphs = []
    for seed in range(6):
        torch.manual_seed(seed)
        atoms = 0.1 * torch.randn(graph.num_atoms, 3)
        moved = replace(graph, vector=graph.vector + atoms[graph.j] - atoms[graph.i])
        graphs.append(replace(moved, target=source(moved)))
    fitted.fit(graphs)
    for known in graphs:
        assert (fitted(known) - known.target).norm() < 3e-4 * known.target.norm()  # sqrt(NOTHING)


@double
def test_blocks_change_smoothly_at_the_radius_of_the_environment(hbn):
    """A neighbour that crosses the radius: neither a step nor a kink."""
    spec, graph = hbn
    model = random(spec)
    edge = int(((graph.length - 3.0).abs() + 10 * (graph.i == graph.j)).argmin())
    partner = int(graph.reverse[edge])
    direction = graph.vector[edge] / graph.length[edge]
    others = (graph.length < 1.5) & (graph.length > 0)  # only bonds and this pair make densities

    def at(length):
        vector = torch.where(others[:, None], graph.vector, 2 * graph.vector)
        vector[edge], vector[partner] = length * direction, -length * direction
        return model(replace(graph, vector=vector))[others]

    step = 1e-3
    inside, before, here, after = (at(3.0 + n * step) for n in (-100, -1, 0, 1))
    assert (inside - here).abs().max() > 1e-5
    assert (before - here).abs().max() < 2e-6 * (inside - here).abs().max()  # third order
    assert torch.equal(after, here)


@double
def test_derivatives_in_the_vectors(fixtures):
    spec = TargetSpec.from_mapping({83: [0, 1], 34: [0]}, False)
    graph = build_graph(random_snapshot({83: (0, 1), 34: (0,)}, [83, 34], False, cutoff=5.0), spec)
    model = random(spec, r_max=15.0, environment=4.0, features=60)
    hop = graph.length > 1e-6

    def blocks(vectors):
        return model(replace(graph, vector=graph.vector.index_put((hop,), vectors)))

    vectors = graph.vector[hop].requires_grad_()
    assert torch.autograd.gradcheck(blocks, vectors, fast_mode=True)
    direction = torch.randn_like(vectors)
    with torch.no_grad():
        _, tangent = torch.func.jvp(blocks, (vectors,), (direction,))
        step = 1e-6
        difference = (blocks(vectors + step * direction) - blocks(vectors - step * direction)) / (2 * step)
    torch.testing.assert_close(tangent, difference, atol=1e-6 * float(difference.abs().max()), rtol=0)


@pytest.mark.slow
def test_it_is_better_than_two_centres_on_dft_data(graphene):
    """Fourteen structures of 18 atoms; mean absolute error of others, and of a larger cell."""
    folders = [graphene / "dft" / f"3x3_{n:03d}" for n in range(14)]
    spec = dataset_spec(folders[:1])
    train = list(GraphDataset(folders, spec, None))
    r_max = 1.001 * max(float(graph.length.max()) for graph in train)
    errors = {}
    for shift in ("radial", "environment"):
        normalization = TargetNormalization(spec, shift, "none", r_max)
        normalization.fit(train)
        for name in ("3x3_022", "4x4_000"):
            graph = build_graph(read_snapshot(graphene / "dft" / name), spec, dtype=torch.float32)
            with torch.no_grad():
                left = graph.target - normalization.shift_and_scale(graph)[0]
            meV = 1e3 * spec.to_blocks(left, 0, 0).abs()
            onsite = graph.length < 1e-6
            errors[shift, name] = float(meV[onsite].mean()), float(meV[~onsite].mean())
    for name in ("3x3_022", "4x4_000"):
        (onsite, hopping), (before_onsite, before) = errors["environment", name], errors["radial", name]
        assert before_onsite > 500 and onsite < 8
        assert before > 35 and hopping < 2


@double
def test_a_cascade_has_it_in_its_checkpoint(hbn):
    spec, graph = hbn
    options = {"target_shift": "environment", "target_scale": "radial", "r_max": 8.5, "target_environment": 2.8}
    model, other = small(spec, **options), small(spec, **options)
    model.normalization.fit([graph])
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(graph).refined, model(graph).refined, atol=1e-12, rtol=1e-12)
    shift, scale = model.normalization.shift_and_scale(graph)
    assert (shift - graph.target).norm() < 2e-2 * graph.target.norm()
    assert scale.min() > 0


@pytest.mark.parametrize("environment", [0.5, 9.0])
def test_radius_out_of_range_is_named(environment):
    spec = TargetSpec.from_mapping({42: HEAVY, 16: CARBON}, False)
    with pytest.raises(ValueError, match=r"target.environment: expected more than 1 and at most 8.00 angstrom"):
        ClosedForm(spec, 8.0, environment)


def test_irreps_without_features_stay_zero():
    """Pseudoscalars are none of two densities."""
    spec = TargetSpec.from_mapping({83: [0, 1]}, True)
    graph = build_graph(random_snapshot({83: (0, 1)}, [83, 83], True), spec, dtype=torch.float32)
    model = ClosedForm(spec, 8.0)
    model.fit([graph])
    own = next(s for (_, ir), s in zip(spec.irreps, spec.irreps.slices(), strict=True) if str(ir) == "0o")
    found = model(graph)
    assert found.isfinite().all() and found.any() and not found[:, own].any()
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert shapes["onsite_0o"][2] == shapes["hopping_0o"][2] == 0


def test_what_vanishes_by_symmetry_gets_no_coefficient():
    """One feature is rounding of zero: fitted, its coefficient would be some 1e7."""
    generator = torch.Generator().manual_seed(0)
    equations = NormalEquations(1, 2, 1)
    for structure in range(8):
        x = torch.randn(50, 2, 3, generator=generator, dtype=torch.float64)
        x[:, 1] *= 1e-7
        y = 2 * x[:, :1] + 0.1 * torch.randn(50, 1, 3, generator=generator, dtype=torch.float64)
        equations.add(torch.ones(50, 1, dtype=torch.float64), x, y, structure)
    found = equations.solve()[0, :, 0]
    assert found[1] == 0 and abs(found[0] - 2) < 0.02


def test_of_equal_ridges_the_largest_is_taken():
    """Two features that are nearly one: their coefficients share, and do not cancel."""
    generator = torch.Generator().manual_seed(0)
    equations = NormalEquations(1, 2, 1)
    for structure in range(8):
        x = torch.randn(50, 1, 1, generator=generator, dtype=torch.float64).repeat(1, 2, 1)
        x[:, 1] += 1e-4 * torch.randn(50, 1, generator=generator, dtype=torch.float64)
        equations.add(torch.ones(50, 1, dtype=torch.float64), x, x[:, :1] * (1 + 1e-5), structure)
    torch.testing.assert_close(
        equations.solve()[0, :, 0], torch.tensor([0.5, 0.5], dtype=torch.float64), atol=0.02, rtol=0
    )
