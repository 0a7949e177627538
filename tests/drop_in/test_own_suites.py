"""The packages' own tests of models pass with hamfast at work in every model that they make."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from peers import PEERS, available

import hamfast

IN_MACE = """
import functools
import torch
from mace.modules import models
import hamfast
exchanged = 0

def accelerated(cls):
    init = cls.__init__

    @functools.wraps(init)
    def made(self, *args, **kwargs):
        global exchanged
        init(self, *args, **kwargs)
        exchanged += len(hamfast.accelerate(self).replaced)

    cls.__init__ = made

for cls in list(vars(models).values()):
    if isinstance(cls, type) and issubclass(cls, torch.nn.Module) and cls.__module__ == models.__name__:
        if "__init__" in vars(cls):
            accelerated(cls)

def pytest_sessionfinish(session):
    print(f"hamfast: {exchanged} layers")
"""

IN_NEQUIP = """
import pytest
import hamfast
from nequip.utils.unittests.conftest import *
from nequip.utils.unittests.model_tests_basic import EnergyModelTestsMixin
{imports}

NETWORK = {network}
exchanged = 0

class TestAccelerated(EnergyModelTestsMixin):
    @pytest.fixture(scope="class")
    @classmethod
    def config(cls):
        return NETWORK | {{"seed": 0, "r_max": 4.0, "type_names": ["H", "C", "O"], "avg_num_neighbors": 10.0}}

    @pytest.fixture
    def strict_locality(self):
        return {strict}

    @staticmethod
    def make_model(config, device):
        global exchanged
        model = EnergyModelTestsMixin.make_model(config, device)
        exchanged += len(hamfast.accelerate(model).replaced)
        return model

def test_of_this_test():
    assert exchanged > 0
"""

NETWORKS = {
    "nequip": ({"_target_": "nequip.model.NequIPGNNModel", "num_layers": 2, "l_max": 2, "num_features": 4}, False, ""),
    "allegro": (
        {
            "_target_": "allegro.model.AllegroModel",
            "num_layers": 2,
            "l_max": 2,
            "num_scalar_features": 8,
            "num_tensor_features": 4,
            "radial_chemical_embed": {"_target_": "allegro.nn.TwoBodyBesselScalarEmbed", "num_bessels": 4},
        },
        True,
        "import allegro",
    ),
}


def run(folder, *arguments):
    """pytest in a process of its own, as the packages change torch's global state."""
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore", "--no-header", "-m", ""]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{folder}:{PEERS}:{Path(hamfast.__file__).parents[1]}"},
        capture_output=True,
        text=True,
    )
    print(done.stdout[-3000:])
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("package", ["nequip", pytest.param("allegro", marks=pytest.mark.long)])
def test_models_of_nequip(package, tmp_path):
    if not available(package):
        pytest.skip(f"{package} is not in {PEERS}; tools/setup_peers.sh puts it there")
    network, strict, imports = NETWORKS[package]
    text = IN_NEQUIP.format(network=network, strict=strict, imports=imports)
    (tmp_path / "test_accelerated.py").write_text(text)
    run(tmp_path, "test_accelerated.py")


@pytest.mark.parametrize(
    "file",
    [
        "test_models.py",
        *(
            pytest.param(name, marks=pytest.mark.long)
            for name in ("test_compile.py", "test_lora.py", "test_modules.py")
        ),
    ],
)
def test_models_of_mace(file, tmp_path):
    """Its wheel has no tests; its sources from the package index have them."""
    sources = sorted((PEERS / "sources").glob("mace_torch-*.tar.gz"))
    if not sources:
        pytest.skip(f"MACE's sources are not in {PEERS / 'sources'}; tools/setup_peers.sh puts them there")
    with tarfile.open(sources[-1]) as archive:
        archive.extractall(tmp_path, filter="data")
    folder = next(tmp_path.glob("mace_torch-*")) / "tests"
    (folder / "hamfast_in_mace.py").write_text(IN_MACE)
    said = run(folder, "-p", "hamfast_in_mace", file)
    assert file == "test_modules.py" or "hamfast: 0 layers" not in said
