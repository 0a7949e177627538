import pytest
import torch
from e3nn import o3
from kit import assert_close, check_derivatives, fully_connected, permuted

from hamfast import ops, reference
from hamfast.nn import convert_layout
from hamfast.ops import edge_frame
from hamfast.ops.wigner import edge_wigner, wigner_dim
from hamfast.plan import edge_frame_plan, make_plan
from hamfast.records.ops import ROTATE_FROM_EDGE, ROTATE_TO_EDGE

pytestmark = pytest.mark.usefixtures("double")

# Both parities, unequal multiplicities, an irrep that only one side has.
MIXED = ("3x0e+2x1o+2x1e+3x2e+2x2o+1x0o+1x3o", 4, "2x0e+2x0o+1x1o+3x1e+2x2e+3x2o+2x3e+1x5o")
HIGH = ("2x0e+1x6e+1x5o", 6, "2x6e+1x4e+1x0e")
HIGHEST = ("1x0e+1x8e", 8, "1x8e+1x7o+1x0e")


def make_case(case=MIXED):
    in1, l_max, out = case
    irreps = o3.Irreps(in1), o3.Irreps.spherical_harmonics(l_max), o3.Irreps(out)
    plan = make_plan(*irreps, fully_connected(*irreps))
    vectors = torch.randn(8, 3)
    vectors[0] = 0.0  # on-site
    vectors[1] = torch.tensor([0.0, 1.0, 0.0])  # the poles
    vectors[2] = torch.tensor([0.0, -2.0, 0.0])
    vectors[3] = torch.tensor([1e-9, -1.0, 1e-9])
    return irreps, plan, vectors, irreps[0].randn(8, -1), torch.randn(plan.weight_numel)


@pytest.mark.cuda_sources
@pytest.mark.parametrize("case", [MIXED, HIGH, HIGHEST], ids=["mixed", "l6", "l8"])
def test_value_and_derivatives(case, device):
    _, plan, vectors, x, w = make_case(case)
    frames = ops.edge_frames(vectors.to(device), 8)
    lowered = edge_frame_plan(plan)
    args = [t.to(device).requires_grad_() for t in (x, w)]
    check_derivatives(
        lambda x, w: ops.edge_tensor_product(x, w, lowered, frames, lowering="edge_frame"),
        lambda x, w: reference.edge_tensor_product(x, w, plan, vectors.to(device)),
        args,
        atol=1e-10,
    )


@pytest.mark.cuda_sources(layout=["ir_mul"])
@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
def test_derivatives_in_the_direction(layout, device):
    """The poles included: nothing there tells a frame from another."""
    irreps, plan, vectors, x, w = make_case()
    lowered, vectors = edge_frame_plan(plan), vectors.to(device)

    def op(x, w, v):
        whole = torch.cat([vectors[:1], v])  # the on-site edge has no direction to differentiate
        out = ops.edge_tensor_product(
            convert_layout(x, irreps[0], "mul_ir", layout), w, lowered, ops.edge_frames(whole, 5), layout
        )
        return convert_layout(out, irreps[2], layout, "mul_ir")

    def truth(x, w, v):
        return reference.edge_tensor_product(x, w, plan, torch.cat([vectors[:1], v]))

    vectors[3, 1] = 1.5  # e3nn's own second derivative is inexact within 1e-9 of a pole
    args = [t.to(device).requires_grad_() for t in (x, w, vectors[1:].clone())]
    check_derivatives(op, truth, args, atol=1e-9)


def test_onsite_edges_have_no_gradient_in_the_direction():
    _, plan, vectors, x, w = make_case()
    vectors.requires_grad_()
    out = ops.edge_tensor_product(x, w, edge_frame_plan(plan), ops.edge_frames(vectors, 5))
    grad = torch.autograd.grad(out.square().sum(), vectors)[0]
    assert torch.all(grad[0] == 0) and torch.all(torch.isfinite(grad)) and torch.all(grad[1:].abs().sum(1) > 0)


def test_equals_e3nn():
    irreps, plan, vectors, x, w = make_case()
    theirs = o3.TensorProduct(*irreps, fully_connected(*irreps), internal_weights=False)
    harmonics = o3.spherical_harmonics(irreps[1], vectors, normalize=True, normalization="component")
    harmonics[0, 1:] = 0.0
    found = ops.edge_tensor_product(x, w, edge_frame_plan(plan), ops.edge_frames(vectors, 5))
    assert_close(found, theirs(x, harmonics, w), atol=1e-11)


def test_layouts_agree():
    irreps, plan, vectors, x, w = make_case()
    frames, lowered = ops.edge_frames(vectors, 5), edge_frame_plan(plan)
    fast = ops.edge_tensor_product(
        convert_layout(x, irreps[0], "mul_ir", "ir_mul"), w, lowered, frames, layout="ir_mul"
    )
    slow = ops.edge_tensor_product(x, w, lowered, frames)
    assert_close(convert_layout(fast, irreps[2], "ir_mul", "mul_ir"), slow)


