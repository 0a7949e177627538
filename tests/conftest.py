"""Seeds, poisoned memory, the device fixture, the bundled data."""

import os
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


def pytest_collection_modifyitems(config, items):
    """Of ``--through MARKER``: cases that one of a test's markers fits; its arguments say which
    values, by parameter."""
    marker = config.getoption("--through")
    if marker is None:
        return

    def fits(item, given):
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        return all(parameters[name] in values for name, values in given.kwargs.items())

    chosen = [item for item in items if any(fits(item, given) for given in item.iter_markers(marker))]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
    items[:] = chosen


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
