"""e3nn's linear layers, and products that are linear layers in disguise, after accelerate."""

import copy
import io
import pickle

import pytest
import torch
from e3nn import o3
from kit import assert_close

import hamfast
from hamfast.nn import found_species
from hamfast.nn.found_species import find_species

pytestmark = pytest.mark.usefixtures("double")


def same(theirs, ours, *inputs):
    """Values, gradients, and gradients of those."""
    results = []
    for module in (theirs, ours):
        given = [t.clone().requires_grad_(t.requires_grad) for t in inputs]
        out = module(*given)
        leaves = [*module.parameters(), *(t for t in given if t.requires_grad)]
        first = torch.autograd.grad(out.sin().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.cos().sum() for g in first), leaves, allow_unused=True)
        results.append([out, *first, *(s for s in second if s is not None)])
    assert len(results[0]) == len(results[1])
    for a, b in zip(*results, strict=True):
        assert_close(b, a)


LAYERS = {
    "plain": lambda: o3.Linear("4x0e+3x1o+2x2e", "5x0e+2x1o+2x2e"),
    "biases": lambda: o3.Linear("4x0e+3x0o+3x1o", "5x0e+2x0o+2x0e+2x1o", biases=True),
    "bias of one block": lambda: o3.Linear("4x0e+3x1o", "5x0e+2x0e+2x1o", biases=[False, True, False]),
    "pairs": lambda: o3.Linear("4x0e+3x0e+2x1o", "4x0e+3x0e+2x1o", instructions=[(1, 1), (0, 0)]),
    "path normalisation": lambda: o3.Linear("4x0e+3x0e+2x1o", "4x0e+2x1o", path_normalization="path"),
    "no channels": lambda: o3.Linear("0x0e+3x1o+2x2e", "2x0e+3x1o+0x2e"),
}


@pytest.mark.parametrize("leading", [(6,), (2, 3), (), (0,)], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_linear_layers(name, leading):
    theirs = LAYERS[name]()
    ours = copy.deepcopy(theirs)
    for parameter in ours.parameters():
        parameter.data.normal_()
    theirs.load_state_dict(ours.state_dict())
    assert hamfast.accelerate(ours).replaced
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    same(theirs, ours, torch.randn(*leading, theirs.irreps_in.dim).requires_grad_())


def test_layers_that_are_left_alone_say_why():
    report = hamfast.accelerate(
        torch.nn.ModuleDict(
            {
                "given": o3.Linear("2x0e+1x1o", "2x0e+1x1o", internal_weights=False),
                "many": o3.Linear("2x0e+1x1o", "2x0e+1x1o", f_in=2, f_out=3),
                "scalars": o3.Linear("2x0e+3x1o", "2x0e"),
                "nothing": o3.Linear("2x0e", "3x1o"),
            }
        )
    )
    assert report.replaced == []
    reasons = {r.name: r.text for r in report.replacements}
    assert reasons["given"] == reasons["many"] == "its weights are not one matrix for all rows"
    assert reasons["scalars"] == "e3nn's code for one block of scalars is a single matrix product, and faster"
    assert reasons["nothing"] == "it has no weights"
    assert report.left_alone == ["given", "many"]
    assert str(report).startswith("hamfast.accelerate: 0 of 2 layers run on hamfast; best as they are: 2\n")
    assert "scalars  Linear: best as it is, e3nn's code" in str(report)


def test_layers_that_are_best_as_they_are_do_not_count():
    report = hamfast.accelerate(torch.nn.Sequential(LAYERS["plain"](), o3.Linear("4x0e", "1x0e")))
    assert report.replaced == ["0"] and report.left_alone == [] and report.exchanged == "1 of 1"


def test_copies_files_scripts_and_back():
    layer = LAYERS["biases"]()
    layer.bias.data.normal_()
    x = torch.randn(4, layer.irreps_in.dim)
    expected = layer(x)
    report = hamfast.accelerate(layer)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.compile(layer, backend="eager")):
        assert_close(other(x), expected)
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(layer), file)
    file.seek(0)
    assert_close(torch.jit.load(file)(x), expected)
    assert_close(copy.deepcopy(layer).float()(x.float()).double(), expected, 1e-5)
    report.take_back()
    assert "hamfast" not in repr(layer)
    assert_close(layer(x), expected)


