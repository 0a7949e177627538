"""What the machine can do, in the same run: the bounds that bench/readme.py holds against the products."""

import torch

COPIED = 12_000_000  # float32 numbers
SQUARE = 1024


def test_copy(measure):
    source = torch.randn(COPIED)
    target = torch.empty_like(source)
    measure("torch", "yardstick copy", f"{COPIED} float32", lambda: target.copy_(source))


def test_sgemm(measure):
    a, b = torch.randn(SQUARE, SQUARE), torch.randn(SQUARE, SQUARE)
    measure("torch", "yardstick sgemm", f"{SQUARE} cubed", lambda: a @ b)
