"""python survive.py mace|nequip: what people do with models, done with accelerated ones.

In a process of its own, as the packages change torch's global state. Prints what differed; fails if
it is too much.
"""

import copy
import importlib
import io
import pickle
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")

import numpy as np  # noqa: E402
import peers  # noqa: E402
import torch  # noqa: E402

import hamfast  # noqa: E402

DTYPE = torch.float64
CELLS = (1, 1, 1)
LOAD = """
import sys
import torch
import hamfast.nn
data, inside = torch.load(sys.argv[2])
torch.save(torch.jit.load(sys.argv[1])(data, inside, compute_virials=True)["forces"], sys.argv[3])
"""


def agree(what, found, expected, tolerance=1e-10):
    """The largest difference, relative to the largest number."""
    found, expected = (torch.as_tensor(t).detach().double() for t in (found, expected))
    error = float((found - expected).abs().max() / expected.abs().max())
    print(f"{what}: relative difference {error:.1e}")
    if not error <= tolerance:
        sys.exit(f"{what}: expected at most {tolerance}, found {error}")


def check_copies(module, model, plain):
    """Copies, pickles and files."""
    data = module.graph(DTYPE, CELLS)
    expected = module.evaluate(plain, data)[1]
    saved = io.BytesIO()
    torch.save(model, saved)
    saved.seek(0)
    made = {
        "copy": copy.deepcopy(model),
        "pickle": pickle.loads(pickle.dumps(model)),
        "file": torch.load(saved, weights_only=False),
    }
    for what, other in made.items():
        agree(what, module.evaluate(other, data)[1], expected)


