"""The processes of a training, as torchrun or a cluster's launcher starts them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import distributed

from hamfast import environment


@dataclass(frozen=True)
class Processes:
    """This process among all that train together."""

    rank: int
    """The number of this process, from 0."""
    world: int
    """How many there are."""
    local_world: int
    """How many of them run on this machine."""

    @classmethod
    def from_environment(cls) -> Processes:
        """As the launcher's environment variables say; one process without a launcher.

        Raises:
            HamfastError: one of these variables is no whole number.
        """
        return cls(
            rank=environment.whole("RANK"),
            world=environment.whole("WORLD_SIZE"),
            local_world=environment.whole("LOCAL_WORLD_SIZE"),
        )

    @property
    def is_first(self) -> bool:
        """Is this the process that writes and prints?"""
        return self.rank == 0

    def deal(self, share_structures: bool) -> tuple[int, int]:
        """This process and how many there are, where structures are dealt out; all processes that
        share them get the same."""
        return (0, 1) if share_structures else (self.rank, self.world)

    @property
    def machines(self) -> int:
        """How many machines there are, with as many processes each as this one."""
        return max(1, self.world // self.local_world)

    @staticmethod
    def wait_for_all() -> None:
        """Returns once every process has called this."""
        if distributed.is_available() and distributed.is_initialized():
            distributed.barrier()


@contextmanager
def together() -> Iterator[Processes]:
    """All processes that a launcher has started, joined by collectives within the block."""
    processes = Processes.from_environment()
    if processes.world > 1:
        distributed.init_process_group("gloo", rank=processes.rank, world_size=processes.world)
    try:
        yield processes
    finally:
        if processes.world > 1:
            distributed.destroy_process_group()
