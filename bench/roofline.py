"""What a GPU needs at least for a product or for attention, and what bounds it.

    python bench/roofline.py

Writes bench/results/roofline.csv (bytes, operations, microseconds)
from the plans alone: nothing runs.
Rates are those of the vendor's data sheets.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cases import EDGE_PRODUCTS, GPU_PRODUCTS, RADIAL_WIDTH

from hamfast.ops.wigner import wigner_dim
from hamfast.plan import edge_frame_plan
from hamfast.plan.channel import channel_tables

RESULT = Path(__file__).parent / "results" / "roofline.csv"
DEGREE = 40
EDGE_PRODUCT_EDGES = 20_000
MODES = ("forward", "backward", "double backward")


@dataclass(frozen=True)
class Gpu:
    """What a vendor's data sheet says of a GPU."""

    name: str
    bandwidth: float
    """TB/s"""
    fp32: float
    """TFLOP/s of the ordinary units."""
    tf32: float
    """TFLOP/s of the tensor cores, dense."""


GPUS = [Gpu("H200", 4.8, 67.0, 494.0), Gpu("A100", 2.0, 19.5, 156.0)]


@dataclass(frozen=True)
class Work:
    """What one call moves and computes.

    ``tensor_flop`` counts the operations in matrix products, which tensor cores may do.
    """

    bytes: int
    flop: int
    tensor_flop: int = 0

    def time(self, gpu: Gpu, tf32: bool) -> tuple[float, str]:
        """Microseconds at least, and what takes them."""
        rate = gpu.tf32 if tf32 else gpu.fp32
        times = {
            "bytes": self.bytes / gpu.bandwidth / 1e6,
            "operations": self.flop / gpu.fp32 / 1e6,
            "matrix products": self.tensor_flop / rate / 1e6,
        }
        name = max(times, key=lambda key: times[key])
        return times[name], name


def coupling_flop(plan) -> dict[str, int]:
    """Operations per edge, by mode.

    They are those of the product, of its three gradients, and of the gradients of its derivative
    along
    all three operands.
    """
    tables = channel_tables(plan)
    forward = backward = double = 0
    for n, d1, _, _, *_, begin, end, diagonal in tables.tasks.tolist():
        rows = tables.entries[begin:end]
        if diagonal:
            couplings = d1
            ij = ik = jk = d1
        else:
            j, k, i = rows[:, 0], rows[:, 1] // d1, rows[:, 1] % d1
            couplings = len(rows)
            ij, ik, jk = (len(np.unique(a * 64 + b)) for a, b in ((i, j), (i, k), (j, k)))
        out, to_x, to_y = (
            2 * couplings + pairs for pairs in (ij, jk, ik)
        )  # a product of two operands serves several sums
        forward += n * (d1 + out)
        backward += n * (to_x + 4 * d1 + d1 + to_y)
        double += n * (2 * to_x + 10 * d1 + 2 * to_y)
    return {"forward": forward, "backward": backward, "double backward": double}


def convolution(case, mode, size=4) -> Work:
    """Gather, product, scatter-sum with weights per edge; each node's rows are read and written
    once.
    """
    plan, edges = case.plan(), case.edges
    nodes = edges // DEGREE
    per_edge = {"forward": plan.weight_numel + plan.dim_in2, "backward": 2 * (plan.weight_numel + plan.dim_in2)}
    per_edge["double backward"] = 3 * (plan.weight_numel + plan.dim_in2)
    per_node = {"forward": plan.dim_in1 + plan.dim_out, "backward": 2 * plan.dim_in1 + plan.dim_out}
    per_node["double backward"] = 3 * plan.dim_in1 + plan.dim_out
    index = 8 * 3 * edges
    return Work(size * (edges * per_edge[mode] + nodes * per_node[mode]) + index, edges * coupling_flop(plan)[mode])


def radial(case, mode, size=4) -> Work:
    """The same with the radial network's last layer, if its weights never reached memory."""
    plan, edges = case.plan(), case.edges
    stored = convolution(case, mode, size)
    passes = {"forward": 1, "backward": 2, "double backward": 3}[mode]
    layer = {"forward": 1, "backward": 3, "double backward": 6}[mode]  # matrix products; one makes the weights again
    saved = size * edges * plan.weight_numel * passes
    hidden = size * edges * RADIAL_WIDTH * passes
    return Work(stored.bytes - saved + hidden, stored.flop, 2 * layer * edges * RADIAL_WIDTH * plan.weight_numel)