def trained(module, model, steps=2):
    """How steps of a loss on forces change the average (EMA) of weights; and the forces with it."""
    from torch_ema import ExponentialMovingAverage

    data = module.graph(DTYPE, CELLS)
    parameters = [p for p in model.parameters() if p.requires_grad]
    before = torch.cat([p.detach().flatten() for p in parameters])
    optimizer, average = torch.optim.SGD(parameters, lr=1e-3), ExponentialMovingAverage(parameters, decay=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        module.evaluate(model, data, training=True)[1].square().sum().backward()
        optimizer.step()
        average.update()
    with average.average_parameters():
        forces = module.evaluate(model, data)[1]
        change = torch.cat([p.detach().flatten() for p in parameters]) - before
    return change, forces


def check_training(module, model, plain):
    """An exponential moving average of weights, and a model that several processes train."""
    both = [trained(module, copy.deepcopy(m)) for m in (model, plain)]
    agree("EMA, change of weights", both[0][0], both[1][0], 1e-8)
    agree("EMA, forces", both[0][1], both[1][1])
    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        gradients = []
        for other in (model, plain):
            other = copy.deepcopy(other)
            parallel = torch.nn.parallel.DistributedDataParallel(other, find_unused_parameters=True)
            module.evaluate(parallel, module.graph(DTYPE, CELLS), training=True)[1].square().sum().backward()
            gradients.append(torch.cat([p.grad.flatten() for p in other.parameters() if p.grad is not None]))
        torch.distributed.destroy_process_group()
    agree("DDP", *gradients)


def check_calculator(calculators):
    """ASE's energies, forces and stresses."""
    results = []
    for calculator in calculators:
        atoms = peers.crystal(CELLS)
        atoms.calc = calculator
        results.append(np.concatenate([[atoms.get_potential_energy()], atoms.get_forces().ravel(), atoms.get_stress()]))
    agree("calculator", *results)


def check_lammps(model, plain):
    """MACE's export for LAMMPS, loaded by another process; and one without hamfast."""
    import mace_network as module
    from e3nn.util import jit
    from mace.calculators import LAMMPS_MACE

    batch = module.graph(DTYPE, CELLS)
    expected = module.evaluate(plain, batch)[1]
    data = {key: t.detach().clone() for key, t in batch.items() if isinstance(t, torch.Tensor)}
    inside = torch.ones(len(data["positions"]), dtype=DTYPE)
    other = module.network(DTYPE, **TINY)
    other.load_state_dict(model.state_dict())
    report = hamfast.accelerate(other)
    with tempfile.TemporaryDirectory() as folder:
        names = [str(Path(folder) / name) for name in ("model.pt", "data.pt", "forces.pt")]
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            torch.jit.save(jit.compile(LAMMPS_MACE(copy.deepcopy(other))), names[0])
        if not any("call take_back()" in str(w.message) for w in said):
            sys.exit("LAMMPS: expected a warning that Python is needed, found none")
        torch.save((data, inside), names[1])
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", LOAD, *names], capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        agree("LAMMPS, another process", torch.load(names[2]), expected)
    report.take_back()
    scripted = jit.compile(LAMMPS_MACE(other))
    if "hamfast" in str(scripted.inlined_graph):
        sys.exit("take_back: expected no op of hamfast in the script, found one")
    agree("LAMMPS, taken back", scripted(data, inside)["forces"], expected)


def check_compiled_parts(model):
    """MACE's convolution and contraction in compiled code, as MACE prepares them."""
    from mace.tools.compile import simplify

    torch.manual_seed(1)
    product = model.interactions[1].conv_tp
    edges = torch.tensor([[0, 1, 2, 3, 1], [1, 0, 0, 2, 2]])
    sizes = (4, product.irreps_in1.dim), (5, product.irreps_in2.dim), (5, product.weight_numel)
    x, y, weight = (torch.randn(size, dtype=DTYPE, requires_grad=True) for size in sizes)

    def step(convolution, contraction):
        out = convolution(x, y, weight, edges)
        first = torch.autograd.grad(out.square().sum(), (x, y, weight))
        features = torch.randn(4, 4, 4, dtype=DTYPE, generator=torch.Generator().manual_seed(2)).requires_grad_()
        species = torch.eye(2, dtype=DTYPE)[[0, 1, 1, 0]]
        of_species = contraction(features, species)
        second = torch.autograd.grad(
            of_species.square().sum(), (features, *contraction.parameters()), allow_unused=True
        )
        return torch.cat([t.flatten() for t in (out, *first, of_species, *second) if t is not None])

    expected = step(product, model.products[1].symmetric_contractions)
    simplified = simplify(copy.deepcopy(model.products[1])).symmetric_contractions
    agree("traced by MACE", step(product, simplified), expected)
    options = {"fullgraph": True, "backend": "aot_eager"}
    compiled = [torch.compile(part, **options) for part in (product, simplified)]
    agree("compiled", step(*compiled), expected)


TINY = {"hidden": "4x0e+4x1o", "correlation": 2, "max_ell": 1}


def mace():
    """MACE: all of it; and what foundation models are made of."""
    import mace_network as module
    from mace.calculators import MACECalculator

    plain = module.network(DTYPE, **TINY)
    model = copy.deepcopy(plain)
    hamfast.accelerate(model)
    check_copies(module, model, plain)
    check_training(module, model, plain)
    check_calculator([MACECalculator(models=copy.deepcopy(m), default_dtype="float64") for m in (model, plain)])
    check_compiled_parts(model)
    check_lammps(model, plain)
    heads = ["Default", "other"]
    for block in ("RealAgnosticDensityResidualInteractionBlock", "RealAgnosticResidualNonLinearInteractionBlock"):
        other, data = module.network(DTYPE, block=block, heads=heads, **TINY), module.graph(DTYPE, CELLS, heads)
        expected = module.evaluate(other, data)
        report = hamfast.accelerate(other)
        if report.left_alone:
            sys.exit(str(report))
        for what, a, b in zip(("energy", "forces"), module.evaluate(other, data), expected, strict=True):
            agree(f"{block}, head {heads[1]}, {what}", a, b)


def nequip():
    """NequIP: the same, as far as it has it."""
    import nequip_network as module
    from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform
    from nequip.integrations.ase import NequIPCalculator

    plain = module.network(DTYPE, features=4)
    model = copy.deepcopy(plain)
    hamfast.accelerate(model)
    check_copies(module, model, plain)
    check_training(module, model, plain)
    transforms = [ChemicalSpeciesToAtomTypeMapper(["C", "Si"]), NeighborListTransform(r_max=4.5)]
    check_calculator([NequIPCalculator(m.eval(), "cpu", transforms=transforms) for m in (model, plain)])


if __name__ == "__main__":
    importlib.import_module(f"{sys.argv[1]}_network")
    {"mace": mace, "nequip": nequip}[sys.argv[1]]()
