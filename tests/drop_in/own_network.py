"""Networks written here around layers of e3tools or PyG: ``network(dtype, layer)`` and
``graph(dtype)``, energies and forces by ``evaluate``.

Both packages have layers, and leave the rest to their users.
"""

import peers
import torch
from e3nn import o3

peers.use()

CUTOFF = 4.5
HARMONICS = o3.Irreps.spherical_harmonics(2)
FEATURES = o3.Irreps("32x0e+16x1o+8x2e")
RADIAL = 16


def network(dtype, layer="Conv"):
    torch.set_default_dtype(dtype)
    torch.manual_seed(0)
    return OfE3tools(layer) if layer in ("Conv", "SeparableConv", "TransformerBlock") else OfPyG(layer)


def graph(dtype, cells=(2, 2, 2)):
    atoms = peers.crystal(cells)
    senders, receivers, shifts = peers.edges(atoms, CUTOFF)
    species = torch.tensor([0 if z == 6 else 1 for z in atoms.numbers])
    return species, torch.tensor(atoms.positions, dtype=dtype), torch.stack([senders, receivers]), shifts.to(dtype)


def evaluate(model, data, training=False):
    species, positions, edge_index, shifts = data
    positions = positions.detach().requires_grad_()
    energy = model(species, positions, edge_index, shifts)
    (gradient,) = torch.autograd.grad(energy, positions, create_graph=training)
    return energy, -gradient


def radial(length):
    """``[edges, RADIAL]``: Gaussians, with a smooth cutoff."""
    centres = torch.linspace(0.5, CUTOFF, RADIAL, device=length.device)
    return torch.exp(-4 * (length[:, None] - centres) ** 2) * torch.cos(0.5 * torch.pi * length / CUTOFF)[:, None] ** 2


class OfE3tools(torch.nn.Module):
    """Two layers between an embedding and a sum over atoms."""

    def __init__(self, layer):
        super().__init__()
        import e3tools.nn

        make = getattr(e3tools.nn, layer)
        self.embedding = torch.nn.Embedding(2, 32)
        if layer == "TransformerBlock":
            options = {"num_heads": 4, "irreps_key": FEATURES, "irreps_query": FEATURES}
            self.layers = torch.nn.ModuleList(
                make(i, FEATURES, HARMONICS, edge_attr_dim=RADIAL, **options) for i in (o3.Irreps("32x0e"), FEATURES)
            )
        else:
            self.layers = torch.nn.ModuleList(
                make(i, FEATURES, HARMONICS, edge_attr_dim=RADIAL) for i in (o3.Irreps("32x0e"), FEATURES)
            )
        self.linear = o3.Linear(FEATURES, "1x0e")

    def forward(self, species, positions, edge_index, shifts):
        vectors = positions[edge_index[1]] - positions[edge_index[0]] + shifts
        harmonics = o3.spherical_harmonics(HARMONICS, vectors, True, "component")
        features, edges = self.embedding(species), radial(vectors.norm(dim=1))
        for layer in self.layers:
            features = layer(features, edge_index, edges, harmonics)
        return self.linear(features).sum()


class OfPyG(torch.nn.Module):
    """Two attention layers with edge features made of distances."""

    def __init__(self, layer):
        super().__init__()
        from torch_geometric import nn

        self.embedding = torch.nn.Embedding(2, 64)
        self.layers = torch.nn.ModuleList(
            getattr(nn, layer)(64, 16, heads=4, edge_dim=RADIAL, **self.options(layer)) for _ in range(2)
        )
        self.linear = torch.nn.Linear(64, 1)

    @staticmethod
    def options(layer):
        return {"add_self_loops": False} if layer == "GATv2Conv" else {}

    def forward(self, species, positions, edge_index, shifts):
        vectors = positions[edge_index[1]] - positions[edge_index[0]] + shifts
        features, edges = self.embedding(species), radial(vectors.norm(dim=1))
        for layer in self.layers:
            features = torch.nn.functional.silu(layer(features, edge_index, edges))
        return self.linear(features).sum()
