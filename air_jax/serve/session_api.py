"""The part of the HTTP interface that is about sessions: marks, rounds, steps back, exports."""

import io
import secrets
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Body, HTTPException, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from air_jax.feedback.engine import DEFAULT_LEARNER
from air_jax.serve import session_files, sessions
from air_jax.serve.rounds import MOST_SHOWN
from air_jax.serve.service import Attempt, Opened, Service
from air_jax.serve.sessions import LONGEST_NAME, Conflict, Session

MOST_AT_ONCE = 1000  # marks or examples of one request

Id = Annotated[int, Field(ge=1, le=2**53)]
Ids = Annotated[list[Id], Field(max_length=MOST_AT_ONCE)]
Tokens = Annotated[list[Annotated[str, Field(max_length=64)]], Field(max_length=MOST_AT_ONCE)]
Count = Annotated[int, Field(ge=1, le=MOST_SHOWN)]

router = APIRouter(prefix="/api/sessions")


class NewSession(BaseModel, extra="forbid"):
    """A query: images of the index, uploads, or both; or a random start."""

    images: Ids = []
    uploads: Tokens = []
    random: bool = False
    count: Count = 60
    name: str = Field("", max_length=LONGEST_NAME)


class Name(BaseModel, extra="forbid"):
    name: str = Field(max_length=LONGEST_NAME)


class Said(BaseModel, extra="forbid"):
    """A mark; `relevant: null` takes it away."""

    image: Id
    relevant: bool | None


class Marks(BaseModel, extra="forbid"):
    marks: Annotated[list[Said], Field(max_length=MOST_AT_ONCE)]


class Examples(BaseModel, extra="forbid"):
    uploads: Tokens


class NextRound(BaseModel, extra="forbid"):
    """`follows` is the number of the round that was shown; 409 if another one is shown by now."""

    follows: int | None = Field(None, ge=0)
    learner: str = DEFAULT_LEARNER
    show: str = "best"
    count: Count = 60
    hide_judged: bool = True


class Step(BaseModel, extra="forbid"):
    round: Annotated[int, Field(ge=0)]


@router.get("")
def list_sessions(service: Opened) -> dict[str, Any]:
    """Every session, the newest first."""
    return {"sessions": service.store.summaries()}


@router.post("")
async def start(asked: NewSession, service: Opened) -> dict[str, Any]:
    """A new session and its first retrieval."""
    return await service.long_work.do(lambda attempt: _start(asked, service, attempt))


def _start(asked: NewSession, service: Service, attempt: Attempt) -> dict[str, Any]:
    if asked.random == bool(asked.images or asked.uploads):
        raise HTTPException(400, "expected images or uploads, or random: true, and not both")
    time = sessions.now()
    session = Session(
        token=secrets.token_urlsafe(12),
        name=asked.name,
        created=time,
        updated=time,
        codes=service.index.about["codes"],
        images=list(dict.fromkeys(asked.images)),
        uploads=[[token, 0] for token in dict.fromkeys(asked.uploads)],
        random=asked.random,
        seed=secrets.randbelow(2**31),
    )
    session.rounds = [service.searcher.first_round(session, service.code_of, asked.count)]
    session.name = asked.name or _first_name(session, service)
    attempt.keep()
    service.store.add(session)
    return service.shown(session)


