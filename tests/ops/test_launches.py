"""How kernels are launched: what a library may expect of ops on its GPU, and what the sources may
not contain."""

import re
from pathlib import Path

import pytest
import torch
from test_backends import CASES, GRAPH

import hamfast
from hamfast import ops

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("double")

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
backends = pytest.mark.parametrize("backend", ["cuda", "triton"])
every_case = pytest.mark.parametrize("case", list(CASES))


class Step:
    """The value of an op and its gradients, on one device."""

    def __init__(self, case, device="cuda"):
        self.run, _, exact = CASES[case]()
        self.leaves = [t.detach().to(device, torch.float32).requires_grad_() for t in exact]
        self.edges = ops.edge_index(*GRAPH).to(device)
        with torch.no_grad():
            self.grad = torch.randn_like(self.run(self.edges, *self.leaves))

    def change(self):
        with torch.no_grad():
            for leaf in self.leaves:
                leaf.copy_(torch.rand_like(leaf) + 0.1)

    def __call__(self):
        out = self.run(self.edges, *self.leaves)
        found = torch.autograd.grad(out, self.leaves, self.grad, allow_unused=True)
        return [t.clone() for t in (out.detach(), *found) if t is not None]


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.cpu(), b.cpu())


@on_a_gpu
@backends
@every_case
def test_a_cuda_graph_repeats_the_step(case, backend):
    with hamfast.backend(backend):
        step = Step(case)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        recorded = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recorded):
            found = step()
        step.change()
        recorded.replay()
        assert_same(found, step())


@on_a_gpu
@backends
@every_case
def test_launches_follow_the_current_stream(case, backend):
    """Operands that are written late in a stream are read after that."""
    with hamfast.backend(backend):
        step = Step(case)
        step()
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda._sleep(100_000_000)
            step.change()
            found = step()
        torch.cuda.synchronize()
        assert_same(found, step())


@on_a_gpu
@backends
@every_case
def test_nothing_waits_for_the_gpu(case, backend):
    with hamfast.backend(backend):
        step = Step(case)
        step()  # the first call reads its plan's tables back
        torch.cuda.set_sync_debug_mode("error")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs")
@backends
@every_case
def test_two_devices_in_one_process(case, backend):
    with hamfast.backend(backend):
        torch.manual_seed(1)
        first = Step(case, "cuda:0")
        torch.manual_seed(1)
        second = Step(case, "cuda:1")
        second.grad.copy_(first.grad)
        assert_same(second(), first())


def test_no_kernel_allocates_waits_or_adds_in_an_order_that_changes():
    forbidden = r"(cudaMalloc|cuMemAlloc|cudaMemcpy|cuMemcpy|\w*Synchronize|atomicAdd|tl\.atomic_\w+|use_fast_math|--fast-math)\b"
    sources = [p for folder in ("csrc", "kernels") for p in (ROOT / folder).rglob("*") if p.is_file()]
    assert len(sources) > 50
    found = {p.name: re.findall(forbidden, p.read_text()) for p in sources if p.suffix != ".pyc"}
    assert {name: words for name, words in found.items() if words} == {}
