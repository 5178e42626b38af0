"""Repeats a saved session without the page: `python -m air_jax.replay SESSION.json`.

Every round is done again from the marks it was made from, and compared with what was shown then.
The status is 0 if all rankings are the same, 1 if one is not, 2 for an error.
"""

import sys
from pathlib import Path
from typing import Any

# The flags are read before JAX is imported: what needs JAX is imported where it is used.
from air_jax.runtime import cache, command_line
from air_jax.runtime.arguments import Arguments
from air_jax.runtime.atomic_files import write_json
from air_jax.runtime.progress import say

DIFFERENT = 1


def main(arguments: list[str] | None = None) -> int:
    """Repeat the session that the command line names; returns the exit status."""
    parser = Arguments("air_jax.replay", __doc__)
    add = parser.add_argument
    add("session", metavar="SESSION.json", type=Path, help="the session's file")
    add("--index", metavar="INDEX", type=Path, help="another place of the index than it names")
    add("--out", metavar="FILE", type=Path, help="write what was found to this JSON file")
    told = parser.parse_args(arguments)
    found: list[dict[str, Any]] = []
    status = command_line.guard(
        lambda: found.extend(_replay(told.session, told.index, told.out)), told.session
    )
    return status or (0 if all(one["same"] for one in found) else DIFFERENT)


def _replay(path: Path, place: Path | None, out: Path | None) -> list[dict[str, Any]]:
    say(f"loading JAX and the session {path}")
    from air_jax.index.image_index import ImageIndex
    from air_jax.serve import session_files

    cache.keep_compilations()
    held = session_files.read(path)
    index = ImageIndex(place or Path(held["index"]["path"]))
    found = [session_files.compared(*pair) for pair in session_files.replay(held, index)]
    for one in found:
        what = "the same ranking"
        if not one["same"]:
            what = f"another ranking, from rank {one['first_different_rank']} on"
        learner = one["learner"] or "first retrieval"
        say(f"round {one['round']}, {learner}, {one['marks']} marks: {what}")
    if out is not None:
        write_json(out, {"session": str(path), "rounds": found})
    return found


if __name__ == "__main__":
    sys.exit(main())
