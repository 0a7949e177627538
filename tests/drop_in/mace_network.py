"""A network of mace-torch: ``network(dtype)`` and ``graph(dtype)``, energies and forces by
``evaluate``, second derivatives by ``hessian``."""

import numpy as np
import peers
import torch

peers.use()

from e3nn import o3  # noqa: E402
from mace import data, modules, tools  # noqa: E402
from mace.tools import torch_geometric  # noqa: E402


def network(
    dtype, hidden="64x0e+64x1o", correlation=2, block="RealAgnosticResidualInteractionBlock", heads=None, **more
):
    torch.set_default_dtype(dtype)
    torch.manual_seed(0)
    several = {} if heads is None else {"heads": heads}
    options = {
        "max_ell": 3,
        "MLP_irreps": o3.Irreps("16x0e") if heads is None else o3.Irreps(f"{16 * len(heads)}x0e"),
        "atomic_energies": np.zeros(2) if heads is None else np.zeros((len(heads), 2)),
        "atomic_inter_scale": 1.0 if heads is None else [1.0 + n for n in range(len(heads))],
        "atomic_inter_shift": 0.0 if heads is None else [0.1 * n for n in range(len(heads))],
    }
    return modules.ScaleShiftMACE(
        r_max=5.0,
        num_bessel=8,
        num_polynomial_cutoff=6,
        interaction_cls=modules.interaction_classes[block],
        interaction_cls_first=modules.interaction_classes[block],
        num_interactions=2,
        num_elements=2,
        hidden_irreps=o3.Irreps(hidden),
        gate=torch.nn.functional.silu,
        avg_num_neighbors=20,
        atomic_numbers=[6, 14],
        correlation=correlation,
        radial_type="bessel",
        **(options | several | more),
    )


def graph(dtype, cells=(2, 2, 2), heads=None):
    torch.set_default_dtype(dtype)
    table = tools.AtomicNumberTable([6, 14])
    config = data.config_from_atoms(peers.crystal(cells))
    if heads is not None:
        config.head = heads[-1]
    sample = data.AtomicData.from_config(config, z_table=table, cutoff=5.0, heads=heads)
    return torch_geometric.Batch.from_data_list([sample]).to_dict()


def evaluate(model, batch, training=False):
    out = model(batch, training=training)
    return out["energy"], out["forces"]


def hessian(model, dtype):
    """Of 8 atoms: MACE takes its rows by ``torch.vmap`` over ``autograd.grad``."""
    return model(graph(dtype, cells=(1, 1, 1)), compute_hessian=True)["hessian"]
