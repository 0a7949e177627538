"""Where the time of a model goes, by groups of torch's operations, before and after a change."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.profiler import ProfilerActivity, profile

from hamfast.nn.evaluation import evaluate

# Words in the names of torch's operations, group by group: the first that fits counts.
_GROUPS = {
    "matrix products": ("mm", "matmul", "linear", "einsum", "dot", "mv"),
    "gather and scatter": ("index", "gather", "scatter", "embedding"),
    "copies": ("copy", "clone", "cat", "contiguous", "_to_", "stack", "fill", "zero", "ones"),
    "sums": ("sum", "mean", "cumsum", "norm"),
    "views": (
        "view", "reshape", "expand", "transpose", "permute", "slice", "select", "split", "squeeze", "as_strided",
        "detach", "empty", "narrow", "alias", "resize", "aten::t",
    ),
    "pointwise": (
        "mul", "add", "sub", "div", "pow", "exp", "sin", "cos", "silu", "sigmoid", "tanh", "where", "neg", "sqrt",
        "clamp", "softplus", "relu", "gelu", "reciprocal", "log", "abs", "bitwise", "eq", "ne", "lt", "gt",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class OpTimes:
    """Milliseconds of one step, by group: the processor's own time of each operation, without that
    of the operations that it calls.
    """

    before: dict[str, float]
    after: dict[str, float]

    def __str__(self) -> str:
        before, after = sum(self.before.values()), sum(self.after.values())
        lines = [f"one step: {before:.1f} ms before, {after:.1f} ms after, {before / max(after, 1e-9):.1f}x"]
        names = sorted({*self.before, *self.after}, key=lambda name: -self.after.get(name, 0.0))
        width = max(map(len, names), default=0)
        for name in names:
            b, a = self.before.get(name, 0.0), self.after.get(name, 0.0)
            lines.append(
                f"  {name:<{width}} {b:>9.1f} {a:>9.1f} ms  {100 * a / max(after, 1e-9):>4.0f} % of what remains"
            )
        return "\n".join(lines)


def op_times(model: nn.Module, batch: Any, repeats: int = 3) -> dict[str, float]:
    """Milliseconds of :func:`hamfast.nn.evaluation.evaluate`, by group of operations.

    Each operation of hamfast is a group of its own.
    The time is that of the processor, on a GPU that of the calls; it is the mean of some repeats.
    """
    evaluate(model, batch)  # what is prepared in the first call
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(repeats):
            evaluate(model, batch)
    times: dict[str, float] = defaultdict(float)
    for event in recorded.key_averages():
        times[_group(event.key)] += event.self_cpu_time_total / 1000 / repeats
    return dict(times)


def _group(name: str) -> str:
    if name.startswith("hamfast::"):
        return name
    if not name.startswith("aten::"):
        return "autograd and Python"
    for group, words in _GROUPS.items():
        if any(word in name for word in words):
            return group
    return "other operations"
