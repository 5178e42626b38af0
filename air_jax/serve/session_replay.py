"""An exported session done again: every round from the marks it was made from."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from air_jax.index.image_index import ImageIndex
from air_jax.runtime.progress import say
from air_jax.serve import session_export, sessions
from air_jax.serve.rounds import Searcher
from air_jax.serve.sessions import Round


def read(path: Path) -> dict[str, Any]:
    """A session that the page exported.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such file.
    """
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error
    if not isinstance(held, dict) or held.get("kind") != session_export.KIND:
        raise ValueError(f"{path} is no session exported by the page of air_jax")
    missing = {"index", "paths", "uploaded_codes", "session"} - set(held)
    if missing:
        raise ValueError(f"{path} lacks {', '.join(sorted(missing))}")
    return held


def replay(held: dict[str, Any], index: ImageIndex) -> list[tuple[Round, Round]]:
    """Every round as it was shown, and as it is found now.

    Raises:
        ValueError: the index has codes of another net, or other images under the same ids.
    """
    session = sessions.from_json(held["session"])
    if session.codes != index.about["codes"]:
        raise ValueError(
            f"the session was made on codes of {session.codes}; {index.path} has codes of "
            f"{index.about['codes']}"
        )
    _check_paths(held["paths"], index)
    codes = {token: np.array(code, np.float32) for token, code in held["uploaded_codes"].items()}
    searcher = Searcher(index)
    pairs = []
    for made in session.rounds:
        pairs.append((made, searcher.repeat(session, made, codes.__getitem__)))
    return pairs


def _check_paths(paths: dict[str, str], index: ImageIndex) -> None:
    ids = [int(image) for image in paths]
    held = [image for image in ids if index.position(image) is not None]
    for image in index.images(held):
        shown = image.path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        if shown != paths[str(image.id)]:
            raise ValueError(
                f"image {image.id} of {index.path} is {shown!r}; in the session it is "
                f"{paths[str(image.id)]!r}: it is of another index"
            )
    gone = sorted(set(ids) - set(held))
    if gone:
        say(f"{len(gone)} images have left the index since, the first is {paths[str(gone[0])]!r}")


def compared(before: Round, now: Round) -> dict[str, Any]:
    """A round in numbers: whether the images are the same, and how far the scores are apart."""
    same = before.images == now.images
    pairs = zip(before.images, now.images, strict=False)
    first = next((rank for rank, (a, b) in enumerate(pairs, 1) if a != b), None)
    apart = None
    if same and None not in before.scores:
        apart = float(np.abs(np.subtract(before.scores, now.scores)).max(initial=0))
    return {
        "round": now.number,
        "learner": now.learner,
        "marks": len(now.marks),
        "same": same,
        "first_different_rank": first,
        "scores_apart": apart,
        "images": now.images,
        "scores": now.scores,
        "seconds": now.seconds,
    }
