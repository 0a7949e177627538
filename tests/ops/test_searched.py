"""Every op at sizes of 0 and 1 in every place, in every dtype and storage, on every backend, to the
second derivative; truth: the reference.

A short search here, a long one with ``-m long``; tests/kernels/test_cuda_on_host.py runs the short
one on the CUDA sources.
"""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kit import HAS_GPU, INTERPRETED, ON_EXECUTOR, STORAGES, compare, derivatives, running_on
from searched import CASES, NO_HALF, SIZES, Graph
from test_backends import TOLERANCE

from hamfast.ops import backend as backends

pytestmark = [
    pytest.mark.usefixtures("double"),
    pytest.mark.filterwarnings("ignore::hamfast.ops.notice.SlowPathWarning"),
]


def check(case, backend, sizes, dtype, storages, same, seed):
    torch.manual_seed(seed)
    graph = Graph(sizes)
    run, truth, shapes = CASES[case](sizes, graph)
    storage = [STORAGES[storages[n % len(storages)]] for n in range(len(shapes))]
    # One tensor as several operands, where shapes allow.
    which = [shapes.index(s) if same else n for n, s in enumerate(shapes)]
    exact = [torch.randn(s).to(dtype).double().requires_grad_() for s in shapes]

    def operands(leaves):
        made = {n: storage[n](leaves[n]) for n in set(which)}
        return [made[n] for n in which]

    expected_out = truth(*operands(exact))
    directions = [torch.randn_like(t).to(dtype) for t in (expected_out.detach(), *exact)]
    expected = derivatives(lambda *t: truth(*operands(t)), exact, directions)
    with running_on(backend) as device:
        leaves = [t.detach().to(device, dtype).requires_grad_() for t in exact]
        edges = graph.prepared(device)
        found = derivatives(lambda *t: run(edges, *operands(t)), leaves, [d.to(device) for d in directions])
    compare(found, expected, 20 * TOLERANCE[dtype])


def dtypes(case, backend):
    return [
        dtype
        for dtype in TOLERANCE
        if not (dtype.itemsize == 2 and case in NO_HALF)
        and not (dtype == torch.bfloat16 and (backend == "triton" or INTERPRETED) and not HAS_GPU)
    ]


def search(case, backend, examples):
    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        sizes=st.fixed_dictionaries({name: st.sampled_from(options) for name, options in SIZES.items()}),
        dtype=st.sampled_from(dtypes(case, backend)),
        storages=st.lists(st.sampled_from(sorted(STORAGES)), min_size=1, max_size=4),
        same=st.booleans(),
        seed=st.integers(0, 2**16),
    )
    def run(sizes, dtype, storages, same, seed):
        check(case, backend, sizes, dtype, storages, same, seed)

    run()


EXECUTED = [case for case in CASES if "radial" not in case and "product" not in case]
"""On the CUDA sources, whose products are compiled for every plan."""


@pytest.mark.cuda_sources(backend=["cpu"], case=EXECUTED)
@pytest.mark.parametrize("backend", backends.BACKENDS)
@pytest.mark.parametrize("case", list(CASES))
def test_short(case, backend):
    search(case, backend, 15 if backend == "cpu" else 4)


@pytest.mark.long
@pytest.mark.parametrize("backend", backends.BACKENDS)
@pytest.mark.parametrize("case", list(CASES))
def test_long(case, backend):
    search(case, backend, 1500 if backend == "cpu" else 150)


PLAIN = {"edges": 7, "senders": 3, "receivers": 3, "heads": 2, "width": 5, "value": 3, "features": 4, "components": 3}


@pytest.mark.cuda_sources(backend=["cpu"], case=EXECUTED)
@pytest.mark.parametrize("backend", backends.BACKENDS)
@pytest.mark.parametrize("case", list(CASES))
def test_each_size_zero(case, backend):
    """One size after the other is 0, then none is but the edges: a graph of nodes without any."""
    for name in PLAIN:
        for seed in range(6 if backend == "cpu" and not ON_EXECUTOR else 1):
            check(case, backend, PLAIN | {name: 0}, torch.float64, ["plain"], False, seed)
