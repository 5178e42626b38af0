"""The HTTP interface of an index: JSON in and out, described by `/api/openapi.json`.

The page uses nothing else. Errors are `{"error": text}` with a status of 4xx.
"""

import io
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import Body, Depends, FastAPI, Header, HTTPException, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException as StarletteHTTPException

import air_jax
from air_jax.feedback.engine import DEFAULT_LEARNER, LEARNER_NAMES, SHOW
from air_jax.index import decoding
from air_jax.index.decoding import Limits
from air_jax.index.image_index import Image, ImageIndex
from air_jax.serve import session_export, sessions
from air_jax.serve.rounds import MOST_SHOWN, Searcher
from air_jax.serve.session_store import SessionStore, Upload
from air_jax.serve.sessions import LONGEST_NAME, Round, Session

PAGE = Path(__file__).parent / "page"
UPLOADS = "/api/uploads"
PREVIEW_SIDE = 1024
THUMBNAIL_SIDE = 192
PER_PAGE = 1000
MOST_AT_ONCE = 1000  # marks or examples of one request

Id = Annotated[int, Field(ge=1, le=2**53)]
Ids = Annotated[list[Id], Field(max_length=MOST_AT_ONCE)]
Tokens = Annotated[list[Annotated[str, Field(max_length=64)]], Field(max_length=MOST_AT_ONCE)]
Count = Annotated[int, Field(ge=1, le=MOST_SHOWN)]


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
    learner: str = DEFAULT_LEARNER
    show: str = "best"
    count: Count = 60
    hide_judged: bool = True


class Step(BaseModel, extra="forbid"):
    round: Annotated[int, Field(ge=0)]


