"""The pass over a data set before a training: each structure is read once, and all that a training
needs of it is kept in ``prepared.sqlite``.

Kept are the graph with its targets, and what a training has to know about all structures before its
first step: elements and orbitals, sizes, the lengths of pairs, the size of the cell, and the range
of distances, neighbours and angles.

A pass that was stopped, at whatever point, goes on where it was. A structure whose files have
changed since is prepared again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from hamfast.data import packed
from hamfast.data.formats import IN_FOLDERS, label_of, read_snapshot, read_structure
from hamfast.data.graph_bytes import pack, unpack, unpack_shift
from hamfast.data.graphs import build_graph
from hamfast.data.parallel import FEW, results
from hamfast.data.snapshot import Snapshot
from hamfast.data.sqlite_file import Some
from hamfast.data.statistics import StructureStatistics
from hamfast.data.store import Entry, Prepared, Store
from hamfast.data.training_range import TrainingRange
from hamfast.errors import DataWarning, HamfastError
from hamfast.graph import CrystalGraph
from hamfast.machine import cores
from hamfast.targets import TargetSpec
from hamfast.version import __version__

MOST_WORDS = 10
"""So many warnings of a pass are shown."""
PATIENCE = 300.0
"""Seconds without news after which a process does itself what it waits for."""
NEWS = "news"
"""The name of a result that changes while a process makes others."""
PREDICTIONS = {layout.PREDICTION for layout in IN_FOLDERS}
"""Files in structure folders that a training does not read."""


@dataclass
class About:
    """What is known about a structure beside its graph."""

    statistics: StructureStatistics
    range: TrainingRange | None
    """None where the structure's matrices were not read: it has no graph then."""

    def text(self) -> str:
        """For the store."""
        seen = None if self.range is None else self.range.state()
        return json.dumps({"statistics": self.statistics.state(), "range": seen})

    @classmethod
    def from_text(cls, text: str) -> About:
        """The inverse of :meth:`text`."""
        content = json.loads(text)
        seen = None if content["range"] is None else TrainingRange.from_state(content["range"])
        return cls(StructureStatistics.from_state(content["statistics"]), seen)


@dataclass
class PreparedSet:
    """Prepared structures.

    Args:
        store: that holds their graphs.
        about: of each structure folder.
        states: of each structure folder: changes whenever its files or the program change.
        numbers: of the graphs in the store; those that could not be kept are not among them.
    """

    store: Store
    about: dict[Path, About]
    states: dict[Path, str]
    numbers: dict[Path, int]

    def graph(self, folder: Path, spec: TargetSpec) -> CrystalGraph | None:
        """The graph of a structure; None if the store does not have it.

        Raises:
            ValueError, sqlite3.Error: the store is damaged.
        """
        number = self.numbers.get(folder)
        content = None if number is None else self.store.graph(number)
        if content is None:
            return None
        graph = unpack(content, spec, label_of(folder))
        graph.known_target()
        return graph

    def shift(self, folder: Path, name: str) -> Tensor | None:
        """The shift ``[edges, target dim]`` (eV) of a graph, kept under a name; None if the store
        does not have it, or has it damaged."""
        number = self.numbers.get(folder)
        with contextlib.suppress(ValueError, sqlite3.Error):
            content = None if number is None else self.store.shift(name, number)
            return None if content is None else unpack_shift(content)
        return None


class _Result(NamedTuple):
    """What a process has made of a structure, or why it could not."""

    folder: Path
    about: str
    graph: bytes | None
    words: list[str]
    error: str | None


