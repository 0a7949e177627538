"""Makes the data sets of docs/accuracy.md that are made of others.

    python bench/accuracy_sets.py join runs/sets/both graphene=ROOT hBN=ROOT
    python bench/accuracy_sets.py rotate runs/sets/bismuthene STRUCTURE --copies 12
    python bench/accuracy_sets.py fewer ROOT runs/sets --counts 5 10 20

`join` puts several sets side by side, by links. `rotate` makes copies of one structure in random
orientations; H and S are rotated exactly, so a copy is as good as another calculation. `fewer`
writes splits with the first structures of the training set alone.
"""

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

import torch

from hamfast.data import read_snapshot, read_split
from hamfast.data.formats import by_name
from hamfast.data.graphs import blocks_from_irreps, build_graph
from hamfast.ops import rotate_irreps, rotation_from_euler
from hamfast.targets import TargetSpec

SPLIT = "dataset_split.json"


def join(options):
    """One set of several, each structure under the name of its set."""
    joined = {}
    for source in options.sources:
        name, _, root = source.partition("=")
        for subset, folders in read_split(Path(root)).items():
            for folder in folders:
                link = options.target / "dft" / f"{name}_{folder.name}"
                link.parent.mkdir(parents=True, exist_ok=True)
                if not link.exists():
                    os.symlink(folder.resolve(), link)
                joined.setdefault(subset, []).append(link.name)
    (options.target / SPLIT).write_text(json.dumps(joined, indent=1))


def rotated(snapshot, rotation):
    """The same crystal in another orientation, with its H and S."""
    changed = replace(
        snapshot, cell=snapshot.cell @ rotation.T.numpy(), positions=snapshot.positions @ rotation.T.numpy()
    )
    for name, spinful in (("hamiltonian", snapshot.spinful), ("overlap", False)):
        spec = TargetSpec.from_mapping(snapshot.shells, spinful)
        graph = build_graph(replace(snapshot, hamiltonian=getattr(snapshot, name), spinful=spinful), spec)
        turned = rotate_irreps(graph.known_target(), spec.irreps, rotation)
        setattr(changed, name, blocks_from_irreps(turned, graph, spec))
    return changed


def rotate(options):
    """Copies in random orientations: two thirds to train, a sixth each to validate and to test."""
    snapshot = read_snapshot(options.structure)
    generator = torch.Generator().manual_seed(0)
    labels = [f"{options.structure.name}_{n:02d}" for n in range(options.copies)]
    for label in labels:
        rotation = rotation_from_euler(torch.rand(3, generator=generator, dtype=torch.float64) * 2 * torch.pi)
        by_name("deeph").write(rotated(snapshot, rotation), options.target / "dft" / label)
    few = max(1, options.copies // 6)
    split = {"train": labels[: -2 * few], "validate": labels[-2 * few : -few], "test": labels[-few:]}
    (options.target / SPLIT).write_text(json.dumps(split, indent=1))


def fewer(options):
    """Splits with fewer training structures."""
    split = json.loads((options.root / SPLIT).read_text())
    options.target.mkdir(parents=True, exist_ok=True)
    for count in options.counts:
        path = options.target / f"{options.root.name}-{count}.json"
        path.write_text(json.dumps(split | {"train": split["train"][:count]}, indent=1))


def main():
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    joins = commands.add_parser("join", help="several sets side by side")
    joins.set_defaults(function=join)
    joins.add_argument("target", type=Path)
    joins.add_argument("sources", nargs="+", help="NAME=ROOT")
    rotates = commands.add_parser("rotate", help="copies of one structure in random orientations")
    rotates.set_defaults(function=rotate)
    rotates.add_argument("target", type=Path)
    rotates.add_argument("structure", type=Path)
    rotates.add_argument("--copies", type=int, default=12)
    lessens = commands.add_parser("fewer", help="splits with fewer training structures")
    lessens.set_defaults(function=fewer)
    lessens.add_argument("root", type=Path)
    lessens.add_argument("target", type=Path)
    lessens.add_argument("--counts", type=int, nargs="+", required=True)
    options = parser.parse_args()
    options.function(options)


if __name__ == "__main__":
    main()
