"""How far long work is: a bar on a terminal, a plain line every few seconds elsewhere."""

import sys
import time
from typing import Self

from tqdm import tqdm

from air_jax.runtime import distributed

SECONDS_BETWEEN_LINES = 15


def duration(seconds: float) -> str:
    """Seconds for people: "42 s", "7 min 05 s", "3 h 20 min"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, seconds = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def say(message: str) -> None:
    """Print a line at once, above the bar if there is one; only the first process prints."""
    if not distributed.is_first():
        return
    tqdm.write(message, file=sys.stdout)
    sys.stdout.flush()


class Progress:
    """Counts items done, with a rate and the time left.

    Args:
        label: what is being done.
        total: number of items in all.
        done: number of items done before, which do not count for the rate.
        unit: what the items are.
    """

    def __init__(self, label: str, total: int, done: int = 0, unit: str = "images"):
        self.label, self.total, self.unit = label, total, unit
        self.done = self.done_before = done
        self.started = self.last_line = time.monotonic()
        self.bar = None
        if sys.stdout.isatty() and distributed.is_first():
            self.bar = tqdm(
                total=total,
                initial=done,
                desc=label,
                unit=f" {unit}",
                unit_scale=total > 10_000,
                file=sys.stdout,
                dynamic_ncols=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()

    @property
    def rate(self) -> float:
        """Items per second since the start."""
        elapsed = time.monotonic() - self.started
        return (self.done - self.done_before) / elapsed if elapsed > 0 else 0.0

    def advance(self, items: int, note: str = "") -> None:
        """Count `items` more, and show `note` beside the count."""
        self.done += items
        if self.bar is not None:
            self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(items)
            return
        now = time.monotonic()
        finished = self.done >= self.total
        if now - self.last_line < SECONDS_BETWEEN_LINES and not finished:
            return
        self.last_line = now
        left = "done" if finished else f"{duration((self.total - self.done) / self.rate)} left"
        figures = [f"{self.done:,}/{self.total:,} {self.unit}", f"{self.rate:,.1f}/s", left, note]
        say(f"{self.label}: " + ", ".join(f for f in figures if f))
