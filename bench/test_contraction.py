"""The symmetric contraction beside MACE's own module and cuEquivariance's CPU path.

200 nodes of 4 species, 128 channels, x up to l = 3, three factors: MACE's usual size.
Outputs are compared before anything is timed. bench/results/contraction.csv is CPU time, of one
thread: ``--benchmark-timer=time.process_time``.
"""

import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from e3nn import o3

from hamfast import nn

sys.path.append(str(Path(sys.prefix) / "peers"))
NODES, CHANNELS, SPECIES, DEGREE = 200, 128, 4, 3
RESULTS = ("128x0e", "128x0e+128x1o", "128x0e+128x1o+128x2e")
MODES = ("forward", "forward+backward", "force step")


@cache
def modules(irreps_out):
    """MACE's module, and hamfast's layer with its state."""
    contraction = pytest.importorskip("mace.modules.symmetric_contraction")
    torch.manual_seed(0)
    irreps = o3.Irreps([(CHANNELS, (l, (-1) ** l)) for l in range(4)])
    given = irreps, o3.Irreps(irreps_out), DEGREE
    theirs = contraction.SymmetricContraction(*given, num_elements=SPECIES)
    ours = nn.SymmetricContraction(*given, num_elements=SPECIES)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def inputs():
    """Nodes' features, and a 1 at the species of each."""
    x = torch.randn(NODES, CHANNELS, 16, requires_grad=True)
    return x, torch.nn.functional.one_hot(torch.randint(SPECIES, (NODES,)), SPECIES).float()


def cuequivariance(irreps_out):
    """Its contraction, in a basis of its own: as many paths as are independent."""
    cue = pytest.importorskip("cuequivariance")
    cuet = pytest.importorskip("cuequivariance_torch")
    irreps_in = "+".join(f"{CHANNELS}x{l}{'eo'[l % 2]}" for l in range(4))
    product = cuet.SymmetricContraction(
        cue.Irreps("O3", irreps_in),
        cue.Irreps("O3", irreps_out),
        layout=cue.ir_mul,
        contraction_degree=DEGREE,
        num_elements=SPECIES,
        dtype=torch.float32,
        math_dtype=torch.float32,
    )

    def run(x, y):
        return product(x.transpose(1, 2).flatten(1), y.argmax(dim=1).int())

    return run, list(product.parameters())


def step(function, x, y, parameters, mode):
    """One step of a mode; ``force step``: energy, forces, and the gradient of a loss of both."""

    def forward():
        with torch.no_grad():
            return function(x, y)

    grad = torch.ones_like(forward())

    def both():
        return torch.autograd.grad(function(x, y), (x, *parameters), grad)

    def force_step():
        out = function(x, y)
        (forces,) = torch.autograd.grad(out, x, grad, create_graph=True)
        return torch.autograd.grad(forces.square().sum() + out.sum(), (x, *parameters))

    return {"forward": forward, "forward+backward": both, "force step": force_step}[mode]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("implementation", ["hamfast", "mace", "cuequivariance"])
@pytest.mark.parametrize("irreps_out", RESULTS)
def test_contraction(measure, irreps_out, implementation, mode):
    """The contraction beside MACE's, on results that agree, and cuEquivariance's."""
    torch.manual_seed(1)
    theirs, ours = modules(irreps_out)
    x, y = inputs()
    torch.testing.assert_close(ours(x, y), theirs(x, y), atol=2e-4, rtol=2e-4)
    if implementation == "cuequivariance":
        function, parameters = cuequivariance(irreps_out)
    else:
        function = ours if implementation == "hamfast" else theirs
        parameters = [p for p in function.parameters() if p.requires_grad]
    measure(
        implementation, f"symmetric_contraction {irreps_out}", mode, step(function, x, y, parameters, mode), rounds=6
    )
