"""Networks of the real packages give the same energies and forces with hamfast inside."""

import subprocess
import sys
from pathlib import Path

import pytest
from peers import PEERS, available

HERE = Path(__file__).parent


NETWORKS = {
    "mace": ("mace",),
    "nequip": ("nequip",),
    "sevenn": ("sevenn",),
    "allegro": ("allegro",),
    "torchmdnet": ("torchmdnet",),
    "e3tools": ("own", "Conv"),
    "e3tools separable": ("own", "SeparableConv"),
    "e3tools transformer": ("own", "TransformerBlock"),
}
"""Test -> arguments of compare_network.py; its first word is the package's."""


@pytest.mark.parametrize("name", NETWORKS)
def test_energies_and_forces(name):
    run("compare_network.py", name.split()[0], *NETWORKS[name])


@pytest.mark.parametrize("name", ["deeph_e3", "equiformer"])
def test_networks_of_published_code(name):
    """Those that are no packages: energies and forces, or the network's output and a loss of it."""
    run("compare_network.py", None, name)


def test_product_basis_of_mace():
    run("compare_contraction.py", "mace")


def test_contracters_of_allegro():
    run("compare_allegro.py", "allegro")


def test_layers_of_e3tools():
    run("compare_e3tools.py", "e3tools")


def test_attention_of_torchmd_net():
    run("compare_torchmdnet.py", "torchmdnet")


@pytest.mark.slow
@pytest.mark.parametrize("package", ["mace", "nequip"])
def test_what_people_do_with_models(package):
    """Copies, files, averages of weights, DDP, calculators, exports."""
    run("survive.py", package, package)


@pytest.mark.parametrize("package", ["nequip", pytest.param("allegro", marks=pytest.mark.long)])
def test_packaged_models_of_nequip(package):
    run("compiled_nequip.py", package, package, "package")


@pytest.mark.long
@pytest.mark.parametrize("what", ["file", "training"])
@pytest.mark.parametrize("package", ["nequip", "allegro"])
def test_compiled_models_of_nequip(package, what):
    run("compiled_nequip.py", package, package, what)


def run(program, package, *arguments):
    """The package is one that is needed, if any."""
    if package is not None and not available(package):
        pytest.skip(f"{package} is not in {PEERS}; tools/setup_peers.sh puts it there")
    command = [sys.executable, HERE / program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE, timeout=600)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
