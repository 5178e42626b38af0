"""A session as files: JSON that `replay` repeats, CSV for a spreadsheet, `.npz` of its model."""

import csv
import io
from typing import Any

import numpy as np

from air_jax.feedback.engine import Found
from air_jax.index.image_index import ImageIndex
from air_jax.search import scorers
from air_jax.serve import sessions
from air_jax.serve.rounds import CodeOf
from air_jax.serve.sessions import Session

KIND = "air_jax session"


def as_json(session: Session, index: ImageIndex, code_of: CodeOf) -> dict[str, Any]:
    """All that is needed to repeat the session: rounds, marks, paths, codes of what was uploaded.

    What was undone, or lies after the round shown, is left out.
    """
    rounds = session.rounds[: session.current + 1]
    held = sessions.to_json(session) | {"undo": []}
    held["rounds"] = held["rounds"][: len(rounds)]
    held["marks"] = [[image, *mark] for image, mark in session.marks_now().items()]
    held["uploads"] = [upload for upload in session.uploads if upload[1] <= session.current]
    used = {*session.images, *session.marks_now()}
    used |= {image for made in rounds for image in made.images}
    used |= {image for made in rounds for image, _ in made.marks}
    known = [image for image in sorted(used) if index.position(image) is not None]
    paths = {str(image.id): image.path for image in index.images(known)}
    codes = {token: code_of(token).tolist() for token, _ in held["uploads"]}
    return {
        "kind": KIND,
        "index": {"path": str(index.path.resolve()), **index.about},
        "paths": paths,
        "uploaded_codes": codes,
        "session": held,
    }


def as_csv(session: Session, index: ImageIndex) -> str:
    """Path, score and mark of every image of the round shown, then of others that are marked."""
    made = session.rounds[session.current]
    marks = session.marks_now()
    scores = dict(zip(made.images, made.scores, strict=True))
    shown = [*made.images, *(image for image in marks if image not in scores)]
    held = [image for image in shown if index.position(image) is not None]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["rank", "image", "path", "score", "mark"])
    for image in index.images(held):
        rank = made.images.index(image.id) + 1 if image.id in scores else ""
        score = scores.get(image.id)
        mark = marks.get(image.id)
        said = "" if mark is None else ("relevant" if mark.relevant else "irrelevant")
        cells = [rank, image.id, _harmless(image.label), "" if score is None else score, said]
        writer.writerow(cells)
    return text.getvalue()


def model_arrays(found: Found, index: ImageIndex) -> dict[str, np.ndarray]:
    """The ranking of a round as arrays: `scorers.to_arrays`, and the codes' mean and deviation."""
    arrays = scorers.to_arrays(found.scorer)
    return arrays | {"mean": index.codes.mean, "deviation": index.codes.deviation}


def _harmless(text: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
