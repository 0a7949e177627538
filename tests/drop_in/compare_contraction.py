"""python compare_contraction.py: MACE's product basis, hamfast's layer with its state, and MACE's
own module after accelerate().

In a process of its own, as MACE changes torch's global state. Prints what differed; fails if it is
too much.
"""

import copy
import io
import pickle
import sys
import warnings

import peers
import torch

warnings.filterwarnings("ignore")
peers.use()

from e3nn import o3  # noqa: E402
from e3nn.util import jit  # noqa: E402
from mace.modules.symmetric_contraction import SymmetricContraction  # noqa: E402

import hamfast  # noqa: E402
from hamfast import nn  # noqa: E402

NODES, CHANNELS, SPECIES = 11, 19, 3
CASES = {
    # irreps of a channel, irreps of the result, factors, reduced couplings
    "MACE's size": ("0e+1o+2e+3o", "0e+1o+2e", 3, False),
    "reduced": ("0e+1o+2e", "0e+1o+1e", 3, True),
    "couplings that vanish": ("0e+1o", "1e+0e", 3, False),
    "four factors": ("0e+1o", "0e+1o", 4, False),
    "two factors": ("0e+1o+2e", "0e+2e", 2, True),
    "one factor": ("0e+1o", "0e", 1, False),
    "degrees by irrep": ("0e+1o+2e", "0e+1o", (3, 2), False),
}


def several(irreps):
    return o3.Irreps([(CHANNELS, ir) for _, ir in o3.Irreps(irreps)])


def arguments(case):
    irreps_in, irreps_out, degree, reduced = CASES[case]
    irreps_in, irreps_out = several(irreps_in), several(irreps_out)
    return irreps_in, irreps_out, degree, reduced


class TheirsByIrrep(torch.nn.Module):
    """MACE's module for several degrees: its constructor has a place for them, and fails there, so
    the parts are made one by one."""

    def __init__(self, irreps_in, irreps_out, degrees, species):
        super().__init__()
        parts = [
            SymmetricContraction(irreps_in, str(entry), degree, num_elements=species)
            for entry, degree in zip(irreps_out, degrees, strict=True)
        ]
        self.contractions = torch.nn.ModuleList([part.contractions[0] for part in parts])

    def forward(self, x, y):
        return torch.cat([contraction(x, y) for contraction in self.contractions], dim=-1)


def theirs_and_ours(case):
    irreps_in, irreps_out, degree, reduced = arguments(case)
    if isinstance(degree, tuple):
        theirs = TheirsByIrrep(irreps_in, irreps_out, degree, SPECIES)
        degree = dict(zip(irreps_out, degree, strict=True))
    else:
        theirs = SymmetricContraction(irreps_in, irreps_out, degree, use_reduced_cg=reduced, num_elements=SPECIES)
    ours = nn.SymmetricContraction(irreps_in, irreps_out, degree, use_reduced_cg=reduced, num_elements=SPECIES)
    for name, buffer in theirs.named_buffers():
        torch.testing.assert_close(dict(ours.named_buffers())[name], buffer, atol=1e-6, rtol=0.0)
    if ours.state_dict().keys() != theirs.state_dict().keys():
        sys.exit(f"{case}: the keys of the state_dict differ")
    frozen = [[name for name, p in m.named_parameters() if not p.requires_grad] for m in (theirs, ours)]
    if frozen[0] != frozen[1]:
        sys.exit(f"{case}: other weights are frozen: {frozen}")
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def results(module, x, y):
    """The value, its gradients, and those of a loss with them: of forces, and of everything."""
    leaves = [x, y, *(p for p in module.parameters() if p.requires_grad)]
    out = module(x, y)
    generator = torch.Generator().manual_seed(1)
    directions = [torch.randn(t.shape, generator=generator, dtype=x.dtype) for t in (out, *leaves)]
    wanted = [t for t in leaves if t.requires_grad]
    first = torch.autograd.grad(out, wanted, directions[0], create_graph=True)
    along = [d for d, t in zip(directions[1:], leaves, strict=True) if t.requires_grad]
    second = torch.autograd.grad(first, wanted, along, retain_graph=True, allow_unused=True)
    third = torch.autograd.grad(first[0].square().sum() + out.sum(), wanted)
    return [out, *first, *second, *third]


