"""Sizes of tiles per architecture: chosen from a table, the same in every run."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hamfast.triton.launch import power_of_two


@dataclass(frozen=True)
class ChannelConfiguration:
    """Of kernels/channel.py."""

    elements: int
    """Of a tile: edges times channels."""
    channels: int
    """At most, of a unit."""
    components: int
    """At most, of the blocks of a unit."""
    entries: int
    """At most, of the couplings of a unit's tasks: what is unrolled in one kernel."""
    tasks: int
    """At most, of a unit that is cut."""
    num_warps: int
    least_channels: int = 1
    least_edges: int = 1

    def edges(self, channels: int) -> int:
        """Edges of a tile that has so many channels."""
        return max(self.least_edges, self.elements // channels)


# One thread holds elements / (32 num_warps) of each component's tile: one, where components are
# many.
_FORWARD = ChannelConfiguration(elements=128, channels=128, components=32, entries=600, tasks=64, num_warps=4)
_BACKWARD = ChannelConfiguration(elements=128, channels=128, components=16, entries=300, tasks=16, num_warps=4)
# Weights made in the kernel: a matrix unit's product has no side shorter than 16. What spilled is
# in bench/triton_table.py.
_RADIAL = {
    "forward": ChannelConfiguration(512, 32, 9, 120, 16, num_warps=4, least_channels=16, least_edges=16),
    "backward": ChannelConfiguration(256, 16, 16, 60, 3, num_warps=2, least_channels=16, least_edges=16),
    "to weights": ChannelConfiguration(256, 16, 16, 60, 2, num_warps=4, least_channels=16, least_edges=16),
}

# By architecture; by what is made, and whether weights are made in the kernel.
_CHANNEL = {
    "cuda": {"forward": _FORWARD, "backward": _BACKWARD},
    # 64 lanes per wavefront: as many registers per lane with twice the elements.
    "hip": {
        "forward": ChannelConfiguration(256, 128, 32, 600, 64, num_warps=4),
        "backward": ChannelConfiguration(256, 128, 16, 300, 16, num_warps=4),
    },
}

PRECISION = {"cuda": "tf32x3", "hip": "ieee"}
"""How float32 products use the matrix units: three TF32 products carry float32's digits; AMD's take
float32 itself.
"""


def architecture() -> str:
    """Which column of the tables: Intel's GPUs, and the interpreter, take the first."""
    return "hip" if torch.version.hip else "cuda"


def configuration_of(making: str, radial: bool) -> ChannelConfiguration:
    """Of the channel-wise kernels, ``forward`` or ``backward``; with weights made in them ``to
    weights``, too.
    """
    return (_RADIAL if radial else _CHANNEL[architecture()])[making]


@dataclass(frozen=True)
class RowConfiguration:
    """Of kernels whose programs walk over rows: edges at a time, and columns."""

    edges: int
    columns: int
    num_warps: int

    def cut(self, columns: int) -> tuple[int, int]:
        """(edges, columns) of a tile where a row has so many columns: as many elements in all."""
        width = min(power_of_two(columns), self.columns)
        return max(1, self.edges * self.columns // width), width


FRAME = RowConfiguration(edges=4, columns=32, num_warps=4)
EINSUM = RowConfiguration(edges=4, columns=64, num_warps=4)
SPARSE_MAP = RowConfiguration(edges=4, columns=128, num_warps=4)
CONTRACTION = RowConfiguration(edges=1, columns=128, num_warps=4)
UPDATE = RowConfiguration(edges=4, columns=128, num_warps=4)
ATTENTION_DOTS = RowConfiguration(edges=16, columns=64, num_warps=4)
ATTENTION_SUMS = RowConfiguration(edges=4, columns=256, num_warps=4)
ATTENTION_SCALARS = RowConfiguration(edges=16, columns=8, num_warps=1)
"""Columns: heads."""
