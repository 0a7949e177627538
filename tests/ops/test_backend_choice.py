"""The ladder of backends: which one is chosen and why, and what happens where one fails."""

import importlib
import os
import subprocess
import sys
import warnings

import pytest
import torch

import hamfast
from hamfast import ops
from hamfast.ops import backend as backends
from hamfast.ops.notice import SlowPathWarning, strict

GPU_FREE = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def example():
    torch.manual_seed(0)
    matrix = ops.sparse_matrix(torch.randn(5, 4))
    return torch.randn(3, 4), matrix


@pytest.fixture
def world(monkeypatch):
    """A machine that can be described: what is compiled, what torch is, whether there is Triton and
    NVRTC."""

    def describe(compiled=True, cuda="13.0", hip=None, triton="", nvrtc=""):
        monkeypatch.setattr(backends, "COMPILED", compiled)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr(backends, "triton_problem", lambda: triton)
        monkeypatch.setattr(backends.run_time_compiler, "problem", lambda: nvrtc)
        return backends.choose("auto")

    return describe


def test_the_first_usable_rung_is_taken(world):
    assert world().backend == "cuda"
    assert world(compiled=False).backend == "triton"
    assert world(hip="6.3", cuda=None).backend == "triton"
    assert world(nvrtc="no NVRTC").backend == "triton"  # all products would be slow on "cuda"
    assert world(nvrtc="no NVRTC", triton="not installed").backend == "cuda"
    assert world(compiled=False, triton="not installed").backend == "cpu"


def test_the_ladder_says_why(world):
    world(compiled=False, triton="Triton is not installed")
    problems = {rung.backend: rung.problem for rung in backends.ladder()}
    assert "not compiled" in problems["cuda"]
    assert problems["triton"] == "Triton is not installed"
    assert problems["cpu"] == ""
    world(hip="6.3")
    assert "AMD" in backends.ladder()[0].problem


def test_wrong_names_and_unusable_backends_are_errors(world):
    with (
        pytest.raises(ValueError, match="backend: expected auto, cuda, triton or cpu, found 'fast'"),
        hamfast.backend("fast"),
    ):
        pass
    world(compiled=False)
    with (
        pytest.raises(RuntimeError, match="'cuda' cannot be used: the CUDA kernels were not compiled"),
        hamfast.backend("cuda"),
    ):
        pass
    done = subprocess.run(
        [sys.executable, "-c", "import hamfast.ops"],
        env=os.environ | {"HAMFAST_BACKEND": "gpu"},
        capture_output=True,
        text=True,
    )
    assert "HAMFAST_BACKEND: expected auto, cuda, triton or cpu, found 'gpu'" in done.stderr


@GPU_FREE
def test_backends_are_put_in_front_and_taken_away(monkeypatch):
    if backends.triton_problem():
        pytest.skip(backends.triton_problem())
    calls = []
    module = importlib.import_module("hamfast.triton.sparse_map")
    real = module.sparse_map
    monkeypatch.setattr(module, "sparse_map", lambda *arguments: calls.append(1) or real(*arguments))
    x, matrix = example()
    before = ops.sparse_map(x, matrix)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with hamfast.backend("triton"):
            assert backends.current() == "triton"
            inside = ops.sparse_map(x, matrix)
            with hamfast.backend("cpu"):
                ops.sparse_map(x, matrix)
            assert len(calls) == 1
            ops.sparse_map(x, matrix)
    ops.sparse_map(x, matrix)
    assert len(calls) == 2
    torch.testing.assert_close(inside, before)


def test_what_triton_cannot_compile_runs_lower_and_says_so(monkeypatch):
    if backends.triton_problem():
        pytest.skip(backends.triton_problem())
    from triton.compiler.errors import CompilationError

    def fails(*arguments):
        raise CompilationError("x = 1", None, "no such instruction")

    monkeypatch.setattr(importlib.import_module("hamfast.triton.sparse_map"), "sparse_map", fails)
    monkeypatch.setattr(backends, "interpreting", lambda: False)
    monkeypatch.setattr(backends, "_failed", set())
    x, matrix = example()
    triton = next(rung for rung in backends.ladder() if rung.backend == "triton")
    with (
        strict(),
        pytest.raises(RuntimeError, match="sparse_map on a GPU runs on the cpu backend.*no such instruction.*strict"),
    ):
        backends._run("sparse_map", triton, x, *matrix)
    with pytest.warns(
        SlowPathWarning, match="Triton did not compile its kernel: CompilationError: no such instruction"
    ):
        found = backends._run("sparse_map", triton, x, *matrix)
    torch.testing.assert_close(found, ops.sparse_map(x, matrix))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # said once
        backends._run("sparse_map", triton, x, *matrix)


def test_errors_of_the_program_are_not_hidden(monkeypatch):
    if backends.triton_problem():
        pytest.skip(backends.triton_problem())

    def fails(*arguments):
        raise IndexError("a mistake")

    monkeypatch.setattr(importlib.import_module("hamfast.triton.sparse_map"), "sparse_map", fails)
    x, matrix = example()
    triton = next(rung for rung in backends.ladder() if rung.backend == "triton")
    with pytest.raises(IndexError, match="a mistake"):
        backends._run("sparse_map", triton, x, *matrix)


@GPU_FREE
@pytest.mark.parametrize("mode", ["compile", "export"])
def test_graphs_see_the_op_and_not_the_launch(mode):
    if backends.triton_problem():
        pytest.skip(backends.triton_problem())

    class Head(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.matrix = ops.sparse_matrix(torch.randn(5, 4))

        def forward(self, x):
            return ops.sparse_map(x, self.matrix)

    head, x = Head(), torch.randn(3, 4)
    expected = head(x)
    with hamfast.backend("triton"):
        if mode == "export":
            program = torch.export.export(head, (x,))
            assert "hamfast.sparse_map" in program.graph_module.code
            torch.testing.assert_close(program.module()(x), expected)
        else:
            compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
            torch.testing.assert_close(compiled(x), expected)
