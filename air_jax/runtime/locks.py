"""Locks on disk: one process at a time works in a folder."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(
    path: Path, what: str, *, doing: str = "working in it", wait: bool = False
) -> Iterator[None]:
    """Hold a lock file; the system frees it when the process ends, however it does.

    Args:
        path: of the lock file, which stays.
        what: is locked, for the message.
        doing: what a process that holds it does, likewise.
        wait: until another process has freed it.

    Raises:
        ValueError: another process holds it; the message says which.
    """
    # Not "w": that would wipe out who holds it.
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.seek(0)
            raise ValueError(
                f"{what}: another process is {doing} ({file.read().strip() or path})"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
