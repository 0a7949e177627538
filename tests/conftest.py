"""Seeds, poisoned memory, the device fixture, the bundled data."""

import importlib
import os
import sys
from pathlib import Path

from hamfast import environment

os.environ.setdefault("HAMFAST_POISON", "1")  # before the library is loaded
if (processes := environment.whole("PYTEST_XDIST_WORKER_COUNT")) > 1:  # they share the cores
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before any kernel is imported

HERE = Path(__file__).parent


def pytest_addoption(parser):
    parser.addoption(
        "--through",
        choices=["cuda_sources", "interpreter"],
        help="only the tests that are marked to run through another backend, too",
    )
    parser.addoption("--gpu", action="store_true", help="only the tests that run kernels on a GPU")


def pytest_configure(config):
    """What GPUs run in torch's operations takes the place of the CPU kernels, too."""
    if config.getoption("--through") == "cuda_sources":
        for op in ("row_matmul", "edge_outer", "irreps_linear"):
            torch.library.impl(f"hamfast::{op}", "CPU")(importlib.import_module(f"hamfast.ops.{op}").by_torch)


def pytest_collection_modifyitems(config, items):
    """Of ``--through MARKER``: cases that one of a test's markers fits; its arguments say which
    values, by parameter. Of ``--gpu``: cases of a GPU's device or backend, and tests that are
    skipped without one."""
    marker = config.getoption("--through")

    def parameters(item):
        return item.callspec.params if hasattr(item, "callspec") else {}

    def fits(item, given):
        return all(parameters(item)[name] in values for name, values in given.kwargs.items())

    def uses_gpu(item):
        named = parameters(item).get("device") == "cuda" or parameters(item).get("backend") in ("cuda", "triton")
        return named or any(given.kwargs.get("reason") == "no GPU" for given in item.iter_markers("skipif"))

    chosen = items
    if marker is not None:
        chosen = [item for item in chosen if any(fits(item, given) for given in item.iter_markers(marker))]
    if config.getoption("--gpu"):
        chosen = [item for item in chosen if uses_gpu(item)]
    kept = set(chosen)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = chosen


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """After an illegal access no kernel runs in this process any more: it ends, with the failure
    shown, and pytest-xdist starts another one for the tests that are left."""
    report = yield
    if report.failed and torch.cuda.is_available() and environment.whole("PYTEST_XDIST_WORKER_COUNT") > 1:
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            print(f"{item.nodeid}\n{report.longreprtext}\n{error}", file=sys.stderr, flush=True)
            os._exit(1)
    return report


@pytest.fixture(autouse=True)
def _many_rows(monkeypatch):
    """The few rows of a test are taken for many: else most products would run on the general
    kernel, which is the fastest one there."""
    monkeypatch.setattr(importlib.import_module("hamfast.ops.tensor_product"), "rows_like", lambda rows: 2048)


@pytest.fixture(autouse=True)
def _seeded_and_poisoned():
    """Deterministic mode fills every new torch.empty with NaN, also those made in C++: unwritten
    outputs show."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(
    params=["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
)
def device(request):
    return request.param


@pytest.fixture
def double():
    """float64 as the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """1x1 cells of graphene, h-BN and MoS2, new DeepH layout."""
    return HERE / "data" / "fixtures" / "dft"


@pytest.fixture(scope="session")
def legacy() -> Path:
    """graphene_1x1_000 of the fixtures in the legacy layout, written by the data's own script."""
    return HERE / "data" / "legacy" / "graphene_1x1_000"


@pytest.fixture(scope="session")
def graphene() -> Path:
    """The bundled training set."""
    return HERE.parent / "examples" / "graphene"


@pytest.fixture
def hamfast(capsys):
    """Runs a command in this process: ``status, output, errors = hamfast("data", "info",
    folder)``."""
    from hamfast.cli import main

    def call(*arguments):
        capsys.readouterr()
        try:
            main([str(a) for a in arguments])
            status = 0
        except SystemExit as end:
            status = end.code or 0
        output, errors = capsys.readouterr()
        return status, output, errors

    return call
