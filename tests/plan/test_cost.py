"""The cost model against measurements, and what explain() says."""

import sys
from pathlib import Path

import pytest
import torch
from e3nn.o3 import Irreps
from kit import assert_close, fully_connected

from hamfast import ops
from hamfast.plan import edge_frame_plan, explain, make_plan
from hamfast.plan.cost import choose_lowering, estimates, rows_like

BENCH = Path(__file__).parents[2] / "bench"


def test_choice_is_within_1_3_of_the_fastest_measured():
    """Every row of bench/results/lowerings.csv, where e3nn's own code stands beside ours."""
    sys.path.insert(0, str(BENCH))
    from lowerings import ROWS, SHAPES, plan_of, read

    table = read()
    assert set(table) == set(SHAPES)
    for shape, by_rows in table.items():
        in1, in2, out, mode, shared, harmonics = shape
        plan = plan_of(in1, in2, out, mode)
        assert set(by_rows) == set(ROWS)
        for rows, times in by_rows.items():
            possible = {e.lowering for e in estimates(plan, shared, "cpu", harmonics)}
            assert set(times) == possible | (set() if harmonics else {"e3nn"})
            for derivatives in (False, True):
                chosen = choose_lowering(plan, shared, "cpu", harmonics, rows_like(rows), derivatives)
                found = {name: ms[derivatives] for name, ms in times.items()}
                assert found[chosen] <= 1.3 * min(found.values()), (shape, rows, derivatives, chosen, found)


def test_explain_names_lowerings_operations_bytes_and_reason():
    """explain() has each column; the edge frame's operations are counted by hand."""
    irreps = [Irreps(i) for i in ("64x0e+32x1o", "0e+1o+2e", "64x0e+32x1o")]
    plan = make_plan(*irreps, fully_connected(*irreps))
    text = explain(plan, harmonics=True)
    for word in ("edge_frame", "mix", "general", "multiply-adds", "bytes", "with derivatives: edge_frame, estimated"):
        assert word in text
    # m = 0: all 96 channels in, all 96 out; m = 1: the 32 vectors, twice. Rotations: 9 products per
    # vector, in and out.
    frame = next(e for e in estimates(plan, True, "cpu", True) if e.lowering == "edge_frame")
    assert frame.operations == 96 * 96 + 2 * 32 * 32 + 2 * (64 + 32 * 9)
    mixed = make_plan("64x1o", "1x1o+64x0e", "64x1e+64x1o", [(0, 0, 0, "uvu", True), (0, 1, 1, "uuu", True)])
    text = explain(mixed, rows=10**5)
    assert "rows, with derivatives: channel, estimated" in text and "with einsum for its paths of mode uuu" in text
    text = explain(plan, shared_weights=False, rows=2000)
    assert "runs, for 2,000 rows, with derivatives: mix, estimated" in text
    irreps = [Irreps(i) for i in ("4x0e+2x1o", "0e+1o", "4x0e+2x1o")]
    small = make_plan(*irreps, fully_connected(*irreps))
    text = explain(small, shared_weights=False, rows=32, derivatives=False)
    assert "runs, for 32 rows, forward alone: general, estimated" in text
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
