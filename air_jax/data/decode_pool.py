"""Decoding in parallel processes, some files ahead of who needs them.

A decoder that crashes takes its process with it, not the run: the file is found and reported.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

from air_jax.data.decoding import Decoded, Limits, decode_file

CHUNK = 32  # files of one call
AHEAD = 4  # calls under way or done, for each process


class Task(NamedTuple):
    """What is wanted of files; see `decoding.decode_file`."""

    folder: str
    shape: tuple[int, int, int] | None
    fit: str
    limits: Limits
    thumbnails: bool = True


def decode(paths: list[str], task: Task, workers: int) -> Iterator[Decoded]:
    """Decode files in processes.

    Args:
        paths: relative to the task's folder.
        task: what is wanted.
        workers: processes.

    Yields:
        One for each path, in their order.
    """
    chunks = deque(paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK))
    while chunks:
        pool = _pool(workers)
        under_way: deque[tuple[list[str], Future[list[Decoded]]]] = deque()
        try:
            while chunks or under_way:
                while chunks and len(under_way) < AHEAD * workers:
                    under_way.append((chunks[0], pool.submit(_decode_chunk, chunks[0], task)))
                    chunks.popleft()
                yield from under_way[0][1].result()
                under_way.popleft()
        except BrokenProcessPool:
            chunks.extendleft(chunk for chunk, _ in reversed(under_way))
            # The file that did it is in a chunk that was under way: one of the first few.
            for _ in range(min(workers + 1, len(chunks))):
                yield from _one_by_one(chunks.popleft(), task)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _pool(workers: int) -> ProcessPoolExecutor:
    # Forking a process that runs JAX's threads can deadlock.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _decode_chunk(paths: list[str], task: Task) -> list[Decoded]:
    return [decode_file(task.folder, path, *task[1:]) for path in paths]


def _one_by_one(paths: list[str], task: Task) -> Iterator[Decoded]:
    """Each file in a process that may die of it."""
    pool = _pool(1)
    for path in paths:
        try:
            yield from pool.submit(_decode_chunk, [path], task).result()
        except BrokenProcessPool:
            pool.shutdown(wait=False)
            pool = _pool(1)
            yield Decoded(path, error="the decoder crashed on it")
    pool.shutdown()