def edge_frame(case, mode, edges=EDGE_PRODUCT_EDGES, size=4) -> Work:
    """Rotate, multiply, rotate back: frames are written and read once by each side."""
    lowered = edge_frame_plan(case.plan())
    plan = lowered.plan
    frame_in, frame_out = (
        sum((1 + (b.m > 0)) * getattr(b, w) for b in lowered.blocks) for w in ("width_in", "width_out")
    )
    l_max = max(l for _, l, _ in plan.irreps_in1 + plan.irreps_out)
    row = plan.dim_in1 + plan.dim_out + 2 * (frame_in + frame_out) + 2 * wigner_dim(l_max)
    rotations = 2 * sum(mul * (2 * l + 1) ** 2 for mul, l, _ in plan.irreps_in1 + plan.irreps_out)
    passes = {"forward": 1, "backward": 2, "double backward": 4}[mode]
    return Work(size * edges * row * passes, edges * rotations * passes, 2 * edges * lowered.operations() * passes)


@dataclass(frozen=True)
class AttentionCase:
    """The problem of bench/test_attention.py."""

    name: str = "A"
    nodes: int = 2000
    heads: int = 8
    width: int = 32
    features: int = 64

    @property
    def edges(self) -> int:
        """How many edges the graph has."""
        return self.nodes * DEGREE


ATTENTION = [AttentionCase(), AttentionCase("A x 10", 20_000)]


def attention(case, mode, size=4) -> Work:
    """The operands of attention, each moved once, and its sums over edges.

    They are q, k, v, the query on the edges' features, and the edges' rows.
    The edge weight meets rows of nodes.
    """
    node = case.nodes * case.heads * (4 * case.width + 2 * case.features)
    passes = {"forward": 1, "backward": 2, "double backward": 4}[mode]
    edge = case.edges * case.features * {"forward": 1, "backward": 2, "double backward": 3}[mode]
    per_edge = 2 * case.heads * (2 * case.width + 2 * case.features)
    products = 2 * 2 * case.nodes * case.heads * case.width * case.features
    sums = {"forward": 1, "backward": 3, "double backward": 6}[mode]
    index = 8 * 3 * case.edges
    return Work(size * (node * passes + edge) + index, sums * case.edges * per_edge, sums * products)


def edge_update(case, mode, width=128, size=4) -> Work:
    """The problem of bench/test_edge_update.py: rows of edges and of nodes, each once; an
    exponential counts as ten operations.
    """
    edge = case.edges * width * {"forward": 2, "backward": 3}[mode]  # x and out; x, grad and grad_x
    node = case.nodes * width * {"forward": 2, "backward": 4}[mode]
    index = 8 * case.edges * {"forward": 2, "backward": 6}[mode]
    return Work(size * (edge + node) + index, case.edges * width * {"forward": 25, "backward": 45}[mode])


def works():
    """(case, mode, edges, work) of every row of the table."""
    for case in GPU_PRODUCTS:
        for mode in MODES:
            yield f"convolution {case.name}", mode, case.edges, convolution(case, mode)
        for mode in MODES:
            yield f"with radial layer {case.name}", mode, case.edges, radial(case, mode)
    for case in EDGE_PRODUCTS:
        for mode in MODES:
            yield f"edge_tensor_product {case.name}", mode, EDGE_PRODUCT_EDGES, edge_frame(case, mode)
    for case in ATTENTION:
        for mode in MODES:
            yield f"attention {case.name}", mode, case.edges, attention(case, mode)
        for mode in MODES[:2]:
            yield f"edge_update {case.name}", mode, case.edges, edge_update(case, mode)


def main():
    """Runs the command line."""
    with RESULT.open("w", newline="") as file:
        writer = csv.writer(file)
        names = [f"{gpu.name} {column}" for gpu in GPUS for column in ("us", "bound", "us tf32", "bound tf32")]
        writer.writerow(["case", "mode", "edges", "MB", "GFLOP", "GFLOP in matrix products", *names])
        for case, mode, edges, work in works():
            found = []
            for gpu in GPUS:
                for tf32 in (False, True):
                    time, bound = work.time(gpu, tf32)
                    found += [f"{time:.0f}", bound]
            sizes = [f"{work.bytes / 1e6:.0f}", f"{work.flop / 1e9:.1f}", f"{work.tensor_flop / 1e9:.1f}"]
            writer.writerow([case, mode, edges, *sizes, *found])
    print(RESULT)


if __name__ == "__main__":
    main()
