"""python compiled_nequip.py nequip|allegro file|training: NequIP's own ways to compiled code, of
accelerated models.

In a process of its own, as the packages change torch's global state. Prints what differed; fails if
it is too much.
"""

import copy
import importlib
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")

import peers  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402
from survive import DTYPE, agree  # noqa: E402

import hamfast  # noqa: E402

CELLS = (1, 1, 1)


def package(path, model, data):
    """What ``nequip-package build`` writes of a checkpoint."""
    from nequip.scripts import _package_utils as modules

    with torch.package.PackageExporter(path) as file:
        file.mock([f"{name}.**" for name in modules._MOCK_MODULES])
        file.extern([f"{name}.**" for name in modules._EXTERNAL_MODULES])
        file.intern([f"{name}.**" for name in modules._INTERNAL_MODULES])
        file.save_pickle("model", "example_data.pkl", data)
        about = {"package_version_id": 2, "available_models": ["eager"], "atom_types": dict(enumerate(["C", "Si"]))}
        file.save_text("model", "package_metadata.txt", yaml.dump(about))
        file.save_pickle("model", "eager_model.pkl", torch.nn.ModuleDict({"sole_model": model}))


def check_file(module):
    """A packaged model, whose classes are not those that Python imports; compiled to a file that
    NequIP's calculator loads."""
    from nequip.integrations.ase import NequIPCalculator
    from nequip.model.saved_models.load_utils import load_saved_model

    plain = module.network(DTYPE, **TINY)
    data = module.graph(DTYPE, CELLS)
    expected = module.evaluate(plain, data)[1]
    with tempfile.TemporaryDirectory() as folder:
        packaged, compiled = f"{folder}/model.nequip.zip", f"{folder}/model.nequip.pt2"
        package(packaged, plain.eval(), data)
        model = load_saved_model(packaged, "eager", "sole_model")
        report = hamfast.accelerate(model, verify=data)
        if not report.replaced or report.left_alone or not report.agrees:
            sys.exit(f"packaged: expected all layers on hamfast and the same results, found {report}")
        agree("packaged", module.evaluate(model, data)[1], expected)
        agree("packaged, copy", module.evaluate(copy.deepcopy(model), data)[1], expected)
        again = hamfast.accelerate(model)
        if again.exchanged != report.exchanged:
            sys.exit(f"packaged, twice: expected {report.exchanged}, found {again}")
        report.take_back()
        if any("hamfast" in type(part).__module__ for part in model.modules()):
            sys.exit("packaged: expected no module of hamfast after take_back(), found one")
        program = [sys.executable, "-m", "hamfast.nn.adapters.nequip", packaged, compiled]
        arguments = ["--mode", "aotinductor", "--target", "ase", "--device", "cpu"]
        path = {"PYTHONPATH": f"{peers.PEERS}:{Path(hamfast.__file__).parents[1]}"}
        done = subprocess.run([*program, *arguments], capture_output=True, text=True, env=os.environ | path)
        if done.returncode or report.exchanged not in done.stdout:
            sys.exit(done.stdout + done.stderr)
        calculator = NequIPCalculator.from_compiled_model(compiled)
        for cells in (CELLS, (2, 1, 1)):
            atoms = peers.crystal(cells)
            atoms.calc = calculator
            expected = module.evaluate(plain, module.graph(DTYPE, cells))[1]
            agree(f"compiled, {len(atoms)} atoms", atoms.get_forces(), expected)


def check_training(module):
    """Compiled training as ``compile_mode: compile`` does it: the gradient of a loss on forces."""
    from nequip.data import AtomicDataDict
    from nequip.nn.compile import CompileGraphModel

    plain, model = module.network(DTYPE, **TINY), module.network(DTYPE, compile_mode="compile", **TINY)
    assert isinstance(model, CompileGraphModel)
    model.load_state_dict(plain.state_dict())
    hamfast.accelerate(model)
    for cells in (CELLS, (2, 1, 1)):
        data = AtomicDataDict.batched_from_list(2 * [module.graph(DTYPE, cells)])
        gradients = []
        for other in (model, plain):
            other.zero_grad()
            module.evaluate(other, data, training=True)[1].square().sum().backward()
            gradients.append(torch.cat([p.grad.flatten() for p in other.parameters() if p.grad is not None]))
        agree(f"compiled training, {cells}", *gradients)


TINY = {"features": 2, "l_max": 1, "layers": 2}

if __name__ == "__main__":
    checks = {"file": check_file, "training": check_training}
    checks[sys.argv[2]](importlib.import_module(f"{sys.argv[1]}_network"))
