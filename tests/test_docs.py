"""The Python of the README and of docs/, as a reader would run it. Their commands run in
test_journeys.py."""

import re
from pathlib import Path

import pytest
import torch
from e3nn import o3
from torch_geometric.nn import TransformerConv

import hamfast

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def python_blocks(page):
    """Each with as many empty lines before it as there are lines before it on the page: errors name
    the page's line."""
    text = page.read_text()
    for block in re.finditer(r"^```python\n(.*?)^```", text, re.M | re.S):
        yield "\n" * (text[: block.start(1)].count("\n")) + block[1]


class TheirModel(torch.nn.Module):
    """A model of a reader: one layer of e3nn, one of PyG."""

    def __init__(self):
        super().__init__()
        self.product = o3.FullyConnectedTensorProduct("4x0e+2x1o", "1x0e+1x1o", "4x0e+2x1o")
        self.attention = TransformerConv(10, 4, heads=2)

    def forward(self, x, y, edge_index):
        return self.attention(self.product(x, y), edge_index)


def of_models(fixtures):
    batch = (torch.randn(3, 10), torch.randn(3, 4), torch.tensor([[0, 1, 2], [1, 1, 0]]))
    return {"model": TheirModel(), "build_model": TheirModel, "batch": batch}


def of_a_cascade(fixtures):
    """A model with random weights, a graph, and a displacement of its atoms."""
    from hamfast.data import build_graph, dataset_spec, read_snapshot
    from hamfast.models import Cascade, CovariantConfig, TransformerConfig

    folders = [fixtures / "graphene_1x1_000"]
    spec = dataset_spec(folders)
    graph = build_graph(read_snapshot(folders[0]), spec, dtype=torch.float32)
    stage1 = CovariantConfig("4x0e+2x1o+2x2e+1x3o+1x4e", num_basis=8, embed_dim=4, num_blocks=1)
    model = Cascade(spec, stage1, TransformerConfig(hidden=8, num_blocks=1))
    return {"model": model, "graph": graph, "displacement": torch.randn(graph.num_atoms, 3)}


def of_attention(fixtures):
    pairs = torch.tensor([[0, 1, 2], [1, 1, 0]])
    return {**of_models(fixtures), "x": torch.randn(3, 128), "edge_index": pairs, "edge_attr": torch.randn(3, 64)}


NAMES = {"README.md": of_models, "ops.md": of_attention, "training.md": of_a_cascade}
"""What the blocks of a page take from the reader."""


@pytest.fixture
def e3nn_as_it_was():
    yield
    hamfast.set_e3nn_backend(False)


@pytest.mark.parametrize("page", [page for page in PAGES if list(python_blocks(page))], ids=lambda page: page.name)
def test_the_blocks_of_a_page_run_one_after_the_other(page, fixtures, e3nn_as_it_was):
    names = NAMES[page.name](fixtures) if page.name in NAMES else {}
    for block in python_blocks(page):
        if page.name in NAMES:  # a page's first example makes an x of its own
            names |= {name: value for name, value in NAMES[page.name](fixtures).items() if name in ("x", "model")}
        exec(compile(block, str(page), "exec"), names)


def test_pages_have_python():
    assert {"README.md", "ops.md", "training.md", "pitfalls.md"} <= {p.name for p in PAGES if list(python_blocks(p))}