class Service:
    """What the interface does, without HTTP, on an index as it was opened: JSON values."""

    def __init__(self, index: ImageIndex, store: SessionStore, limits: Limits):
        self.index, self.store, self.limits = index, store, limits
        self.searcher = Searcher(index)

    def about(self) -> dict[str, Any]:
        told = self.index.about
        return {
            "name": self.index.path.resolve().name,
            "kind": told["kind"],
            "generation": told["generation"],
            "size": told["size"],
            "dimension": told["dimension"],
            "model": told["model"],
            "uploads": told["model"] is not None,
            "limits": {
                "upload_bytes": self.limits.bytes,
                "upload_pixels": self.limits.pixels,
                "count": MOST_SHOWN,
            },
            "learners": list(LEARNER_NAMES),
            "learner": DEFAULT_LEARNER,
            "shows": list(SHOW),
        }

    def items(self, images: list[int]) -> list[dict[str, Any]]:
        """Items of images; one that is in the index no more has only its id."""
        held = [image for image in images if self.index.position(image) is not None]
        found = {image.id: item(image) for image in self.index.images(held)}
        gone = {"label": "(no longer in the index)", "width": None, "height": None}
        return [
            found.get(image, {"image": image, **gone, "metadata": {}, "thumbnail": False})
            for image in images
        ]

    def page(self, offset: int, count: int) -> dict[str, Any]:
        images = self.index.ids[offset : offset + count].tolist()
        return {
            "generation": self.index.about["generation"],
            "total": len(self.index.ids),
            "images": self.items(images),
        }

    def image(self, image: int) -> Image:
        if self.index.position(image) is None:
            raise HTTPException(404, f"there is no image {image} in the index")
        return self.index.images([image])[0]

    def upload(self, content: bytes) -> dict[str, Any]:
        if self.index.about["model"] is None:
            raise HTTPException(
                409, "this index was made of vectors, without a net: uploads cannot be searched"
            )
        try:
            picture, width, height = decoding.open_image(content, self.limits)
        except ValueError as error:
            raise HTTPException(422, f"the file cannot be read as an image: {error}") from error
        kept = Upload(
            self.index.about["codes"],
            width,
            height,
            self.index.encode(picture),
            decoding.thumbnail(picture, THUMBNAIL_SIDE),
        )
        token = self.store.add_upload(kept)
        return {"upload": token, "width": kept.width, "height": kept.height}

    def code_of(self, token: str) -> np.ndarray:
        """The code of an upload, if the index's net made it."""
        kept = self.store.upload(token)
        if kept.codes != self.index.about["codes"]:
            raise HTTPException(409, "this example was uploaded for an index of another net")
        return kept.code

    def start(self, asked: NewSession) -> dict[str, Any]:
        if asked.random == bool(asked.images or asked.uploads):
            raise HTTPException(400, "expected images or uploads, or random: true, and not both")
        time = sessions.now()
        session = Session(
            token=secrets.token_urlsafe(12),
            name=asked.name,
            created=time,
            updated=time,
            codes=self.index.about["codes"],
            images=list(dict.fromkeys(asked.images)),
            uploads=[[token, 0] for token in dict.fromkeys(asked.uploads)],
            random=asked.random,
            seed=secrets.randbelow(2**31),
        )
        session.rounds = [self.searcher.first_round(session, self.code_of, asked.count)]
        session.name = asked.name or self._first_name(session)
        self.store.add(session)
        return self.shown(session)

    def _first_name(self, session: Session) -> str:
        if session.images:
            name = self.index.images(session.images[:1])[0].label
        else:
            name = "random start" if session.random else "uploaded image"
        others = len(session.images) + len(session.uploads) - 1
        return name[-LONGEST_NAME // 2 :] + (f" and {others} more" if others > 0 else "")

    def next_round(self, session: Session, asked: NextRound) -> None:
        self.check(session)
        made = self.searcher.next_round(session, self.code_of, **asked.model_dump())
        sessions.add_round(session, made)

    def mark(self, session: Session, said: list[Said]) -> None:
        for one in said:
            self.image(one.image)
        sessions.mark(session, {one.image: one.relevant for one in said})

    def add_examples(self, session: Session, tokens: list[str]) -> None:
        for token in tokens:
            self.code_of(token)
        sessions.add_uploads(session, tokens)

    def check(self, session: Session) -> None:
        if session.codes != self.index.about["codes"]:
            raise HTTPException(
                409,
                "the index's codes were made anew by another net or from other vectors since this "
                "session began: start a new session",
            )

    def model(self, session: Session) -> bytes:
        self.check(session)
        made = session.rounds[session.current]
        found = self.searcher.found(session, made, self.code_of)
        file = io.BytesIO()
        np.savez(file, **session_export.model_arrays(found, self.index))
        return file.getvalue()

    def shown(self, session: Session) -> dict[str, Any]:
        """A session as the page shows it."""
        made = session.rounds[session.current]
        marks = session.marks_now()
        items = self.items(made.images)
        results = [one | {"score": score} for one, score in zip(items, made.scores, strict=True)]
        keys = ("number", "learner", "show", "count", "hide_judged")
        head = ("learnt", "certain", "seconds")
        return {
            "session": session.token,
            "name": session.name,
            "created": session.created,
            "updated": session.updated,
            "query": {
                "images": self.items(session.images),
                "uploads": session.uploads_now(),
                "random": session.random,
            },
            "rounds": [
                {key: getattr(one, key) for key in keys} | _counts(one) for one in session.rounds
            ],
            "current": session.current,
            "round": {key: getattr(made, key) for key in (*keys, *head)} | {"results": results},
            "marks": [
                {"image": image, "relevant": mark.relevant, "round": mark.round, "item": one}
                for (image, mark), one in zip(marks.items(), self.items(list(marks)), strict=True)
            ],
            "can_undo": bool(session.undo),
        }


def item(image: Image) -> dict[str, Any]:
    """An image as the page shows it."""
    return {
        "image": image.id,
        "label": image.label,
        "width": image.width,
        "height": image.height,
        "metadata": image.metadata,
        "thumbnail": image.width is not None,
    }


def _counts(made: Round) -> dict[str, int]:
    relevant = sum(bool(said) for _, said in made.marks)
    return {"relevant": relevant, "irrelevant": len(made.marks) - relevant}


async def _opened(request: Request) -> Service:
    return request.app.state.opened()


Opened = Annotated[Service, Depends(_opened)]  # one for the whole of a request


def make_app(opened: Callable[[], Service]) -> FastAPI:
    """The application; `security.Protection` goes around it.

    Args:
        opened: what is served now; asked at every request.
    """
    app = FastAPI(
        title="air_jax",
        version=air_jax.__version__,
        description="Search images by examples and by marks, round by round.",
        openapi_url="/api/openapi.json",
        docs_url=None,  # their page loads scripts from elsewhere
        redoc_url=None,
    )
    app.state.opened = opened
    _add_errors(app)
    _add_images(app)
    _add_sessions(app)
    _add_exports(app)

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers={"cache-control": "no-cache"})

    app.mount("/static", StaticFiles(directory=PAGE), name="static")
    return app


