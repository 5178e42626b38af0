"""The choice of XLA's library for convolutions on a CPU."""

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
