"""A person's search, step by step: the query, the rounds that were shown, the marks made on each.

Plain data and what can be done to it; what finds the images is `rounds`, what keeps sessions on
disk is `session_store`. Round 0 is the first retrieval. A mark belongs to the round it was made on,
so that a person can step back: what was done on later rounds does not count then, and is dropped
only when a new round takes their place. Everything can be undone, one step at a time.
"""

import dataclasses
import datetime
from typing import Any, NamedTuple

FORMAT = 1
LARGEST = 2**53  # number in a session: JSON has no larger ones that are exact
LONGEST_NAME = 200
SINCE = {"solved": True}  # fields of rounds that earlier versions did not write
MOST_UNDONE = 500  # steps that are remembered


class Refused(ValueError):
    """What was asked for cannot be done; the message tells the person why."""


class Conflict(Refused):
    """The session has gone on since it was looked at."""


class Mark(NamedTuple):
    """What a person said about an image.

    Attributes:
        relevant: or irrelevant.
        round: the one it was said on.
    """

    relevant: bool
    round: int


@dataclasses.dataclass
class Round:
    """A ranking's first images, and all that it was made from but the query.

    Attributes:
        number: 0 is the first retrieval.
        learner: one of `engine.LEARNER_NAMES`; None for round 0.
        show: "best" or "uncertain".
        count: images asked for.
        hide_judged: whether marked images were left out.
        seed: of what was drawn.
        marks: [image, relevant] that the learner was given.
        uploads: examples that it was given.
        images: what was found, in order.
        scores: of those; None for random ones.
        learnt: false where the marks were of one kind only, and the learner needs both.
        certain, solved: see `engine.Found`.
        seconds: that the search took.
    """

    number: int
    learner: str | None
    show: str
    count: int
    hide_judged: bool = True
    seed: int = 0
    marks: list[list[Any]] = dataclasses.field(default_factory=list)
    uploads: list[str] = dataclasses.field(default_factory=list)
    images: list[int] = dataclasses.field(default_factory=list)
    scores: list[float | None] = dataclasses.field(default_factory=list)
    learnt: bool = True
    certain: bool = True
    seconds: float = 0.0
    solved: bool = True


@dataclasses.dataclass
class Session:
    """One search.

    Attributes:
        token: its name in URLs.
        name: for people.
        created, updated: ISO 8601, UTC.
        codes: what made the index's codes: `ImageIndex.about["codes"]`.
        images: of the query, in the index.
        uploads: examples from outside the index, with the round they were added on.
        random: the first round is a random choice.
        seed: of that choice, and of learners that draw.
        rounds: round r at place r.
        current: the one shown.
        marks: by image, of all rounds.
        undo: how to take back what was done, the last step last.
    """

    token: str
    name: str
    created: str
    updated: str
    codes: str
    images: list[int]
    uploads: list[list[Any]]
    random: bool
    seed: int
    rounds: list[Round] = dataclasses.field(default_factory=list)
    current: int = 0
    marks: dict[int, Mark] = dataclasses.field(default_factory=dict)
    undo: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def marks_now(self) -> dict[int, Mark]:
        """The marks that count on the round shown."""
        return {image: mark for image, mark in self.marks.items() if mark.round <= self.current}

    def uploads_now(self) -> list[str]:
        """The examples that count on the round shown."""
        return [upload for upload, added in self.uploads if added <= self.current]


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def mark(session: Session, said: dict[int, bool | None]) -> None:
    """Mark images relevant or not; None takes a mark away."""
    before = {image: session.marks.get(image) for image in said}
    for image, relevant in said.items():
        session.marks.pop(image, None)
        if relevant is not None:
            session.marks[image] = Mark(relevant, session.current)
    if any(before[image] != session.marks.get(image) for image in said):
        _remember(session, {"kind": "marks", "before": [[k, v] for k, v in before.items()]})


def add_uploads(session: Session, uploads: list[str]) -> None:
    """Further relevant examples, from outside the index."""
    new = [upload for upload in uploads if upload not in session.uploads_now()]
    before = [list(upload) for upload in session.uploads]
    if new:
        session.uploads += [[upload, session.current] for upload in new]
        _remember(session, {"kind": "uploads", "before": before})


def add_round(session: Session, made: Round, after: Round) -> None:
    """Show a new round after the one shown; what was done on later ones is dropped.

    Where another request has added a round of the same learner, settings and marks meanwhile, that
    one is shown, and nothing changes.

    Args:
        session: as it is now.
        made: the new round.
        after: the round that was shown when it was asked for.

    Raises:
        Conflict: another round is shown now.
    """
    shown = session.rounds[session.current]
    if shown != after:
        if session.current == made.number and _asks_the_same(shown, made):
            return
        raise Conflict(
            f"round {session.current} is shown now, which another request has made or gone back "
            f"to; the one asked for follows round {after.number}"
        )
    kept = session.current + 1
    _remember(
        session,
        {
            "kind": "round",
            "current": session.current,
            "rounds": [dataclasses.asdict(later) for later in session.rounds[kept:]],
            "marks": [[k, v] for k, v in session.marks.items() if v.round > session.current],
            "uploads": [upload for upload in session.uploads if upload[1] > session.current],
        },
    )
    session.marks = session.marks_now()
    session.uploads = [upload for upload in session.uploads if upload[1] <= session.current]
    session.rounds[kept:] = [made]
    session.current = made.number


