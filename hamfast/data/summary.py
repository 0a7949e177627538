"""What a data set holds, and settings that fit it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ase.data import chemical_symbols

from hamfast.data.cell_size import fitting_environment
from hamfast.data.formats import find_structures, folder_of
from hamfast.data.split import SPLIT_FILE, read_split
from hamfast.data.statistics import DatasetStatistics, dataset_statistics
from hamfast.errors import HamfastError
from hamfast.shells import ShellSpec

MULTIPLICITIES = (64, 32, 16, 8, 8, 4, 4, 4, 4)
"""Channels for l = 0, 1, 2, ... of the published network."""
LOCAL_MULTIPLICITIES = (32, 16, 16, 8, 8, 4, 4, 4, 4)
"""Those of a network with an environment."""
LOCAL_STAGE1 = {"node_products": 2, "product_channels": 16, "pair_blocks": 2, "num_basis": 64, "embed_dim": 32}
LOCAL_STAGE2 = {"hidden": 64, "num_blocks": 1, "num_basis": 32}
LOCAL_PHASE = {"learning_rate": 1e-2, "warmup_steps": 40, "loss": "mae", "onsite_weight": 3.0, "clip": 10.0}
"""What won with an environment in docs/accuracy.md, where a cascade is trained at once."""


class Suggestion(NamedTuple):
    """What a data set suggests for its configuration."""

    settings: dict[str, dict[str, Any]]
    """Section of the configuration -> key -> value; keys of the top level in the section ``""``."""
    environment: str
    """The radius of the environment and what it follows from, or why there is none."""


def suggest(
    shells: Iterable[Sequence[int]], spinful: bool, longest: float, environment: float | None
) -> dict[str, dict[str, Any]]:
    """Settings that fit a data set: section of the configuration -> key -> value.

    Args:
        shells: the l of every element's shells.
        spinful: with spin-orbit coupling.
        longest: angstrom, the longest pair of H.
        environment: angstrom, the radius that the cells determine (docs/cell_size.md); None: there
            is none, and stage 1 is the published network. With one, both stages train at once.
    """
    # Two shells couple to l1 + l2; spin adds one.
    target_l = 2 * max(l for ls in shells for l in ls) + bool(spinful)
    l_max = min(max(4, target_l), len(MULTIPLICITIES) - 1)
    multiplicities = MULTIPLICITIES if environment is None else LOCAL_MULTIPLICITIES
    mid = "+".join(f"{multiplicities[l]}x{l}{'eo'[l % 2]}" for l in range(l_max + 1))
    cutoff = max(0.1, round(longest, 1))
    stage1 = {"irreps_mid": mid, "l_max": l_max, "cutoff": cutoff, "edge_basis_stop": cutoff}
    stage2 = {"l_max": l_max, "cutoff": cutoff}
    if environment is None:
        return {"stage1": stage1, "stage2": stage2}
    seen = {"environment": environment}
    return {
        "target": {"shift": "environment"} | seen,
        "stage1": stage1 | seen | {"num_blocks": 1} | LOCAL_STAGE1,
        "stage2": stage2 | seen | {"irreps": mid} | LOCAL_STAGE2,
        "training": {"joint": True, "stage2_rate": 1.0, "freeze_stage1": False, "stage1": LOCAL_PHASE},
    }


def suggestions(root: Path) -> Suggestion:
    """:func:`suggest` for a data set, and a name for its run.

    Raises:
        HamfastError: ``root`` is no data set that can be read.
    """
    folders = find_structures(root)
    statistics = dataset_statistics(folders, read_whole=sample(folders))
    if statistics.longest_pair is None:
        raise HamfastError(f"{root}: its structures have no matrices")
    found = _suggest(statistics, statistics.longest_pair, root)
    found.settings[""] = {"output": f"runs/{folder_of(root).resolve().name}"}
    return found


def _suggest(statistics: DatasetStatistics, longest: float, root: Path) -> Suggestion:
    spec, smallest = statistics.shells, min(statistics.half_cells[folder] for folder in _training(root))
    radius = fitting_environment(smallest, longest, statistics.nearest)
    text = f"{radius} A, for target, stage1 and stage2; half of the smallest training cell is {smallest:.1f} A"
    if radius is None:
        text = (
            f"none, since half of the smallest training cell, {smallest:.1f} A, is less than 1.4 times the distance of the "
            f"nearest neighbours, {statistics.nearest:.1f} A; predict cells of this size alone, or train on larger ones"
        )
    return Suggestion(suggest((ls for _, ls in spec.shells), spec.spinful, longest, radius), text)


def _training(root: Path) -> list[Path]:
    """The structures to train on; all, as long as there is no split that can be read."""
    try:
        return read_split(root)["train"]
    except HamfastError:
        return find_structures(root)


def sample(folders: Sequence[Path], most: int = 8) -> Sequence[Path]:
    """At most ``most`` of the structures, from all over the list."""
    return folders[:: max(1, len(folders) // most)][:most]


def summarize(root: Path, most: int = 8) -> dict[str, str]:
    """Text for each property; matrices of at most ``most`` structures are read for distances.

    Raises:
        HamfastError: there are no structures, they do not belong together, or one cannot be read.
    """
    folders = find_structures(root)
    chosen = sample(folders, most)
    found = dataset_statistics(folders, read_whole=chosen)
    spec, matrices = found.shells, found.matrices
    result = {
        "structures": f"{len(folders)} ({', '.join(f'{n} {name}' for name, n in found.layouts.items())}), "
        f"{min(found.num_atoms)} to {max(found.num_atoms)} atoms",
        "half the cell": f"{min(found.half_cells.values()):.1f} to {max(found.half_cells.values()):.1f} A; a network that "
        "looks further learns periodic images (docs/cell_size.md)",
        "elements and shells": ", ".join(
            f"{chemical_symbols[z]} {list(ls)} ({sum(2 * l + 1 for l in ls)} orbitals)" for z, ls in spec.shells
        ),
        "spin-orbit coupling": "yes" if spec.spinful else "no",
        "matrices": f"H in {sum(m.has_hamiltonian for m in matrices)}, S in {sum(m.has_overlap for m in matrices)} of "
        f"{len(chosen)} structures read",
        "target": f"{len(spec.channels)} shell pairs, {spec.dim} numbers per pair: {_irreps(spec)}",
    }
    longest = found.longest_pair
    if longest is not None:
        suggestion = _suggest(found, longest, root)
        stage1 = suggestion.settings["stage1"]
        shown = ("irreps_mid", "l_max", "cutoff")
        pairs = [m.pairs for m in matrices if m.has_hamiltonian or m.has_overlap]
        extra, elements = sum(m.extra_pairs for m in matrices), max(m.elements for m in matrices)
        result |= {
            "pairs": f"{min(pairs)} to {max(pairs)} per structure"
            + (f"; H has {extra} more than S over these structures" if extra else ""),
            "longest pairs": ", ".join(
                f"{chemical_symbols[a]}-{chemical_symbols[b]} {r:.2f} A"
                for (a, b), r in sorted(found.longest_pairs.items())
            ),
            "suggested stage1": ", ".join(f"{key}: {stage1[key]}" for key in shown),
            "suggested environment": suggestion.environment,
            "training step": f"{max(pairs):,} edges, {elements:,} matrix elements per structure; about "
            f"{_step_memory(max(pairs), stage1['l_max']) / 2**30:.1f} GiB of activations with these irreps in float32",
        }
    split = folder_of(root) / SPLIT_FILE
    result["split"] = str(split) if split.exists() else f"none; make one with `hamfast data split {root}`"
    return result


def _irreps(spec: ShellSpec) -> str:
    """Sorted and counted, in e3nn's notation and order."""
    order = sorted(Counter(spec.irrep_list).items(), key=lambda item: (item[0][0], item[0][1] * (-1) ** item[0][0]))
    return "+".join(f"{count}x{l}{'e' if parity == 1 else 'o'}" for (l, parity), count in order)


def _step_memory(edges: int, l_max: int) -> float:
    """Bytes of the activations of a step.

    There are 6 updates. About 12 float32 tensors of ``[edges, hidden irreps]`` are kept for each.
    """
    return 6 * 12.0 * edges * sum(mul * (2 * l + 1) for l, mul in enumerate(MULTIPLICITIES[: l_max + 1])) * 4
