"""Every CUDA kernel compiles for every architecture, and none spills or uses local memory where it
did not."""

import csv
import shutil

import compile_table
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")]


def test_no_new_spills():
    with compile_table.RESULT.open() as file:
        committed = {(r["kernel"], r["case"], r["architecture"]): r for r in csv.DictReader(file)}
    found = compile_table.compile_all()
    assert {(r["kernel"], r["case"], r["architecture"]) for r in found} == set(committed)
    for row in found:
        before = committed[row["kernel"], row["case"], row["architecture"]]
        for column in ("stack_bytes", "spill_stores", "spill_loads"):
            assert row[column] <= int(before[column]), f"{row}; bench/results/compile_table.csv has {before}"