def test_wigner_matrices_point_the_edge_along_the_axis():
    vectors = make_case()[2]
    matrices = edge_wigner(vectors, 6)
    assert matrices.shape == (8, wigner_dim(6))
    start = 0
    for l in range(7):
        d = 2 * l + 1
        turn = matrices[:, start : start + d * d].view(-1, d, d)
        start += d * d
        assert_close(turn @ turn.transpose(1, 2), torch.eye(d).expand(8, d, d), atol=1e-12)
        axis = torch.zeros(d)
        axis[l] = d**0.5
        harmonics = o3.spherical_harmonics(l, vectors[1:], normalize=True, normalization="component")
        assert_close(torch.einsum("eij,ej->ei", turn[1:], harmonics), axis.expand(7, d), atol=1e-12)


@pytest.mark.cuda_sources(layout=["ir_mul"])
@pytest.mark.interpreter(layout=["ir_mul"])
@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
def test_sources_are_the_concatenation(layout, device):
    """[n_receiver | n_sender | edge], never put together."""
    parts = [o3.Irreps("2x0e+1x1o"), o3.Irreps("2x0e+1x1o"), o3.Irreps("1x1e+2x2o")]
    irreps = sum(parts, o3.Irreps()), o3.Irreps.spherical_harmonics(2), o3.Irreps("2x0e+1x1o+2x2e")
    plan = make_plan(*irreps, fully_connected(*irreps))
    senders, receivers = torch.tensor([0, 2, 2, 1, 0, 0]), torch.tensor([1, 1, 0, 3, 3, 0])
    vectors = torch.randn(6, 3)
    vectors[5] = 0.0
    edges = ops.edge_index(senders.to(device), receivers.to(device), 3, 4)
    lowered = edge_frame_plan(plan)
    args = [torch.randn(4, 5), torch.randn(3, 5), torch.randn(6, parts[2].dim), torch.randn(plan.weight_numel)]
    args.append(vectors[:5].clone())

    def op(a, b, c, w, v):
        frames = ops.edge_frames(torch.cat([v, vectors[5:].to(device)]), 2)
        sources = tuple(convert_layout(t, i, "mul_ir", layout) for t, i in zip((a, b, c), parts, strict=True))
        x = ops.EdgeSources(sources, ("receiver", "sender", "edge"), edges)
        return convert_layout(ops.edge_tensor_product(x, w, lowered, frames, layout), irreps[2], layout, "mul_ir")

    def truth(a, b, c, w, v):
        x = torch.cat([a[edges.receivers], b[edges.senders], c], dim=1)
        return reference.edge_tensor_product(x, w, plan, torch.cat([v, vectors[5:].to(device)]))

    check_derivatives(op, truth, [t.to(device).requires_grad_() for t in args], atol=1e-10)


@pytest.mark.cuda_sources(directions=[False])
@pytest.mark.parametrize("directions", [False, True])
def test_separate_weights_are_their_product(directions, device):
    _, plan, vectors, x, w = make_case()
    lowered, vectors = edge_frame_plan(plan), vectors.to(device)
    columns = [ins.weight_shape[-1] for ins in plan.instructions]
    args = [x, w, torch.randn(sum(columns)), *([vectors[4:].clone()] if directions else [])]

    def op(x, left, right, v=vectors[4:]):
        frames = ops.edge_frames(torch.cat([vectors[:4], v]), 5)
        return ops.edge_tensor_product(x, ops.SeparateWeights(left, right), lowered, frames)

    def truth(x, left, right, v=vectors[4:]):
        full = reference.separate_weights(left, right, plan)
        return reference.edge_tensor_product(x, full, plan, torch.cat([vectors[:4], v]))

    check_derivatives(op, truth, [t.to(device).requires_grad_() for t in args], atol=1e-9)


def test_wrong_sources_get_a_sentence():
    _, plan, vectors, x, w = make_case()
    lowered, frames = edge_frame_plan(plan), ops.edge_frames(vectors, 5)
    edges = ops.edge_index(torch.zeros(8, dtype=torch.int64), torch.zeros(8, dtype=torch.int64), 1)
    for tensors, ends, message in (
        ((x,), ("node",), "expected sender, receiver or edge, found 'node'"),
        ((x,), (), "1 to 3 tensors with one end each, found 1 and 0"),
        ((x,), ("sender",), r"x.tensors\[0\]: expected \[1, "),
        ((x[:, :4], x[:, 4:]), ("edge", "edge"), "between its blocks"),
        ((x[:, :3],), ("edge",), "add up to"),
    ):
        with pytest.raises(ValueError, match=message):
            ops.edge_tensor_product(ops.EdgeSources(tensors, ends, edges), w, lowered, frames)


