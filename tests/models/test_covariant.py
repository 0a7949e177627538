"""Stage 1: the published network, and exactly covariant."""

import pytest
import torch
from kit import cases, random_rotation, random_snapshot, rotated_orbitals

from hamfast.analysis import equivariance_error
from hamfast.data import blocks_from_irreps, build_graph, read_snapshot
from hamfast.graph import batch_graphs
from hamfast.models import Cascade, CovariantConfig, CovariantNetwork, TransformerConfig
from hamfast.models.covariant import output_irreps
from hamfast.reference import E3nnNetwork
from hamfast.targets import TargetSpec

CARBON, HEAVY = [0, 0, 1, 1, 2], [0, 0, 0, 1, 1, 2, 2]
WITHOUT_5, WITH_5 = "64x0e+32x1o+16x2e+8x3o+8x4e", "64x0e+32x1o+16x2e+8x3o+8x4e+4x5o"
PUBLISHED = [
    ("graphene", {6: CARBON}, False, WITH_5, 5, 672_184),
    ("MoS2", {42: HEAVY, 16: CARBON}, False, WITH_5, 5, 768_578),
    ("bismuthene", {83: HEAVY}, True, WITH_5, 5, 1_393_037),
    ("Bi2Se3", {83: HEAVY, 34: HEAVY}, True, WITH_5, 5, 1_462_621),
    ("Bi2Te3", {83: HEAVY, 52: HEAVY}, True, WITHOUT_5, 5, 1_408_883),
    ("default", {6: CARBON}, False, WITHOUT_5, 4, 627_981),
]


@pytest.mark.parametrize(
    ("name", "shells", "soc", "mid", "l_max", "expected"), PUBLISHED, ids=[p[0] for p in PUBLISHED]
)
def test_parameter_counts_of_the_published_networks(name, shells, soc, mid, l_max, expected):
    network = CovariantNetwork(CovariantConfig(irreps_mid=mid, l_max=l_max), TargetSpec.from_mapping(shells, soc))
    assert sum(p.numel() for p in network.parameters()) == expected


LIGHT, HEAVY_SP = {83: [0, 0, 1], 34: [0, 1]}, {83: [0, 1]}
LAST_NODES = [
    (HEAVY_SP, WITHOUT_5, 4, WITHOUT_5 + "+32x1e"),
    ({83: HEAVY, 34: HEAVY}, WITH_5, 5, WITH_5 + "+32x1e"),
    ({83: HEAVY}, "32x0e+8x2e+8x3o", 5, "32x0e+8x2e+8x3o+8x1e"),
    ({83: [0, 2]}, "32x0e+8x2e+8x3o", 2, "32x0e+8x2e+8x3o+8x3e"),
    (LIGHT, "32x0e+8x4e", 5, "32x0e+8x4e+8x1e"),
    (LIGHT, "8x1o+32x0e+4x1o+4x2e", 4, "8x1o+32x0e+4x1o+4x2e+8x1e+4x1e"),
    ({83: HEAVY}, "32x0e+8x1e+4x2o", 5, "32x0e+8x1e+4x2o"),
    ({83: [0, 2]}, "32x0e+8x1e+4x2o", 2, "32x0e+8x1e+4x2o+4x2e+4x3e"),
    ({83: HEAVY}, "16x0e+8x1e+6x2e+4x3e", 1, "16x0e+8x1e+6x2e+4x3e+4x3o+4x4o"),
    (LIGHT, "32x0e+4x0o+8x1o+8x1e", 1, "32x0e+4x0o+8x1o+8x1e+8x2o"),
]
"""What DeepH-E3's own code makes of elements, hidden irreps and l_max with spin-orbit coupling."""


@pytest.mark.parametrize(("shells", "mid", "l_max", "expected"), LAST_NODES, ids=[c[3] for c in LAST_NODES])
def test_irreps_of_the_last_nodes_are_those_of_the_published_code(shells, mid, l_max, expected):
    spec = TargetSpec.from_mapping(shells, True)
    assert str(output_irreps(CovariantConfig(irreps_mid=mid, l_max=l_max), spec)[0]) == expected


