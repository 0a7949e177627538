"""Targets, graphs and data sets."""

import json
import shutil

import numpy as np
import pytest
import torch
from e3nn import o3
from kit import random_rotation, random_snapshot, rotated_orbitals

from hamfast.data import (
    GraphDataset,
    blocks_from_irreps,
    build_graph,
    dataset_spec,
    graph_loader,
    read_snapshot,
    read_split,
    write_split,
)
from hamfast.data.prepared import prepare
from hamfast.data.store import Store
from hamfast.errors import HamfastError
from hamfast.graph import batch_graphs
from hamfast.ops import rotate_irreps
from hamfast.targets import TargetSpec

CASES = [({42: (0, 0, 1, 2, 2), 16: (0, 1, 3)}, [42, 16, 16], False), ({83: (0, 1, 1, 2), 34: (0, 1)}, [83, 34], True)]


@pytest.mark.parametrize(("shells", "numbers", "spinful"), CASES, ids=["plain", "soc"])
def test_blocks_to_irreps_and_back(shells, numbers, spinful):
    snapshot = random_snapshot(shells, numbers, spinful)
    spec = TargetSpec.from_mapping(shells, spinful)
    graph = build_graph(snapshot, spec)
    again = blocks_from_irreps(graph.target, graph, spec)
    np.testing.assert_array_equal(again.pairs, snapshot.hamiltonian.pairs)
    assert np.max(np.abs(again.entries - snapshot.hamiltonian.entries)) < 1e-12
    # With the component weights sums over irreps are sums over matrix elements.
    norm = float((graph.target.square() * spec.component_weight).sum())
    assert norm == pytest.approx(snapshot.hamiltonian.norm() ** 2, rel=1e-12)
    # Hermitian conjugation in irreps.
    index, sign = spec.transpose
    conjugate = graph.target[graph.reverse][:, index] * sign
    torch.testing.assert_close(conjugate, graph.target, atol=1e-12, rtol=0)


def test_number_of_channels_is_as_published():
    carbon = TargetSpec.from_mapping({6: [0, 0, 1, 1, 2]}, False)
    assert (len(carbon.channels), carbon.dim) == (25, 169)
    mos2 = TargetSpec.from_mapping({42: [0, 0, 0, 1, 1, 2, 2], 16: [0, 0, 1, 1, 2]}, False)
    assert (len(mos2.channels), mos2.dim) == (49, 361)
    bismuth = TargetSpec.from_mapping({83: [0, 0, 0, 1, 1, 2, 2]}, True)
    assert (len(bismuth.channels), bismuth.dim) == (49, 2888)


@pytest.mark.parametrize("improper", [False, True], ids=["proper", "improper"])
def test_irreps_turn_as_orbitals_do(improper):
    """D H D^T with D from the orbitals' own definition, against D matrices on the irreps."""
    shells = (0, 1, 2, 3)
    spec = TargetSpec.from_mapping({6: shells}, False)
    n = spec.num_orbitals(0)
    block = torch.randn(3, n, n, dtype=torch.float64)
    rotation = random_rotation() * (-1 if improper else 1)
    d = rotated_orbitals(shells, rotation)
    rotated = spec.to_blocks(rotate_irreps(spec.to_irreps(block, 0, 0), spec.irreps, rotation), 0, 0)
    torch.testing.assert_close(rotated, d @ block @ d.T, atol=1e-10, rtol=0)


def test_spin_turns_as_spin_does():
    """With SU(2) on the spins: exp(-i angle n.sigma / 2) x D on both sides."""
    shells = (0, 1, 2)
    spec = TargetSpec.from_mapping({83: shells}, True)
    n = spec.num_orbitals(0)
    block = torch.randn(2, 2 * n, 2 * n, dtype=torch.complex128)
    axis = torch.nn.functional.normalize(torch.tensor([0.3, -0.5, 0.8], dtype=torch.float64), dim=0)
    angle = torch.tensor(1.1, dtype=torch.float64)
    rotation = o3.axis_angle_to_matrix(axis, angle)  # plain Rodrigues formula, in xyz
    sigma = torch.tensor([[[0, 1], [1, 0]], [[0, -1j], [1j, 0]], [[1, 0], [0, -1]]], dtype=torch.complex128)
    spin = torch.matrix_exp(-0.5j * angle * torch.einsum("i,ijk->jk", axis.to(sigma), sigma))
    d = torch.kron(spin, rotated_orbitals(shells, rotation).to(spin))
    rotated = spec.to_blocks(rotate_irreps(spec.to_irreps(block, 0, 0), spec.irreps, rotation), 0, 0)
    torch.testing.assert_close(rotated, d @ block @ d.conj().T, atol=1e-10, rtol=0)


