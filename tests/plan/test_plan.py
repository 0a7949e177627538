"""Plans against e3nn's products, and the errors of wrong ones."""

import pytest
import torch
from e3nn import o3
from kit import fully_connected, random_irreps

from hamfast.plan import MODES, edge_frame_plan, explain, make_plan

NORMALISATIONS = [(i, p) for i in ("component", "norm", "none") for p in ("element", "path", "none")]


@pytest.mark.parametrize(("irrep_normalization", "path_normalization"), NORMALISATIONS)
def test_normalisation_and_weight_order_are_those_of_e3nn(irrep_normalization, path_normalization):
    """Coefficients and weight shapes of random products against e3nn's."""
    generator = torch.Generator().manual_seed(1)
    options = {"irrep_normalization": irrep_normalization, "path_normalization": path_normalization}
    for _ in range(5):
        irreps = [random_irreps(generator) for _ in range(3)]
        instructions = fully_connected(*irreps)
        theirs = o3.TensorProduct(*irreps, instructions, in1_var=[0.5] * 3, out_var=[2.0] * 3, **options)
        ours = make_plan(*irreps, instructions, in1_var=[0.5] * 3, out_var=[2.0] * 3, **options)
        assert ours.weight_numel == theirs.weight_numel
        for a, b in zip(ours.instructions, theirs.instructions, strict=True):
            assert a.coefficient == pytest.approx(b.path_weight, rel=1e-14)
            assert a.weight_shape == tuple(b.path_shape)


def test_all_modes_can_be_described_and_explained():
    """Every mode makes a plan."""
    a, b = "4x1o", "4x1o"
    out = {
        "uvw": "5x1e",
        "uvu": "4x1e",
        "uvv": "4x1e",
        "uuw": "5x1e",
        "uuu": "4x1e",
        "uvuv": "16x1e",
        "uvu<v": "6x1e",
        "u<vw": "5x1e",
    }
    for mode in MODES:
        plan = make_plan(a, b, out[mode], [(0, 0, 0, mode, True)])
        assert mode in explain(plan)
        assert plan.operations() > 0


def test_plans_are_values():
    """Equal plans are equal, hash alike and cannot be changed."""
    first = make_plan("2x1o", "1x1o", "2x1e", [(0, 0, 0, "uvu", True)])
    second = make_plan("2x1o", "1x1o", "2x1e", [(0, 0, 0, "uvu", True)])
    other = make_plan("2x1o", "1x1o", "2x1e", [(0, 0, 0, "uvu", False)])
    assert first == second
    assert hash(first) == hash(second)
    assert first.id == second.id != other.id
    with pytest.raises(AttributeError):
        first.irreps_in1 = ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("1x0e", "1x0e", "1x0e", [(0, 0, 1, "uvw", True)]), "i_out is 1"),
        (("1x0e", "1x1o", "1x0e", [(0, 0, 0, "uvw", True)]), "selection rules"),
        (("1x1o", "1x1o", "1x0o", [(0, 0, 0, "uvw", True)]), "selection rules"),
        (("2x0e", "1x0e", "3x0e", [(0, 0, 0, "uvu", True)]), "mul_in1 = mul_out"),
        (("2x0e", "1x0e", "2x0e", [(0, 0, 0, "xyz", True)]), "expected one of uvw"),
        (("2x0e", "1x0e", "2x0e", [(0, 0, 0, "uvw", False)]), "needs a weight"),
    ],
)
def test_wrong_instructions_get_a_sentence(arguments, message):
    """Each error says what is wrong."""
    with pytest.raises(ValueError, match=message):
        make_plan(*arguments)


def test_edge_frame_costs_what_the_method_says():
    """Shapes C and G of DeepH-E3's layers: multiply-adds per edge derived by hand from K_m and
    N_m."""
    sh = o3.Irreps.spherical_harmonics(5)
    for in1, out, expected in [
        ("192x0e+96x1o+48x2e+24x3o+24x4e+12x5o", "132x0e+32x1o+16x2e+8x3o+8x4e+4x5o", 118_080),
        (
            "192x0e+96x1o+64x1e+48x2e+24x3o+24x4e+12x5o",
            "40x0o+604x0e+96x1o+106x1e+88x2o+104x2e+48x3o+64x3e+16x4o+24x4e+8x5e",
            763_328,
        ),
    ]:
        irreps = o3.Irreps(in1), sh, o3.Irreps(out)
        assert edge_frame_plan(make_plan(*irreps, fully_connected(*irreps))).operations() == expected


def test_edge_frame_refuses_what_it_cannot_do():
    """An operand that is no harmonics and a mode other than uvw are refused."""
    with pytest.raises(ValueError, match="spherical harmonics"):
        edge_frame_plan(make_plan("1x0e", "2x1o", "1x1o", [(0, 0, 0, "uvw", True)]))
    with pytest.raises(ValueError, match="mode uvw"):
        edge_frame_plan(make_plan("1x0e", "1x1o", "1x1o", [(0, 0, 0, "uvu", True)]))
