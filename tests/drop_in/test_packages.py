"""Networks of the real packages give the same energies and forces with hamfast inside."""

import subprocess
import sys
from pathlib import Path

import pytest
from peers import PEERS, available

HERE = Path(__file__).parent


@pytest.mark.parametrize("name", ["mace", "nequip"])
def test_energies_and_forces(name):
    if not available(name):
        pytest.skip(f"{name} is not in {PEERS}; tools/setup_peers.sh puts it there")
    done = subprocess.run(
        [sys.executable, HERE / "compare_network.py", name], capture_output=True, text=True, cwd=HERE, timeout=600
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
