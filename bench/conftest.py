"""Every benchmark notes what it ran: implementation, case, mode, and the versions and machine of the run."""

import os
import platform

import e3nn
import pytest
import torch


def pytest_configure(config):
    torch.set_num_threads(int(os.environ.get("HAMFAST_BENCH_THREADS", torch.get_num_threads())))


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["torch"] = torch.__version__
    machine_info["e3nn"] = e3nn.__version__
    machine_info["threads"] = torch.get_num_threads()
    machine_info["device"] = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU"
    )


@pytest.fixture
def measure(benchmark):
    """``measure(implementation, case, mode, function)``: times it after a warm-up and labels the row."""

    def run(implementation, case, mode, function, rounds=10, **note):
        benchmark.group = f"{case} {mode}"
        benchmark.extra_info |= {"implementation": implementation, "case": case, "mode": mode, **note}
        benchmark.pedantic(function, rounds=rounds, iterations=1, warmup_rounds=2)

    return run
