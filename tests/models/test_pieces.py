"""A graph in pieces gives what the whole graph gives, goes on where it was stopped, and keeps to
its memory."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from kit import tiny_checkpoint
from test_covariant import CARBON, HEAVY
from test_frames import STAGE1, STAGE2, as_at_the_start, of_soc

from hamfast.analysis import in_pieces
from hamfast.data import build_graph, read_snapshot
from hamfast.data.blocks import BlockMatrix, find_pairs
from hamfast.data.deeph import read_matrix
from hamfast.errors import HamfastError
from hamfast.models import Cascade, CovariantConfig, TransformerConfig
from hamfast.models.memory import TensorPeak, measured, memory_in_bytes
from hamfast.models.pieces import PieceMaker, Pieces, by_boxes
from hamfast.models.sweeps import Whole
from hamfast.nn import EquivariantLayerNorm
from hamfast.targets import TargetSpec

pytestmark = pytest.mark.usefixtures("double")


def carbon(graphene):
    snapshot = read_snapshot(graphene / "dft" / "3x3_000")
    spec = TargetSpec.from_mapping({6: CARBON}, False)
    return spec, build_graph(snapshot, spec), by_boxes(snapshot.positions)


def mos2(fixtures):
    snapshot = read_snapshot(fixtures / "MoS2_1x1_000")
    spec = TargetSpec.from_mapping({42: HEAVY, 16: CARBON}, False)
    return spec, build_graph(snapshot, spec), by_boxes(snapshot.positions)


def with_spin():
    spec, graph = of_soc()
    return spec, graph, torch.tensor([1, 0])


def network(kind, spec, *, published=False, blocks=2, **options):
    """A cascade with random weights that all count; its first stage is local, or as published."""
    if kind in ("frames", "gradients") and not published:
        model = as_at_the_start(kind, spec, num_blocks=blocks, **options)
    else:
        settings = STAGE1 | {"num_blocks": 2}
        stage1 = CovariantConfig(**settings) if published else CovariantConfig(**settings, environment=4.0)
        stage2 = None if kind is None else TransformerConfig(kind=kind, **STAGE2, num_blocks=blocks)
        model = Cascade(spec, stage1, stage2, **options)
    for parameter in model.parameters():
        if not parameter.any():
            parameter.data.normal_(std=0.3)
    return model


def in_order(pieces, model, **options):
    """``[edges, dim]``, in the order of the graph."""
    rows = torch.from_numpy(np.array(pieces.gathered(model.sweep(pieces, **options))))
    return torch.empty_like(rows).index_copy(0, pieces.maker.sorted_edges, rows)


KINDS = [("frames", False), ("gradients", False), ("plain", False), (None, False), ("plain", True), (None, True)]


@pytest.mark.parametrize(("kind", "published"), KINDS, ids=[f"{k}-{'published' if p else 'local'}" for k, p in KINDS])
@torch.no_grad()
def test_pieces_give_what_the_whole_gives(kind, published, fixtures, tmp_path):
    spec, graph, order = mos2(fixtures)
    model = network(kind, spec, published=published)
    pieces = Pieces(PieceMaker(graph, order, torch.device("cpu")), 100, tmp_path / "p", model)
    assert len(pieces) == 3  # one atom each: an atom's edges stay together
    found = in_order(pieces, model)
    index, sign = spec.transpose
    hermitian = 0.5 * (found + found[graph.reverse][:, index] * sign)
    model.hermitian = True
    expected = model(graph).refined
    torch.testing.assert_close(hermitian, expected, atol=1e-12 * float(expected.abs().max()), rtol=0)
    assert (found - model(graph, refine=False).refined).abs().max() > 1e-3 or kind is None


@torch.no_grad()
def test_shift_and_scale_in_pieces(graphene, tmp_path):
    spec, graph, order = carbon(graphene)
    model = network("frames", spec, target_shift="environment", target_scale="radial", target_environment=3.6)
    model.normalization.fit([graph])
    for refine in (True, False):
        pieces = Pieces(PieceMaker(graph, order, torch.device("cpu")), 300, tmp_path / str(refine), model)
        assert len(pieces) > 3
        expected = model(graph, refine=refine).refined
        assert (expected - graph.target).abs().max() < 0.5 * graph.target.abs().max() or refine
        found = in_order(pieces, model, refine=refine)
        torch.testing.assert_close(found, expected, atol=1e-11, rtol=0)


@torch.no_grad()
def test_spin_orbit_coupling_in_pieces(tmp_path):
    spec, graph, order = with_spin()
    model = network("frames", spec, environment=4.0)
    pieces = Pieces(PieceMaker(graph, order, torch.device("cpu")), 1, tmp_path / "p", model)
    torch.testing.assert_close(in_order(pieces, model), model(graph).refined, atol=1e-11, rtol=1e-12)


def test_a_layer_norm_of_rows_in_parts():
    norm = EquivariantLayerNorm("4x0e+2x0o+3x1o", layout="ir_mul")
    x, graph = torch.randn(50, norm.irreps.dim) * 3 + 5, torch.zeros(50, dtype=torch.int64)
    expected = norm(x, graph, 1)
    statistics = norm.statistics(x, graph, 1)
    parts = [norm.normalized(part, statistics, graph[: len(part)]) for part in x.split(7)]
    torch.testing.assert_close(torch.cat(parts), expected, atol=1e-14, rtol=0)


# --- going on
# -------------------------------------------------------------------------------------------------


class Stopped(Exception):
    pass


@torch.no_grad()
@pytest.mark.parametrize("after", [1, 7, 20, 33])
def test_what_was_stopped_goes_on(after, fixtures, tmp_path, monkeypatch):
    spec, graph, order = mos2(fixtures)
    model = network("plain", spec, published=True)
    maker, made = PieceMaker(graph, order, torch.device("cpu")), []
    whole = maker.piece
    monkeypatch.setattr(maker, "piece", lambda *where: made.append(where) or whole(*where))

    def stop(atoms):
        if len(made) == after:
            raise Stopped

    with pytest.raises(Stopped):
        model.sweep(Pieces(maker, 100, tmp_path / "p", model, report=stop))
    pieces = Pieces(maker, 100, tmp_path / "p", model)
    assert pieces.went_on
    found, total = in_order(pieces, model), len(made)
    torch.testing.assert_close(found, model(graph).refined, atol=1e-10, rtol=1e-12)
    made.clear()
    again = in_order(Pieces(maker, 100, tmp_path / "other", model), model)
    assert len(made) == total  # no piece was worked on twice
    torch.testing.assert_close(found, again, atol=0, rtol=0)


@torch.no_grad()
def test_what_another_network_left_is_not_gone_on_with(fixtures, tmp_path):
    spec, graph, order = mos2(fixtures)
    maker = PieceMaker(graph, order, torch.device("cpu"))
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = network("frames", spec)
        pieces = Pieces(maker, 100, tmp_path / "p", model)
        assert not pieces.went_on
        torch.testing.assert_close(in_order(pieces, model), model(graph).refined, atol=1e-11, rtol=1e-12)


@torch.no_grad()
def test_a_journal_that_ends_within_a_line(fixtures, tmp_path):
    """As after a power cut."""
    spec, graph, order = mos2(fixtures)
    model, maker, left = network("frames", spec), PieceMaker(graph, order, torch.device("cpu")), [17, 3]

    def stop(atoms):
        left[0] -= 1
        if not left[0]:
            raise Stopped

    for _ in range(2):
        with pytest.raises(Stopped):
            model.sweep(Pieces(maker, 100, tmp_path / "p", model, report=stop))
        left.pop(0)
        journal = tmp_path / "p" / "journal-0.jsonl"
        journal.write_text(journal.read_text()[:-30])
    pieces = Pieces(maker, 110, tmp_path / "p", model)  # not much more memory: the same pieces
    assert pieces.went_on
    assert len(pieces) == 3
    torch.testing.assert_close(in_order(pieces, model), model(graph).refined, atol=1e-11, rtol=1e-12)
    pieces.remove()
    assert not (tmp_path / "p").exists()


# --- memory
# -------------------------------------------------------------------------------------------------


def test_sizes_in_words():
    assert memory_in_bytes("8GB") == 8e9
    assert memory_in_bytes(" 500 mb") == 5e8
    assert memory_in_bytes("1.5GiB") == 1.5 * 2**30
    for wrong in ("", "8", "-1GB", "lots", "8 gigs", "nanGB", "infGB"):
        if wrong == "8":
            assert memory_in_bytes(wrong) == 8
            continue
        with pytest.raises(HamfastError, match="--memory: expected a size as 8GB or 500MB"):
            memory_in_bytes(wrong)


def test_the_peak_counts_what_lives_at_one_time():
    with TensorPeak() as peak:
        a = torch.zeros(1000)
        b = a.view(10, 100) + 1
        del a
        c = b[:5].clone()
        del b, c
        torch.zeros(100)
    assert peak.bytes == 16_000  # a and b; the view is a's memory
    assert peak.now == 0


@torch.no_grad()
def test_memory_is_measured_per_edge(graphene):
    """Of pieces of other sizes, too."""
    spec, graph, order = carbon(graphene)
    model, maker = network("frames", spec), PieceMaker(graph, order, torch.device("cpu"))
    apart, per_edge, sweeps = measured(model, maker)
    piece = maker.first(900)
    with TensorPeak() as peak:
        model.sweep(Whole(piece.graph))
    assert 0.7 < peak.bytes / (apart + per_edge * piece.graph.num_edges) < 1.4
    assert per_edge > 8 * spec.dim
    assert sweeps == 11


def test_a_plan_keeps_to_its_memory(graphene, monkeypatch):
    spec, graph, _ = carbon(graphene)
    model, snapshot = network("frames", spec), read_snapshot(graphene / "dft" / "3x3_000")
    monkeypatch.setattr(in_pieces, "used_memory", lambda device: 1e9)
    limits = in_pieces.Limits
    assert in_pieces.plan_for(model, snapshot, graph, limits()) is None  # small
    assert in_pieces.plan_for(model, snapshot, graph, limits(memory=20e9)) is None  # it fits
    with pytest.raises(HamfastError, match=r"18 atoms need .* GB at least, found 1\.0 GB"):
        in_pieces.plan_for(model, snapshot, graph, limits(memory=1.01e9))
    monkeypatch.setattr(in_pieces, "COPIES", 1000)
    monkeypatch.setattr(in_pieces, "APART", 0.0)
    sizes = [in_pieces.plan_for(model, snapshot, graph, limits(memory=m)).edges_at_once for m in (1.9e9, 2.4e9)]
    assert 0 < sizes[0] < sizes[1]


# --- the command
# -------------------------------------------------------------------------------------------------


def same(one, other, tolerance):
    """Are two files the same matrix?"""
    a, b = read_matrix(one), read_matrix(other)
    place = find_pairs(b.pairs, a.pairs)
    assert len(a) == len(b) and (place >= 0).all()
    return all(np.abs(a.block(n) - b.block(int(m))).max() < tolerance for n, m in enumerate(place))


@pytest.fixture
def cut(monkeypatch):
    """All structures go in pieces of few edges."""

    def plan(model, snapshot, graph, limits):
        maker = PieceMaker(graph, by_boxes(snapshot.positions), torch.device("cpu"))
        return in_pieces.Plan(maker, 200, 10)

    monkeypatch.setattr("hamfast.analysis.prediction.plan_for", plan)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, fixtures):
    folders = [fixtures / "graphene_1x1_000", fixtures / "graphene_1x1_001"]
    return tiny_checkpoint(tmp_path_factory.mktemp("model") / "model.ckpt", folders)


def test_predict_writes_the_same_in_pieces(checkpoint, graphene, tmp_path, hamfast, request, monkeypatch):
    """A folder, and a bare structure with its overlap; in float32, what was there before goes."""
    folder = graphene / "dft" / "3x3_000"
    bare = ("predict", "graphene", folder / "POSCAR", "--output")
    assert hamfast("predict", checkpoint, folder, "--output", tmp_path / "a")[0] == 0
    assert hamfast(*bare, tmp_path / "c")[0] == 0
    request.getfixturevalue("cut")
    monkeypatch.setattr("hamfast.data.matrix_file.CHUNK", 2**12)
    for _ in range(2):
        status, output, errors = hamfast("predict", checkpoint, folder, "--output", tmp_path / "b")
        assert status == 0, errors
        assert output.count("wrote ") == 1
    assert same(tmp_path / "a/3x3_000/hamiltonian_pred.h5", tmp_path / "b/3x3_000/hamiltonian_pred.h5", 1e-6)
    assert same(tmp_path / "a/3x3_000/overlap.h5", tmp_path / "b/3x3_000/overlap.h5", 1e-12)
    status, output, errors = hamfast(*bare, tmp_path / "d", "--precision", "float32")
    assert status == 0, errors
    assert same(tmp_path / "c/POSCAR/hamiltonian_pred.h5", tmp_path / "d/POSCAR/hamiltonian_pred.h5", 1e-4)
    assert same(tmp_path / "c/POSCAR/overlap.h5", tmp_path / "d/POSCAR/overlap.h5", 1e-12)
    assert (tmp_path / "c/POSCAR/info.json").read_text() == (tmp_path / "d/POSCAR/info.json").read_text()
    assert not list(tmp_path.rglob("*.pieces"))


@pytest.mark.usefixtures("cut")
def test_a_full_disk_loses_nothing(checkpoint, graphene, tmp_path, hamfast, monkeypatch):
    folder = graphene / "dft" / "3x3_000"
    hamfast("predict", checkpoint, folder, "--output", tmp_path)
    before = (tmp_path / "3x3_000/hamiltonian_pred.h5").read_bytes()
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("hamfast.data.matrix_file.shutil.disk_usage", lambda path: usage)
    status, _, errors = hamfast("predict", checkpoint, folder, "--output", tmp_path)
    assert status == 1 and "the disk is full" in errors
    assert (tmp_path / "3x3_000/hamiltonian_pred.h5").read_bytes() == before


@pytest.mark.usefixtures("cut")
def test_a_prediction_that_was_killed_goes_on(graphene, tmp_path, hamfast):
    """Nothing but the structure and hidden files is left of it: no matrices."""
    copy = tmp_path / "3x3_000"
    shutil.copytree(graphene / "dft" / "3x3_000", copy)
    (copy / "overlap.h5").unlink()
    for source, name in ((copy / "POSCAR", "POSCAR"), (copy, "3x3_000")):
        command, target = ("predict", "graphene", source, "--output", tmp_path / "out"), tmp_path / "out" / name
        assert hamfast(*command)[0] == 0
        kept = shutil.move(target / "hamiltonian_pred.h5", tmp_path / "kept.h5")
        overlap = shutil.move(target / "overlap.h5", tmp_path / "overlap.h5")
        (target / ".hamiltonian_pred.h5.x1").write_bytes(b"half")
        status, _, errors = hamfast(*command)
        assert status == 0, errors
        assert same(kept, target / "hamiltonian_pred.h5", 1e-12)
        assert same(overlap, target / "overlap.h5", 1e-12)
    target = tmp_path / "out" / "POSCAR"
    (target / "hamiltonian_pred.h5").rename(target / "hamiltonian.h5")  # calculated, not predicted
    status, _, errors = hamfast("predict", "graphene", copy / "POSCAR", "--output", tmp_path / "out")
    assert status == 1 and "expected a new folder, or an earlier prediction of POSCAR" in errors


OTHER_MEMORY = """
import sys
from hamfast.analysis import in_pieces, prediction
from hamfast.cli import main

