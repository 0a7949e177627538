"""python compare_allegro.py: Allegro's contracters before and after accelerate(), to the second
derivative; copies, pickles, TorchScript, compiled, and back. In a process of its own, because
NequIP changes torch's global state."""

import copy
import pickle
import warnings

warnings.filterwarnings("ignore")

import peers  # noqa: E402

peers.use()

import torch  # noqa: E402
from allegro.nn._strided import Contracter  # noqa: E402
from e3nn.o3 import Irreps  # noqa: E402

import hamfast  # noqa: E402

EVERY = "1x0e+1x1o+1x2e"
# Irreps of both operands and of the result, paths (None: all), weights per channel.
CASES = [
    (EVERY, EVERY, "1x0e+1x1o+1x2e+1x1e", None, True),
    (EVERY, "1x0e+1x1o", "1x0e+1x1o", None, False),
    ("1x1o", "1x1o", "1x0e", None, True),  # one path, in which like components meet
    ("1x1o", "1x1o", "1x0e", None, False),
    ("1x1o", "1x1o", "1x1e", None, True),
    ("1x0e+1x1o", "1x0e+1x1o", "1x0e", None, True),
    ("1x0e+1x1o", "1x0e+1x1o", "1x0e", [(0, 0, 0), (1, 1, 0)], False),
]


def results(module, x1, x2, index):
    """The value, gradients and gradients of those."""
    leaves = [x1, x2, *module.parameters()]
    out = module(x1, x2, index)
    first = torch.autograd.grad(out.sin().sum(), leaves, create_graph=True)
    return [out, *first, *torch.autograd.grad(sum(g.cos().sum() for g in first), leaves)]


def main():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    for in1, in2, out, paths, coupled in CASES:
        irreps = [Irreps(i) for i in (in1, in2, out)]
        theirs = Contracter(*irreps, mul=4, instructions=paths, path_channel_coupling=coupled)
        ours = copy.deepcopy(theirs)
        report = hamfast.accelerate(ours)
        assert report.replaced, report
        assert list(ours.state_dict()) == list(theirs.state_dict())
        x1 = torch.randn(7, 4, theirs.base_dim1, requires_grad=True)
        x2 = torch.randn(3, 4, theirs.base_dim2, requires_grad=True)
        index = torch.randint(0, 3, (7,))
        expected = results(theirs, x1, x2, index)
        forms = {"ours": ours, "copy": copy.deepcopy(ours), "pickle": pickle.loads(pickle.dumps(ours))}
        forms["script"] = torch.jit.script(ours)
        for name, form in forms.items():
            for a, b in zip(results(form, x1, x2, index), expected, strict=True):
                torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-10, msg=f"{in1}, {in2}, {out}: {name}")
        compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x1, x2, index), expected[0])
        assert ours(x1[:0], x2, index[:0]).shape == (0, 4, theirs.base_dim_out)
        report.take_back()
        assert type(ours) is Contracter and not hasattr(ours, "plan")
        torch.testing.assert_close(ours(x1, x2, index), expected[0])


if __name__ == "__main__":
    main()
