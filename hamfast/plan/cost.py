"""Which lowering of a plan runs."""

from __future__ import annotations

from functools import cache

from hamfast.plan.channel import is_channel_wise, is_mixing, live_paths
from hamfast.plan.plan import Plan


@cache
def choose_lowering(plan: Plan, shared_weights: bool, device: str) -> str:
    """``mix``, ``channel`` or ``general``."""
    if device != "cpu":
        return "general"
    if shared_weights and any(is_mixing(plan, ins) for ins in live_paths(plan)):
        return "mix"
    if any(is_channel_wise(plan, ins) for ins in live_paths(plan)):
        return "channel"
    return "general"
