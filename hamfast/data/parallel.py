"""Work on the structures of a set by several processes."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from hamfast.graph import CrystalGraph
from hamfast.machine import cores
from hamfast.sums import Fit, Sums

FEW = 16
"""Fewer pieces of work are done by this process alone."""
PART = 64
"""Sums are made over so many structures at a time, or up to twice as many."""
MOST_BYTES = 2**32
"""Memory of all sums that processes make at once."""


def results(work: Dataset, processes: int, prefetch: int = 2) -> Iterator[Any]:
    """The results of all pieces of work, in their order.

    Args:
        work: a result for each index.
        processes: that do it; with less than two this one does.
        prefetch: results of each process that may wait.
    """
    # As a training reads: processes are forked, have one thread each, and are missed if they die.
    # The generator is its own, as a pass must not change what comes from the run's seed.
    several: dict[str, Any] = {"num_workers": processes, "prefetch_factor": prefetch} if processes > 1 else {}
    yield from DataLoader(work, batch_size=None, generator=torch.Generator(), **several)


def parts_of(count: int) -> list[range]:
    """Numbers of structures in parts that follow each other.

    They depend on the number of structures alone, so that sums over them do, too.
    """
    parts = max(1, count // PART)
    return [range(count * n // parts, count * (n + 1) // parts) for n in range(parts)]


def summed(fit: Fit, graphs: Sequence[CrystalGraph] | Dataset, count: int, report: Callable[[int, int], None]) -> Sums:
    """The sums of a fit over all structures of a set, made by as many processes as there are cores.

    They do not depend on the number of processes: that many structures make the same parts, whose
    sums are added up in their order. Rounding depends on the parts.

    Args:
        fit: that needs them.
        graphs: of all structures.
        count: of the structures.
        report: called with the number of structures that are done, and of all.
    """
    parts, total = parts_of(count), Sums()
    # One sum in each process and one on its way, and two here.
    room = (MOST_BYTES // max(1, fit.bytes()) - 2) // 2
    processes = min(cores(), len(parts), room)
    if processes > 1:
        own = (pickle.loads(content) for content in results(_Parts(fit, graphs, parts), processes, 1))
    else:
        own = (_sum(fit, graphs, part) for part in parts)
    for part, sums in zip(parts, own, strict=True):
        total.join(sums)
        report(part.stop, count)
    return total


def _sum(fit: Fit, graphs: Any, part: range) -> Sums:
    sums = Sums()
    for number in part:
        fit.add(sums, number, graphs[number])
    return sums


class _Parts(Dataset):
    def __init__(self, fit: Fit, graphs: Any, parts: list[range]):
        self.fit, self.graphs, self.parts = fit, graphs, parts

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, n: int) -> bytes:
        # Bytes go through a pipe. Tensors would go through shared memory, of which a container may
        # have little.
        return pickle.dumps(_sum(self.fit, self.graphs, self.parts[n]), protocol=pickle.HIGHEST_PROTOCOL)