def test_a_layer_of_float32_that_becomes_one_of_float64():
    theirs = LAYERS["plain"]().float()
    ours = copy.deepcopy(theirs)
    hamfast.accelerate(ours)
    x = torch.randn(4, theirs.irreps_in.dim)
    assert_close(ours.double()(x), theirs.double()(x))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("make", [LAYERS["biases"], lambda: o3.FullTensorProduct("2x0e+1x1o", "1x1o")])
def test_two_reports_taken_back_in_any_order(make, order):
    layer = make()
    before = repr(layer)
    reports = [hamfast.accelerate(layer) for _ in range(2)]
    assert [r.exchanged for r in reports] == ["1 of 1"] * 2
    for n in order:
        reports[n].take_back()
    assert repr(layer) == before


@pytest.fixture
def counted(monkeypatch):
    """How often a product ran as linear layers of species."""
    calls = []
    run = found_species.irreps_linear
    monkeypatch.setattr(found_species, "irreps_linear", lambda *a, **k: calls.append(1) or run(*a, **k))
    return calls


def products(count):
    theirs = o3.FullyConnectedTensorProduct("4x0e+3x1o+2x1o+2x2e", f"{count}x0e", "3x0e+2x1o+2x2e")
    ours = copy.deepcopy(theirs)
    assert hamfast.accelerate(ours).replaced
    return theirs, ours


@pytest.mark.parametrize("count", [1, 3])
def test_products_with_one_hot_vectors(counted, count):
    theirs, ours = products(count)
    x = torch.randn(7, theirs.irreps_in1.dim).requires_grad_()
    same(theirs, ours, x, torch.eye(count)[torch.randint(0, count, (7,))])
    assert counted
    same(theirs, ours, torch.randn(2, 0, theirs.irreps_in1.dim).requires_grad_(), torch.zeros(2, 0, count))


@pytest.mark.parametrize("count", [1, 3])
def test_products_with_other_scalars(counted, count):
    theirs, ours = products(count)
    x = torch.randn(7, theirs.irreps_in1.dim).requires_grad_()
    one_hot = torch.eye(count)[torch.randint(0, count, (7,))]
    for y in (torch.randn(7, count), one_hot + torch.randn(7, 1), one_hot.clone().requires_grad_()):
        if not y.requires_grad:
            assert find_species(y) is None
        same(theirs, ours, x, y)
    assert find_species(torch.ones(7, 2)) is None
    assert not counted


def test_a_vector_that_changes(counted):
    theirs, ours = products(2)
    x, y = torch.randn(4, theirs.irreps_in1.dim), torch.eye(2)[[0, 1, 1, 0]]
    assert_close(ours(x, y), theirs(x, y))
    y.copy_(torch.eye(2)[[1, 1, 0, 0]])
    assert_close(ours(x, y), theirs(x, y))
    y[0, 0] = 0.5
    assert_close(ours(x, y), theirs(x, y))
    assert len(counted) == 2


def test_compiled_and_batched_products():
    theirs, ours = products(2)
    x, y = torch.randn(4, theirs.irreps_in1.dim), torch.eye(2)[[0, 1, 1, 0]]
    assert_close(torch.compile(ours, backend="eager")(x, y), theirs(x, y))
    assert_close(torch.vmap(lambda x: ours(x, y))(torch.stack([x, -x])), torch.stack([theirs(x, y), -theirs(x, y)]))


ROWS_OF_A_TABLE = {
    "embedding": lambda table, index: torch.nn.functional.embedding(index, table),
    "index_select": lambda table, index: table.index_select(0, index),
    "first rows": lambda table, index: table.index_select(0, torch.cat([index, index]))[: len(index)],
}
NO_ROWS_OF_A_TABLE = {
    "scaled": lambda table, index: 2 * table.index_select(0, index),
    "other columns": lambda table, index: table.index_select(1, torch.arange(4))[index],
    "later rows": lambda table, index: table.index_select(0, torch.cat([index, index]))[1 : len(index) + 1],
    "every second": lambda table, index: table.index_select(0, index.repeat_interleave(2))[::2],
}


