"""What several tests share: checks every op must pass, and small structures."""

import contextlib
import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from e3nn import o3

import hamfast
from hamfast import environment
from hamfast.data.blocks import BlockMatrix
from hamfast.data.snapshot import Snapshot
from hamfast.ops import backend as backends

HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"

INTERPRETED = environment.text("HAMFAST_BACKEND") == "triton" and environment.switch("TRITON_INTERPRET")
"""Do CPU tensors run through Triton's interpreter?"""
ON_EXECUTOR = environment.text("HAMFAST_SIMT_FOLDER") != ""
"""Or through the CUDA sources, on the host's executor?"""


def cases(named):
    """Values for ``pytest.mark.parametrize``, with readable ids: name -> the values of a case.

    A case of several arguments is a tuple.
    """
    return [pytest.param(*(v if isinstance(v, tuple) else (v,)), id=name) for name, v in named.items()]


@contextlib.contextmanager
def running_on(backend):
    """Yields the device of the tensors."""
    if backend == "cpu":
        yield "cpu"
        return
    rung = next(rung for rung in backends.ladder() if rung.backend == backend)
    if rung.problem or (backend == "cuda" and not HAS_GPU):
        pytest.skip(rung.problem or "no GPU")
    with hamfast.backend(backend):
        yield DEVICE


def derivatives(function, leaves, directions):
    """The result, its gradients along a direction, and the gradients of those; None where nothing
    depends on a leaf."""
    out = function(*leaves)
    if not out.requires_grad:
        return [out] + [None] * (2 * len(leaves) + 1)
    grad = directions[0].to(out).requires_grad_()
    first = torch.autograd.grad(out, leaves, grad, create_graph=True, allow_unused=True)
    found = [out, *first]
    along = [(f, d) for f, d in zip(first, directions[1:], strict=True) if f is not None and f.requires_grad]
    if not along:
        return found + [None] * (1 + len(leaves))
    outputs, given_directions = zip(*along, strict=True)
    given_directions = [d.to(f) for d, f in zip(given_directions, outputs, strict=True)]
    return found + list(torch.autograd.grad(outputs, [grad, *leaves], given_directions, allow_unused=True))


def compare(found, expected, tolerance):
    for a, b in zip(found, expected, strict=True):
        if a is None and b is None:
            continue
        a, b = (torch.zeros_like(b) if a is None else a), (torch.zeros_like(a) if b is None else b)
        assert a.shape == b.shape
        scale = max([1.0, *b.detach().abs().flatten().tolist()])
        torch.testing.assert_close(a.double().cpu(), b.double().cpu(), atol=tolerance * scale, rtol=0.0)


def pick(options):
    """One of them, by torch's generator."""
    return options[int(torch.randint(len(options), ()))]


# How an operand lies in memory: from a leaf that is contiguous to a tensor of the same shape and
# numbers.
def strided(t):
    """Every second column of a larger tensor, from the second element on."""
    wide = torch.stack([torch.zeros_like(t), t], dim=-1)
    return wide[..., 1]


def transposed(t):
    return t.transpose(0, -1).contiguous().transpose(0, -1) if t.dim() > 1 else t


def shared(t):
    """The first row for all rows, with stride 0."""
    return t[:1].expand_as(t) if t.shape[0] else t


def shifted(t):
    """Behind another number in the same storage: not aligned to vectors."""
    return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)


STORAGES = {f.__name__: f for f in (strided, transposed, shared, shifted)} | {"plain": lambda t: t}


def permuted(t):
    """Same values, dense, strides of a transpose: catches fakes that copy strides."""
    return t.transpose(0, -1).contiguous().transpose(0, -1) if t.dim() > 1 else t


def assert_close(a, b, atol=1e-12, rtol=1e-10):
    torch.testing.assert_close(a, b, atol=atol, rtol=rtol)


