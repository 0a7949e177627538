"""Generalised Clebsch-Gordan coefficients: the ways to couple several irreps, one after the other,
to one.

The paths, their order and their normalisation are those of MACE, so that its weights keep their
meaning.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from e3nn import o3

from hamfast.plan.coupling import wigner_3j

_MAX_L_OF_FOUR = 11
"""MACE's limit on what four factors are coupled through."""


@cache
def generalized_cg(irreps: str, ir_out: str, degree: int, reduced: bool = False) -> np.ndarray:
    """All couplings of so many copies of the irreps to one: ``[2 l + 1, dim, ..., dim, paths]``,
    float64, with ``degree`` axes ``dim``.

    Without reduction they are not independent as polynomials: factors that are exchanged give the
    same. If there are none, the result is one path of zeros, as MACE has it.

    Args:
        irreps: each with multiplicity 1.
        reduced: an independent set, in the basis of cuequivariance.

    Raises:
        ValueError: the package cuequivariance, which has the reduced basis, is not installed.
    """
    target, parts = o3.Irrep(ir_out), tuple(ir for _, ir in o3.Irreps(irreps))
    dim = sum(ir.dim for ir in parts)
    found = _reduced(irreps, target, degree) if reduced else _couplings(parts, target, degree)
    return found if found.shape[-1] else np.zeros((target.dim, *(dim,) * degree, 1))


def _couplings(parts: tuple[o3.Irrep, ...], target: o3.Irrep, degree: int) -> np.ndarray:
    dim = sum(ir.dim for ir in parts)
    allowed = None
    if degree == 4:
        allowed = [o3.Irrep(l, (-1) ** l) for l in range(_MAX_L_OF_FOUR + 1)]
    starts = np.cumsum([0] + [ir.dim for ir in parts])
    eye = np.eye(dim)
    paths = [(ir, eye[start : start + ir.dim]) for ir, start in zip(parts, starts, strict=False)]
    for factors in range(2, degree + 1):
        longer = []
        for left, so_far in paths:
            for ir, start in zip(parts, starts, strict=False):
                for made in left * ir:
                    if (allowed is not None and made not in allowed) or (factors == degree and made != target):
                        continue
                    coupling = wigner_3j(made.l, left.l, ir.l) * made.dim**0.5
                    table = np.zeros((made.dim, *so_far.shape[1:], dim))
                    table[..., start : start + ir.dim] = np.einsum("j...,ijl->i...l", so_far, coupling)
                    longer.append((made, table))
        paths = sorted(longer, key=lambda path: path[0])  # stable, as MACE's
    kept = [table for ir, table in paths if ir == target]
    return np.stack(kept, axis=-1) if kept else np.zeros((target.dim, *(dim,) * degree, 0))


def _reduced(irreps: str, target: o3.Irrep, degree: int) -> np.ndarray:
    try:
        import cuequivariance as cue
    except ImportError as error:
        raise ValueError(
            "generalized_cg: the reduced basis is that of the package cuequivariance, which is not installed"
        ) from error
    group = _e3nn_group(cue)
    parts = cue.Irreps(group, irreps)
    try:
        basis = cue.reduced_symmetric_tensor_product_basis(
            parts, degree, keep_ir=group(l=target.l, p=target.p), layout=cue.ir_mul
        ).array
    except ValueError:  # there is no coupling
        return np.zeros((target.dim, *(parts.dim,) * degree, 0))
    return np.moveaxis(basis.reshape(*(parts.dim,) * degree, target.dim, -1), -2, 0)


@cache
def _e3nn_group(cue):
    """O(3) with e3nn's coefficients and order, as MACE gives it to cuequivariance."""

    class O3(cue.O3):  # type: ignore[name-defined]
        def __mul__(self, other):
            return [O3(l=ir.l, p=ir.p) for ir in cue.O3.__mul__(self, other)]

        @classmethod
        def clebsch_gordan(cls, rep1, rep2, rep3):
            rep1, rep2, rep3 = cls._from(rep1), cls._from(rep2), cls._from(rep3)
            if rep1.p * rep2.p != rep3.p:
                return np.zeros((0, rep1.dim, rep2.dim, rep3.dim))
            return wigner_3j(rep1.l, rep2.l, rep3.l)[None] * rep3.dim**0.5

        def __lt__(self, other):
            other = self._from(other)
            return (self.l, self.p) < (other.l, other.p)

        @classmethod
        def iterator(cls):
            l = 0
            while True:
                yield O3(l=l, p=(-1) ** l)
                yield O3(l=l, p=-((-1) ** l))
                l += 1

    return O3
