"""A network of mace-torch: ``network(dtype)`` and ``graph(dtype)``, energies and forces by
``evaluate``, second derivatives by ``hessian``."""

import numpy as np
import peers
import torch

peers.use()

from e3nn import o3  # noqa: E402
from mace import data, modules, tools  # noqa: E402
from mace.tools import torch_geometric  # noqa: E402


def network(dtype):
    torch.set_default_dtype(dtype)
    torch.manual_seed(0)
    block = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    return modules.ScaleShiftMACE(
        r_max=5.0,
        num_bessel=8,
        num_polynomial_cutoff=6,
        max_ell=3,
        interaction_cls=block,
        interaction_cls_first=block,
        num_interactions=2,
        num_elements=2,
        hidden_irreps=o3.Irreps("64x0e+64x1o"),
        MLP_irreps=o3.Irreps("16x0e"),
        gate=torch.nn.functional.silu,
        atomic_energies=np.zeros(2),
        avg_num_neighbors=20,
        atomic_numbers=[6, 14],
        correlation=3,
        radial_type="bessel",
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
    )


def graph(dtype, cells=2):
    torch.set_default_dtype(dtype)
    table = tools.AtomicNumberTable([6, 14])
    config = data.config_from_atoms(peers.crystal(cells))
    sample = data.AtomicData.from_config(config, z_table=table, cutoff=5.0)
    return torch_geometric.Batch.from_data_list([sample]).to_dict()


def evaluate(model, batch, training=False):
    out = model(batch, training=training)
    return out["energy"], out["forces"]


def hessian(model, dtype):
    """Of 8 atoms: MACE takes its rows by ``torch.vmap`` over ``autograd.grad``."""
    return model(graph(dtype, cells=1), compute_hessian=True)["hessian"]