def compare(what, found, expected, tolerance):
    worst = 0.0
    scale = max(float(t.abs().max()) for t in expected if t is not None)
    for a, b in zip(found, expected, strict=True):
        a, b = (torch.zeros_like(b) if a is None else a), (torch.zeros_like(a) if b is None else b)
        worst = max(worst, float((a - b).abs().max()) / max(float(b.abs().max()), 1e-3 * scale))
    print(f"{what}: relative difference {worst:.1e}")
    if not worst <= tolerance:
        sys.exit(f"{what}: expected at most {tolerance}, found {worst}")


def check_case(case, dtype, tolerance):
    torch.set_default_dtype(dtype)
    torch.manual_seed(0)
    theirs, ours = theirs_and_ours(case)
    x = torch.randn(NODES, CHANNELS, o3.Irreps(CASES[case][0]).dim).requires_grad_()
    given = {
        "one species each": torch.nn.functional.one_hot(torch.randint(SPECIES, (NODES,)), SPECIES).to(dtype),
        "mixtures": torch.randn(NODES, SPECIES).requires_grad_(),
    }
    expected = {kind: results(theirs, x, y) for kind, y in given.items()}
    for kind, y in given.items():
        compare(f"{case}, {kind}, {dtype}, layer", results(ours, x, y), expected[kind], tolerance)
    if isinstance(theirs, TheirsByIrrep):
        return
    keys = list(theirs.state_dict())
    report = hamfast.accelerate(torch.nn.ModuleDict({"product": theirs}))
    if report.replaced != ["product"] or not isinstance(theirs, SymmetricContraction):
        sys.exit(f"{case}: {report}")
    if list(theirs.state_dict()) != keys:
        sys.exit(f"{case}: accelerate changed the state_dict")
    for kind, y in given.items():
        compare(f"{case}, {kind}, {dtype}, accelerated", results(theirs, x, y), expected[kind], tolerance)


def check_life():
    """Copies, pickles, TorchScript, compiled code, other dtypes, and other coefficients."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    irreps_in, irreps_out, degree, _ = arguments("MACE's size")
    model = torch.nn.Sequential()
    model.product = SymmetricContraction(irreps_in, irreps_out, degree, num_elements=SPECIES)
    x = torch.randn(NODES, CHANNELS, 16)
    y = torch.nn.functional.one_hot(torch.randint(SPECIES, (NODES,)), SPECIES).to(x.dtype)
    theirs = copy.deepcopy(model.product)
    hamfast.accelerate(model)
    product = model.product
    saved = io.BytesIO()
    torch.jit.save(jit.script(copy.deepcopy(product)), saved)
    saved.seek(0)
    made = {
        "copy": copy.deepcopy(product),
        "pickle": pickle.loads(pickle.dumps(product)),
        "compiled": torch.compile(product, fullgraph=True, backend="aot_eager"),
        "TorchScript": torch.jit.load(saved),
    }
    for what, module in made.items():
        compare(what, [module(x, y)], [theirs(x, y)], 1e-12)
    layer = theirs_and_ours("MACE's size")[1]
    compare("layer in TorchScript", [torch.jit.script(layer)(x, y)], [layer(x, y)], 1e-12)
    single = jit.script(copy.deepcopy(product).float())
    compare("TorchScript in float32", [single(x.float(), y.float()).double()], [theirs(x, y)], 1e-5)
    # Coefficients in another convention, as a checkpoint may bring them.
    state = theirs.state_dict()
    for name in state:
        if "U_matrix_2" in name:
            state[name] = -0.5 * state[name]
    product.load_state_dict(state)
    theirs.load_state_dict(state)
    compare("other coefficients", [product(x, y)], [theirs(x, y)], 1e-12)


if __name__ == "__main__":
    for name in CASES:
        check_case(name, torch.float64, 1e-10)
        check_case(name, torch.float32, 1e-5)
    check_life()
