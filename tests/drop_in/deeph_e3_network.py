"""DeepH-E3's published type of network from e3nn's modules: ``network(dtype)`` and
``graph(dtype)``; ``evaluate`` has a loss in the place of an energy, and no forces."""

from pathlib import Path

import torch

from hamfast.data import GraphDataset, dataset_spec
from hamfast.models import CovariantConfig, CovariantNetwork
from hamfast.reference import E3nnNetwork

GRAPHENE = Path(__file__).parents[2] / "examples" / "graphene" / "dft" / "3x3_000"


def network(dtype, **settings):
    torch.set_default_dtype(dtype)
    torch.manual_seed(0)
    return E3nnNetwork(CovariantNetwork(CovariantConfig(**settings), dataset_spec([GRAPHENE])))


def graph(dtype, cells=(1, 1, 1)):
    torch.set_default_dtype(dtype)
    return GraphDataset([GRAPHENE], dataset_spec([GRAPHENE]), None)[0]


def evaluate(model, data, training=False):
    return (model(data) - data.target).square().sum(), None