@pytest.mark.parametrize("name", [*ROWS_OF_A_TABLE, *NO_ROWS_OF_A_TABLE])
def test_products_with_rows_of_an_embedding(counted, name):
    """NequIP's nodes: gradients of the table are those of the product row by row."""
    theirs, ours = products(4)
    make = (ROWS_OF_A_TABLE | NO_ROWS_OF_A_TABLE)[name]
    table, index = torch.randn(5, 4), torch.tensor([0, 3, 3, 0, 1, 1, 1, 0, 3, 0, 0, 1, 3, 0])
    x = torch.randn(len(index), theirs.irreps_in1.dim)
    results = []
    for product in (theirs, ours):
        leaves = [t.clone().requires_grad_() for t in (x, table)]
        out = product(leaves[0], make(leaves[1], index))
        leaves += product.parameters()
        first = torch.autograd.grad(out.sin().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.cos().sum() for g in first), leaves)
        results.append([out, *first, *second])
    for a, b in zip(*results, strict=True):
        assert_close(b, a)
    assert bool(counted) == (name in ROWS_OF_A_TABLE)


def embedded(index, table):
    return torch.nn.functional.embedding(index, table)


@pytest.mark.parametrize("leaf", [True, False], ids=["leaf", "computed"])
def test_gradients_in_the_rows_of_an_embedding(counted, leaf):
    """They are those of the product row by row, or refused: never others."""
    theirs, ours = products(4)
    index = torch.tensor([0, 3, 3, 0, 1, 1, 1, 0, 3, 0, 0, 1, 3, 0])
    given, x = torch.randn(5, 4).requires_grad_(), torch.randn(len(index), theirs.irreps_in1.dim).requires_grad_()
    table = given if leaf else given.sin()
    rows = embedded(index, table)
    asked_for = [x, ours.weight, table, given]  # all but the rows
    for wanted in ([x], [table], asked_for):
        torch.autograd.grad(ours(x, rows).sin().sum(), wanted, retain_graph=True)
    ours(x, rows).sum().backward(retain_graph=True)
    with torch.no_grad():
        assert_close(ours(x, rows), theirs(x, rows))
    assert counted
    with pytest.raises(RuntimeError, match="expected a gradient in the table .*, found one in the rows"):
        torch.autograd.grad(ours(x, rows).sum(), [x, rows], retain_graph=True)
    rows.retain_grad()
    counted.clear()
    expected = torch.autograd.grad(theirs(x, rows).sin().sum(), rows, retain_graph=True)[0]
    assert_close(torch.autograd.grad(ours(x, rows).sin().sum(), rows, retain_graph=True)[0], expected)
    assert not counted
    late = embedded(index, table)
    out = ours(x, late).sum()
    late.retain_grad()
    with pytest.raises(RuntimeError, match="retain_grad"):
        out.backward()


def test_products_with_few_different_rows(counted):
    """As of an embedding that is not trained. A row that is nearly another is one of its own."""
    theirs, ours = products(4)
    y = torch.randn(3, 4)[torch.tensor([0, 2, 2, 0, 1, 1, 1, 0, 2, 0, 0, 1, 2, 0, 1, 2, 2])]
    y[4, 2] += 1e-15
    x = torch.randn(len(y), theirs.irreps_in1.dim).requires_grad_()
    same(theirs, ours, x, y)
    assert counted
    y[3:] = torch.randn(len(y) - 3, 4)
    counted.clear()
    same(theirs, ours, x, y)
    y[:, 0] = 1  # the first column alone is the same
    same(theirs, ours, x, y)
    assert not counted
    same(theirs, ours, x, torch.ones(len(y), 4) / 3)  # a single kind
    assert counted


def test_many_species_of_few_rows(counted):
    theirs, ours = products(4)
    x, table = torch.randn(6, theirs.irreps_in1.dim), torch.randn(6, 4).requires_grad_()
    y = table.index_select(0, torch.arange(6))
    assert_close(ours(x, y), theirs(x, y))
    assert not counted
