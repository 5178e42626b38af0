"""An indexer that kills itself at a step of publishing. Child processes import this file."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from air_jax.index import build, index_writer
from air_jax.index.catalogue import Catalogue
from air_jax.index.index_writer import Options
from air_jax.search import file_codes

STATEMENTS = {  # of the one transaction that publishes
    "at the first change of the catalogue": "UPDATE images SET position = NULL",
    "when images that left are forgotten": "DELETE FROM images",
    "at the commit of the catalogue": "COMMIT",
}
FUNCTIONS: dict[str, tuple[Any, str, bool]] = {  # whose, which, killed after it or before
    "before the codes are written": (file_codes, "write", False),
    "before the codes get their name": (file_codes, "write_json", False),
    "after the codes are written": (file_codes, "write", True),
    "after the commit of the catalogue": (Catalogue, "publish", True),
    "between leftovers that are deleted": (index_writer.shutil, "rmtree", True),
    "after leftovers are deleted": (index_writer, "delete_leftovers", True),
    "after the summary is written": (index_writer, "write_json", True),
}
STEPS = (*STATEMENTS, *FUNCTIONS)


def index_until(step: str, folder: Path, model: Path, out: Path) -> None:
    """Bring an index up to date and die on the way."""
    if step in STATEMENTS:
        publish = Catalogue.publish

        def watched(catalogue: Catalogue, *arguments: Any) -> None:
            catalogue.database.set_trace_callback(
                lambda statement: _die() if statement.startswith(STATEMENTS[step]) else None
            )
            publish(catalogue, *arguments)

        Catalogue.publish = watched
    else:
        owner, name, after = FUNCTIONS[step]
        setattr(owner, name, _killing(getattr(owner, name), after))
    build.index_images(folder, model, out, Options())


def _killing(function: Callable[..., Any], after: bool) -> Callable[..., None]:
    def killed(*arguments: Any, **named: Any) -> None:
        if after:
            function(*arguments, **named)
        _die()

    return killed


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
