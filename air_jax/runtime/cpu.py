"""What makes a CPU faster: XLA's library for convolutions, and memory that is kept.

A step of training takes some hundred megabytes for itself and gives them back at its end. The C
library hands so much back to the system, and the next step waits for the same pages, all zeroed
again.
"""

import ctypes
import importlib.metadata
import os
import re

_FLAG = "--xla_cpu_experimental_ynn_fusion_type"
_FAST = f"{_FLAG}=-individual_convolution"
# Of jaxlib. XLA ends the process at a flag that it does not know: the flag was tried on 0.10.2,
# 0.11.2 and 0.12.0.
_KNOWN_FROM, _UNKNOWN_FROM = (0, 10, 2), (0, 13)


def prefer_fast_convolutions() -> None:
    """Keep single convolutions out of YNNPACK; to be called before JAX's first computation.

    A choice in `XLA_FLAGS` is kept, and a jaxlib on which the flag was not tried left as it is.
    """
    try:
        found = importlib.metadata.version("jaxlib")
    except importlib.metadata.PackageNotFoundError:
        return  # the import of JAX says so in plainer words
    version = tuple(map(int, re.findall(r"\d+", found)[:3]))
    flags = os.environ.get("XLA_FLAGS", "")
    if _KNOWN_FROM <= version < _UNKNOWN_FROM and _FLAG not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_FAST}".strip()


# Parameters of glibc's mallopt, from its malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def share_one_heap() -> None:
    """Let all threads allocate from one heap; to be called before JAX's threads start.

    Without it `keep_freed_memory` does nothing for them: the heap of a thread has no room for large
    arrays.
    """
    _mallopt(_ARENA_MAX, 1)


def keep_freed_memory() -> None:
    """From now on, keep freed memory for the next allocation; the process does not shrink again.

    Where the C library is not glibc, nothing changes.
    """
    _mallopt(_MMAP_MAX, 0)
    _mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def _mallopt(parameter: int, value: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(parameter, value)
