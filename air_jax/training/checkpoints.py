"""Training states on disk. The only file that knows Orbax."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax
import orbax.checkpoint as ocp

from air_jax.runtime import distributed
from air_jax.runtime.checksums import damage, write_checksums
from air_jax.runtime.progress import say

CHECKPOINTS = "checkpoints"  # the folder of a run that holds them
DAMAGED = "damaged"


class Restored(NamedTuple):
    """What `save` saved at a step."""

    step: int
    state: Any
    info: dict[str, Any]


class Checkpoints:
    """The newest few states of a run, one folder each under `directory`, named by step.

    A folder appears under its name only when it is whole: a process killed while saving leaves
    the states before it. In it are the checksums of its files, since neither Orbax nor TensorStore
    notices every flipped byte. All processes of a run call each method alike.

    A thread writes, so that training can go on meanwhile. Every method but `check` first
    waits for the state that is being written.
    """

    def __init__(self, directory: Path, keep: int = 2):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            # Our thread writes the checksums, too, and reports errors.
            enable_async_checkpointing=False,
            cleanup_tmp_directories=True,  # of processes that were killed while saving
        )
        self.directory = directory
        self._manager = ocp.CheckpointManager(directory.resolve(), options=options)
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._saving: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown()
        try:
            if kind is None:
                self.wait()
        finally:
            self._manager.close()

    def latest_step(self) -> int | None:
        """The step of the newest state; None if there is none."""
        self.wait()
        return self._manager.latest_step()

    def save(self, step: int, state: Any, info: dict[str, Any]) -> None:
        """Save a pytree of arrays and a small dictionary that JSON can hold.

        Raises:
            OSError: it, or the state before, cannot be written; those before are as they were.
        """
        self.save_meanwhile(step, state, info)
        self.wait()

    def save_meanwhile(self, step: int, state: Any, info: dict[str, Any]) -> None:
        """As `save`, but a thread writes the state, and `check` and `wait` raise its errors.

        Args:
            step: of training.
            state: nobody may donate its buffers, which may be read until `wait` returns
                (orbax#626).
            info: nobody may change it.
        """
        self.wait()
        if distributed.processes() > 1:
            # Orbax's barriers compute on the devices, in which a thread would disturb the order.
            self._save(step, state, info)
        else:
            self._saving = self._thread.submit(self._save, step, state, info)

    def check(self) -> None:
        """Raise the error of a save that has failed; do not wait for one under way."""
        if self._saving is not None and self._saving.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the state that is being written.

        Raises:
            OSError: it cannot be written.
        """
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def _save(self, step: int, state: Any, info: dict[str, Any]) -> None:
        folder = self.directory / str(step)
        try:
            with _without_tracebacks():
                self._manager.save(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardSave(state), info=ocp.args.JsonSave(info)
                    ),
                )
            if distributed.is_first():
                write_checksums(folder, (path for path in folder.rglob("*") if path.is_file()))
        except Exception as error:  # Orbax, TensorStore and the file system raise their own
            raise OSError(f"checkpoint {folder} cannot be written ({_in_short(error)})") from error

    def restore(self, step: int, like: Any) -> Restored:
        """Load what `save` saved.

        Args:
            step: which.
            like: a pytree of arrays, or of `jax.ShapeDtypeStruct` with shardings, whose
                structure, shapes, dtypes and shardings the state gets.

        Raises:
            ValueError: the folder is damaged or holds another net; the message names it.
        """
        self.wait()
        folder = self.directory / str(step)
        # One without checksums is taken as it is: Orbax made it whole before they were written.
        if found := distributed.from_first(lambda: damage(folder)):
            raise ValueError(f"checkpoint {folder} is damaged: {found}")

        def abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)

        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(jax.tree.map(abstract, like)),
                    info=ocp.args.JsonRestore(),
                ),
            )
        except Exception as error:
            raise ValueError(f"checkpoint {folder} cannot be read ({_in_short(error)})") from error
        return Restored(step, restored["state"], restored["info"])

    def restore_newest(self, like: Any) -> Restored | None:
        """Load the newest state that is whole, after saying which ones are not; None without any.

        Damaged ones go to the folder `damaged`, so that their steps can be saved again.

        Raises:
            ValueError: all are damaged, or they hold another net.
        """
        self.wait()
        steps = sorted(self._manager.all_steps(), reverse=True)
        errors: list[ValueError] = []
        for step in steps:
            try:
                restored = self.restore(step, like)
            except ValueError as error:
                errors.append(error)
                continue
            for damaged, found in zip(steps, errors, strict=False):
                say(f"{found}; going on from the one of step {step:,} before it")
                self._set_aside(damaged)
            return restored
        if errors:
            raise ValueError(
                f"{errors[0]}, and no other checkpoint is whole. Start anew with --overwrite; "
                "the old run is kept aside."
            )
        return None

    def _set_aside(self, step: int) -> None:
        if distributed.is_first():
            aside = self.directory / DAMAGED
            aside.mkdir(exist_ok=True)
            number = len(list(aside.iterdir()))
            (self.directory / str(step)).rename(aside / f"{step}-{number}")
        distributed.barrier()
        self._manager.reload()


@contextlib.contextmanager
def _without_tracebacks() -> Iterator[None]:
    """Keep Orbax from logging the error that it then raises.

    After an error for good: several threads of Orbax log theirs, some later, and the writes of
    TensorStore that were under way report to an event loop that is closed by then.
    """
    logger = logging.getLogger("absl")
    level, hook = logger.level, sys.unraisablehook
    logger.setLevel(logging.CRITICAL)
    sys.unraisablehook = _report_unless_loop_closed
    yield
    logger.setLevel(level)
    sys.unraisablehook = hook


def _report_unless_loop_closed(raised: Any) -> None:
    """What Python does with an error that it cannot raise, but nothing for a closed event loop."""
    if not (raised.exc_type is RuntimeError and str(raised.exc_value) == "Event loop is closed"):
        sys.__unraisablehook__(raised)


def _in_short(error: Exception) -> str:
    text = str(error).partition("\n")[0]
    if len(text) > 200:  # TensorStore tells where first, and why last
        text = f"{text[:100]} … {text[-100:]}"
    return f"{type(error).__name__}: {text}"


def newest_step(directory: Path) -> int | None:
    """The step of the newest state in a folder of `Checkpoints`; None if there is none."""
    steps = [int(path.name) for path in directory.glob("*") if path.name.isdigit()]
    return max(steps, default=None)
