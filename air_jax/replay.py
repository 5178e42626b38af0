"""Repeats a saved session without the page: `python -m air_jax.replay SESSION.json`.

Every round is done again from the marks it was made from, and compared with what was shown then.
The status is 0 if all rankings are the same, 1 if one is not, 2 for an error.
"""

from pathlib import Path
from typing import Any

from absl import app, flags, logging

from air_jax.index.image_index import ImageIndex
from air_jax.runtime import cache, command_line
from air_jax.runtime.atomic_files import write_json
from air_jax.runtime.progress import say
from air_jax.serve import session_files

_INDEX = flags.DEFINE_string("index", None, "another place of the index than the session names")
_OUT = flags.DEFINE_string("out", None, "write what was found to this JSON file")

DIFFERENT = 1


def main(arguments: list[str]) -> int:
    logging.set_verbosity(logging.WARNING)
    if len(arguments) != 2:
        command_line.fail("expected one file: python -m air_jax.replay SESSION.json")
    cache.keep_compilations()
    found: list[dict[str, Any]] = []
    status = command_line.guard(lambda: found.extend(_run(Path(arguments[1]))), Path(arguments[1]))
    return status or (0 if all(one["same"] for one in found) else DIFFERENT)


def _run(path: Path) -> list[dict[str, Any]]:
    held = session_files.read(path)
    index = ImageIndex(Path(_INDEX.value or held["index"]["path"]))
    found = [session_files.compared(*pair) for pair in session_files.replay(held, index)]
    for one in found:
        what = "the same ranking"
        if not one["same"]:
            what = f"another ranking, from rank {one['first_different_rank']} on"
        learner = one["learner"] or "first retrieval"
        say(f"round {one['round']}, {learner}, {one['marks']} marks: {what}")
    if _OUT.value:
        write_json(Path(_OUT.value), {"session": str(path), "rounds": found})
    return found


if __name__ == "__main__":
    app.run(main)
