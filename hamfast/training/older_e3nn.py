"""Weights that an older e3nn has trained, for products and tables of today.

Before e3nn 0.5 some Wigner 3j symbols had the other sign. Before 0.4 the norm of a product's path
was 1 / sqrt(paths x mul1 x mul2), with the number of paths to the same irreps of the result; since
then the root is of the sum of mul1 x mul2 over these paths. Signs and norms go into the weights.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from e3nn.o3 import Irreps
from torch import Tensor

from hamfast.errors import HamfastError
from hamfast.models.covariant import CovariantNetwork
from hamfast.nn import EdgeTensorProduct
from hamfast.plan.coupling import wigner_3j
from hamfast.targets import TargetSpec

OTHER_SIGN: set[tuple[int, ...]] = {(1, l, l) for l in range(2, 12)} | {
    (3, 4, 6), (3, 5, 7), (3, 6, 8), (3, 7, 9), (3, 8, 10), (3, 9, 11), (4, 4, 5), (4, 5, 6), (4, 6, 7), (4, 7, 8),
    (4, 8, 9), (4, 9, 10), (4, 10, 11), (5, 5, 5), (5, 6, 6), (5, 6, 10), (5, 7, 7), (5, 7, 11), (5, 8, 8), (5, 9, 9),
    (5, 10, 10), (5, 11, 11), (6, 6, 9), (6, 7, 10), (6, 8, 11), (7, 7, 9), (7, 8, 10), (7, 9, 11), (8, 8, 9),
    (8, 9, 10), (8, 10, 11), (9, 9, 9), (9, 10, 10), (9, 11, 11),
}  # fmt: skip
"""The l of the Wigner 3j symbols, sorted, whose sign was the other one before e3nn 0.5."""

_TABLE = re.compile(r"\.(_compiled_main_\w+)\._w3j_(\d+)_(\d+)_(\d+)$")


def _other_sign(*ls: int) -> bool:
    return tuple(sorted(ls)) in OTHER_SIGN


def to_this_e3nn(network: CovariantNetwork, state: dict[str, Tensor], path: Path) -> str:
    """Puts signs and norms of the e3nn that trained the weights into them.

    Its tables of Wigner 3j symbols stand among the weights. Their signs tell e3nn before 0.5, and
    their names e3nn before 0.4.2. Of the latter, 0.3.5 is assumed, which DeepH-E3 asks for: 0.4.0
    and 0.4.1 write the same names and have today's norms.

    Args:
        network: with the weights as they were trained.
        state: name -> tensor, as the file has them, the tables among them.
        path: of the file, for messages.

    Returns:
        The version of e3nn, in words.

    Raises:
        HamfastError: there are no tables, or contradictory ones; or the hidden irreps are such
            that linear maps changed, too.
    """
    flipped, per_path = _conventions(network, state, path)
    with torch.no_grad():
        for product in (m for m in network.modules() if isinstance(m, EdgeTensorProduct)):
            harmonics = range(network.config.l_max + 1)
            paths = product.plan.plan.instructions
            factors = []
            for one in paths:
                l1, l3 = product.irreps_in1[one.i_in1].ir.l, product.irreps_out[one.i_out].ir.l
                factor = -1.0 if flipped and _other_sign(l1, harmonics[one.i_in2], l3) else 1.0
                if per_path:
                    sizes = [p.weight_shape[0] for p in paths if p.i_out == one.i_out]
                    factor *= (sum(sizes) / (len(sizes) * one.weight_shape[0])) ** 0.5
                factors += [factor] * one.weight_shape[-1]
            product.weight2.mul_(torch.tensor(factors).to(product.weight2))
        if flipped:
            output = network.output
            signs = _target_signs(network.spec)
            pairs = zip(output.plan.pairs, output.sizes, strict=True)
            rows = [torch.full((size,), signs[o]) for (_, o), size in pairs]
            output.weight.mul_(torch.cat(rows).to(output.weight))
            scalars = [sign for sign, (_, ir) in zip(signs, network.spec.irreps, strict=True) if ir.is_scalar()]
            output.bias.mul_(torch.tensor(scalars).to(output.bias))
    return "0.3.5" if per_path else "0.4.2 to 0.4.4" if flipped else "0.5 or later"


def _target_signs(spec: TargetSpec) -> list[float]:
    """Of each irrep of the targets: -1 where the map to blocks had the other sign."""
    signs: list[float] = []
    for l1, _, l2, _ in spec.channels:
        spatial = {l: -1.0 if _other_sign(l1, l2, l) else 1.0 for l in range(abs(l1 - l2), l1 + l2 + 1)}
        signs += spatial.values()
        if spec.spinful:
            signs += [
                sign * (-1.0 if _other_sign(l, 1, k) else 1.0)
                for l, sign in spatial.items()
                for k in range(abs(l - 1), l + 2)
            ]
    return signs * (2 if spec.spinful else 1)


def _conventions(network: CovariantNetwork, state: dict[str, Tensor], path: Path) -> tuple[bool, bool]:
    """Have the Wigner 3j symbols the signs from before e3nn 0.5, and products a norm per path?"""
    signs, names = set(), set()
    for name, table in state.items():
        match = _TABLE.search(name)
        if match is None:
            continue
        ls = tuple(int(l) for l in match.groups()[1:])
        names.add(match[1])
        if not _other_sign(*ls):
            continue
        ours = torch.tensor(wigner_3j(*ls))
        if table.shape != ours.shape:
            raise HamfastError(f"{path}: {name}: expected the shape {list(ours.shape)}, found {list(table.shape)}")
        signs.add(bool((table.double() * ours).sum() < 0))
    per_path = "_compiled_main_out" in names
    if not names or len(signs) > 1 or (per_path and signs == {False}):
        raise HamfastError(
            f"{path}: expected the tables of one e3nn (names that end in _w3j_1_1_2 or alike) among the weights, which tell "
            f"signs and norms of products, found {'contradictory ones' if names else 'none'}"
        )
    if not signs and not per_path and -1.0 in _target_signs(network.spec):
        raise HamfastError(f"{path}: expected a table of e3nn whose sign tells its version, as _w3j_1_2_2, found none")
    mid = Irreps(network.config.irreps_mid)
    if per_path and len({ir for _, ir in mid}) != len(mid):
        raise HamfastError(
            f"{path}: irreps_mid: expected each irrep once, as the norms of linear maps changed between e3nn 0.3 and 0.4.2, "
            f"found {mid}"
        )
    return per_path or signs == {True}, per_path
