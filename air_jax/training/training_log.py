"""What training writes about itself: `metrics.jsonl`, `gradients.jsonl`, TensorBoard.

The log also checks that every loss and gradient is finite.
"""

import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np
import optax

from air_jax.runtime import distributed

METRICS_FILE = "metrics.jsonl"
GRADIENTS_FILE = "gradients.jsonl"


class NonFiniteError(FloatingPointError):
    """The loss or its gradient became NaN or infinite."""


class TrainingLog:
    """Collects the metrics of steps without waiting for the device, and writes them in windows.

    Args:
        directory: the run's. Lines of steps after `resumed_at` are dropped from `metrics.jsonl` and
            `gradients.jsonl`: training does those steps again.
        resumed_at: the step that training goes on from.
        window: what `window` was there.
        every_steps: a line holds the means over the steps since the line before.
        batch: images in a step.
        learning_rate: by step.
        gradients_at: steps that get a line in `gradients.jsonl`, of the gradient's norm by
            parameter.
        parameters: their names.
        tensorboard: whether to write TensorBoard events to the folder `tensorboard` as well.

    Attributes:
        window: of the settled steps since the last line; a run that goes on from here needs it.
    """

    def __init__(
        self,
        directory: Path,
        *,
        resumed_at: int,
        window: Sequence[Sequence[float]] = (),
        every_steps: int,
        batch: int,
        learning_rate: optax.Schedule,
        gradients_at: tuple[int, ...],
        parameters: list[str],
        tensorboard: bool = False,
    ):
        self._step = resumed_at
        self.every_steps, self.batch, self.learning_rate = every_steps, batch, learning_rate
        self.note = ""  # the newest loss, for the progress bar
        self._pending: list[tuple[int, dict[str, jax.Array], float]] = []
        # Loss, gradient norm and seconds of the settled steps since the last line.
        self.window = [list(step) for step in window]
        self._settled = 0.0  # when metrics were last waited for
        self._file = _reopen(directory / METRICS_FILE, resumed_at)
        self._gradients_file = _reopen(directory / GRADIENTS_FILE, resumed_at)
        self._gradients_at, self._parameters = gradients_at, parameters
        self._tensorboard = None
        if tensorboard and distributed.is_first():
            from tensorboardX import SummaryWriter

            self._tensorboard = SummaryWriter(str(directory / "tensorboard"))

    def add(self, step: int, metrics: dict[str, jax.Array], started: float) -> None:
        """Take the metrics of a call; if a window ends in it, settle all calls before it.

        Args:
            step: the call's last, counted from 1.
            metrics: of each of its steps, {"loss": [steps], ...}.
            started: when it was dispatched (`time.monotonic`).
        """
        if step // self.every_steps > (step - len(metrics["loss"])) // self.every_steps:
            self.settle()
        self._pending.append((step, metrics, started))

    def settle(self) -> None:
        """Wait for the metrics of all steps so far, and write the windows they end.

        Raises:
            NonFiniteError: one of them is not finite; the message names the step.
        """
        if not self._pending:
            return
        fetched = jax.device_get([metrics for _, metrics, _ in self._pending])
        now = time.monotonic()
        # Steps share the time since the last were fetched, or these began, evenly.
        began = max(self._settled, self._pending[0][2])
        seconds = (now - began) / sum(len(metrics["loss"]) for metrics in fetched)
        lasts = [step for step, _, _ in self._pending]
        self._pending, self._settled = [], now
        for last, metrics in zip(lasts, fetched, strict=True):
            steps = len(metrics["loss"])
            for i in range(steps):
                values = {name: value[i] for name, value in metrics.items()}
                self._take(last - steps + 1 + i, values, seconds)

    def _take(self, step: int, values: dict[str, np.ndarray], seconds: float) -> None:
        loss, grad_norm = float(values["loss"]), float(values["grad_norm"])
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise NonFiniteError(f"step {step:,}: loss {loss}, gradient norm {grad_norm}")
        self.window.append([loss, grad_norm, seconds])
        self._step = step
        if step in self._gradients_at:
            norms = dict(zip(self._parameters, map(float, values["grad_norms"]), strict=True))
            _append(self._gradients_file, {"step": step, "norms": norms})
        if step % self.every_steps == 0:
            self._write()

    def finish(self) -> None:
        """Settle everything, and write the last window though it may be short."""
        self.settle()
        if self.window:
            self._write()

    def close(self) -> None:
        self._file.close()
        self._gradients_file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()

    def _write(self) -> None:
        loss, grad_norm, seconds = np.mean(self.window, axis=0)
        line = {
            "step": self._step,
            "loss": float(loss),
            "grad_norm": float(grad_norm),
            "learning_rate": float(self.learning_rate(self._step - 1)),
            "images_per_second": self.batch / max(seconds, 1e-9),
        }
        self.note = f"loss {line['loss']:.4f}"
        self.window = []
        _append(self._file, line)
        if self._tensorboard is not None:
            for name, value in line.items():
                if name != "step":
                    self._tensorboard.add_scalar(name, value, self._step)


def _reopen(path: Path, resumed_at: int) -> TextIO:
    """Open to append, without the lines of steps that are done again."""
    if not distributed.is_first():
        return open(os.devnull, "a")
    kept = [line for line in read_metrics(path) if line["step"] <= resumed_at]
    path.write_text("".join(json.dumps(line) + "\n" for line in kept))
    return path.open("a")


def _append(file: TextIO, line: dict[str, Any]) -> None:
    try:
        file.write(json.dumps(line) + "\n")
        file.flush()
    except OSError as error:
        raise OSError(error.errno, f"cannot be written: {error.strerror}", file.name) from error


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl` or `gradients.jsonl`; one cut short by a crash is left out."""
    lines = []
    if path.exists():
        for text in path.read_text().splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                break
    return lines
