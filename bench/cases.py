"""Named problems, shared by all benchmarks. Sizes are those of real graphs; numbers are random."""

from dataclasses import dataclass

import torch
from e3nn import o3

from hamfast.plan import Plan, make_plan


@dataclass(frozen=True)
class ProductCase:
    """A tensor product over ``edges`` edges."""

    name: str
    in1: str
    in2: str
    out: str
    mode: str
    edges: int

    @property
    def irreps(self):
        return o3.Irreps(self.in1), o3.Irreps(self.in2), o3.Irreps(self.out)

    @property
    def instructions(self):
        """uvw: every path to the given output. uvu: one output block per path, as message passing networks have it."""
        a, b, c = self.irreps
        allowed = [(i, j, ir) for i, (_, x) in enumerate(a) for j, (_, y) in enumerate(b) for ir in x * y if ir in c]
        if self.mode == "uvw":
            blocks = [ir for _, ir in c]
            return [(i, j, blocks.index(ir), "uvw", True, 1.0) for i, j, ir in allowed]
        return [(i, j, k, "uvu", True, 1.0) for k, (i, j, _) in enumerate(allowed)]

    @property
    def irreps_out(self):
        a, b, c = self.irreps
        if self.mode == "uvw":
            return c
        return o3.Irreps([(mul, ir) for mul, x in a for _, y in b for ir in x * y if ir in c])

    def plan(self) -> Plan:
        a, b, _ = self.irreps
        return make_plan(a, b, self.irreps_out, self.instructions)

    def inputs(self, dtype=torch.float32):
        plan = self.plan()
        shape = (plan.weight_numel,) if self.mode == "uvw" else (self.edges, plan.weight_numel)
        return (
            torch.randn(self.edges, plan.dim_in1, dtype=dtype),
            torch.randn(self.edges, plan.dim_in2, dtype=dtype),
            torch.randn(shape, dtype=dtype),
        )


SH = {l: "+".join(f"1x{n}{'e' if n % 2 == 0 else 'o'}" for n in range(l + 1)) for l in (2, 3, 4, 5)}
PRODUCTS = [
    ProductCase("a", "64x0e+64x1o+64x2e", SH[2], "64x0e+64x1o+64x2e", "uvu", 5000),
    ProductCase("b", "128x0e+128x1o", SH[3], "128x0e+128x1o+128x2e", "uvu", 5000),
    ProductCase("c", "64x0e+32x1o+16x2e+8x3o+8x4e", SH[4], "64x0e+32x1o+16x2e+8x3o+8x4e", "uvw", 2000),
]
EDGE_PRODUCTS = [
    ProductCase("c", "64x0e+32x1o+16x2e+8x3o+8x4e", SH[4], "64x0e+32x1o+16x2e+8x3o+8x4e", "uvw", 2000),
    ProductCase("C", "192x0e+96x1o+48x2e+24x3o+24x4e+12x5o", SH[5], "132x0e+32x1o+16x2e+8x3o+8x4e+4x5o", "uvw", 2000),
]


def random_graph(nodes: int, degree: int):
    """Receivers in order, each with ``degree`` random senders."""
    receivers = torch.arange(nodes).repeat_interleave(degree)
    return torch.randint(nodes, (nodes * degree,)), receivers
