"""python compiled_nequip.py nequip|allegro package|file|training: NequIP's packaged models and its
own ways to compiled code, of accelerated models.

In a process of its own, as the packages change torch's global state. Prints what differed; fails if
it is too much.
"""

import copy
import importlib
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")

import torch  # noqa: E402
import yaml  # noqa: E402
from survive import DTYPE, agree  # noqa: E402

import hamfast  # noqa: E402
from hamfast._library import PATH  # noqa: E402

CELLS = (1, 1, 1)
LOAD = """
import json
import sys
import peers
peers.use()
from nequip.integrations.ase import NequIPCalculator
assert "hamfast.nn" not in sys.modules
atoms = peers.crystal((2, 1, 1))
atoms.calc = NequIPCalculator.from_compiled_model(sys.argv[1])
assert "hamfast.nn" in sys.modules
print(json.dumps(atoms.get_forces().tolist()))
"""
"""Another structure by the file, in a process that does not import hamfast's layers itself."""


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


def check_package(module, folder):
    """A packaged model, whose classes are not those that Python imports."""
    from nequip.model.saved_models.load_utils import load_saved_model

    plain, data = module.network(DTYPE, **TINY), module.graph(DTYPE, CELLS)
    expected = module.evaluate(plain, data)[1]
    package(folder / "model.nequip.zip", plain.eval(), data)
    model = load_saved_model(folder / "model.nequip.zip", "eager", "sole_model")
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
    again.take_back()  # in the wrong order
    left = {name for part in model.modules() for name in vars(part) if name.startswith("hamfast")}
    if left or any("hamfast" in type(part).__module__ for part in model.modules()):
        sys.exit(f"packaged, twice: expected nothing of hamfast after take_back(), found {left}")


def check_file(module, folder):
    """A packaged model compiled to a file that NequIP's calculator loads, and a program without
    Python."""
    from nequip.scripts._compile_utils import ASE_TARGET

    from hamfast.nn.adapters.nequip import compile_accelerated

    plain = module.network(DTYPE, **TINY).eval()
    data = module.graph(DTYPE, (2, 1, 1))
    expected = module.evaluate(plain, data)[1]
    packaged, compiled, inputs = (f"{folder}/{name}" for name in ("model.nequip.zip", "model.nequip.pt2", "inputs.pt"))
    package(packaged, plain, module.graph(DTYPE, CELLS))
    compile_accelerated([packaged, compiled, "--mode", "aotinductor", "--target", "ase", "--device", "cpu"])
    loaded = json.loads(run(sys.executable, "-W", "ignore", "-c", LOAD, compiled))
    agree("compiled, another process", loaded, expected)
    root, inside, program = Path(__file__).parents[1], Path(torch.__file__).parent, f"{folder}/program"
    options = [f"-I{inside / part}" for part in ("include", "include/torch/csrc/api/include")]
    options += [f"-L{inside / 'lib'}", f"-Wl,-rpath,{inside / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    run("g++", "-std=c++20", root / "cpp/run_compiled.cpp", "-o", program, *options)
    torch.save([data[name] for name in ASE_TARGET["input"]], inputs)
    forces = run(program, compiled, inputs, PATH).split()
    agree("compiled, without Python", torch.tensor([float(f) for f in forces], dtype=DTYPE), expected.flatten())


def run(*command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return done.stdout


def check_training(module, _folder):
    """Compiled training as ``compile_mode: compile`` does it: the gradient of a loss on forces."""
    from nequip.data import AtomicDataDict
    from nequip.nn.compile import CompileGraphModel

    plain, model = module.network(DTYPE, **TINY), module.network(DTYPE, compile_mode="compile", **TINY)
    assert isinstance(model, CompileGraphModel)
    model.load_state_dict(plain.state_dict())
    hamfast.accelerate(model)
    for cells in (CELLS, (2, 1, 1)):  # compiled once for both
        data = AtomicDataDict.batched_from_list(2 * [module.graph(DTYPE, cells)])
        gradients = []
        for other in (model, plain):
            other.zero_grad()
            module.evaluate(other, data, training=True)[1].square().sum().backward()
            gradients.append(torch.cat([p.grad.flatten() for p in other.parameters() if p.grad is not None]))
        agree(f"compiled training, {cells}", *gradients)


TINY = {"features": 2, "l_max": 1, "layers": 2}

if __name__ == "__main__":
    checks = {"package": check_package, "file": check_file, "training": check_training}
    with tempfile.TemporaryDirectory() as scratch:
        checks[sys.argv[2]](importlib.import_module(f"{sys.argv[1]}_network"), Path(scratch))