def small(spec, **options):
    config = CovariantConfig(
        irreps_mid="8x0e+4x1o+3x2e+2x3o+2x4e", l_max=4, num_basis=12, radial_hidden=8, embed_dim=8, num_blocks=3
    )
    cascade = Cascade(
        spec, config, TransformerConfig(kind="plain", hidden=16, num_blocks=2, num_heads=2, num_basis=8), **options
    )
    for parameter in cascade.parameters():
        if parameter.dim() == 1 and not parameter.any():
            parameter.data.normal_(std=0.3)  # biases start at zero; give them something to do
    return cascade


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    cases(
        {
            "float64": (torch.float64, 1e-12),
            "float32": (torch.float32, 1e-5),
        }
    ),
)
@pytest.mark.parametrize("case", ["MoS2", "batch", "soc"])
def test_equals_the_network_of_e3nn_modules(case, dtype, tolerance, fixtures):
    torch.set_default_dtype(dtype)
    try:
        if case == "soc":
            spec = TargetSpec.from_mapping({83: [0, 1], 34: [0, 1]}, True)
            graph = build_graph(random_snapshot({83: (0, 1), 34: (0, 1)}, [83, 34], True, cutoff=5.0), spec)
        else:
            folders = ["MoS2_1x1_000"] if case == "MoS2" else ["graphene_1x1_000", "graphene_1x1_001"]
            snapshots = [read_snapshot(fixtures / f) for f in folders]
            spec = TargetSpec.from_mapping({z: s.shells[z] for s in snapshots for z in s.elements}, False)
            graph = batch_graphs([build_graph(s, spec) for s in snapshots])
        graph = graph.to(dtype=dtype)
        network = small(spec).stage1
        with torch.no_grad():
            ours, theirs = network(graph)[0], E3nnNetwork(network)(graph)
        assert float((ours - theirs).norm() / theirs.norm()) < tolerance
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("soc", [False, True], ids=["plain", "soc"])
def test_rotating_the_structure_rotates_the_blocks(soc, fixtures):
    if soc:
        spec = TargetSpec.from_mapping({83: [0, 1], 34: [0, 1]}, True)
        snapshot = random_snapshot({83: (0, 1), 34: (0, 1)}, [83, 34], True, cutoff=5.0)
    else:
        spec = TargetSpec.from_mapping({42: HEAVY, 16: CARBON}, False)
        snapshot = read_snapshot(fixtures / "MoS2_1x1_000")
    graph = build_graph(snapshot, spec)
    model = small(spec, target_shift="radial", target_scale="radial", hermitian=True, r_max=14.0)
    model.normalization.fit([graph])
    assert equivariance_error(model, graph, refine=False) < 1e-10
    if soc:
        return
    # Once more on blocks, with D from the orbitals' definition.
    rotation = random_rotation()
    here = blocks_from_irreps(model(graph, refine=False).baseline, graph, spec)
    there = blocks_from_irreps(model(graph.rotated(rotation), refine=False).baseline, graph, spec)
    scale = abs(here.entries).max()
    d = {z: rotated_orbitals(snapshot.shells[z], rotation).numpy() for z in snapshot.elements}
    for n in range(0, len(here), 7):
        i, j = (int(snapshot.numbers[a]) for a in here.pairs[n, 3:])
        assert abs(there.block(n) - d[i] @ here.block(n) @ d[j].T).max() < 1e-10 * scale


@pytest.mark.usefixtures("double")
def test_translation_relabelling_and_periodic_images_change_nothing(fixtures):
    snapshot = read_snapshot(fixtures / "graphene_1x1_000")
    spec = TargetSpec.from_mapping({6: CARBON}, False)
    model = small(spec)
    graph = build_graph(snapshot, spec)
    order = torch.randperm(graph.num_edges)
    inverse = torch.argsort(order)
    import dataclasses

    shuffled = dataclasses.replace(
        graph, i=graph.i[order], j=graph.j[order], vector=graph.vector[order], shift=graph.shift[order],
        reverse=inverse[graph.reverse[order]], edge_graph=graph.edge_graph[order], target=None,
    )  # fmt: skip
    for stage in (False, True):
        torch.testing.assert_close(
            model(shuffled, refine=stage).refined, model(graph, refine=stage).refined[order], atol=1e-10, rtol=1e-9
        )


def test_impossible_target_names_the_irrep():
    with pytest.raises(ValueError, match="cannot make the target irrep"):
        CovariantNetwork(
            CovariantConfig(irreps_mid="8x0e+4x1o", l_max=1, embed_dim=4),
            TargetSpec.from_mapping({6: [0, 0, 1, 1, 2]}, False),
        )
