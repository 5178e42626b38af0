"""A trace of a few training steps, for XProf, TensorBoard or Perfetto."""

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax

from air_jax.runtime.progress import say

PROFILE = "profile"  # the folder of a run that holds the trace
SKIPPED_STEPS = 2  # the first ones wait for data and caches
PROFILED_STEPS = 5


class Profile:
    """Traces `PROFILED_STEPS` steps of this process after `SKIPPED_STEPS`, or more: whole calls.

    Within a `with` block; a trace that an exception cuts short is written as far as it is.

    Args:
        directory: where to leave it; None: no trace.
    """

    def __init__(self, directory: Path | None):
        self._directory = directory
        self._steps = self._from = 0
        self._tracing = False

    def before_call(self) -> None:
        """Start the trace if this call of the step is the first in it."""
        if self._directory and not self._from and self._steps >= SKIPPED_STEPS:
            self._from = self._steps
            jax.profiler.start_trace(str(self._directory), create_perfetto_trace=True)
            self._tracing = True

    def after_call(self, state: Any, steps: int) -> None:
        """Write the trace if this call, of `steps`, was the last in it; only then wait."""
        self._steps += steps
        if self._tracing and self._steps - self._from >= PROFILED_STEPS:
            jax.block_until_ready(state)
            self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._tracing:
            self._stop()

    def _stop(self) -> None:
        self._tracing = False
        jax.profiler.stop_trace()
        say(f"train: trace of {self._steps - self._from} steps in {self._directory}")