def _add_errors(app: FastAPI) -> None:
    def answer(status: int, text: str) -> JSONResponse:
        return JSONResponse({"error": text}, status)

    @app.exception_handler(StarletteHTTPException)
    def refused(_: Request, error: StarletteHTTPException) -> JSONResponse:
        return answer(error.status_code, str(error.detail))

    @app.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        return answer(422, f"{where}: {first['msg']}" if where else first["msg"])

    @app.exception_handler(KeyError)
    def missing(_: Request, error: KeyError) -> JSONResponse:
        return answer(404, f"there is no session or upload {str(error.args[0])[:100]!r}")

    @app.exception_handler(ValueError)
    def wrong(_: Request, error: ValueError) -> JSONResponse:
        return answer(400, str(error))

    @app.exception_handler(ConnectionError)
    def unreachable(_: Request, error: ConnectionError) -> JSONResponse:
        return answer(503, str(error))


def _add_images(app: FastAPI) -> None:
    @app.get("/api/index")
    def about_index(service: Opened) -> dict[str, Any]:
        """What the index holds, and what can be asked of it."""
        return service.about()

    @app.get("/api/images")
    def browse(
        service: Opened,
        offset: Annotated[int, Query(ge=0, le=2**40)] = 0,
        count: Annotated[int, Query(ge=1, le=PER_PAGE)] = 200,
    ) -> dict[str, Any]:
        """All images, in order of their paths."""
        return service.page(offset, count)

    @app.get("/api/images/find")
    def find(
        service: Opened,
        text: Annotated[str, Query(min_length=1, max_length=500)],
        count: Annotated[int, Query(ge=1, le=PER_PAGE)] = 50,
    ) -> dict[str, Any]:
        """Images by path or a part of it, or by id."""
        return {"images": [item(image) for image in service.index.find(text, count)]}

    @app.get("/api/images/{image}")
    def describe(image: Id, service: Opened) -> dict[str, Any]:
        """One image."""
        found = service.image(image)
        return item(found) | {"bytes": found.bytes}

    @app.get("/api/images/{image}/thumbnail", response_class=Response)
    def thumbnail(
        image: Id, service: Opened, if_none_match: Annotated[str, Header()] = ""
    ) -> Response:
        """A small JPEG."""
        # Ids of another index on the same port are other images: a browser has to ask again.
        tag = f'"{service.index.about["fingerprint"][:16]}-{image}"'
        headers = {"cache-control": "private, no-cache", "etag": tag}
        if if_none_match == tag:
            return Response(status_code=304, headers=headers)
        content = service.index.thumbnail(image)
        if content is None:
            raise HTTPException(404, f"there is no thumbnail of image {image}")
        return Response(content, media_type="image/jpeg", headers=headers)

    @app.get("/api/images/{image}/preview", response_class=Response)
    def preview(image: Id, service: Opened) -> Response:
        """A JPEG of at most 1,024 pixels, made of the file in the indexed folder."""
        service.image(image)
        path = service.index.file(image)
        if path is None:
            raise HTTPException(404, f"the file of image {image} is not in the folder any more")
        try:
            picture = decoding.open_image(path, decoding.Limits()).picture
        except ValueError as error:
            raise HTTPException(404, f"the file of image {image}: {error}") from error
        content = decoding.thumbnail(picture, PREVIEW_SIDE)
        return Response(content, media_type="image/jpeg", headers={"cache-control": "no-store"})

    @app.post(UPLOADS)
    async def upload(
        request: Request, service: Opened, content_type: Annotated[str, Header()] = ""
    ) -> dict[str, Any]:
        """An example from outside the index: the image file is the body."""
        kind = content_type.partition(";")[0].strip().lower()
        if kind != "application/octet-stream" and not kind.startswith("image/"):
            raise HTTPException(415, f"Content-Type {kind!r}: expected image/*")
        return await run_in_threadpool(service.upload, await request.body())

    @app.get("/api/uploads/{token}/thumbnail", response_class=Response)
    def upload_thumbnail(token: str, service: Opened) -> Response:
        """A small JPEG."""
        headers = {"cache-control": "private, max-age=86400"}  # tokens are not used again
        content = service.store.upload(token).thumbnail
        return Response(content, media_type="image/jpeg", headers=headers)


