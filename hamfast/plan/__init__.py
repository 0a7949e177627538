"""Plans: what a tensor product computes, and the exact ways to compute it.

A plan and its tables are plain values and numpy arrays.
No tensor of torch is kept in them, and they depend on no device.
Torch is used once: e3nn computes the Wigner 3j symbols with it (:mod:`hamfast.plan.coupling`).
"""

from hamfast.plan.cost import explain
from hamfast.plan.edge_frame import EdgeFramePlan, edge_frame_plan
from hamfast.plan.plan import MODES, Instruction, Plan, make_plan
from hamfast.plan.symmetric_contraction import ContractionPlan, contraction_plan

__all__ = [
    "MODES",
    "ContractionPlan",
    "EdgeFramePlan",
    "Instruction",
    "Plan",
    "contraction_plan",
    "edge_frame_plan",
    "explain",
    "make_plan",
]
