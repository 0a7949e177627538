"""Relative errors of tensor_product per dtype, and the equivariance error.

    python bench/precision.py

Writes bench/results/precision.csv. The truth is the reference in float64.
The columns dx, dy and dw are the errors of the gradients in x, y and w.
"""

import csv
from pathlib import Path

import torch
from cases import separate_paths
from e3nn.o3 import Irreps, rand_matrix

from hamfast import ops, reference
from hamfast.nn.tensor_product import fully_connected
from hamfast.plan import make_plan

RESULT = Path(__file__).parent / "results" / "precision.csv"
IN, SH = Irreps("32x0e+32x1o+32x2e"), Irreps("1x0e+1x1o+1x2e")
ROWS = 200


def plan_of(mode):
    """The plan of a mode, and the irreps of its result."""
    if mode == "uvw":
        return make_plan(IN, SH, IN, fully_connected(IN, SH, IN)), IN
    out, instructions = separate_paths(IN, SH, Irreps("0e+1o+1e+2e+2o"))
    return make_plan(IN, SH, out, instructions), out


def error(found, expected):
    """The norm of the difference over the norm of what is expected, as text."""
    return f"{float((found.double() - expected).detach().norm() / expected.detach().norm()):.1e}"


def main():
    """Runs the command line."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)  # e3nn's D matrices have the default dtype
    rows = []
    for lowering, mode in (("channel", "uvu"), ("mix", "uvw")):
        plan, irreps_out = plan_of(mode)
        shape = (ROWS, plan.weight_numel) if mode == "uvu" else (plan.weight_numel,)
        x, y, w = (torch.randn(s, dtype=torch.float64) for s in ((ROWS, IN.dim), (ROWS, SH.dim), shape))
        rotation = rand_matrix(dtype=torch.float64)
        d_in, d_sh, d_out = (i.D_from_matrix(rotation).double() for i in (IN, SH, irreps_out))
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            leaves = [t.to(dtype).requires_grad_() for t in (x, y, w)]
            exact = [t.detach().double().requires_grad_() for t in leaves]
            out = ops.tensor_product(*leaves, plan, lowering=lowering)
            truth = reference.tensor_product(*exact, plan)
            grad = torch.randn_like(out)
            grads = torch.autograd.grad(out, leaves, grad)
            truths = torch.autograd.grad(truth, exact, grad.double())
            rotated = ops.tensor_product(
                (x @ d_in.T).to(dtype), (y @ d_sh.T).to(dtype), leaves[2], plan, lowering=lowering
            )
            straight = ops.tensor_product(x.to(dtype), y.to(dtype), leaves[2], plan, lowering=lowering)
            errors = [error(out, truth), *(error(a, b) for a, b in zip(grads, truths, strict=True))]
            rows.append(
                [lowering, str(dtype).removeprefix("torch."), *errors, error(rotated, straight.double() @ d_out.T)]
            )
            print(*rows[-1])
    with RESULT.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["lowering", "dtype", "out", "grad_x", "grad_y", "grad_w", "equivariance"])
        writer.writerows(rows)


if __name__ == "__main__":
    main()