def check_derivatives(op, reference, args, atol=1e-11):
    """Value, first and second derivative against the reference, then gradcheck and gradgradcheck.
    args: float64 leaves."""
    out, ref = op(*args), reference(*args)
    assert_close(out, ref, atol=atol)
    grad = torch.randn_like(ref).requires_grad_()
    first = torch.autograd.grad(out, args, grad, create_graph=True)
    first_ref = torch.autograd.grad(ref, args, grad, create_graph=True)
    for a, b in zip(first, first_ref, strict=True):
        assert_close(a, b, atol=atol)
    directions = [torch.randn_like(a) for a in first]
    second = torch.autograd.grad(first, (*args, grad), directions, allow_unused=True)
    second_ref = torch.autograd.grad(first_ref, (*args, grad), directions, allow_unused=True)
    for a, b in zip(second, second_ref, strict=True):
        a = torch.zeros_like(b) if a is None and b is not None else a
        b = torch.zeros_like(a) if b is None and a is not None else b
        if a is not None:
            assert_close(a, b, atol=atol)
    if (
        INTERPRETED
    ):  # each of the checks' many evaluations would take seconds, and the reference has been met in all derivatives
        return
    assert torch.autograd.gradcheck(op, args, fast_mode=True)
    assert torch.autograd.gradgradcheck(op, args, fast_mode=True)


def fully_connected(irreps1, irreps2, irreps3, mode="uvw"):
    return [
        (i, j, k, mode, True, 1.0)
        for i, (_, a) in enumerate(irreps1)
        for j, (_, b) in enumerate(irreps2)
        for k, (_, c) in enumerate(irreps3)
        if c in a * b
    ]


def random_rotation(seed=0):
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    return q * torch.det(q)


