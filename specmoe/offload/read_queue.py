"""Who reads next: the reads that wait, those under way, and the threads that serve them.

Comes in: ``Read`` tickets with a priority. Goes out: one ticket at a time to each reader thread.
``offload.store`` submits and copies. The threads own the queue, never the store: a store that is
dropped without ``close`` can go, and ends them.

An interrupt may end a caller anywhere, so the lock is taken as a plain ``threading.Lock``: its
``with`` cannot be cut short between taking and giving back.
"""

from __future__ import annotations

import atexit
import heapq
import itertools
import os
import threading
import time
import weakref
from collections.abc import Callable

from ..errors import StoreError
from .transfers import Read

# Priorities: what compute waits for goes first.
DEMAND, PREFETCH = 0, 1
# What the end of the process waits for threads whose engine nobody closed.
EXIT_S = 2.0


class ReadQueue:
    """State: waiting reads by priority, reads under way, whether it is closed."""

    def __init__(self):
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._order = itertools.count()
        self._waiting: list[tuple[int, int, Read]] = []
        self._under_way: list[Read] = []
        self._is_closed = False
        self._threads: list[threading.Thread] = []
        self._num_serving = 0
        self._at_the_end: Callable[[], None] | None = None

    def start(
        self, serve: Callable[[Read, object], None], make_reader: Callable[[], object], number: int
    ) -> None:
        """``number`` threads that call ``serve(read, reader)`` for every read, each with a reader
        of its own. ``serve`` is a method of a store, which is held only while it serves. Readers
        are made here: where one cannot be, the caller hears of it, and no read waits for it."""
        readers = [make_reader() for _ in range(number)]
        _started.add(self)
        self._num_serving = number
        for index, reader in enumerate(readers):
            thread = threading.Thread(
                target=_serve_all,
                args=(self, weakref.WeakMethod(serve), reader),
                name=f"specmoe-reader-{index}",
                daemon=True,
            )
            self._threads.append(thread)
            thread.start()

    def submit(self, read: Read, priority: int) -> None:
        """Queue a read. ``StoreError`` when closed, in a forked child, or while a read that stalled
        may still fill its buffer."""
        if os.getpid() != self._process:  # nobody would ever serve it
            raise StoreError(
                "this process is a fork of the one that loaded the engine, and forks "
                "have no readers: load it here"
            )
        with self._lock:
            if self._is_closed:
                raise StoreError("the expert store is closed: load the engine again")
            self._refuse_while_stalled()
            read.number = next(self._order)
            heapq.heappush(self._waiting, (priority, read.number, read))
            self._wake.notify()

    def _refuse_while_stalled(self) -> None:
        """A read that everybody has given up on may still fill its buffer: until it has, no buffer
        is safe."""
        for read in self._under_way:
            if read.abandoned:
                raise StoreError(
                    f"reading {read.key} has stalled and not come back yet: try again when the "
                    "disk answers, or load the engine again"
                )

    def cancel(self, read: Read) -> bool:
        """Take back a read nobody started; True when it will not happen."""
        with self._lock:
            if read.started:
                return False
            read.cancelled = True
        read.finish()
        return True

    def promote(self, read: Read) -> None:
        """Compute waits for this prefetch now: move it before all other prefetches."""
        with self._lock:
            if not read.started and not read.cancelled:
                heapq.heappush(self._waiting, (DEMAND, next(self._order), read))

    def drain(self) -> None:
        """Take back what waits and wait for what is under way: afterwards nobody writes into any
        buffer, whatever became of the run that asked. ``StoreError`` while a read has stalled."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
            under_way = list(self._under_way)
        for _, _, read in waiting:
            self.cancel(read)
        for read in under_way:
            read.wait_released()
        with self._lock:
            self._refuse_while_stalled()

    def is_idle(self) -> bool:
        """Nothing waits and nothing is under way."""
        with self._lock:
            return not self._waiting and not self._under_way

    def close(self) -> None:
        """No read is served any more; those that wait fail. Threads end once their read is done. A
        forked child has none."""
        if os.getpid() != self._process:
            return
        with self._lock:
            self._is_closed = True
            waiting, self._waiting = self._waiting, []
            self._wake.notify_all()
        for _, _, read in waiting:
            if not read.started:
                read.finish(StoreError("the expert store was closed"))

    def join(self, timeout_s: float) -> bool:
        """Wait at most ``timeout_s`` until every thread has ended, ``close`` first; whether they
        have. A forked child has none."""
        until_s = time.monotonic() + timeout_s
        for thread in self._threads if os.getpid() == self._process else ():
            thread.join(max(0.0, until_s - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def at_the_end(self, free: Callable[[], None]) -> None:
        """Call ``free`` once no thread serves any more: at once, or when the last one ends. A
        forked child has none."""
        if os.getpid() == self._process:
            with self._lock:
                if self._num_serving:
                    self._at_the_end = free
                    return
        free()

    def ended(self) -> None:
        """A thread ends."""
        with self._lock:
            self._num_serving -= 1
            if self._num_serving:
                return
            free, self._at_the_end = self._at_the_end, None
        if free is not None:
            free()

    def first_under_way(self) -> Read | None:
        """What a thread that has not ended reads; None where it lets go just now."""
        with self._lock:
            return next(iter(self._under_way), None)

    def take(self) -> Read | None:
        """The next read, for the thread that calls; waits for one. None when closed."""
        with self._lock:
            while True:
                while not self._waiting and not self._is_closed:
                    self._wake.wait()
                if self._is_closed:
                    return None
                read = heapq.heappop(self._waiting)[2]
                if not read.started and not read.cancelled:
                    read.started = True
                    self._under_way.append(read)
                    return read

    def done(self, read: Read, error: Exception | None) -> None:
        """A thread has let go of the buffer."""
        with self._lock:
            self._under_way.remove(read)
        read.finish(error)


def _serve_all(queue: ReadQueue, serve: weakref.WeakMethod, reader: object) -> None:
    try:
        while (read := queue.take()) is not None:
            work = serve()
            if work is None:
                queue.done(read, StoreError("the expert store was dropped"))
                return
            work(read, reader)
            del work, read
    finally:
        queue.ended()


_started: weakref.WeakSet[ReadQueue] = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    """A thread that ended later would free tensors when Python is going already, and abort the
    process."""
    for queue in list(_started):
        queue.close()
    for queue in list(_started):
        queue.join(EXIT_S)
