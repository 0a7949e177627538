"""From a snapshot to a crystal graph with targets, and back from predicted irreps to blocks."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from ase.data import chemical_symbols
from torch import Tensor

from hamfast.data.blocks import BlockMatrix, find_pairs, onsite_pairs, reverse_pairs, species_groups
from hamfast.data.snapshot import Snapshot
from hamfast.errors import DataWarning, HamfastError
from hamfast.graph import CrystalGraph
from hamfast.targets import TargetSpec


def species_index(snapshot: Snapshot, spec: TargetSpec) -> np.ndarray:
    """``[atoms]``: index of each atom's element in the specification.

    Raises:
        HamfastError: an element or its orbitals are not those of the specification.
    """
    position = {z: n for n, z in enumerate(spec.elements)}
    for z in snapshot.elements:
        if z not in position:
            known = ", ".join(chemical_symbols[e] for e in spec.elements)
            raise HamfastError(
                f"{snapshot.label}: element {chemical_symbols[z]} is unknown to the model, which knows {known}"
            )
        if tuple(snapshot.shells[z]) != spec.shells[position[z]][1]:
            raise HamfastError(
                f"{snapshot.label}: {chemical_symbols[z]} has shells {list(snapshot.shells[z])}, the model was made for "
                f"{list(spec.shells[position[z]][1])}"
            )
    if snapshot.spinful != spec.spinful:
        raise HamfastError(
            f"{snapshot.label}: {'with' if snapshot.spinful else 'without'} spin-orbit coupling, the model was made "
            f"{'with' if spec.spinful else 'without'}"
        )
    return np.array([position[int(z)] for z in snapshot.numbers], dtype=np.int64)


def build_graph(
    snapshot: Snapshot,
    spec: TargetSpec,
    *,
    pair_cutoffs: np.ndarray | None = None,
    dtype: torch.dtype = torch.float64,
) -> CrystalGraph:
    """The graph of a structure: its pairs are edges, and the blocks of its Hamiltonian are targets.

    Args:
        snapshot: the structure; without a Hamiltonian there is no target.
        spec: elements and orbitals.
        pair_cutoffs: ``[species, species]`` angstrom, the longest pairs of the training. With them
            the pairs are those that a trained model expects, see :func:`trained_pairs`, and there
            is no target. Without them they are those of the Hamiltonian, or else of the overlap.
        dtype: of vectors and targets.

    Raises:
        HamfastError: elements or orbitals are not those of ``spec``; or there is neither a matrix
            nor a cutoff.
    """
    species = species_index(snapshot, spec)
    matrix: BlockMatrix | None = None
    if pair_cutoffs is not None:
        pairs = trained_pairs(snapshot, species, pair_cutoffs)
        reverse = reverse_pairs(pairs)
    elif snapshot.hamiltonian is not None:
        matrix = snapshot.hamiltonian
        pairs, reverse = matrix.pairs, matrix.reverse
    elif snapshot.overlap is not None:
        pairs, reverse = snapshot.overlap.pairs, snapshot.overlap.reverse
    else:
        raise HamfastError(f"{snapshot.label}: neither a Hamiltonian nor an overlap is there, and no cutoff is known")
    target = None
    if matrix is not None:
        target = torch.zeros(len(pairs), spec.dim, dtype=dtype)
        for first, second, which in species_groups(species, pairs):
            blocks = torch.from_numpy(np.ascontiguousarray(matrix.group(which)))
            blocks = blocks.to(torch.complex128 if spec.spinful else torch.float64)
            target[torch.from_numpy(which)] = spec.to_irreps(blocks, first, second).to(dtype)
    num_atoms, num_edges = snapshot.num_atoms, len(pairs)
    return CrystalGraph(
        species=torch.from_numpy(species),
        i=torch.from_numpy(pairs[:, 3].copy()),
        j=torch.from_numpy(pairs[:, 4].copy()),
        shift=torch.from_numpy(pairs[:, :3].copy()),
        vector=torch.from_numpy(snapshot.pair_vectors(pairs)).to(dtype),
        reverse=torch.from_numpy(reverse),
        atom_graph=torch.zeros(num_atoms, dtype=torch.int64),
        edge_graph=torch.zeros(num_edges, dtype=torch.int64),
        target=target,
        labels=(snapshot.label,),
    )


REACH = 0.5
"""Angstrom: a list of pairs that ends by more than this before the trained cutoff was cut short."""
FEW = 0.02
"""The fraction of the pairs that may be missing before it is worth a word."""
NOT_SMALL = 0.05
"""No code drops a block with an element above this fraction of the largest between two atoms."""
SLACK = 0.1
"""Angstrom by which the longest pair of a small training set falls short of the code's cutoff."""


