"""A network of nequip: ``network(dtype)`` and ``graph(dtype)``, energies and forces by
``evaluate``."""

import peers
import torch

peers.use()

from nequip.data import compute_neighborlist_, from_ase  # noqa: E402
from nequip.model import NequIPGNNModel  # noqa: E402
from nequip.utils.global_state import set_global_state  # noqa: E402

set_global_state()


def network(dtype, features=32, layers=3, l_max=2, **options):
    return NequIPGNNModel(
        seed=0,
        model_dtype=str(dtype).removeprefix("torch."),
        r_max=4.5,
        type_names=["C", "Si"],
        num_layers=layers,
        l_max=l_max,
        parity=True,
        num_features=features,
        radial_mlp_depth=1,
        radial_mlp_width=64,
        avg_num_neighbors=20.0,
        **options,
    )


def graph(dtype, cells=(2, 2, 2)):
    atoms = peers.crystal(cells)
    data = compute_neighborlist_(from_ase(atoms), r_max=4.5)
    data["atom_types"] = torch.tensor([0 if z == 6 else 1 for z in atoms.numbers]).view(-1)
    return data


def evaluate(model, data, training=False):
    model.train(training)
    out = model({key: value.clone() for key, value in data.items()})
    return out["total_energy"], out["forces"]
