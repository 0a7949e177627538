"""What other processes send is received by a thread, while the training computes.

To take a batch from another process means to ask it for memory, and on a busy machine the answer
takes milliseconds. The work of a step goes on meanwhile.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

LOOK = 0.1
"""Seconds after which a thread that waits looks whether it is still wanted."""
_END = object()


class Ahead:
    """Iterates over what a thread has taken from an iterator, which is one item ahead.

    Args:
        items: the iterator. No one else may read from it until :meth:`close`.
        change: is applied to each item, in the thread.
    """

    def __init__(self, items: Iterator[Any], change: Callable[[Any], Any]):
        self.taken: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(maxsize=1)
        self.wanted = True
        self.thread = threading.Thread(target=self._take, args=(items, change), daemon=True)
        self.thread.start()

    def _take(self, items: Iterator[Any], change: Callable[[Any], Any]) -> None:
        try:
            for item in items:
                if not self._give(change(item), None):
                    return
        except BaseException as error:  # it belongs to who asks for the next item
            self._give(_END, error)
        else:
            self._give(_END, None)

    def _give(self, item: Any, error: BaseException | None) -> bool:
        """Is it still wanted?"""
        while self.wanted:
            try:
                self.taken.put((item, error), timeout=LOOK)
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if not self.wanted:
            raise StopIteration
        item, error = self.taken.get()
        if item is not _END:
            return item
        self.close()
        if error is not None:
            raise error
        raise StopIteration

    def close(self) -> None:
        """Ends the thread, and waits until it has."""
        self.wanted = False
        self.thread.join()
