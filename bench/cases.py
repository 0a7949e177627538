"""Named problems, shared by all benchmarks. Sizes are those of real graphs; values are random."""

from dataclasses import dataclass
from itertools import product

import torch
from e3nn import o3

from hamfast.graph import CrystalGraph
from hamfast.nn.tensor_product import fully_connected
from hamfast.plan import Plan, make_plan
from hamfast.targets import TargetSpec


def separate_paths(a, b, allowed):
    """One output block per path to an irrep in ``allowed``, as message passing networks have it.

    Returns:
        The irreps of the result, and instructions of mode uvu.
    """
    paths = [(i, j, ir) for i, (_, x) in enumerate(a) for j, (_, y) in enumerate(b) for ir in x * y if ir in allowed]
    irreps = o3.Irreps([(a[i].mul, ir) for i, _, ir in paths])
    return irreps, [(i, j, k, "uvu", True, 1.0) for k, (i, j, _) in enumerate(paths)]


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
        """Both operands' irreps and those that are asked for; the result's are ``irreps_out``."""
        return o3.Irreps(self.in1), o3.Irreps(self.in2), o3.Irreps(self.out)

    @property
    def instructions(self):
        """The paths, for :func:`hamfast.plan.make_plan`.

        In mode uvw these are all paths to the given output.
        In mode uvu each path has an output block of its own, as in message passing networks.
        """
        a, b, c = self.irreps
        if self.mode == "uvw":
            return fully_connected(a, b, c)
        return separate_paths(a, b, c)[1]

    @property
    def irreps_out(self):
        """The irreps of the result, one block per path in mode uvu."""
        a, b, c = self.irreps
        if self.mode == "uvw":
            return c
        return separate_paths(a, b, c)[0]

    def plan(self) -> Plan:
        """The product's plan."""
        a, b, _ = self.irreps
        return make_plan(a, b, self.irreps_out, self.instructions)

    def inputs(self, dtype=torch.float32):
        """Random x ``[edges, dim_in1]``, y ``[edges, dim_in2]`` and weights.

        The weights are ``[weight_numel]`` in mode uvw and ``[edges, weight_numel]`` in mode uvu.
        """
        plan = self.plan()
        shape = (plan.weight_numel,) if self.mode == "uvw" else (self.edges, plan.weight_numel)
        return (
            torch.randn(self.edges, plan.dim_in1, dtype=dtype),
            torch.randn(self.edges, plan.dim_in2, dtype=dtype),
            torch.randn(shape, dtype=dtype),
        )


SH = {l: "+".join(f"1x{n}{'e' if n % 2 == 0 else 'o'}" for n in range(l + 1)) for l in (2, 3, 4, 5)}

# Channel-wise convolutions of MACE-type networks: weights per edge.
PRODUCTS = [
    ProductCase("a", "64x0e+64x1o+64x2e", SH[2], "64x0e+64x1o+64x2e", "uvu", 5000),
    ProductCase("b", "128x0e+128x1o", SH[3], "128x0e+128x1o+128x2e", "uvu", 5000),
    ProductCase("b_large", "128x0e+128x1o+128x2e", SH[3], "128x0e+128x1o+128x2e+128x3o", "uvu", 5000),
]
_NODE = "64x0e+32x1o+16x2e+8x3o+8x4e"
_MIDDLE = "192x0e+96x1o+48x2e+24x3o+24x4e+12x5o"
_SOC = "40x0o+604x0e+96x1o+106x1e+88x2o+104x2e+48x3o+64x3e+16x4o+24x4e+8x5e"
# Fully connected products of Hamiltonian networks with the harmonics of the edge: weights shared.
# c_real is DeepH-E3's
# default, the others are layers of its published networks (C: middle, G: last edge with spin-orbit
# coupling).
EDGE_PRODUCTS = [
    ProductCase("c", _NODE, SH[4], _NODE, "uvw", 2000),
    ProductCase("c_real", f"{_NODE}+{_NODE}+{_NODE}", SH[4], "64x0e+64x0e+32x1o+16x2e+8x3o+8x4e", "uvw", 2000),
    ProductCase("C", _MIDDLE, SH[5], "132x0e+32x1o+16x2e+8x3o+8x4e+4x5o", "uvw", 2000),
    ProductCase("G", "192x0e+96x1o+64x1e+48x2e+24x3o+24x4e+12x5o", SH[5], _SOC, "uvw", 2000),
]
RADIAL_WIDTH = 64


