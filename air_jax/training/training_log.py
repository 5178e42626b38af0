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

from air_jax.runtime import distributed

METRICS_FILE = "metrics.jsonl"
GRADIENTS_FILE = "gradients.jsonl"


LEAST_RANK = 1.01  # of the embeddings: below, all images have nearly the same


class NonFiniteError(FloatingPointError):
    """The loss or its gradient became NaN or infinite."""


class CollapseError(ValueError):
    """The net gives all images the same embedding, which no more training mends."""


class TrainingLog:
    """Collects the metrics of steps without waiting for the device, and writes them in windows.

    Args:
        directory: the run's. Lines of steps after `resumed_at` are dropped from `metrics.jsonl` and
            `gradients.jsonl`: training does those steps again.
        resumed_at: the step that training goes on from.
        window: what `window` was there.
        every_steps: a line holds the means over the steps since the line before.
        batch: images in a step.
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
        window: Sequence[dict[str, float]] = (),
        every_steps: int,
        batch: int,
        gradients_at: tuple[int, ...],
        parameters: list[str],
        tensorboard: bool = False,
    ):
        self._step = resumed_at
        self.every_steps, self.batch = every_steps, batch
        self.note = ""  # the newest loss, for the progress bar
        self._pending: list[tuple[int, dict[str, jax.Array], float]] = []
        # The scalar metrics, and the seconds, of the settled steps since the last line.
        self.window = [_by_name(step) for step in window]
        self._settled = 0.0  # when metrics were last waited for
        self._file = reopen(directory / METRICS_FILE, resumed_at)
        self._gradients_file = reopen(directory / GRADIENTS_FILE, resumed_at)
        self._gradients_at, self._parameters = gradients_at, parameters
        self._tensorboard = None
        if tensorboard and distributed.is_first():
            from tensorboardX import SummaryWriter

            self._tensorboard = SummaryWriter(str(directory / "tensorboard"))

    def add(self, step: int, metrics: dict[str, jax.Array], started: float) -> None:
        """Take the metrics of a call; if a window ends in it, settle all calls before it.

        Args:
            step: the call's last, counted from 1.
            metrics: of each of its steps, {"loss": [steps], ...}, as `compile_step`'s call returns
                them.
            started: when it was dispatched (`time.monotonic`).
        """
        if step // self.every_steps > (step - len(metrics["loss"])) // self.every_steps:
            self.settle()
        self._pending.append((step, metrics, started))

    def settle(self) -> None:
        """Wait for the metrics of all steps so far, and write the windows they end.

        Raises:
            NonFiniteError: one of them is not finite; the message names the step.
            CollapseError: over a whole window the embeddings had no rank; likewise.
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
        scalars = {name: float(value) for name, value in values.items() if name != "grad_norms"}
        self.window.append(scalars | {"seconds": seconds})
        self._step = step
        if step in self._gradients_at:
            norms = dict(zip(self._parameters, map(float, values["grad_norms"]), strict=True))
            append_line(self._gradients_file, {"step": step, "norms": norms})
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
        names = self.window[-1].keys() - {"learning_rate"}
        means = {name: float(np.mean([s[name] for s in self.window])) for name in sorted(names)}
        seconds = means.pop("seconds")
        line = {
            "step": self._step,
            **means,
            "learning_rate": self.window[-1]["learning_rate"],
            "images_per_second": self.batch / max(seconds, 1e-9),
        }
        self.note = f"loss {line['loss']:.4f}"
        self.window = []
        append_line(self._file, line)
        if self._tensorboard is not None:
            for name, value in line.items():
                if name != "step":
                    self._tensorboard.add_scalar(name, value, self._step)
        if means.get("embedding_rank", math.inf) < LEAST_RANK:
            raise CollapseError(
                f"step {self._step:,}: the embeddings of all images are nearly the same (effective "
                f"rank {means['embedding_rank']:.2f}, where {LEAST_RANK} or more is expected)"
            )


def _by_name(step: dict[str, float] | Sequence[float]) -> dict[str, float]:
    """A step of a window; checkpoints of earlier states of 0.1.0 hold its values without names."""
    names = ("loss", "grad_norm", "seconds")
    return dict(step) if isinstance(step, dict) else dict(zip(names, step, strict=True))


def reopen(path: Path, resumed_at: int) -> TextIO:
    """Open to append, without the lines of steps that are done again."""
    if not distributed.is_first():
        return open(os.devnull, "a")
    kept = [line for line in read_metrics(path) if line["step"] <= resumed_at]
    path.write_text("".join(json.dumps(line) + "\n" for line in kept))
    return path.open("a")


def append_line(file: TextIO, line: dict[str, Any]) -> None:
    """Write a line of JSON at once; OSError with the file's name if it cannot be written."""
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
