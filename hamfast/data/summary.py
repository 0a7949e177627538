"""What a data set holds, and settings that fit it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from hamfast.data.formats import dataset_shells, find_structures, format_of, read_snapshot, read_structure
from hamfast.data.snapshot import Snapshot
from hamfast.data.split import SPLIT_FILE
from hamfast.errors import HamfastError
from hamfast.shells import ShellSpec

MULTIPLICITIES = (64, 32, 16, 8, 8, 4, 4, 4, 4)
"""Suggested channels for l = 0, 1, 2, ..."""


def suggest(shells: Iterable[Sequence[int]], spinful: bool, longest: float) -> dict[str, dict[str, Any]]:
    """Settings that fit a data set: section of the configuration -> key -> value.

    Args:
        shells: the l of every element's shells.
        spinful: with spin-orbit coupling.
        longest: angstrom, the longest pair of H.
    """
    # Two shells couple to l1 + l2; spin adds one.
    target_l = 2 * max(l for ls in shells for l in ls) + bool(spinful)
    l_max = min(max(4, target_l), len(MULTIPLICITIES) - 1)
    mid = "+".join(f"{MULTIPLICITIES[l]}x{l}{'eo'[l % 2]}" for l in range(l_max + 1))
    cutoff = max(0.1, round(longest, 1))
    return {
        "stage1": {"irreps_mid": mid, "l_max": l_max, "cutoff": cutoff, "edge_basis_stop": cutoff},
        "stage2": {"l_max": l_max, "cutoff": cutoff},
    }


def suggestions(root: Path) -> dict[str, dict[str, Any]] | None:
    """:func:`suggest` for a data set, and a name for its run; None where ``root`` is no data set
    that can be read."""
    try:
        folders = find_structures(root)
        spec = dataset_shells(folders)
        snapshots = [read_snapshot(folder) for folder in sample(folders)]
        lengths = [float(length.max()) for length in map(_lengths, snapshots) if length is not None and len(length)]
        if not lengths:
            return None
    except (HamfastError, OSError):
        return None
    found = suggest((ls for _, ls in spec.shells), spec.spinful, max(lengths))
    return found | {"": {"output": f"runs/{root.resolve().name}"}}


def sample(folders: Sequence[Path], most: int = 8) -> Sequence[Path]:
    """At most ``most`` of the structures, from all over the list."""
    return folders[:: max(1, len(folders) // most)][:most]


def _lengths(snapshot: Snapshot) -> np.ndarray | None:
    """``[pairs]`` angstrom, of H where there is one, else of S."""
    matrix = snapshot.hamiltonian if snapshot.hamiltonian is not None else snapshot.overlap
    return None if matrix is None else np.linalg.norm(snapshot.pair_vectors(matrix.pairs), axis=1)


def summarize(root: Path, most: int = 8) -> dict[str, str]:
    """Text for each property; matrices of at most ``most`` structures are read for distances."""
    folders = find_structures(root)
    spec = dataset_shells(folders)
    layouts = Counter(format_of(f).NAME for f in folders)
    sizes = [read_structure(f).num_atoms for f in folders]
    chosen = sample(folders, most)
    longest: dict[tuple[int, int], float] = {}
    pairs, elements, extra, with_h, with_s = [], [], 0, 0, 0
    for folder in chosen:
        snapshot = read_snapshot(folder)
        with_h += snapshot.hamiltonian is not None
        with_s += snapshot.overlap is not None
        matrix = snapshot.hamiltonian if snapshot.hamiltonian is not None else snapshot.overlap
        length = _lengths(snapshot)
        if matrix is None or length is None:
            continue
        if snapshot.hamiltonian is not None and snapshot.overlap is not None:
            extra += len(snapshot.hamiltonian) - len(snapshot.overlap)
        pairs.append(len(matrix))
        elements.append(len(matrix.entries))
        for z1, z2, r in zip(
            snapshot.numbers[matrix.pairs[:, 3]], snapshot.numbers[matrix.pairs[:, 4]], length, strict=True
        ):
            key = (int(z1), int(z2))
            longest[key] = max(longest.get(key, 0.0), float(r))
    result = {
        "structures": f"{len(folders)} ({', '.join(f'{n} {name}' for name, n in layouts.items())}), "
        f"{min(sizes)} to {max(sizes)} atoms",
        "elements and shells": ", ".join(
            f"{chemical_symbols[z]} {list(ls)} ({sum(2 * l + 1 for l in ls)} orbitals)" for z, ls in spec.shells
        ),
        "spin-orbit coupling": "yes" if spec.spinful else "no",
        "matrices": f"H in {with_h}, S in {with_s} of {len(chosen)} structures read",
        "target": f"{len(spec.channels)} shell pairs, {spec.dim} numbers per pair: {_irreps(spec)}",
    }
    if pairs:
        stage1 = suggest((ls for _, ls in spec.shells), spec.spinful, max(longest.values()))["stage1"]
        shown = ("irreps_mid", "l_max", "cutoff")
        result |= {
            "pairs": f"{min(pairs)} to {max(pairs)} per structure"
            + (f"; H has {extra} more than S over these structures" if extra else ""),
            "longest pairs": ", ".join(
                f"{chemical_symbols[a]}-{chemical_symbols[b]} {r:.2f} A" for (a, b), r in sorted(longest.items())
            ),
            "suggested stage1": ", ".join(f"{key}: {stage1[key]}" for key in shown),
            "training step": f"{max(pairs):,} edges, {max(elements):,} matrix elements per structure; about "
            f"{_step_memory(max(pairs), stage1['l_max']) / 2**30:.1f} GiB of activations with these irreps in float32",
        }
    split = root / SPLIT_FILE
    result["split"] = str(split) if split.exists() else f"none; make one with `hamfast data split {root}`"
    return result


def _irreps(spec: ShellSpec) -> str:
    """Sorted and counted, in e3nn's notation and order."""
    order = sorted(Counter(spec.irrep_list).items(), key=lambda item: (item[0][0], item[0][1] * (-1) ** item[0][0]))
    return "+".join(f"{count}x{l}{'e' if parity == 1 else 'o'}" for (l, parity), count in order)


def _step_memory(edges: int, l_max: int) -> float:
    """Bytes: about 12 float32 edge tensors of the hidden irreps are kept per update, of which there
    are 6."""
    return 6 * 12.0 * edges * sum(mul * (2 * l + 1) for l, mul in enumerate(MULTIPLICITIES[: l_max + 1])) * 4
