"""A session as files: JSON that `replay` repeats, CSV for a spreadsheet, `.npz` of its ranking."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from air_jax.feedback.engine import Found
from air_jax.index.image_index import ImageIndex
from air_jax.runtime.progress import say
from air_jax.search import scorers
from air_jax.serve import sessions
from air_jax.serve.rounds import CodeOf, Searcher
from air_jax.serve.sessions import Round, Session

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
    paths = {str(image.id): _without_surrogates(image.path) for image in index.images(known)}
    codes = {token: code_of(token).tolist() for token, _ in held["uploads"]}
    return {
        "kind": KIND,
        "index": {"path": str(index.path.resolve()), **index.about},
        "paths": paths,
        "contents": {str(image): sha256 for image, sha256 in index.contents(known).items()},
        "uploaded_codes": codes,
        "session": held,
    }


def as_csv(session: Session, index: ImageIndex) -> str:
    """Path, score and mark of every image of the round shown, then of others that are marked.

    Rows of the round say what the page says of it: `learnt`, `certain` and `solved`, yes or no.
    """
    made = session.rounds[session.current]
    marks = session.marks_now()
    scores = dict(zip(made.images, made.scores, strict=True))
    shown = [*made.images, *(image for image in marks if image not in scores)]
    held = [image for image in shown if index.position(image) is not None]
    notes = {key: "yes" if getattr(made, key) else "no" for key in ("learnt", "certain", "solved")}
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["rank", "image", "path", "score", "mark", *notes])
    for image in index.images(held):
        rank = made.images.index(image.id) + 1 if image.id in scores else ""
        score = scores.get(image.id)
        mark = marks.get(image.id)
        said = "" if mark is None else ("relevant" if mark.relevant else "irrelevant")
        cells = [rank, image.id, _harmless(image.label), "" if score is None else score, said]
        writer.writerow([*cells, *(notes.values() if rank else [""] * len(notes))])
    return text.getvalue()


def model_arrays(found: Found, index: ImageIndex) -> dict[str, Any]:
    """The ranking of a round as arrays: `scorers.to_arrays`, and what centres and standardises.

    `solved` is false where the learner's machine was not solved to its tolerance.
    """
    codes = index.codes
    centring = {"mean": codes.mean, "unit": np.array(codes.unit), "deviation": codes.deviation}
    return scorers.to_arrays(found.scorer) | centring | {"solved": np.array(found.solved)}


def read(path: Path) -> dict[str, Any]:
    """A session that the page exported.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such file.
    """
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error
    if not isinstance(held, dict) or held.get("kind") != KIND:
        raise ValueError(f"{path} is no session exported by the page of air_jax")
    missing = {"index", "paths", "uploaded_codes", "session"} - set(held)
    if missing:
        raise ValueError(f"{path} lacks {', '.join(sorted(missing))}")
    codes = held["uploaded_codes"]
    maps = [held["index"], held["paths"], held.get("contents", {}), codes]
    whole = all(isinstance(one, dict) for one in maps)
    whole = whole and isinstance(held["index"].get("path"), str)
    whole = whole and all(image.isdecimal() and len(image) < 18 for image in held["paths"])
    if not whole or not sessions.fits(list(codes.values()), [[float | int]]):
        raise ValueError(f"{path} is damaged: it does not say which images and codes it is of")
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
    _check_images(held["paths"], held.get("contents", {}), index)
    codes = {token: np.array(code, np.float32) for token, code in held["uploaded_codes"].items()}
    used = [token for token, _ in session.uploads]
    used += [token for made in session.rounds for token in made.uploads]
    if missing := set(used) - codes.keys():
        raise ValueError(f"the session lacks the code of the upload {min(missing)!r}")
    searcher = Searcher(index)
    pairs = []
    for made in session.rounds:
        pairs.append((made, searcher.repeat(session, made, codes.__getitem__)))
    return pairs


def _check_images(paths: dict[str, str], contents: dict[str, str], index: ImageIndex) -> None:
    """Raises ValueError if an image is another: by content if that is known, or by path."""
    ids = [int(image) for image in paths]
    held = [image for image in ids if index.position(image) is not None]
    now = index.contents(held)
    for image in index.images(held):
        shown, key = _without_surrogates(image.path), str(image.id)
        known = image.id in now and key in contents
        if now[image.id] != contents[key] if known else shown != paths[key]:
            raise ValueError(
                f"image {image.id} of {index.path} is {shown!r}; in the session it is "
                f"{paths[key]!r}: it is of another index"
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
        both = np.array([before.scores, now.scores], float)
        apart = float(np.abs(both[0] - both[1]).max(initial=0))
    return {
        "round": now.number,
        "learner": now.learner,
        "marks": len(now.marks),
        "solved": now.solved,
        "same": same,
        "first_different_rank": first,
        "scores_apart": apart,
        "images": now.images,
        "scores": now.scores,
        "seconds": now.seconds,
    }


def _harmless(text: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _without_surrogates(path: str) -> str:
    """A path that is not UTF-8, with escapes: JSON in UTF-8 has no place for its bytes."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