@pytest.mark.parametrize("memory", ["contiguous", "permuted"])
def test_opcheck(memory):
    _, plan, vectors, x, _ = make_case()
    lowered, frames = edge_frame_plan(plan), ops.edge_frames(vectors, 5)
    tables = edge_frame.frame_tables(lowered, x.device, (plan.dim_in1,))
    edges = ops.edge_index(torch.arange(8) % 3, torch.arange(8) % 2, 3, 2)
    settings = {"wigner": frames.wigner, "channels_fast": False, "partial": False}
    for source, end in ((x, None), (x[:3], edges.by_sender)):
        source = (permuted(source) if memory == "permuted" else source).detach().requires_grad_()
        given = dict(zip(("index", "order", "ptr"), end or (None,) * 3, strict=True))
        own = {f"{name}0": t for name, t in given.items()} | {"x0": source, "table0": tables.tables_in[0]}
        into = ROTATE_TO_EDGE.by_name(**own, frame_dim=tables.frame_in, **settings)
        torch.library.opcheck(torch.ops.hamfast.rotate_to_edge.default, into)
        frame = torch.randn(8 * tables.frame_out, requires_grad=True)
        back = ROTATE_FROM_EDGE.by_name(frame=frame, table=tables.table_out, dim=plan.dim_out, **given, **settings)
        torch.library.opcheck(torch.ops.hamfast.rotate_from_edge.default, back)
    sizes = plan.weight_numel, sum(ins.weight_shape[-1] for ins in plan.instructions), tables.matrix_numel
    for slot in range(3):
        operands = [None if n == slot else torch.randn(sizes[n], requires_grad=True) for n in range(3)]
        torch.library.opcheck(
            torch.ops.hamfast.edge_frame_weights.default, (*operands, *tables.terms, slot, sizes[slot])
        )


def test_compiles_in_one_graph():
    _, plan, vectors, x, w = make_case()
    lowered, frames = edge_frame_plan(plan), ops.edge_frames(vectors, 5)
    compiled = torch.compile(
        lambda x, w: ops.edge_tensor_product(x, w, lowered, frames), fullgraph=True, backend="aot_eager"
    )
    assert_close(compiled(x, w), ops.edge_tensor_product(x, w, lowered, frames))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_autocast_takes_mixed_operands(dtype, device):
    """One edge of length zero, whose product is torch's and would be cast."""
    _, plan, vectors, x, w = make_case()
    lowered, frames = edge_frame_plan(plan), ops.edge_frames(vectors.float().to(device), 5)
    expected = reference.edge_tensor_product(x.to(dtype).double(), w, plan, vectors)
    half = x.to(device, dtype).requires_grad_()
    with pytest.raises(ValueError, match=f"weight: expected {dtype} as x0, found torch.float32"):
        ops.edge_tensor_product(half, w.float().to(device), lowered, frames)
    with torch.autocast(device, dtype=dtype):
        out = ops.edge_tensor_product(half, w.float().to(device), lowered, frames)
        wide = ops.edge_tensor_product(half.float(), w.to(device, dtype), lowered, frames)
    assert out.dtype == dtype and wide.dtype == torch.float32
    assert torch.autograd.grad(out.sum(), half)[0].dtype == dtype
    scale = expected.abs().max().item()
    assert_close(out.double().cpu(), expected, atol=torch.finfo(dtype).eps * scale, rtol=0.0)
    with pytest.raises(ValueError, match="frames: expected torch.float32 or torch.float64, found"):
        ops.edge_tensor_product(half, w.to(half), lowered, ops.EdgeFrames(frames.wigner.to(dtype), *frames[1:]))


def test_errors_name_the_argument():
    _, plan, vectors, x, w = make_case()
    lowered = edge_frame_plan(plan)
    frames = ops.edge_frames(vectors, 5)
    with pytest.raises(ValueError, match="x: expected"):
        ops.edge_tensor_product(x[:, 1:], w, lowered, frames)
    with pytest.raises(ValueError, match="weight: expected"):
        ops.edge_tensor_product(x, w[1:], lowered, frames)
    with pytest.raises(ValueError, match=r"weight.right: expected \["):
        ops.edge_tensor_product(x, ops.SeparateWeights(w, w), lowered, frames)
    separate = ops.SeparateWeights(w, torch.ones(sum(ins.weight_shape[-1] for ins in plan.instructions)))
    with pytest.raises(ValueError, match="expected edge_frame for SeparateWeights, found 'mix'"):
        ops.edge_tensor_product(x, separate, lowered, frames, lowering="mix")
    with pytest.raises(ValueError, match="l_max of at least 5, found 2"):
        ops.edge_tensor_product(x, w, lowered, ops.edge_frames(vectors, 2))
