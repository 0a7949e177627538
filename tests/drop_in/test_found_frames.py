"""Harmonics are found in the numbers of an operand, or not; the product is e3nn's either way."""

import pytest
import torch
from e3nn import o3
from kit import assert_close

import hamfast
from hamfast.nn import found_frames
from hamfast.nn.found_frames import find_frames

IRREPS1, IRREPS2, IRREPS3 = "32x0e+16x1o+16x1e+8x2e+4x3o", "0e+1o+2e+3o", "24x0e+4x0o+16x1o+8x2e+8x2o+4x3o"
BLOCKS = tuple((mul, ir.l, ir.p) for mul, ir in o3.Irreps(IRREPS2))


def products(irreps2=IRREPS2):
    """The same product as e3nn has it, and on hamfast."""
    theirs = o3.FullyConnectedTensorProduct(IRREPS1, irreps2, IRREPS3)
    ours = o3.FullyConnectedTensorProduct(IRREPS1, irreps2, IRREPS3)
    ours.load_state_dict(theirs.state_dict())
    assert hamfast.accelerate(ours).replaced
    return theirs, ours


def vectors(edges=60):
    torch.manual_seed(3)
    v = torch.randn(edges, 3)
    v[:5] = 0
    v[5:8, 1:] = 0  # along an axis
    v[8:10, 0] = v[8:10, 2] = 0  # along e3nn's polar axis
    return v


def harmonics(v, normalization="component", irreps=IRREPS2):
    return o3.spherical_harmonics(o3.Irreps(irreps), v, True, normalization)


@pytest.fixture(autouse=True)
def counted(monkeypatch):
    """How often a product ran in frames."""
    calls = []
    run = found_frames.edge_tensor_product
    monkeypatch.setattr(found_frames, "edge_tensor_product", lambda *a: calls.append(1) or run(*a))
    return calls


def same(theirs, ours, y):
    """Values and gradients of both."""
    results = []
    for product in (theirs, ours):
        x = torch.randn(len(y), theirs.irreps_in1.dim, generator=torch.Generator().manual_seed(1)).requires_grad_()
        out = product(x, y)
        leaves = [x, product.weight] + ([y] if y.requires_grad else [])
        results.append([out, *torch.autograd.grad(out.sin().sum(), leaves)])
    for a, b in zip(*results, strict=True):
        assert_close(b, a)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("irreps2", [IRREPS2, "2e+1o+0e", "1o+1o+3o"])
@pytest.mark.parametrize("normalization", ["component", "norm", "integral"])
def test_harmonics_are_found(counted, normalization, irreps2):
    same(*products(irreps2), harmonics(vectors(), normalization, irreps2))
    assert counted


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [1e-3, 1.0, 40.0])
def test_up_to_high_degrees_and_any_length(dtype, length):
    torch.manual_seed(0)
    irreps = o3.Irreps.spherical_harmonics(11)
    v = length * torch.randn(500, 3, dtype=dtype)
    found = find_frames(harmonics(v, irreps=irreps), tuple((m, ir.l, ir.p) for m, ir in irreps), 2)
    assert found is not None and set(found.factors) == {1.0}


def other_direction(y):
    y[20, 4:9] = harmonics(torch.randn(1, 3))[0, 4:9]


def one_sign(y):
    y[30, 10] *= -1


def factor_of_a_row(y):
    y[40] *= 1.01


def a_little(y):
    y[50, 6] += 1e-9


def on_site_scalar(y):
    y[0, 0] = 0


def on_site_vector(y):
    y[0, 4] = 1


def nowhere(y):
    y[:, 1:] = 0


def not_a_number(y):
    y[33, 12] = float("inf")


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    "change",
    [other_direction, one_sign, factor_of_a_row, a_little, on_site_scalar, on_site_vector, nowhere, not_a_number],
)
def test_what_is_not_harmonics_is_not_taken_for_them(counted, change):
    theirs, ours = products()
    y = harmonics(vectors())
    ours(torch.randn(len(y), ours.irreps_in1.dim), y)
    assert len(counted) == 1
    change(y)  # the tensor is the same one, which was harmonics before
    assert find_frames(y, BLOCKS, 3) is None
    if change is not not_a_number:
        same(theirs, ours, y)
    assert len(counted) == 1


@pytest.mark.usefixtures("double")
def test_new_harmonics_in_the_same_memory(counted):
    theirs, ours = products()
    y = harmonics(vectors())
    same(theirs, ours, y)
    y.copy_(harmonics(torch.randn(len(y), 3)))
    same(theirs, ours, y)
    assert len(counted) == 2


@pytest.mark.usefixtures("double")
def test_nothing_is_kept_once_the_operand_is_gone():
    _, ours = products()
    y = harmonics(vectors())
    ours(torch.randn(len(y), ours.irreps_in1.dim), y)
    key = (id(y), (BLOCKS, 3))
    assert key in found_frames._FRAMES.latest

    del y
    assert key not in found_frames._FRAMES.latest


@pytest.mark.usefixtures("double")
def test_derivatives_in_the_operand_go_the_general_way(counted):
    same(*products(), harmonics(vectors()).requires_grad_())
    assert not counted


@pytest.mark.usefixtures("double")
def test_without_gradients_and_under_inference_mode(counted):
    theirs, ours = products()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            y = harmonics(vectors())
            x = torch.randn(len(y), theirs.irreps_in1.dim)
            assert_close(ours(x, y), theirs(x, y))
    assert len(counted) == 2


@pytest.mark.usefixtures("double")
def test_transforms_and_compilation_go_the_general_way(counted):
    theirs, ours = products()
    y = harmonics(vectors())
    x = torch.randn(len(y), theirs.irreps_in1.dim)
    directional = [torch.func.jvp(lambda x, p=p: p(x, y), (x,), (x.cos(),)) for p in (theirs, ours)]
    assert_close(directional[1], directional[0])
    batched = torch.vmap(lambda x: ours(x, y))(torch.stack([x, -x]))
    assert_close(batched, torch.stack([theirs(x, y), theirs(-x, y)]))
    assert_close(torch.compile(ours, backend="eager")(x, y), theirs(x, y))
    assert not counted
