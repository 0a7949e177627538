"""A network of sevenn: ``network(dtype)`` and ``graph(dtype)``, energies and forces by
``evaluate``."""

import peers
import torch

peers.use()

import sevenn._keys as KEY  # noqa: E402
from sevenn._const import DEFAULT_E3_EQUIVARIANT_MODEL_CONFIG  # noqa: E402
from sevenn.atom_graph_data import AtomGraphData  # noqa: E402
from sevenn.model_build import build_E3_equivariant_model  # noqa: E402

CUTOFF = 4.5


def network(dtype, channels=16):
    torch.set_default_dtype(dtype)
    torch.manual_seed(0)
    model = build_E3_equivariant_model(
        {
            **DEFAULT_E3_EQUIVARIANT_MODEL_CONFIG,
            KEY.CUTOFF: CUTOFF,
            KEY.NODE_FEATURE_MULTIPLICITY: channels,
            KEY.LMAX: 2,
            KEY.NUM_CONVOLUTION: 3,
            KEY.NUM_SPECIES: 2,
            KEY.CHEMICAL_SPECIES: ["C", "Si"],
            KEY.TYPE_MAP: {6: 0, 14: 1},
            KEY.CONV_DENOMINATOR: 20.0,
            KEY.SHIFT: 0.0,
            KEY.SCALE: 1.0,
        }
    )
    model.set_is_batch_data(False)
    # Its one-hot species are float32, whatever the model is.
    model.onehot_idx_to_onehot.register_forward_hook(lambda module, args, data: _in(dtype, data))
    return model.to(dtype)


def _in(dtype, data):
    for key in (KEY.NODE_FEATURE, KEY.NODE_ATTR):
        data[key] = data[key].to(dtype)
    return data


def graph(dtype, cells=(2, 2, 2)):
    """What SevenNet's own loader makes, which asks for scikit-learn."""
    atoms = peers.crystal(cells)
    senders, receivers, shifts = peers.edges(atoms, CUTOFF)
    positions = torch.tensor(atoms.positions, dtype=dtype)
    return AtomGraphData(
        **{
            KEY.ATOMIC_NUMBERS: torch.tensor(atoms.numbers),
            KEY.POS: positions,
            KEY.EDGE_IDX: torch.stack([senders, receivers]),
            KEY.EDGE_VEC: positions[receivers] - positions[senders] + shifts.to(dtype),
            KEY.CELL_VOLUME: torch.tensor(atoms.cell.volume, dtype=dtype),
            KEY.NUM_ATOMS: torch.tensor(len(atoms)),
        }
    )


def evaluate(model, data, training=False):
    model.train(training)
    out = model(data.clone())
    return out[KEY.PRED_TOTAL_ENERGY], out[KEY.PRED_FORCE]
