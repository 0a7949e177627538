"""Which structures make a batch, and which of them a process gets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.utils.data

SPREADS = (0.3, 0.1, 0.0)
"""By this fraction sizes are blurred before structures are ordered by them; the last is exact."""

OPEN = 100
"""So many batches have room at a time; beyond, the oldest is closed."""


class EpochSampler(torch.utils.data.Sampler[list[int]]):
    """Batches of an epoch from the seed and the epoch alone, dealt out to the processes like cards.

    A batch is one optimiser step of all processes together, and it does not depend on their number.
    Every process takes part in every step: one without a structure of the batch gets a structure
    that has no weight, a repeat.

    The number of batches is the same in every epoch. It is that of structures ordered by size, the
    largest first, each of them in the first batch that has room. A random order comes first; where
    it needs more batches, the order by size, blurred at random, is tried.

    Args:
        length: structures of the set.
        seed: of the orders; None: always the set's own order.
        rank, world: this process, and how many there are.
        batch_size: most structures of a batch, over all processes.
        edges: of each structure; None: they do not matter.
        max_edges: most edges of a batch, over all processes; a structure that has more is a batch
            of its own. None: any number.
        weights: of each structure in the loss; None: all are 1.
    """

    def __init__(
        self,
        length: int,
        seed: int | None,
        rank: int,
        world: int,
        batch_size: int,
        *,
        edges: Sequence[int] | None = None,
        max_edges: int | None = None,
        weights: Sequence[float] | None = None,
    ):
        self.seed, self.rank, self.world, self.batch_size, self.max_edges = seed, rank, world, batch_size, max_edges
        self.edges = [1] * length if edges is None else list(edges)
        self.weights = [1.0] * length if weights is None else list(weights)
        self.smallest = min(range(length), key=self.edges.__getitem__)
        by_size = sorted(range(length), key=self.edges.__getitem__, reverse=True)
        self.count = len(self._fill(range(length) if seed is None else by_size))
        self.begin = (0, 0)
        self.set_epoch(0)

    @property
    def sampler(self) -> EpochSampler:
        """Itself: Lightning says the epoch to the sampler inside the sampler of batches."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch comes next; Lightning does so."""
        self.epoch = epoch
        self.batches = self._batches(epoch)
        self.own = [self._deal(batch) for batch in self.batches]

    def resume(self, epoch: int, batch: int) -> None:
        """Says with which batch of an epoch the next iteration begins; other epochs are whole."""
        self.begin = (epoch, batch)
        self.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[int]]:
        first = self.begin[1] if self.begin[0] == self.epoch else 0
        return (own or [self.smallest] for own in self.own[first:])

    def __len__(self) -> int:
        return self.count

    def real(self, batch: int) -> int:
        """How many structures of this process's batch are no repeats; they come first."""
        return len(self.own[batch])

    def structure(self, batch: int, index: int) -> int:
        """The number in the set of the structure at ``index`` of this process's batch.

        A repeat has none: -1.
        """
        return self.own[batch][index] if index < self.real(batch) else -1

    def size(self, batch: int) -> tuple[int, int]:
        """Structures and edges of a batch, over all processes."""
        own = self.batches[batch]
        return len(own), sum(self.edges[n] for n in own)

    def total_weight(self, batch: int) -> float:
        """The sum of the weights of a batch's structures, over all processes."""
        return sum(self.weights[n] for n in self.batches[batch])

    def _batches(self, epoch: int) -> list[list[int]]:
        numbers = range(len(self.edges))
        if self.seed is None:
            return self._fill(numbers)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(numbers), generator=generator).tolist()
        batches = self._fill(order)
        if len(batches) <= self.count:
            return self._split(batches)
        for spread in SPREADS:
            blur = 1 + spread * (2 * torch.rand(len(numbers), generator=generator, dtype=torch.float64) - 1)
            size = (torch.tensor(self.edges) * blur).tolist()
            batches = self._fill(sorted(order, key=size.__getitem__, reverse=True))
            if len(batches) <= self.count:
                break
        mixed = torch.randperm(len(batches), generator=generator).tolist()  # the largest came first
        return self._split([batches[n] for n in mixed])

    def _fill(self, order: Sequence[int]) -> list[list[int]]:
        """Puts each structure into the first open batch that has room for it.

        How many batches that makes depends on the sizes in their order alone.
        """
        batches: list[list[int]] = []
        room: dict[int, int] = {}  # batch -> its edges
        for n in order:
            size = self.edges[n]
            fitting = (b for b, edges in room.items() if self.max_edges is None or edges + size <= self.max_edges)
            b = next(fitting, len(batches))
            if b == len(batches):
                batches.append([])
            batches[b].append(n)
            room[b] = room.get(b, 0) + size
            if len(batches[b]) == self.batch_size:
                del room[b]
            elif len(room) > OPEN:
                del room[min(room)]
        return batches

    def _split(self, batches: list[list[int]]) -> list[list[int]]:
        """As many batches as in every epoch: the longest are halved."""
        while len(batches) < self.count:
            longest = max(range(len(batches)), key=lambda b: len(batches[b]))
            half = len(batches[longest]) // 2
            batches[longest : longest + 1] = [batches[longest][:half], batches[longest][half:]]
        return batches

    def _deal(self, batch: list[int]) -> list[int]:
        """This process's structures: the largest goes first, each to whom has the fewest edges."""
        hands: list[list[int]] = [[] for _ in range(self.world)]
        edges = [0] * self.world
        for n in sorted(batch, key=self.edges.__getitem__, reverse=True):
            lightest = min(range(self.world), key=edges.__getitem__)
            hands[lightest].append(n)
            edges[lightest] += self.edges[n]
        return hands[self.rank]
