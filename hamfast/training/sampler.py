"""Which structures a process gets, in which order."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.utils.data


class EpochSampler(torch.utils.data.Sampler[int]):
    """A permutation per epoch from the seed alone, dealt out to the processes like cards.

    Batch b of n processes with batch size s holds the same structures as batch b of one process
    with batch size n s.

    Args:
        length: structures of the set.
        seed: of the permutations; None: always the set's own order.
        rank, world: this process, and how many there are.
        batch_size: structures of a batch of this process.
    """

    def __init__(self, length: int, seed: int | None, rank: int, world: int, batch_size: int):
        self.length, self.seed, self.rank, self.world, self.batch_size = length, seed, rank, world, batch_size
        # Every process takes part in every step: the last batch is filled up from the front. The
        # repeats have no weight.
        self.total = -(-length // world) * world
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch comes next; Lightning does so."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = list(range(self.length))
        if self.seed is not None:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(self.length, generator=generator).tolist()
        order = [order[n % self.length] for n in range(self.total)]
        return iter(order[self.rank :: self.world])

    def __len__(self) -> int:
        return self.total // self.world

    def position(self, batch: int, index: int) -> int:
        """The position in the epoch of the structure at ``index`` of this process's batch.

        Repeats have the positions after the last structure.
        """
        return self.rank + self.world * (batch * self.batch_size + index)

    def real(self, batch: int) -> tuple[int, int]:
        """How many structures of a batch are no repeats: of this process, and of all processes.

        In this process's batch they come first.
        """
        size = min(self.batch_size, len(self) - batch * self.batch_size)
        own = sum(self.position(batch, n) < self.length for n in range(size))
        first = batch * self.batch_size * self.world
        return own, min(self.length, first + size * self.world) - first
