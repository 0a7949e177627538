"""The same work at many k-points, by several processes of this machine."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from threadpoolctl import threadpool_limits

WORTH = 3e11
"""Operations below which processes take longer to start than they save."""

_work: Callable[[Any], Any] | None = None


def at_each(work: Callable[[Any], Any], points: Sequence[Any], jobs: int, operations: float) -> Iterator[Any]:
    """What ``work`` returns for each point, in their order.

    Processes are started anew, as a copy of one with threads may wait for ever; each of them has
    one thread.

    Args:
        work: a function that can be pickled.
        points: its arguments.
        jobs: processes, at most.
        operations: of all calls together, about.
    """
    jobs = min(jobs, len(points))
    if jobs < 2 or operations < WORTH:
        yield from map(work, points)
        return
    with multiprocessing.get_context("spawn").Pool(jobs, initializer=_begin, initargs=(work,)) as pool:
        yield from pool.imap(_call, points)


def _begin(work: Callable[[Any], Any]) -> None:
    global _work
    _work = work
    threadpool_limits(1)


def _call(point: Any) -> Any:
    assert _work is not None
    return _work(point)