def _add_sessions(app: FastAPI) -> None:
    one = "/api/sessions/{token}"

    @app.get("/api/sessions")
    def list_sessions(service: Opened) -> dict[str, Any]:
        """Every session, the newest first."""
        return {"sessions": service.store.summaries()}

    @app.post("/api/sessions")
    def start(asked: NewSession, service: Opened) -> dict[str, Any]:
        """A new session and its first retrieval."""
        return service.start(asked)

    @app.get(one)
    def show(token: str, service: Opened) -> dict[str, Any]:
        """A session with the round shown."""
        return service.shown(service.store.session(token))

    @app.patch(one)
    def rename(token: str, asked: Name, service: Opened) -> dict[str, Any]:
        with service.store.change(token) as session:
            session.name = asked.name
        return service.shown(session)

    @app.delete(one)
    def delete(token: str, service: Opened) -> dict[str, Any]:
        service.store.delete(token)
        return {}

    @app.post(one + "/marks")
    def mark(token: str, asked: Marks, service: Opened) -> dict[str, Any]:
        """Mark images; the answer is all marks. On disk when it comes."""
        with service.store.change(token) as session:
            service.mark(session, asked.marks)
        answer = service.shown(session)
        return {key: answer[key] for key in ("marks", "can_undo")}

    @app.post(one + "/uploads")
    def add_examples(token: str, asked: Examples, service: Opened) -> dict[str, Any]:
        """Further relevant examples from outside the index."""
        with service.store.change(token) as session:
            service.add_examples(session, asked.uploads)
        return service.shown(session)

    @app.post(one + "/rounds")
    def next_round(
        token: str, asked: Annotated[NextRound, Body()], service: Opened
    ) -> dict[str, Any]:
        """Learn from the marks and rank again."""
        with service.store.change(token) as session:
            service.next_round(session, asked)
        return service.shown(session)

    @app.post(one + "/back")
    def back(token: str, asked: Step, service: Opened) -> dict[str, Any]:
        """Show an earlier round; the next one goes on from there."""
        with service.store.change(token) as session:
            sessions.back(session, asked.round)
        return service.shown(session)

    @app.post(one + "/undo")
    def undo(token: str, service: Opened) -> dict[str, Any]:
        """Take back the last mark, example, round or step."""
        with service.store.change(token) as session:
            sessions.undo(session)
        return service.shown(session)


def _add_exports(app: FastAPI) -> None:
    one = "/api/sessions/{token}"

    def attachment(token: str, end: str) -> dict[str, str]:
        name = "".join(letter for letter in token if letter.isalnum())
        return {"content-disposition": f'attachment; filename="session-{name}{end}"'}

    @app.get(one + "/export.json")
    def export_json(token: str, service: Opened) -> JSONResponse:
        """All that `python -m air_jax.replay` needs to repeat the session."""
        session = service.store.session(token)
        content = session_export.as_json(session, service.index, service.code_of)
        return JSONResponse(_without_surrogates(content), headers=attachment(token, ".json"))

    @app.get(one + "/export.csv", response_class=Response)
    def export_csv(token: str, service: Opened) -> Response:
        """Path, score and mark of the images of the round shown, and of all marked ones."""
        text = session_export.as_csv(service.store.session(token), service.index)
        headers = attachment(token, ".csv")
        return Response(text, media_type="text/csv; charset=utf-8", headers=headers)

    @app.get(one + "/model.npz", response_class=Response)
    def model(token: str, service: Opened) -> Response:
        """The ranking of the round shown: weights, or support vectors and coefficients."""
        content = service.model(service.store.session(token))
        headers = attachment(token, ".npz")
        return Response(content, media_type="application/octet-stream", headers=headers)


def _without_surrogates(content: dict[str, Any]) -> dict[str, Any]:
    """Paths that are not UTF-8 as JSON escapes: UTF-8 itself has no place for their bytes."""
    escaped = {
        image: path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        for image, path in content["paths"].items()
    }
    return content | {"paths": escaped}
