"""What a data set holds, and settings that fit it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from ase.data import chemical_symbols
from e3nn.o3 import Irreps

from hamfast.data.dataset import SPLIT_FILE, dataset_spec
from hamfast.data.formats import find_structures, format_of, read_snapshot

MULTIPLICITIES = (64, 32, 16, 8, 8, 4, 4, 4, 4)
"""Suggested channels for l = 0, 1, 2, ..."""


def summarize(root: Path, most: int = 8) -> dict[str, str]:
    """Text for each property; matrices of at most ``most`` structures are read for distances."""
    folders = find_structures(root)
    spec = dataset_spec(folders)
    layouts = Counter(format_of(f).NAME for f in folders)
    sizes = [format_of(f).read_structure(f).num_atoms for f in folders]
    sample = folders[:: max(1, len(folders) // most)][:most]
    longest: dict[tuple[int, int], float] = {}
    pairs, elements, extra, with_h, with_s = [], [], 0, 0, 0
    for folder in sample:
        snapshot = read_snapshot(folder)
        with_h += snapshot.hamiltonian is not None
        with_s += snapshot.overlap is not None
        matrix = snapshot.hamiltonian if snapshot.hamiltonian is not None else snapshot.overlap
        if matrix is None:
            continue
        if snapshot.hamiltonian is not None and snapshot.overlap is not None:
            extra += len(snapshot.hamiltonian) - len(snapshot.overlap)
        pairs.append(len(matrix))
        elements.append(len(matrix.entries))
        length = np.linalg.norm(snapshot.pair_vectors(matrix.pairs), axis=1)
        for z1, z2, r in zip(
            snapshot.numbers[matrix.pairs[:, 3]], snapshot.numbers[matrix.pairs[:, 4]], length, strict=True
        ):
            key = (int(z1), int(z2))
            longest[key] = max(longest.get(key, 0.0), float(r))
    target_l = max(ir.l for _, ir in spec.irreps)
    l_max = max(4, target_l)
    mid = Irreps([(mul, (l, (-1) ** l)) for l, mul in zip(range(l_max + 1), MULTIPLICITIES, strict=False)])
    result = {
        "structures": f"{len(folders)} ({', '.join(f'{n} {name}' for name, n in layouts.items())}), "
        f"{min(sizes)} to {max(sizes)} atoms",
        "elements and shells": ", ".join(
            f"{chemical_symbols[z]} {list(ls)} ({sum(2 * l + 1 for l in ls)} orbitals)" for z, ls in spec.shells
        ),
        "spin-orbit coupling": "yes" if spec.spinful else "no",
        "matrices": f"H in {with_h}, S in {with_s} of {len(sample)} structures read",
        "target": f"{len(spec.channels)} shell pairs, {spec.dim} numbers per pair: {spec.irreps.sort().irreps.simplify()}",
    }
    if pairs:
        result |= {
            "pairs": f"{min(pairs)} to {max(pairs)} per structure"
            + (f"; H has {extra} more than S over these structures" if extra else ""),
            "longest pairs": ", ".join(
                f"{chemical_symbols[a]}-{chemical_symbols[b]} {r:.2f} A" for (a, b), r in sorted(longest.items())
            ),
            "suggested stage1": f"irreps_mid: {mid}, l_max: {l_max}, cutoff: {max(longest.values()):.1f}",
            "training step": f"{max(pairs):,} edges, {max(elements):,} matrix elements per structure; about "
            f"{_step_memory(max(pairs), mid) / 2**30:.1f} GiB of activations with these irreps in float32",
        }
    split = root / SPLIT_FILE
    result["split"] = str(split) if split.exists() else f"none; make one with `hamfast data split {root}`"
    return result


def _step_memory(edges: int, mid: Irreps) -> float:
    """Bytes: about 12 float32 edge tensors of the hidden irreps are kept per update, of which there are 6."""
    return 6 * 12.0 * edges * mid.dim * 4