def prepare(
    folders: Sequence[Path],
    store: Store,
    dtype: torch.dtype,
    *,
    bare: Collection[Path] = (),
    report: Callable[[int, int], None] = lambda done, total: None,
    wait: bool = False,
) -> PreparedSet:
    """Prepares the structures that are not prepared yet, by as many processes as there are cores.

    Args:
        folders: of the structures.
        store: where they are kept. One that cannot be written costs time, not the run.
        dtype: of vectors and targets.
        bare: those of the folders whose matrices are not needed.
        report: called with the number of structures that are done, and of all that were to do.
        wait: another process prepares them, and this one waits for it.

    Raises:
        HamfastError: a structure cannot be read, or has no Hamiltonian.
    """
    kind, bare = str(dtype).removeprefix("torch."), set(bare)
    keys = {folder: str(folder.resolve()) for folder in folders}
    states = states_of(folders)
    whole = {keys[folder] for folder in folders if folder not in bare}

    entries = _entries(store, kind)

    def missing(again: bool = False) -> dict[str, Path]:
        nonlocal entries
        entries = _entries(store, kind) if again else entries
        return {
            key: folder
            for folder, key in keys.items()
            if key not in entries
            or entries[key].state != states[folder]
            or (key in whole and '"range": null' in entries[key].about)
        }

    if wait:
        wait_until_none(lambda: len(missing(again=True)), PATIENCE)
    new, said = _Keeper(store, kind), 0
    waiting = missing()
    for done, result in enumerate(_results(waiting, whole, dtype), 1):
        for word in result.words[: max(0, MOST_WORDS - said)]:
            warnings.warn(word, DataWarning, stacklevel=2)
        said += len(result.words)
        if result.error is not None:
            new.write()
            raise HamfastError(result.error)
        key = keys[result.folder]
        new.add(Prepared(key, states[result.folder], result.about, result.graph))
        report(done, len(waiting))
    new.write()
    if said > MOST_WORDS:
        more = f"{said - MOST_WORDS:,} further warnings about structures; `hamfast data check` shows all"
        warnings.warn(more, DataWarning, stacklevel=2)
    entries |= new.entries
    about = {key: About.from_text(entries[key].about) for key in set(keys.values())}
    numbers = {folder: entries[key].id for folder, key in keys.items() if entries[key].id >= 0}
    return PreparedSet(store, {folder: about[key] for folder, key in keys.items()}, states, numbers)


def wait_until_none(left: Callable[[], int], patience: float) -> None:
    """Waits while another process works: until nothing is left, or as much is for so many
    seconds."""
    changed, before = time.monotonic(), left()
    while before and time.monotonic() - changed < patience:
        time.sleep(1.0)
        now = left()
        if now != before:
            changed, before = time.monotonic(), now


def states_of(folders: Sequence[Path]) -> dict[Path, str]:
    """Of each structure, what changes whenever its files or the program change. Predictions do not
    count.

    Raises:
        HamfastError: a structure cannot be read.
    """
    inside = packed.checksums(folders)
    return {f: digest_of(inside[f], __version__) if f in inside else _state_of(f) for f in folders}


def _state_of(folder: Path) -> str:
    try:
        files = [p for p in sorted(folder.iterdir()) if p.is_file() and p.name not in PREDICTIONS]
        stats = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    except OSError as error:
        raise HamfastError(f"{folder}: cannot be read ({error.strerror or error})") from error
    return digest_of(stats, __version__)


def digest_of(*content) -> str:
    """32 letters that stand for values which ``repr`` shows."""
    return hashlib.sha256(repr(content).encode()).hexdigest()[:32]


def _entries(store: Store, kind: str) -> dict[str, Entry]:
    """What the store holds; a damaged one is made anew."""
    try:
        return store.entries(kind)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise HamfastError(f"{store.path}: cannot be read ({error})") from error
        store.begin_anew(f"damaged ({error})")
        return {}


class _Keeper:
    """Writes what was prepared to the store."""

    def __init__(self, store: Store, kind: str):
        self.store, self.kind, self.warned = store, kind, False
        self.entries: dict[str, Entry] = {}
        self.some = Some(self._keep)

    def add(self, one: Prepared) -> None:
        self.some.add(one, len(one.graph or b""))

    def write(self) -> None:
        self.some.write()

    def _keep(self, made: list[Prepared]) -> None:
        try:
            self.entries |= self.store.keep(self.kind, made)
        except sqlite3.Error as error:
            # A number below zero: there is no such graph in the store.
            self.entries |= {one.folder: Entry(-1, one.state, one.about) for one in made}
            if not self.warned:
                self.warned = True
                warnings.warn(
                    f"{self.store.path}: prepared structures cannot be kept, each epoch prepares them again ({error})",
                    DataWarning,
                    stacklevel=2,
                )