def is_repeated(session: Session, made: Round) -> bool:
    """Whether a new round is but the round shown again: the same was asked for, and found."""
    shown = session.rounds[session.current]
    return _asks_the_same(shown, made) and shown.images == made.images


def _asks_the_same(one: Round, other: Round) -> bool:
    keys = ("learner", "show", "count", "hide_judged", "marks", "uploads")
    return all(getattr(one, key) == getattr(other, key) for key in keys)


def back(session: Session, number: int) -> None:
    """Show a round again, or one after it that has not been replaced.

    Raises:
        Refused: there is no such round.
    """
    if not 0 <= number < len(session.rounds):
        raise Refused(f"round {number}: expected from 0 to {len(session.rounds) - 1}")
    if number != session.current:
        _remember(session, {"kind": "back", "current": session.current})
        session.current = number


def undo(session: Session) -> None:
    """Take back the last step: marks, an example, a round, or a step back.

    Raises:
        Refused: there is none.
    """
    if not session.undo:
        raise Refused("there is nothing to undo")
    step = session.undo.pop()
    match step["kind"]:
        case "marks":
            for image, before in step["before"]:
                session.marks.pop(image, None)
                if before is not None:
                    session.marks[image] = Mark(*before)
        case "uploads":
            session.uploads = step["before"]
        case "round":
            session.rounds[session.current :] = [Round(**later) for later in step["rounds"]]
            session.current = step["current"]
            session.marks |= {image: Mark(*before) for image, before in step["marks"]}
            session.uploads += step["uploads"]
        case "back":
            session.current = step["current"]


ROUND_SHAPES = {
    **{"number": int, "learner": str | None, "show": str, "count": int, "hide_judged": bool},
    **{"seed": int, "marks": [(int, bool)], "uploads": [str], "images": [int]},
    **{"scores": [float | int | None], "learnt": bool, "certain": bool, "seconds": float | int},
    "solved": bool,
}
SESSION_SHAPES = {
    **{"token": str, "name": str, "created": str, "updated": str, "codes": str, "images": [int]},
    **{"uploads": [(str, int)], "random": bool, "seed": int, "rounds": [dict], "current": int},
    **{"marks": [(int, bool, int)], "undo": [dict]},
}


def to_json(session: Session) -> dict[str, Any]:
    """A value that JSON can hold; `from_json` reads it."""
    held = dataclasses.asdict(session)
    held["marks"] = [[image, *said] for image, said in session.marks.items()]
    return {"format": FORMAT} | held


def from_json(held: dict[str, Any]) -> Session:
    """What `to_json` wrote.

    Raises:
        ValueError: it is of another format, or damaged.
    """
    if not isinstance(held, dict) or held.get("format") != FORMAT:
        found = held.get("format") if isinstance(held, dict) else type(held).__name__
        raise ValueError(f"a session of format {found!r}; expected {FORMAT}")
    _check(held, SESSION_SHAPES, "")
    rounds = [SINCE | made for made in held["rounds"]]
    for place, made in enumerate(rounds):
        _check(made, ROUND_SHAPES, f"round {place}: ")
        if len(made["scores"]) != len(made["images"]):
            raise ValueError(f"a damaged session: round {place} has images without scores")
    if not held["current"] < len(rounds):
        raise ValueError(f"a damaged session: there is no round {held['current']}")
    values = {field.name: held[field.name] for field in dataclasses.fields(Session)}
    names = [field.name for field in dataclasses.fields(Round)]
    values["rounds"] = [Round(**{name: made[name] for name in names}) for made in rounds]
    values["marks"] = {image: Mark(said, on) for image, said, on in held["marks"]}
    values["undo"] = list(held["undo"])
    return Session(**values)


def _check(held: dict[str, Any], shapes: dict[str, Any], where: str) -> None:
    for name, shape in shapes.items():
        if name not in held:
            raise ValueError(f"a damaged session: {where}{name!r} is missing")
        if not fits(held[name], shape):
            raise ValueError(f"a damaged session: {where}{name!r} is {str(held[name])[:100]!r}")


def fits(value: Any, shape: Any) -> bool:
    """Whether a value of JSON is of a type, a list of one ([type]), or some of these in turn."""
    match shape:
        case [of] if isinstance(shape, list):
            return isinstance(value, list) and all(fits(one, of) for one in value)
        case tuple():
            same = isinstance(value, list) and len(value) == len(shape)
            return same and all(map(fits, value, shape))
        case type() if shape is int:
            return type(value) is int and 0 <= value <= LARGEST
    return isinstance(value, shape) and (shape is bool or not isinstance(value, bool))


def _remember(session: Session, step: dict[str, Any]) -> None:
    session.undo = [*session.undo, step][-MOST_UNDONE:]
