"""Normalisation, stage 2, and the options of the cascade."""

from dataclasses import replace

import pytest
import torch
from test_covariant import CARBON, HEAVY, small

from hamfast.analysis import equivariance_error
from hamfast.data import build_graph, read_snapshot
from hamfast.models import CovariantConfig, CovariantNetwork, TargetNormalization
from hamfast.targets import TargetSpec

pytestmark = pytest.mark.usefixtures("double")


@pytest.fixture
def mos2(fixtures):
    spec = TargetSpec.from_mapping({42: HEAVY, 16: CARBON}, False)
    return spec, build_graph(read_snapshot(fixtures / "MoS2_1x1_000"), spec)


def test_cascade_starts_as_stage_one(mos2):
    spec, graph = mos2
    model = small(spec)
    torch.nn.init.zeros_(model.stage2.output.weight)
    torch.nn.init.zeros_(model.stage2.output.bias)
    output = model(graph)
    torch.testing.assert_close(output.refined, output.baseline, atol=0, rtol=0)
    torch.nn.init.normal_(model.stage2.output.weight)
    assert (model(graph).refined - output.baseline).abs().max() > 1e-3


def test_stage_two_is_not_covariant_and_the_error_says_so(mos2):
    spec, graph = mos2
    model = small(spec)
    torch.nn.init.normal_(model.stage2.output.weight)
    assert equivariance_error(model, graph, refine=False) < 1e-10
    assert equivariance_error(model, graph) > 1e-3


def test_hermitian_option(mos2):
    spec, graph = mos2
    index, sign = spec.transpose
    for hermitian in (True, False):
        refined = small(spec, hermitian=hermitian)(graph).refined
        conjugate = refined[graph.reverse][:, index] * sign
        assert torch.allclose(refined, conjugate, atol=1e-12) is hermitian


@pytest.mark.parametrize("scale", ["none", "constant", "radial"])
@pytest.mark.parametrize("shift", ["none", "constant", "radial"])
def test_normalisation_learns_a_two_centre_model(mos2, shift, scale):
    """A target that is f(r) Y(direction) on hoppings and constant on site is what the radial shift
    can represent."""
    from e3nn import o3

    spec, graph = mos2
    onsite = graph.length < 1e-6
    target = torch.zeros_like(graph.target)
    for (_, ir), own in zip(spec.irreps, spec.irreps.slices(), strict=True):
        if ir.p == (-1) ** ir.l:
            y = o3.spherical_harmonics(ir.l, graph.vector[:, [1, 2, 0]], True, "component")
            target[:, own] = torch.exp(-graph.length / 3)[:, None] * torch.where(onsite[:, None], float(ir.l == 0), y)
    masks = torch.stack([spec.mask(p // 2, p % 2) for p in range(4)])
    graph.target = target * masks[graph.pair_species(2)]
    normalization = TargetNormalization(spec, shift, scale, 14.0)
    normalization.fit([graph])
    units = normalization.shift_and_scale(graph)
    assert (units is None) == (shift == scale == "none")
    rest = graph.target - (0.0 if units is None else units[0])
    before = graph.target[~onsite].norm()
    if shift == "none":
        assert rest.norm() == graph.target.norm()
    elif shift == "radial":
        assert rest[~onsite].norm() < 2e-2 * before
        assert rest[onsite].norm() < 1e-6
    if scale != "none":
        found = units[1]
        if shift == "none" and scale == "radial":
            s = spec.irreps.slices()[0]  # s-s, on hoppings exp(-r / 3)
            mean = target[~onsite][:, s].abs().mean() / found[~onsite][:, s].mean()
            assert 0.5 < mean < 2


def test_cutoff_envelope_silences_far_messages(mos2):
    """Edges beyond the envelope change nothing at a node: whatever features they carry."""
    from hamfast.models.covariant import Messages
    from hamfast.models.sweeps import Whole
    from hamfast.nn import polynomial_envelope
    from hamfast.ops import edge_frames, edge_index

    spec, graph = mos2
    config = CovariantConfig(irreps_mid="4x0e+2x1o+2x2e+1x3o+1x4e", num_basis=8, radial_hidden=8, embed_dim=4)
    update = CovariantNetwork(config, spec).node_updates[0]
    edges = edge_index(graph.senders, graph.receivers, graph.num_atoms)
    messages = Messages(graph, edges, edge_frames(graph.vector[:, [1, 2, 0]], 4), torch.randn(graph.num_edges, 8), 2)
    node, edge = torch.randn(graph.num_atoms, 4), torch.randn(graph.num_edges, 4)
    far = (graph.length > 3.0)[:, None]
    changed = torch.where(far, edge + 1, edge)

    def updated(edge):
        return update.sweep(Whole(graph), lambda piece: messages, node, edge)

    assert not torch.allclose(updated(edge), updated(changed))
    messages.envelope = polynomial_envelope(graph.length, 3.0).unsqueeze(-1)
    torch.testing.assert_close(updated(edge), updated(changed), atol=1e-12, rtol=0)


def test_gradients_reach_every_trained_parameter(mos2):
    spec, graph = mos2
    model = small(spec, freeze_stage1=False)
    torch.nn.init.normal_(model.stage2.output.weight)
    model(graph).refined.square().sum().backward()
    missing = [
        n
        for n, p in model.named_parameters()
        if p.requires_grad and p.numel() and (p.grad is None or not p.grad.abs().sum() > 0)
    ]
    assert missing == []
    frozen = small(spec, freeze_stage1=True)
    torch.nn.init.normal_(frozen.stage2.output.weight)
    frozen(graph).refined.square().sum().backward()
    assert all(p.grad is None for p in frozen.stage1.parameters())


def test_derivative_along_a_displacement_in_forward_mode(mos2):
    """dH/dR for electron-phonon coupling, through both stages, against a central difference."""
    spec, graph = mos2
    model = small(spec)
    torch.nn.init.normal_(model.stage2.output.weight)
    atoms = torch.randn(graph.num_atoms, 3)
    direction = atoms[graph.senders] - atoms[graph.receivers]

    def hamiltonian(vector):
        return model(replace(graph, vector=vector)).refined

    _, tangent = torch.func.jvp(hamiltonian, (graph.vector,), (direction,))
    step = 1e-6
    with torch.no_grad():
        ahead, behind = (hamiltonian(graph.vector + sign * step * direction) for sign in (1, -1))
    difference = (ahead - behind) / (2 * step)
    assert difference.abs().max() > 1.0
    torch.testing.assert_close(tangent, difference, atol=1e-6 * difference.abs().max().item(), rtol=0)
