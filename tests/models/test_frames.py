"""A local stage 1, and the covariant kinds of stage 2: covariance, and what may see what."""

from dataclasses import replace

import pytest
import torch
from e3nn import o3
from e3nn.o3 import Irreps
from kit import cases, random_rotation, random_snapshot
from test_covariant import CARBON, HEAVY

from hamfast.analysis import equivariance_error
from hamfast.data import build_graph, read_snapshot
from hamfast.graph import batch_graphs
from hamfast.models import Cascade, CovariantConfig, TransformerConfig
from hamfast.models.gradient_transformer import GradientStep
from hamfast.targets import TargetSpec

pytestmark = pytest.mark.usefixtures("double")

STAGE1 = {
    "irreps_mid": "8x0e+4x1o+3x2e+2x3o+2x4e",
    "num_basis": 12,
    "radial_hidden": 8,
    "embed_dim": 8,
    "num_blocks": 1,
}
STAGE2 = {"hidden": 16, "num_heads": 2, "num_basis": 8, "irreps": "6x0e+4x1o+3x2e+2x3o+2x4e"}


def as_at_the_start(kind, spec, environment=4.0, num_blocks=2, **options):
    stage1 = CovariantConfig(
        **STAGE1, environment=environment, node_products=0 if environment is None else 1, pair_blocks=2
    )
    stage2 = TransformerConfig(kind=kind, **STAGE2, num_blocks=num_blocks, environment=environment)
    return Cascade(spec, stage1, stage2, **options)


@pytest.fixture(params=["frames", "gradients"])
def kind(request):
    return request.param


@pytest.fixture
def cascade(kind):
    """Makes a cascade whose second stage is of the kind and does something."""

    def make(spec, *args, **options):
        model = as_at_the_start(kind, spec, *args, **options)
        for output in (model.stage2.output, model.stage2.onsite_output):
            torch.nn.init.normal_(output.weight)  # zero at the start
        return model

    return make


def of_soc():
    """With ten bonds that are shorter than the environment."""
    spec = TargetSpec.from_mapping({83: [0, 1, 2], 34: [0, 1]}, True)
    return spec, build_graph(random_snapshot({83: (0, 1, 2), 34: (0, 1)}, [83, 34], True, cutoff=5.0), spec)


@pytest.fixture
def mos2(fixtures):
    spec = TargetSpec.from_mapping({42: HEAVY, 16: CARBON}, False)
    return spec, build_graph(read_snapshot(fixtures / "MoS2_1x1_000"), spec)


@pytest.fixture
def carbon(graphene):
    snapshot = read_snapshot(graphene / "dft" / "3x3_000")
    spec = TargetSpec.from_mapping(snapshot.shells, False)
    return spec, build_graph(snapshot, spec)


@pytest.fixture(params=["without spin", "with spin-orbit coupling"])
def system(request, mos2):
    return mos2 if request.param == "without spin" else of_soc()


@pytest.mark.parametrize(
    ("dtype", "tolerance"), cases({"float64": (torch.float64, 1e-12), "float32": (torch.float32, 5e-6)})
)
@pytest.mark.parametrize("environment", [4.0, None])
def test_the_second_stage_is_covariant(cascade, system, environment, dtype, tolerance):
    spec, graph = system
    model = cascade(spec, environment).to(dtype)
    graph = graph.to(dtype=dtype)
    output = model(graph)
    assert (output.refined - output.baseline).norm() > 0.1 * output.baseline.norm()
    assert equivariance_error(model, graph) < tolerance


@pytest.mark.parametrize("pole", [0, 1, 2])
def test_covariance_holds_where_a_bond_meets_an_axis(cascade, mos2, pole):
    """Frames have poles; the second stage does not know where they are."""
    spec, graph = mos2
    model = cascade(spec)
    bond = graph.vector[int(graph.length.argmax())]
    axis = torch.zeros(3, dtype=bond.dtype)
    axis[pole] = 1.0
    turn = o3.axis_angle_to_matrix(
        torch.linalg.cross(bond, axis) / torch.linalg.cross(bond, axis).norm(),
        torch.atan2(torch.linalg.cross(bond, axis).norm(), bond @ axis),
    )
    found = model(graph.rotated(turn)).refined
    away = random_rotation(3)
    again = model(graph.rotated(away @ turn)).refined
    # Norms of irreps do not turn.
    for own in spec.irreps.slices():
        torch.testing.assert_close(found[:, own].norm(dim=1), again[:, own].norm(dim=1), atol=1e-9, rtol=1e-9)


def test_the_cascade_starts_as_stage_1(kind, system):
    spec, graph = system
    output = as_at_the_start(kind, spec)(graph)
    assert torch.equal(output.refined, output.baseline)


def test_inversion(cascade, mos2):
    spec, graph = mos2
    model = cascade(spec)
    sign = torch.cat([torch.full((ir.dim,), float(ir.p)) for _, ir in spec.irreps])
    torch.testing.assert_close(
        model(replace(graph, vector=-graph.vector)).refined, model(graph).refined * sign, atol=1e-10, rtol=1e-10
    )


