"""Every benchmark notes what it ran: implementation, case, mode, and the versions and machine of the run.

The implementations of one case and mode take turns (HAMFAST_BENCH_TURNS, 3), each with its share of the rounds: what else the machine does
for a while meets them alike. bench/to_csv.py puts the turns together.
"""

import math
import platform

import e3nn
import pytest
import torch

from hamfast import environment

TURNS = environment.whole("HAMFAST_BENCH_TURNS")


def pytest_generate_tests(metafunc):
    if "turn" in metafunc.fixturenames:
        metafunc.parametrize("turn", range(TURNS))


def pytest_collection_modifyitems(items):
    """All of one comparison, turn by turn, where its first test stands."""
    places = {}

    def key(place, item):
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        compared = {name: value for name, value in parameters.items() if name not in ("implementation", "turn")}
        group = (item.path, item.originalname, str(compared))
        return places.setdefault(group, place), parameters.get("turn", 0), place

    items[:] = [item for _, item in sorted(enumerate(items), key=lambda entry: key(*entry))]


def pytest_configure(config):
    torch.set_num_threads(environment.whole("HAMFAST_BENCH_THREADS") or torch.get_num_threads())


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["torch"] = torch.__version__
    machine_info["e3nn"] = e3nn.__version__
    machine_info["threads"] = torch.get_num_threads()
    machine_info["device"] = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU"
    )


@pytest.fixture
def measure(benchmark, turn):
    """``measure(implementation, case, mode, function)``: times its share of the rounds after a warm-up and labels the row."""

    def run(implementation, case, mode, function, rounds=10, **note):
        benchmark.group = f"{case} {mode}"
        benchmark.extra_info |= {"implementation": implementation, "case": case, "mode": mode, **note}
        benchmark.pedantic(function, rounds=math.ceil(rounds / TURNS), iterations=1, warmup_rounds=1)

    return run
