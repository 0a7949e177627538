"""The cost model against measurements, and what explain() says."""

import csv
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from e3nn.o3 import Irreps
from kit import assert_close, fully_connected

from hamfast import ops
from hamfast.plan import edge_frame_plan, explain, make_plan
from hamfast.plan.cost import choose_lowering, estimates

BENCH = Path(__file__).parents[2] / "bench"


def measured():
    """(in1, in2, out, mode, shared, harmonics) -> {lowering: ms}, as bench/lowerings.py measured
    them.
    """
    table = defaultdict(dict)
    with (BENCH / "results" / "lowerings.csv").open() as file:
        for row in csv.DictReader(file):
            key = tuple(row[name] for name in ("in1", "in2", "out", "mode", "shared", "harmonics"))
            table[key][row["lowering"]] = float(row["ms"])
    return table


def test_choice_is_within_1_3_of_the_fastest_measured():
    """Every row of bench/results/lowerings.csv."""
    sys.path.insert(0, str(BENCH))
    from lowerings import SHAPES, plan_of

    table = measured()
    assert len(table) == len(SHAPES)
    for (in1, in2, out, mode, shared, harmonics), times in table.items():
        plan = plan_of(in1, in2, out, mode)
        assert set(times) == {e.lowering for e in estimates(plan, shared == "True", "cpu", harmonics == "True")}
        chosen = choose_lowering(plan, shared == "True", "cpu", harmonics == "True")
        assert times[chosen] <= 1.3 * min(times.values()), (in1, in2, out, chosen, times)


def test_explain_names_lowerings_operations_bytes_and_reason():
    """explain() has each column; the edge frame's operations are counted by hand."""
    irreps = [Irreps(i) for i in ("64x0e+32x1o", "0e+1o+2e", "64x0e+32x1o")]
    plan = make_plan(*irreps, fully_connected(*irreps))
    text = explain(plan, harmonics=True)
    for word in ("edge_frame", "mix", "general", "multiply-adds", "bytes", "runs: edge_frame, estimated"):
        assert word in text
    # m = 0: all 96 channels in, all 96 out; m = 1: the 32 vectors, twice. Rotations: 9 products per
    # vector, in and out.
    frame = next(e for e in estimates(plan, True, "cpu", True) if e.lowering == "edge_frame")
    assert frame.operations == 96 * 96 + 2 * 32 * 32 + 2 * (64 + 32 * 9)
    mixed = make_plan("4x0e", "4x0e", "4x0e", [(0, 0, 0, "uvu", True), (0, 0, 0, "uuu", True)])
    assert "runs: channel, with the general kernel for its paths of mode uuu" in explain(mixed)
    assert "the only one on mps" in explain(plan, device="mps")


@pytest.mark.parametrize("lowering", ["mix", "general", None])
def test_every_lowering_of_an_edge_product_is_the_same_function(double, lowering):
    """Each lowering against the edge frame, with an edge of no length."""
    irreps = [Irreps(i) for i in ("3x0e+2x1o+1x2e", "0e+1o+2e", "2x0e+2x1o+1x2e")]
    plan = edge_frame_plan(make_plan(*irreps, fully_connected(*irreps)))
    x, w, vectors = torch.randn(5, irreps[0].dim), torch.randn(plan.plan.weight_numel), torch.randn(5, 3)
    vectors[2] = 0.0
    frames = ops.edge_frames(vectors, 2)
    expected = ops.edge_tensor_product(x, w, plan, frames, lowering="edge_frame")
    assert_close(ops.edge_tensor_product(x, w, plan, frames, lowering=lowering), expected)