def plan(model, snapshot, graph, limits):
    found = in_pieces.plan_for(model, snapshot, graph, limits)
    found.edges_at_once = (300, 200)[limits.processes.rank]
    return found

prediction.plan_for = plan
main(sys.argv[1:])
"""


def test_two_processes_give_what_one_gives(checkpoint, graphene, tmp_path, hamfast):
    """Also where one has less memory than the other."""
    folder = graphene / "dft" / "3x3_000"
    assert hamfast("predict", checkpoint, folder, "--output", tmp_path / "one")[0] == 0
    (tmp_path / "run.py").write_text(OTHER_MEMORY)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    predict = ["predict", str(checkpoint), str(folder), "--output", str(tmp_path / "two")]
    command = [*torchrun, str(tmp_path / "run.py"), *predict]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=240, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("wrote ") == 1
    assert same(tmp_path / "one/3x3_000/hamiltonian_pred.h5", tmp_path / "two/3x3_000/hamiltonian_pred.h5", 1e-6)


# --- blocks
# -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("far", [3, 2**40])  # numbers that do not fit into one code, too
def test_pairs_are_found(far):
    generator = np.random.default_rng(0)
    pairs = np.unique(generator.integers(-3, 4, (200, 5)), axis=0)
    pairs[:, 0] *= far
    pairs[:, 1] *= far
    wanted = np.concatenate([pairs[::3][::-1], [[9, 9, 9, 9, 9]]])
    found = find_pairs(pairs, wanted)
    index = {tuple(pair): n for n, pair in enumerate(pairs.tolist())}
    assert found.tolist() == [index.get(tuple(pair), -1) for pair in wanted.tolist()]
    assert find_pairs(pairs[:0], wanted).tolist() == [-1] * len(wanted)
    assert find_pairs(pairs, wanted[:0]).shape == (0,)


def test_matrices_one_after_the_other():
    blocks = [np.full((1, 2), 1.0), np.full((3, 1), 2.0), np.full((2, 2), 3.0)]
    pairs = [(0, 0, 0, n, n) for n in range(3)]
    parts = [BlockMatrix.from_blocks(pairs[:2], blocks[:2]), BlockMatrix.from_blocks(pairs[2:], blocks[2:])]
    joined = BlockMatrix.one_after_the_other(parts)
    for n, block in enumerate(blocks):
        np.testing.assert_array_equal(joined.block(n), block)
