"""Processes that work for this one, and end with it, however that ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection


@contextmanager
def worker_pool(count: int) -> Iterator[ProcessPoolExecutor]:
    """Start processes for work, from scratch (``spawn``), when there is some.

    Each watches a pipe of which this process holds the other end. The system closes that end when this process is gone,
    also where it was killed, and then they end at once. When the block is left, work that has not ended is dropped.

    Args:
        count: processes at a time, at least 1.
    """
    context = multiprocessing.get_context("spawn")
    alive, end = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(count, context, initializer=_end_with_parent, initargs=(alive,))
    try:
        yield pool
    finally:
        end.close()
        pool.shutdown(cancel_futures=True)
        alive.close()


def _end_with_parent(alive: Connection) -> None:
    """End this process at once when the one that started it closes its end of the pipe, or is gone.

    What a person types at the terminal (Ctrl-C) goes to that one only.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        with suppress(EOFError, OSError):
            alive.recv()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