def _first_name(session: Session, service: Service) -> str:
    if session.images:
        name = service.index.images(session.images[:1])[0].label
    else:
        name = "random start" if session.random else "uploaded image"
    others = len(session.images) + len(session.uploads) - 1
    return name[-LONGEST_NAME // 2 :] + (f" and {others} more" if others > 0 else "")


@router.get("/{token}")
def show(token: str, service: Opened) -> dict[str, Any]:
    """A session with the round shown."""
    return service.shown(service.session(token))


@router.patch("/{token}")
def rename(token: str, asked: Name, service: Opened) -> dict[str, Any]:
    service.session(token)
    with service.store.change(token) as session:
        session.name = asked.name
    return service.shown(session)


@router.delete("/{token}")
def delete(token: str, service: Opened) -> dict[str, Any]:
    service.store.delete(token)
    return {}


@router.post("/{token}/marks")
def mark(token: str, asked: Marks, service: Opened) -> dict[str, Any]:
    """Mark images; the answer is all marks. On disk when it comes."""
    service.session(token)
    for one in asked.marks:
        if service.index.position(one.image) is None:
            raise HTTPException(404, f"there is no image {one.image} in the index")
    with service.store.change(token) as session:
        sessions.mark(session, {one.image: one.relevant for one in asked.marks})
    answer = service.shown(session)
    return {key: answer[key] for key in ("marks", "can_undo")}


@router.post("/{token}/uploads")
def add_examples(token: str, asked: Examples, service: Opened) -> dict[str, Any]:
    """Further relevant examples from outside the index."""
    service.session(token)
    for upload in asked.uploads:
        service.code_of(upload)
    with service.store.change(token) as session:
        sessions.add_uploads(session, asked.uploads)
    return service.shown(session)


@router.post("/{token}/rounds")
async def next_round(
    token: str, asked: Annotated[NextRound, Body()], service: Opened
) -> dict[str, Any]:
    """Learn from the marks and rank again.

    A request that does not say what it follows, and asks for what is shown already, changes
    nothing.
    """
    return await service.long_work.do(lambda attempt: _next_round(token, asked, service, attempt))


def _next_round(token: str, asked: NextRound, service: Service, attempt: Attempt) -> dict[str, Any]:
    before = service.session(token)
    if asked.follows not in (None, before.current):
        raise Conflict(f"round {before.current} is shown now, not round {asked.follows}")
    settings = asked.model_dump(exclude={"follows"})
    # Marks of this session can be made meanwhile; they teach the round after this one.
    made = service.searcher.next_round(before, service.code_of, **settings)
    if asked.follows is None and sessions.is_repeated(before, made):
        return service.shown(before)
    attempt.keep()
    with service.store.change(token) as session:
        sessions.add_round(session, made, after=before.rounds[before.current])
    return service.shown(session)


@router.post("/{token}/back")
def back(token: str, asked: Step, service: Opened) -> dict[str, Any]:
    """Show an earlier round; the next one goes on from there."""
    service.session(token)
    with service.store.change(token) as session:
        sessions.back(session, asked.round)
    return service.shown(session)


@router.post("/{token}/undo")
def undo(token: str, service: Opened) -> dict[str, Any]:
    """Take back the last mark, example, round or step."""
    service.session(token)
    with service.store.change(token) as session:
        sessions.undo(session)
    return service.shown(session)


@router.get("/{token}/export.json")
def export_json(token: str, service: Opened) -> JSONResponse:
    """All that `python -m air_jax.replay` needs to repeat the session."""
    session = service.session(token)
    content = session_files.as_json(session, service.index, service.code_of)
    return JSONResponse(content, headers=_attachment(token, ".json"))


@router.get("/{token}/export.csv", response_class=Response)
def export_csv(token: str, service: Opened) -> Response:
    """Path, score and mark of the images of the round shown, and of all marked ones."""
    text = session_files.as_csv(service.session(token), service.index)
    headers = _attachment(token, ".csv")
    return Response(text, media_type="text/csv; charset=utf-8", headers=headers)


@router.get("/{token}/model.npz", response_class=Response)
async def model(token: str, service: Opened) -> Response:
    """The ranking of the round shown: weights, or support vectors and coefficients."""
    return await service.long_work.do(lambda _: _model(token, service))


def _model(token: str, service: Service) -> Response:
    session = service.session(token)
    made = session.rounds[session.current]
    found = service.searcher.found(session, made, service.code_of)
    file = io.BytesIO()
    np.savez(file, **session_files.model_arrays(found, service.index))
    headers = _attachment(token, ".npz")
    return Response(file.getvalue(), media_type="application/octet-stream", headers=headers)


def _attachment(token: str, end: str) -> dict[str, str]:
    name = "".join(letter for letter in token if letter.isalnum())
    return {"content-disposition": f'attachment; filename="session-{name}{end}"'}