def test_graph_holds_every_pair_of_h(fixtures):
    snapshot = read_snapshot(fixtures / "MoS2_1x1_000")
    spec = dataset_spec([fixtures / "MoS2_1x1_000"])
    graph = build_graph(snapshot, spec)
    assert graph.num_edges == len(snapshot.hamiltonian)
    torch.testing.assert_close(graph.vector[graph.reverse], -graph.vector)
    assert int((graph.length < 1e-9).sum()) == snapshot.num_atoms


def test_without_matrices_the_neighbour_list_gives_the_same_pairs(fixtures):
    """Graphene's matrices hold every pair up to 8 angstrom."""
    snapshot = read_snapshot(fixtures / "graphene_1x1_000")
    spec = dataset_spec([fixtures / "graphene_1x1_000"])
    bare = read_snapshot(fixtures / "graphene_1x1_000", hamiltonian=None)
    bare.overlap = None
    graph = build_graph(bare, spec, pair_cutoffs=np.full((1, 1), 8.0))
    pairs = torch.cat([graph.shift, graph.receivers[:, None], graph.senders[:, None]], 1)
    assert set(map(tuple, pairs.tolist())) == set(snapshot.hamiltonian.index)
    torch.testing.assert_close(graph.vector[graph.reverse], -graph.vector)
    bare.label = "bare"
    with pytest.raises(HamfastError, match="bare: neither a Hamiltonian nor an overlap"):
        build_graph(bare, spec)


def test_unknown_element_and_other_orbitals(fixtures):
    snapshot = read_snapshot(fixtures / "hBN_1x1_000")
    with pytest.raises(HamfastError, match="element [BN] is unknown to the model, which knows C"):
        build_graph(snapshot, TargetSpec.from_mapping({6: [0, 0, 1, 1, 2]}, False))
    with pytest.raises(HamfastError, match=r"has shells \[0, 0, 1, 1, 2\], the model was made for \[0, 1\]"):
        build_graph(snapshot, TargetSpec.from_mapping({5: [0, 1], 7: [0, 1]}, False))
    with pytest.raises(HamfastError, match="without spin-orbit coupling, the model was made with"):
        build_graph(snapshot, TargetSpec.from_mapping({5: [0, 0, 1, 1, 2], 7: [0, 0, 1, 1, 2]}, True))


def test_batching(fixtures):
    folders = [fixtures / "graphene_1x1_000", fixtures / "graphene_1x1_001"]
    spec = dataset_spec(folders)
    one, two = (build_graph(read_snapshot(f), spec) for f in folders)
    both = batch_graphs([one, two])
    assert both.num_graphs == 2
    torch.testing.assert_close(both.vector[both.reverse], -both.vector)
    torch.testing.assert_close(both.target[one.num_edges :], two.target)
    assert int(both.i[one.num_edges :].min()) == one.num_atoms


def test_several_workers_give_the_same_batches(fixtures, tmp_path):
    folders = sorted(fixtures.glob("graphene*"))
    prepared = prepare(folders, Store(tmp_path), torch.float32)
    data = GraphDataset(folders, dataset_spec(folders), prepared)
    alone = [g.target for g in graph_loader(data, 1, shuffle=True, seed=3)]
    shared = [g.target for g in graph_loader(data, 1, shuffle=True, seed=3, num_workers=2)]
    assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))


def test_split(tmp_path, fixtures):
    root = shutil.copytree(fixtures.parent, tmp_path / "set")
    with pytest.raises(HamfastError, match="hamfast data split"):
        read_split(root)
    write_split(root, (0.5, 0.25, 0.25), seed=1)
    split = read_split(root)
    assert sum(len(v) for v in split.values()) == 4
    with pytest.raises(HamfastError, match="exists already"):
        write_split(root, (0.5, 0.25, 0.25), seed=1)
    with pytest.raises(HamfastError, match="sum 1"):
        write_split(root, (0.5, 0.5, 0.5), seed=1, overwrite=True)
    path = root / "dataset_split.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"test": []}))
    assert list(read_split(root)) == ["train", "validate"]  # a set without a test set can be trained
    path.write_text(json.dumps(content | {"test": ["nowhere"]}))
    with pytest.raises(HamfastError, match="no structure folder 'nowhere'"):
        read_split(root)
    path.write_text(json.dumps(content | {"test": content["train"][:1]}))
    with pytest.raises(HamfastError, match="is in train and in test"):
        read_split(root)


def test_elements_with_different_orbitals(tmp_path, fixtures):
    root = shutil.copytree(fixtures.parent, tmp_path / "set")
    path = root / "dft" / "graphene_1x1_001" / "info.json"
    info = json.loads(path.read_text())
    info["elements_orbital_map"]["C"] = [0, 1]
    path.write_text(json.dumps(info))
    with pytest.raises(HamfastError, match="atomic number 6 has shells"):
        dataset_spec(sorted((root / "dft").iterdir()))
