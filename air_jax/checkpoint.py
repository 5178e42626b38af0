"""Training states on disk. The only file that knows Orbax."""

from pathlib import Path
from typing import Any, Self

import jax
import orbax.checkpoint as ocp


class Checkpoints:
    """The newest few states of a run, one folder each under `directory`, named by step.

    A folder appears under its name only when it is whole: a process killed while saving leaves
    the states before it.
    """

    def __init__(self, directory: Path, keep: int = 2):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            # Saved before the next step donates the buffers away (orbax#626).
            enable_async_checkpointing=False,
        )
        self.directory = directory
        self._manager = ocp.CheckpointManager(directory.resolve(), options=options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def latest_step(self) -> int | None:
        """The step of the newest state; None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, info: dict[str, Any]) -> None:
        """Save a pytree of arrays and a small dictionary that JSON can hold."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), info=ocp.args.JsonSave(info)
            ),
        )

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """Load what `save` saved.

        Args:
            step: which.
            like: a pytree of arrays, or of `jax.ShapeDtypeStruct` with shardings, whose
                structure, shapes, dtypes and shardings the state gets.

        Raises:
            ValueError: the folder is damaged or holds another net; the message names it.
        """

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
        except Exception as error:  # Orbax, TensorStore and the file system raise their own
            cause = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
            raise ValueError(
                f"checkpoint {self.directory / str(step)} cannot be read ({cause}). Delete that "
                "folder to go on from the one before it, or start anew with --overwrite."
            ) from error
        return restored["state"], restored["info"]


def newest_step(directory: Path) -> int | None:
    """The step of the newest whole state in a folder of `Checkpoints`; None if there is none."""
    steps = [int(path.name) for path in directory.glob("*") if path.name.isdigit()]
    return max(steps, default=None)
