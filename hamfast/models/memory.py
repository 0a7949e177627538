"""How much memory a network needs for its edges, measured on small pieces, and how much is free."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hamfast.errors import HamfastError
from hamfast.graph import CrystalGraph
from hamfast.models.cascade import Cascade
from hamfast.models.pieces import PieceMaker
from hamfast.models.sweeps import Whole

SMALL, LARGER = 2_000, 6_000
"""Edges of the pieces that are measured."""
MOST = 100_000
"""Edges of a piece, at most: more are no faster."""
HIDDEN = 1.5
"""Of the memory of tensors: that of kernels' buffers, and of blocks that the allocator keeps."""
APART = 400e6
"""Bytes: what libraries take with the first calls, and the tables of the kernels."""
UNITS = {"B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KIB": 2.0**10, "MIB": 2.0**20, "GIB": 2.0**30}


class TensorPeak(TorchDispatchMode):
    """The largest number of bytes of tensors made within the block that lived at one time.

    Attributes:
        bytes: that number.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.now = 0
        self.storage_of: dict[int, int] = {}
        self.users: dict[int, list[int]] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Carries the call out and takes note of what it returns."""
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and id(tensor) not in self.storage_of:
                self._add(tensor)
        return out

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if key == 0:
            return
        if key not in self.users:
            self.users[key] = [0, storage.nbytes()]
            self.now += storage.nbytes()
            self.bytes = max(self.bytes, self.now)
        self.users[key][0] += 1
        self.storage_of[id(tensor)] = key
        weakref.finalize(tensor, self._drop, id(tensor))

    def _drop(self, tensor: int) -> None:
        key = self.storage_of.pop(tensor)
        users = self.users[key]
        users[0] -= 1
        if users[0] == 0:
            self.now -= users[1]
            del self.users[key]


def memory_in_bytes(text: str) -> float:
    """The number of bytes in words like ``8GB``, ``500 MB`` or ``16GiB``.

    Raises:
        HamfastError: it is none.
    """
    cleaned = text.strip().upper().replace(" ", "")
    number = cleaned.rstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    unit = cleaned[len(number) :] or "B"
    try:
        found = float(number) * UNITS[unit]
    except (ValueError, KeyError):
        found = 0.0
    if not 0 < found < 1e18:
        raise HamfastError(f"--memory: expected a size as 8GB or 500MB, found {text!r}")
    return found


def free_memory(device: torch.device) -> float | None:
    """Bytes that are free on a device; None if that cannot be told."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    free = _number(Path("/proc/meminfo"), "MemAvailable:")
    found = [] if free is None else [1024.0 * free]
    for most, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        group = Path("/sys/fs/cgroup")
        limit, own = _number(group / most), _number(group / used)
        if limit is not None and own is not None and limit < 2**60:
            found.append(max(0.0, limit - own))
    return min(found, default=None)


def used_memory(device: torch.device) -> float:
    """Bytes that this process has on a device; 0 if that cannot be told."""
    if device.type == "cuda":
        return float(torch.cuda.memory_allocated(device))
    return 1024.0 * (_number(Path("/proc/self/status"), "VmRSS:") or 0.0)


def _number(path: Path, name: str = "") -> float | None:
    try:
        lines = path.read_text().splitlines()
        return float(next(line for line in lines if line.startswith(name)).removeprefix(name).split()[0])
    except (OSError, StopIteration, ValueError, IndexError):  # another system, or no limit
        return None


@torch.no_grad()
def measured(model: Cascade, maker: PieceMaker) -> tuple[float, float, int]:
    """Bytes of a piece, bytes of each of its edges, and the number of sweeps of the network.

    Args:
        model: on its device.
        maker: of the structure's pieces.
    """
    found: list[tuple[int, int]] = []
    sweeps = 0
    for edges in (SMALL, LARGER):
        piece = maker.first(edges)
        whole = Counted(piece.graph)
        with TensorPeak() as peak:
            model.sweep(whole)
        found.append((piece.graph.num_edges, peak.bytes))
        sweeps = whole.count
    (small, less), (larger, more) = found
    per_edge = max((more - less) / max(larger - small, 1), 0.2 * more / larger)
    return max(0.0, less - per_edge * small), per_edge, sweeps


class Counted(Whole):
    """A graph in one piece, which counts the sweeps over it."""

    def __init__(self, graph: CrystalGraph):
        super().__init__(graph)
        self.count = 0

    def _count(self, function: Any) -> Any:
        self.count += 1
        return function(self.piece)

    nodes = edges = both = _count