def rotated_orbitals(shells, rotation):
    """Block-diagonal D of real orbitals (m = -l ... l) under a rotation of (x, y, z), from the
    harmonics themselves.

    D is fixed by Y(R r) = D Y(r) on many points r, with Y from their textbook definition:
    independent of e3nn's D matrices.
    """
    points = torch.randn(200, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    blocks = []
    for l in shells:
        y = torch.tensor(real_harmonics(l, points.numpy()))
        y_turned = torch.tensor(real_harmonics(l, (points @ rotation.T).numpy()))
        blocks.append(torch.linalg.lstsq(y, y_turned).solution.T)
    return torch.block_diag(*blocks)


def real_harmonics(l, points):
    """``[points, 2 l + 1]``, m = -l ... l, without the Condon-Shortley phase, from SciPy's complex
    ones."""
    from scipy.special import sph_harm_y

    x, y, z = (points / np.linalg.norm(points, axis=1, keepdims=True)).T
    theta, phi = np.arccos(np.clip(z, -1, 1)), np.arctan2(y, x)
    columns = []
    for m in range(-l, l + 1):
        value = (-1) ** m * np.sqrt(2) * sph_harm_y(l, abs(m), theta, phi)
        columns.append(value.imag if m < 0 else value.real if m > 0 else sph_harm_y(l, 0, theta, phi).real)
    return np.stack(columns, axis=1)


def random_irreps(generator, l_max=2, entries=3, max_mul=3):
    def pick(n):
        return int(torch.randint(n, (1,), generator=generator))

    return o3.Irreps([(1 + pick(max_mul), (pick(l_max + 1), 1 - 2 * pick(2))) for _ in range(entries)])


def random_snapshot(shells, numbers, spinful=False, seed=0, cutoff=4.0) -> Snapshot:
    """A crystal with a random Hermitian H on all pairs within the cutoff, and a positive S."""
    rng = np.random.default_rng(seed)
    cell = np.diag([3.1, 3.3, 12.0])
    positions = rng.uniform(0.2, 2.8, (len(numbers), 3))
    base = Snapshot("random", cell, positions, np.array(numbers), shells, spinful)
    pairs = [
        (a, b, 0, i, j)
        for a in (-1, 0, 1)
        for b in (-1, 0, 1)
        for i in range(len(numbers))
        for j in range(len(numbers))
        if np.linalg.norm(positions[j] + np.array([a, b, 0]) @ cell - positions[i]) < cutoff
    ]

    def matrix(spins, scale, home, is_complex):
        blocks = {}
        for a, b, c, i, j in pairs:
            if (-a, -b, -c, j, i) in blocks:
                blocks[a, b, c, i, j] = blocks[-a, -b, -c, j, i].conj().T
                continue
            shape = (spins * base.num_orbitals(i), spins * base.num_orbitals(j))
            block = scale * rng.normal(size=shape) + (1j * scale * rng.normal(size=shape) if is_complex else 0)
            if (a, b, c) == (0, 0, 0) and i == j:
                block = (block + block.conj().T) / 2 + home * np.eye(shape[0])
            blocks[a, b, c, i, j] = block
        return BlockMatrix.from_blocks(pairs, [blocks[p] for p in pairs])

    base.hamiltonian = matrix(2 if spinful else 1, 1.0, 0.0, spinful)
    base.overlap = matrix(1, 0.002, 1.0, False)
    return base


def tiny_checkpoint(path, folders, blocks=1):
    """A checkpoint as a training writes it, of a small network with random weights; nothing is
    trained."""
    from hamfast.data import GraphDataset
    from hamfast.data.dataset import target_spec
    from hamfast.data.statistics import dataset_statistics
    from hamfast.data.tensor_file import save_tensors
    from hamfast.training.checkpoint import build_model, checkpoint_of
    from hamfast.training.config import parse_config

    small = {"irreps_mid": "4x0e+2x1o+2x2e+1x3o+1x4e", "num_basis": 8, "embed_dim": 4, "num_blocks": blocks}
    content = {
        "output": "nowhere",
        "data": {"root": "nowhere"},
        "stage1": small,
        "stage2": {"hidden": 8, "num_blocks": 1},
    }
    config, statistics = parse_config(content, "kit"), dataset_statistics(folders, measured=folders)
    spec, cutoffs = target_spec(statistics.shells), statistics.pair_cutoffs()
    torch.manual_seed(0)
    dataset = GraphDataset(folders, spec, None)
    model = build_model(config, spec, float(cutoffs.max()))
    model.normalization.fit(dataset)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(checkpoint_of(config, model, cutoffs), path)
    return path


def deeph_e3_training(name, target):
    """A copy of one of the trainings in ``tests/data/deeph_e3``, its weights as DeepH-E3 writes
    them."""
    source = Path(__file__).parent / "data" / "deeph_e3" / name
    folder = Path(shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.gz")))
    (folder / "best_model.pkl").write_bytes(gzip.decompress((source / "best_model.pkl.gz").read_bytes()))
    return folder


def tree(folder):
    """What every file under a folder holds."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def chain(atoms, overlap, hopping=-1.0, onsite=0.0, dimer=0.0):
    """A ring of atoms with one s orbital: E(k) = (onsite + 2 t cos k) / (1 + 2 s cos k) without
    ``dimer``.

    ``dimer`` makes hoppings alternate, t (1 +- dimer): a gap at half filling.
    """
    pairs, h, s = [], [], []
    for i in range(atoms):
        pairs.append((0, 0, 0, i, i))
        h.append(onsite)
        s.append(1.0)
        for step in (1, -1):
            j = i + step
            first = min(i, j) if step == 1 else j
            strength = hopping * (1 + dimer * (1 if first % 2 == 0 else -1))
            pairs.append((j // atoms, 0, 0, i, j % atoms))
            h.append(strength)
            s.append(overlap)
    blocks = [np.array([[x]]) for x in h], [np.array([[x]]) for x in s]
    positions = np.stack([np.arange(atoms) * 1.5, np.zeros(atoms), np.zeros(atoms)], axis=1)
    return Snapshot(
        "chain", np.diag([1.5 * atoms, 20.0, 20.0]), positions, np.full(atoms, 1), {1: (0,)}, occupation=float(atoms),
        hamiltonian=BlockMatrix.from_blocks(pairs, blocks[0]), overlap=BlockMatrix.from_blocks(pairs, blocks[1]),
    )  # fmt: skip
