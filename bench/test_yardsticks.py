"""What the machine can do, in the same run: the bounds of the products in bench/readme.py."""

import torch

COPIED = 12_000_000  # elements of float32
SQUARE = 1024


def test_copy(measure):
    """The bandwidth of a copy."""
    given = torch.randn(COPIED)
    out = torch.empty_like(given)
    measure("torch", "yardstick copy", f"{COPIED} float32", lambda: out.copy_(given))


def test_sgemm(measure):
    """The rate of a product of two square float32 matrices."""
    a, b = torch.randn(SQUARE, SQUARE), torch.randn(SQUARE, SQUARE)
    measure("torch", "yardstick sgemm", f"{SQUARE} cubed", lambda: a @ b)
