"""Every benchmark notes what it ran: implementation, case, mode, versions and machine.

The implementations of one case and mode alternate, HAMFAST_BENCH_TURNS times (3 by default).
Each has its share of the rounds in every repeat, so that what else the machine does meets all.
bench/to_csv.py puts the repeats together.
"""

import math
import platform

import e3nn
import pytest
import torch

from hamfast import environment

REPEATS = environment.whole("HAMFAST_BENCH_TURNS")


def pytest_generate_tests(metafunc):
    """Repeats each benchmark, so that implementations alternate."""
    if "repeat" in metafunc.fixturenames:
        metafunc.parametrize("repeat", range(REPEATS))


def pytest_collection_modifyitems(items):
    """All of one comparison, repeat by repeat, where its first test stands."""
    positions = {}

    def key(position, item):
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        compared = {name: value for name, value in parameters.items() if name not in ("implementation", "repeat")}
        group = (item.path, item.originalname, str(compared))
        return positions.setdefault(group, position), parameters.get("repeat", 0), position

    items[:] = [item for _, item in sorted(enumerate(items), key=lambda entry: key(*entry))]


def pytest_configure(config):
    """Sets the number of threads (HAMFAST_BENCH_THREADS)."""
    torch.set_num_threads(environment.whole("HAMFAST_BENCH_THREADS") or torch.get_num_threads())


def pytest_benchmark_update_machine_info(config, machine_info):
    """Notes versions, threads and device in the results."""
    machine_info["torch"] = torch.__version__
    machine_info["e3nn"] = e3nn.__version__
    machine_info["threads"] = torch.get_num_threads()
    machine_info["device"] = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU"
    )


@pytest.fixture
def measure(benchmark, repeat):
    """``measure(implementation, case, mode, function)``: times its share of the rounds after a
    warm-up and labels the row.
    """

    def run(implementation, case, mode, function, rounds=10, **note):
        benchmark.group = f"{case} {mode}"
        benchmark.extra_info |= {"implementation": implementation, "case": case, "mode": mode, **note}
        benchmark.pedantic(function, rounds=math.ceil(rounds / REPEATS), iterations=1, warmup_rounds=1)

    return run
