"""Plans: what a tensor product computes, and the exact ways to compute it. No torch, no device."""

from hamfast.plan.cost import explain
from hamfast.plan.edge_frame import EdgeFramePlan, edge_frame_plan
from hamfast.plan.plan import MODES, Instruction, Plan, make_plan

__all__ = ["MODES", "EdgeFramePlan", "Instruction", "Plan", "edge_frame_plan", "explain", "make_plan"]
