"""python compare_network.py mace|nequip|sevenn|allegro|torchmdnet|own|equiformer|deeph_e3
[argument]: energies, forces, the gradient of a force loss and MACE's Hessian, before and after
accelerate(). Of a network without forces: its output, a loss, and the loss's gradient.

In a process of its own, because the packages change torch's global state. Prints what differed;
fails if it is too much.
"""

import copy
import importlib
import sys
import warnings
from contextlib import suppress

warnings.filterwarnings("ignore")

import torch  # noqa: E402

import hamfast  # noqa: E402


def also_for_few_edges():
    """The graphs here are small, for which adapters would keep the package's code."""
    with suppress(ImportError):
        from hamfast.nn.adapters import pyg

        pyg.FEW = {True: 0, False: 0}
    if "torchmdnet" in sys.modules:
        from hamfast.nn.adapters import torchmdnet

        torchmdnet.FEW = 0


def force_loss_gradients(module, model, data):
    energy, forces = module.evaluate(model, data, training=True)
    loss = energy.sum() if forces is None else energy.sum() + forces.square().sum()
    parameters = [p for p in model.parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat([g.flatten() for g in grads if g is not None])


def results(module, model, data, dtype):
    energy, forces = module.evaluate(model, data)
    found = {"energy": energy, "forces": forces} if forces is not None else {"loss": energy, "output": model(data)}
    found["gradient of a force loss"] = force_loss_gradients(module, model, data)
    if hasattr(module, "hessian") and dtype == torch.float64:
        found["hessian"] = module.hessian(model, dtype)
    return {what: t.detach() for what, t in found.items()}


def main(name, *arguments):
    module = importlib.import_module(f"{name}_network")
    also_for_few_edges()
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        model = module.network(dtype, *arguments, **getattr(module, "SMALL", {}))
        data = module.graph(dtype, **getattr(module, "SMALL_GRAPH", {}))
        keys = list(model.state_dict())
        if name == "mace":  # of float32 it returns some energies as float64
            report = hamfast.accelerate(copy.deepcopy(model), verify=(data, True))
            if not (report.replaced and report.agrees):
                sys.exit(f"verify: expected the same results, found {report}")
        before = results(module, model, data, dtype)
        report = hamfast.accelerate(model)
        if not report.replaced:
            sys.exit(f"nothing was replaced: {report}")
        if list(model.state_dict()) != keys:
            sys.exit("the keys of the state_dict changed")
        after = results(module, model, data, dtype)
        for what, a in before.items():
            b = after[what]
            error = float((a - b).abs().max() / a.abs().max())
            print(f"{name} {dtype} {what}: relative difference {error:.1e}, {len(report.replaced)} layers replaced")
            if not error <= tolerance * (10 if what in ("gradient of a force loss", "hessian") else 1):
                sys.exit(f"{what}: expected at most {tolerance}, found {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
