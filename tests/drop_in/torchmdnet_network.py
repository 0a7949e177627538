"""Networks of TorchMD-NET: ``network(dtype, model)`` and ``graph(dtype)``, energies and forces by
``evaluate``.

Its search for neighbours needs warp-lang, of 340 MB. Here the pairs are given in its stead, and
TensorNet runs on its own code in torch, as it does wherever warp-lang is missing.
"""

import sys
import types
import warnings

import peers
import torch

peers.use()

CUTOFF = 4.5

search = types.ModuleType("torchmdnet.extensions.ops")
search.get_neighbor_pairs_kernel = None  # the import of a name that nothing here calls
sys.modules[search.__name__] = search
warnings.filterwarnings("ignore", message="Could not import warp_ops")
sys.modules["torchmdnet.extensions.warp_ops"] = None  # a missing module, also where warp-lang is installed

from torchmdnet.models.model import create_model  # noqa: E402


def network(dtype, model="equivariant-transformer", width=32, layers=2, **more):
    torch.set_default_dtype(dtype)
    torch.manual_seed(0)
    options = {
        "model": model,
        "precision": 64 if dtype == torch.float64 else 32,
        "embedding_dimension": width,
        "num_layers": layers,
        "num_rbf": 32,
        "rbf_type": "expnorm",
        "trainable_rbf": False,
        "activation": "silu",
        "attn_activation": "silu",
        "num_heads": 8,
        "distance_influence": "both",
        "neighbor_embedding": True,
        "equivariance_invariance_group": "O(3)",
        "cutoff_lower": 0.0,
        "cutoff_upper": CUTOFF,
        "max_z": 20,
        "max_num_neighbors": 64,
        "derivative": True,
        "atom_filter": -1,
        "prior_model": None,
        "output_model": "Scalar",
        "reduce_op": "add",
    }
    made = create_model(options | more)
    made.representation_model.distance = GivenPairs()
    return made.to(dtype)


class GivenPairs(torch.nn.Module):
    """In the place of TorchMD-NET's search: what it returns, of the pairs in ``pairs``."""

    pairs = None

    def forward(self, positions, batch, box=None):
        """Pairs ``[2, edges]``, their lengths, and the vectors from the second to the first."""
        first, second = self.pairs[0]
        vectors = positions[first] - positions[second] - self.pairs[1]
        loop = first == second
        loop &= (self.pairs[1] == 0).all(1)
        lengths = torch.where(loop[:, None], torch.ones_like(vectors), vectors).norm(dim=1)
        return self.pairs[0], torch.where(loop, torch.zeros_like(lengths), lengths), vectors


def graph(dtype, cells=(2, 2, 2)):
    atoms = peers.crystal(cells)
    first, second, shifts = peers.edges(atoms, CUTOFF)
    loops = torch.arange(len(atoms))
    pairs = torch.stack([torch.cat([first, loops]), torch.cat([second, loops])])
    shifts = torch.cat([shifts, shifts.new_zeros(len(atoms), 3)]).to(dtype)
    return torch.tensor(atoms.numbers), torch.tensor(atoms.positions, dtype=dtype), pairs, shifts


def evaluate(model, data, training=False):
    numbers, positions, pairs, shifts = data
    model.train(training)
    model.representation_model.distance.pairs = pairs, shifts
    return model(numbers, positions.detach().clone())