def random_graph(nodes: int, degree: int):
    """Receivers in order, each with ``degree`` random senders."""
    receivers = torch.arange(nodes).repeat_interleave(degree)
    return torch.randint(nodes, (nodes * degree,)), receivers


def ordered_graph(nodes: int, degree: int):
    """The same with senders near their receivers, as in a spatially ordered crystal."""
    _, receivers = random_graph(nodes, degree)
    return (receivers + torch.randint(-60, 60, (nodes * degree,))) % nodes, receivers


# Settings of stage 1: the demo's, and DeepH-E3's for graphene.
NETWORKS = {
    "demo": {"irreps_mid": "32x0e+16x1o+8x2e+4x3o+4x4e", "l_max": 4, "embed_dim": 32, "num_basis": 64},
    "published": {"irreps_mid": "64x0e+32x1o+16x2e+8x3o+8x4e+4x5o", "l_max": 5},
}
CARBON = TargetSpec(((6, (0, 0, 1, 1, 2)),))


def graphene(cells: int, cutoff: float = 7.2) -> CrystalGraph:
    """A sheet of ``cells`` x ``cells`` cells with displaced atoms and random targets.

    Its edges are all pairs within the cutoff (angstrom).
    """
    a = 2.46
    lattice = torch.tensor([[a, 0.0, 0.0], [a / 2, a * 3**0.5 / 2, 0.0]])
    atoms = torch.tensor([[n, m, 0.0] for n, m in product(range(cells), repeat=2)])
    basis = torch.tensor([[1 / 3, 1 / 3, 0.0], [2 / 3, 2 / 3, 0.0]])
    positions = (atoms[:, None, :] + basis).reshape(-1, 3)[:, :2] @ lattice
    positions = positions + 0.05 * torch.randn_like(positions)
    count, reach = len(positions), 1 + int(cutoff / (cells * a * 3**0.5 / 2))
    shifts = torch.tensor(list(product(range(-reach, reach + 1), repeat=2)))
    images = positions + (shifts.to(positions) @ lattice * cells)[:, None, None, :]
    vectors = images - positions[:, None, :]  # [shifts, receiver i, sender j, 3]
    shift, i, j = (vectors.norm(dim=-1) <= cutoff).nonzero().T
    order = i.argsort(stable=True)
    shift, i, j = shift[order], i[order], j[order]
    # Shifts are listed so that R and -R are as far from the two ends.
    key, reversed_key = (shift * count + i) * count + j, ((len(shifts) - 1 - shift) * count + j) * count + i
    reverse = key.argsort()[torch.searchsorted(key.sort().values, reversed_key)]
    return CrystalGraph(
        species=torch.zeros(count, dtype=torch.int64),
        i=i,
        j=j,
        shift=torch.nn.functional.pad(shifts[shift], (0, 1)),
        vector=vectors[shift, i, j],
        reverse=reverse,
        atom_graph=torch.zeros(count, dtype=torch.int64),
        edge_graph=torch.zeros(len(i), dtype=torch.int64),
        target=torch.randn(len(i), CARBON.dim),
    )


# Channel-wise convolutions on a GPU: networks that are in use. Multiplicities alike, then not
# alike.
_NEQUIP = "64x0e+64x0o+64x1e+64x1o+64x2e+64x2o"
GPU_PRODUCTS = [
    ProductCase("mace-large", "128x0e+128x1o+128x2e", SH[3], "128x0e+128x1o+128x2e+128x3o", "uvu", 100_000),
    ProductCase("mace-medium", "128x0e+128x1o", SH[3], "128x0e+128x1o+128x2e", "uvu", 100_000),
    ProductCase("nequip-toluene", _NEQUIP, SH[2], _NEQUIP, "uvu", 50_000),
    ProductCase("sevennet-l3i5", "128x0e+64x1o+32x2e+32x3o", SH[3], "128x0e+64x1o+32x2e+32x3o", "uvu", 100_000),
]
