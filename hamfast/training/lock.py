"""One process owns a run's folder: ``run.lock`` names it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from hamfast.errors import HamfastError

try:
    import fcntl
except ImportError:  # pragma: no cover - not on Linux
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = "run.lock"


def identity(pid: int) -> dict | None:
    """Host, id and start time of a process; None if this host has no such process.

    The id is given to another process once its owner has ended. The start time tells the two apart.
    """
    found = {"host": socket.gethostname(), "pid": pid, "started": None}
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        # A zombie has ended, only its parent has not looked yet. Field 22 counts clock ticks since
        # the machine started.
        return None if fields[0] in "ZX" else found | {"started": int(fields[19])}
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
    except (OSError, ValueError, IndexError):
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return found


class RunLock:
    """The lock of a run's folder.

    Args:
        folder: of the run; it is there.

    Attributes:
        taken_over: the words about the dead process whose lock was taken over, or None.
    """

    def __init__(self, folder: Path):
        self.path = folder / LOCK_FILE
        self.taken_over: str | None = None
        self.content: dict | None = None

    def acquire(self) -> None:
        """Takes the lock, also from a process of this host that is dead.

        Raises:
            HamfastError: a living process, or one of another host, has it; the folder cannot be
                written.
        """
        try:
            with self._alone() as file:
                owner = _read(file)
                if owner:
                    self._check(owner)
                self.content = identity(os.getpid())
                file.seek(0)
                file.truncate()
                file.write(json.dumps(self.content) + "\n")
                file.flush()
        except OSError as error:
            raise HamfastError(
                f"{self.path}: could not be written ({error.strerror or error}); a run needs a folder that it can write to"
            ) from error

    def _check(self, owner: dict) -> None:
        who = f"process {owner['pid']} on {owner['host']}"
        if owner["host"] != socket.gethostname():
            raise HamfastError(
                f"{self.path.parent}: {who} works in this folder, or did when it ended; if it has ended, delete "
                f"{self.path}"
            )
        found = identity(owner["pid"])
        if found is not None and found["started"] == owner["started"]:
            raise HamfastError(
                f"{self.path.parent}: {who} works in this folder; wait for its end, stop it, or choose another `output`"
            )
        self.taken_over = f"{who} has ended without a word; its lock is taken over"

    def release(self) -> None:
        """Gives the lock back, if this process has it."""
        with contextlib.suppress(OSError), self._alone() as file:
            if self.content is not None and _read(file) == self.content:
                self.path.unlink()
        self.content = None

    @contextlib.contextmanager
    def _alone(self) -> Iterator:
        """The open file, for one process at a time.

        So of two that find a dead owner only one takes over.
        """
        while True:
            with open(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666), "r+", encoding="utf-8") as file:
                if fcntl is not None:
                    with contextlib.suppress(OSError):  # a file system without locks
                        fcntl.flock(file, fcntl.LOCK_EX)
                try:
                    current = self.path.stat().st_ino == os.fstat(file.fileno()).st_ino
                except FileNotFoundError:
                    current = False
                if current:  # not deleted between opening and locking it
                    yield file
                    return


def _read(file) -> dict | None:
    """The owner; None if there is none, or the file is not a lock of hamfast."""
    try:
        owner = json.loads(file.read())
        return owner if isinstance(owner["host"], str) and isinstance(owner["pid"], int) else None
    except (ValueError, TypeError, KeyError):
        return None