def _results(waiting: dict[str, Path], whole: set[str], dtype: torch.dtype) -> Iterator[_Result]:
    """Of all structures that wait, in their order."""
    work = _Work([(folder, key in whole) for key, folder in waiting.items()], dtype)
    yield from results(work, min(cores(), len(work)) if len(work) >= FEW else 0)


class _Work(Dataset):
    def __init__(self, structures: list[tuple[Path, bool]], dtype: torch.dtype):
        self.structures, self.dtype = structures, dtype

    def __len__(self) -> int:
        return len(self.structures)

    def __getitem__(self, n: int) -> _Result:
        folder, whole = self.structures[n]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", DataWarning)
            try:
                about, graph = prepare_one(folder, self.dtype, whole)
            except HamfastError as error:
                return _Result(folder, "", None, [], str(error))
            except OSError as error:
                return _Result(folder, "", None, [], f"{error.filename or folder}: {error.strerror or error}")
        words = [str(word.message) for word in caught if issubclass(word.category, DataWarning)]
        return _Result(folder, about.text(), graph, words, None)


def prepare_one(folder: Path, dtype: torch.dtype, whole: bool = True) -> tuple[About, bytes | None]:
    """What is known about a structure, and the bytes of its graph.

    Args:
        folder: of the structure.
        dtype: of vectors and targets.
        whole: False leaves its matrices out; there is no graph then.

    Raises:
        HamfastError: it cannot be read, or has no Hamiltonian.
    """
    if not whole:
        return About(StructureStatistics.of(folder, read_structure(folder)), None), None
    snapshot = read_snapshot(folder)
    own, graph = graph_of(folder, snapshot, dtype)
    statistics = StructureStatistics.of(folder, snapshot)
    assert snapshot.hamiltonian is not None
    # Lengths as the graph has them, so that both agree to the last digit.
    statistics.measure(snapshot, snapshot.hamiltonian.pairs, lambda _: graph.length.double().numpy())
    return About(statistics, TrainingRange.of([snapshot])), pack(graph, own)


def graph_of(folder: Path, snapshot: Snapshot, dtype: torch.dtype) -> tuple[TargetSpec, CrystalGraph]:
    """The graph of a structure with its targets, as that of a data set of its elements alone.

    Raises:
        HamfastError: it has no Hamiltonian.
    """
    if snapshot.hamiltonian is None:
        raise HamfastError(f"{folder}: there is no Hamiltonian; expected one to learn from")
    own = TargetSpec.from_mapping({z: tuple(snapshot.shells[z]) for z in snapshot.elements}, snapshot.spinful)
    return own, build_graph(snapshot, own, dtype=dtype)


def once(
    store: Store, name: str, make: Callable[[], bytes], *, wait: bool = False, patience: float = PATIENCE
) -> bytes:
    """A result that the store keeps; it is made where there is none.

    Args:
        store: that keeps it. One that cannot be written costs time, not the run.
        name: of the result: it must change with whatever the result depends on.
        make: makes it.
        wait: another process makes it, and this one waits for it.
        patience: so many seconds after the last news of it.
    """
    begun, news = time.monotonic(), None
    while True:
        with contextlib.suppress(sqlite3.Error):
            found = store.result(name)
            if found is not None:
                return found
            latest = store.result(NEWS)
            if latest != news:
                begun, news = time.monotonic(), latest
        if not wait or time.monotonic() - begun > patience:
            break
        time.sleep(0.5)
    made = make()
    with contextlib.suppress(sqlite3.Error):
        store.keep_result(name, made)
    return made


def range_of(about: Iterable[About]) -> TrainingRange:
    """The range of several structures together."""
    return TrainingRange.together(one.range for one in about if one.range is not None)