def trained_pairs(snapshot: Snapshot, species: np.ndarray, pair_cutoffs: np.ndarray) -> np.ndarray:
    """``[pairs, 5]``: the pairs that a model expects which was trained with these cutoffs.

    The features of an atom are sums over its incoming edges. A network that is given other edges
    than in its training is wrong everywhere, without a word. So all pairs within the cutoffs are
    there, whatever the files say, and pairs of the files that are a little longer stay.

    A Hamiltonian's own list stays as it is, unless it was cut short or has holes: some DFT codes
    drop small blocks, and a network that learns from such a code learns its lists.

    A warning (:class:`hamfast.errors.DataWarning`) says where lists differ.

    Args:
        snapshot: the structure.
        species: ``[atoms]``, index of each atom's element.
        pair_cutoffs: ``[species, species]`` angstrom.
    """
    within = pairs_within(snapshot, species, pair_cutoffs)
    given = snapshot.first_matrix
    if given is None:
        return within
    name = "Hamiltonian" if snapshot.hamiltonian is not None else "overlap"
    limit = pair_cutoffs[species[given.pairs[:, 3]], species[given.pairs[:, 4]]]
    length = np.linalg.norm(snapshot.pair_vectors(given.pairs), axis=1)
    too_long = length > limit + SLACK
    if too_long.any():
        warnings.warn(
            f"{snapshot.label}: {too_long.sum()} of {len(given)} pairs of the {name} are longer than those that the model was "
            f"trained on, up to {length.max():.2f} angstrom; their blocks are predicted as zero",
            DataWarning,
            stacklevel=2,
        )
    kept = given.pairs[~too_long]
    missing = within[find_pairs(given.pairs, within) < 0]
    if not len(missing):
        return kept
    difference = (
        f"{snapshot.label}: the {name} has {len(kept)} pairs, but {len(missing)} more lie within the distances that the model "
        f"was trained on ({pair_cutoffs.max():.2f} angstrom); "
    )
    if snapshot.hamiltonian is not None and not _lacks_neighbours(snapshot, species, kept, missing, pair_cutoffs):
        if len(missing) > FEW * len(kept):
            warnings.warn(
                f"{difference}its list was kept, as a code that drops small blocks drops them in the training, too",
                DataWarning,
                stacklevel=2,
            )
        return kept
    warnings.warn(f"{difference}they were added, as it needs the neighbours of its training", DataWarning, stacklevel=2)
    return np.concatenate([kept, missing])


def _lacks_neighbours(snapshot, species, pairs, missing, pair_cutoffs) -> bool:
    """Was a Hamiltonian's list cut short, or does it have holes?

    Codes that drop small blocks drop those of far pairs. So two lists are not of such a code: one
    that ends well before the trained distance of some two species; and one that lacks a pair which
    is nearer than another one whose block is not small.
    """
    h = snapshot.hamiltonian
    length = np.linalg.norm(snapshot.pair_vectors(pairs), axis=1)
    largest = np.maximum.reduceat(np.abs(h.entries), h.boundaries[:-1])
    largest = largest[find_pairs(h.pairs, pairs)]
    hopping = length > 1e-6
    distance = np.linalg.norm(snapshot.pair_vectors(missing), axis=1)
    code = species[missing[:, 3]] * len(pair_cutoffs) + species[missing[:, 4]]
    for first in range(len(pair_cutoffs)):
        for second in range(len(pair_cutoffs)):
            gone = distance[code == first * len(pair_cutoffs) + second]
            if not len(gone):
                continue
            own = (species[pairs[:, 3]] == first) & (species[pairs[:, 4]] == second) & hopping
            if gone.max() > length[own].max(initial=0.0) + REACH:
                return True
            if np.any(own & (length > gone.min()) & (largest > NOT_SMALL * largest[hopping].max(initial=0.0))):
                return True
    return False


def pairs_within(snapshot: Snapshot, species: np.ndarray, pair_cutoffs: np.ndarray) -> np.ndarray:
    """``[pairs, 5]``: all pairs up to the cutoff of their species, on-site pairs first.

    Args:
        snapshot: the structure.
        species: ``[atoms]``, index of each atom's element.
        pair_cutoffs: ``[species, species]`` angstrom.
    """
    i, j, d, shift = snapshot.neighbors("ijdS", float(pair_cutoffs.max()))
    keep = d <= pair_cutoffs[species[i], species[j]]
    hoppings = np.concatenate([shift[keep], i[keep, None], j[keep, None]], axis=1).astype(np.int64)
    return np.concatenate([onsite_pairs(snapshot.num_atoms), hoppings])


def blocks_from_irreps(irreps: Tensor, graph: CrystalGraph, spec: TargetSpec) -> BlockMatrix:
    """The Hamiltonian blocks of one structure, in eV, in the order of its edges.

    Args:
        irreps: ``[edges, spec.dim]`` eV, as a model predicts them.
        graph: of the structure.
        spec: the targets.
    """
    species = graph.species.cpu().numpy()
    pairs = torch.cat([graph.shift, graph.receivers[:, None], graph.senders[:, None]], dim=1).cpu().numpy()
    groups = []
    for first, second, which in species_groups(species, pairs):
        blocks = spec.to_blocks(irreps[torch.from_numpy(which).to(irreps.device)], first, second)
        groups.append((which, blocks.detach().cpu().numpy()))
    return BlockMatrix.from_groups(pairs, groups)