def test_names_of_atoms_and_order_of_edges_do_not_matter(cascade, mos2):
    spec, graph = mos2
    model = cascade(spec)
    atoms = torch.randperm(graph.num_atoms)
    order = torch.randperm(graph.num_edges)
    where = torch.argsort(atoms)
    renamed = replace(
        graph, species=graph.species[atoms], i=where[graph.i][order], j=where[graph.j][order], shift=graph.shift[order],
        vector=graph.vector[order], reverse=torch.argsort(order)[graph.reverse[order]], target=graph.target[order],
    )  # fmt: skip
    torch.testing.assert_close(model(renamed).refined, model(graph).refined[order], atol=1e-10, rtol=1e-10)


def test_a_batch_gives_what_each_structure_gives(cascade, mos2):
    spec, graph = mos2
    other = replace(graph, vector=graph.vector * 1.02)
    model = cascade(spec)
    both = model(batch_graphs([graph, other])).refined
    torch.testing.assert_close(both, torch.cat([model(graph).refined, model(other).refined]), atol=1e-10, rtol=1e-10)


def test_an_atom_sees_its_environment_and_nothing_else(cascade, carbon):
    """One round within 2 angstrom: an on-site block depends on the bonds of its atom alone.

    With the second stage, it does on those of the atom's neighbours, too.
    """
    spec, graph = carbon
    model = cascade(spec, 2.0, num_blocks=1, freeze_stage1=False)
    assert model.receptive_field == 4.0
    graph.vector.requires_grad_()
    output = model(graph)
    onsite = int(torch.nonzero((graph.length == 0) & (graph.i == 0)))
    bonds = graph.length < 2.0
    neighbours = {0, *graph.j[bonds & (graph.i == 0)].tolist()}
    assert len(neighbours) == 4
    for blocks, atoms in ((output.baseline, {0}), (output.refined, neighbours)):
        (gradient,) = torch.autograd.grad(blocks[onsite].square().sum(), graph.vector, retain_graph=True)
        read = torch.nonzero(gradient.norm(dim=1) > 0).flatten()
        assert len(read) > 2
        assert set(graph.i[read].tolist()) == atoms
        assert bool(bonds[read].all())


def test_neighbours_fade_in_at_the_radius(cascade, mos2):
    """The same weights with the radius just below and just above a bond give nearly the same."""
    spec, graph = mos2
    length = float(graph.length[graph.length > 3.5].min())
    torch.manual_seed(0)
    below, above = cascade(spec, length - 1e-3), cascade(spec, length + 1e-3)
    above.load_state_dict(below.state_dict())
    first, second = below(graph).refined, above(graph).refined
    assert len(graph.within(length - 1e-3).i) < len(graph.within(length + 1e-3).i)
    assert (first - second).norm() < 3e-2 * first.norm()
    nearer = cascade(spec, length - 1e-4)
    nearer.load_state_dict(below.state_dict())
    beyond = cascade(spec, length + 1e-4)
    beyond.load_state_dict(below.state_dict())
    assert (nearer(graph).refined - beyond(graph).refined).norm() < 0.2 * (first - second).norm()


def test_gradients_reach_every_trained_parameter(cascade, mos2):
    spec, graph = mos2
    model = cascade(spec, freeze_stage1=False)
    model(graph).refined.square().sum().backward()
    unused = set(model.stage1.unused_node_output.parameters())
    missing = [name for name, p in model.named_parameters() if p.numel() and p not in unused and p.grad is None]
    assert missing == []


def test_gradients_of_a_loss_are_those_of_differences(cascade, system):
    """In a random direction of all parameters of the second stage."""
    spec, graph = system
    model = cascade(spec)
    parameters = {f"stage2.{name}": p.detach() for name, p in model.stage2.named_parameters()}
    directions = {name: torch.randn_like(p) for name, p in parameters.items()}

    def loss(step):
        moved = {name: p + step * directions[name] for name, p in parameters.items()}
        return torch.func.functional_call(model, moved, graph).refined.square().mean()

    step = torch.zeros((), requires_grad=True)
    (found,) = torch.autograd.grad(loss(step), step)
    h = 3e-4
    with torch.no_grad():
        wanted = (8 * (loss(h) - loss(-h)) - (loss(2 * h) - loss(-2 * h))) / (12 * h)
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=0)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_prediction_needs_no_graph(cascade, mos2, mode):
    spec, graph = mos2
    model = cascade(spec)
    wanted = model(graph).refined.detach()
    with mode():
        torch.testing.assert_close(model(graph).refined, wanted, rtol=1e-12, atol=1e-12)


def test_a_few_steps_lower_the_loss(kind, cascade, mos2):
    """Towards the correction of another cascade, with the same first stage."""
    spec, graph = mos2
    model, other = as_at_the_start(kind, spec), cascade(spec)
    other.stage1 = model.stage1
    output = other(graph)
    correction = (output.refined - output.baseline).detach()
    optimizer = torch.optim.Adam(model.stage2.parameters(), 1e-2)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        output = model(graph)
        losses.append((output.refined - output.baseline - correction).square().mean())
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]


def test_the_step_of_kind_gradients_is_the_gradient():
    """What the step writes out is what autograd finds, for irreps of both parities."""
    irreps = Irreps("3x0e+2x0o+2x1o+2x1e+2x2e")
    step = GradientStep(TransformerConfig(hidden=8, num_basis=4), irreps, irreps)
    f, context = torch.randn(7, irreps.dim, requires_grad=True), torch.randn(7, 16)
    invariants, found = step.of_features(f, context)
    (wanted,) = torch.autograd.grad((invariants @ step.weight).sum(), f)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)
