"""Playing an accelerator on the CPU, and counting what would make a real one wait.

A test that uses `plays_accelerator` runs the functions that an accelerator runs. With the mark
`gpu` the test runs on a real one, too: `pytest -m gpu`.
"""

import contextlib
import dataclasses
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest
from jax._src.array import ArrayImpl

ROOT = Path(__file__).parent.parent
_COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def plays_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """The project takes the CPU for an accelerator; a real accelerator is left as it is."""
    if jax.default_backend() == "cpu":
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        # What was traced before, was traced for a CPU.
        jax.clear_caches()


@dataclasses.dataclass
class Counts:
    """What happened within a `counting` block.

    Attributes:
        compilations: the names of the compiled functions, also of those in the cache on disk.
        round_trips: the places in the source where Python waited for a device or read from it.
    """

    compilations: list[str] = dataclasses.field(default_factory=list)
    round_trips: list[str] = dataclasses.field(default_factory=list)


_counting: list[Counts] = []


def _compiled(event: str, _: float, **told: Any) -> None:
    if event == _COMPILED:
        for counts in _counting:
            counts.compilations.append(str(told.get("fun_name")))


jax.monitoring.register_event_duration_secs_listener(_compiled)


@contextlib.contextmanager
def counting() -> Iterator[Counts]:
    """Count compilations and round trips; several arrays fetched by one call are one round trip.

    `jax.device_get`, `jax.block_until_ready`, `np.asarray` and the like of arrays on a device are
    seen, and `float` of one. `jax.clear_caches()` before makes compilations those of a new process.
    """
    counts, inside = Counts(), [False]

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if inside[0] or not any(isinstance(leaf, jax.Array) for leaf in _leaves(args)):
                return function(*args, **kwargs)
            counts.round_trips.append(_place())
            inside[0] = True
            try:
                return function(*args, **kwargs)
            finally:
                inside[0] = False

        return call

    value = ArrayImpl._value.fget
    with contextlib.ExitStack() as stack:
        for module, names in (
            (jax, ("device_get", "block_until_ready")),
            (np, ("asarray", "array", "stack", "concatenate")),
            (ArrayImpl, ("block_until_ready",)),
        ):
            for name in names:
                function = watched(getattr(module, name))
                stack.enter_context(mock.patch.object(module, name, function))
        stack.enter_context(mock.patch.object(ArrayImpl, "_value", property(watched(value))))
        _counting.append(counts)
        stack.callback(_counting.remove, counts)
        yield counts


def _leaves(args: tuple[Any, ...]) -> list[Any]:
    return jax.tree.leaves(args, is_leaf=lambda leaf: isinstance(leaf, jax.Array))


def _place() -> str:
    """The innermost line of the project, or of its tests, that is being run."""
    frames = [
        frame
        for frame in traceback.extract_stack()
        if frame.filename.startswith((f"{ROOT}/air_jax/", f"{ROOT}/tests/"))
        and frame.filename != __file__
    ]
    return f"{frames[-1].filename.removeprefix(f'{ROOT}/')}:{frames[-1].lineno}" if frames else "?"
