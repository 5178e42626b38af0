"""The HTTP interface of an index: JSON in and out, described by `/api/openapi.json`.

The page uses nothing else. Errors are `{"error": text}`: with a status of 4xx for what is asked
wrongly, 503 for what may succeed later, and 500 with a number, which stands in the log beside the
traceback, for a fault of this program. Here are the application, the index, its images, and
uploads; `session_api` has the sessions.
"""

import hashlib
import secrets
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Header, HTTPException, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException

import air_jax
from air_jax.data import decoding
from air_jax.feedback.engine import DEFAULT_LEARNER
from air_jax.index.catalogue import Unavailable
from air_jax.runtime.progress import say
from air_jax.search.codes import Unrankable
from air_jax.serve import session_api
from air_jax.serve.rounds import MOST_SHOWN
from air_jax.serve.service import Opened, Service, item
from air_jax.serve.session_api import Id
from air_jax.serve.session_store import Missing, Upload
from air_jax.serve.sessions import Conflict, Refused

PAGE = Path(__file__).parent / "page"
UPLOADS = "/api/uploads"
PREVIEW_SIDE = 1024
THUMBNAIL_SIDE = 192
PER_PAGE = 1000

router = APIRouter()


class Error(BaseModel):
    """An answer with a status of 4xx or 5xx."""

    error: str


def make_app(opened: Callable[[], Service]) -> FastAPI:
    """The application; `security.Guard` goes around it.

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
        redirect_slashes=False,  # to an absolute address, which a proxy may show below a path
        servers=[{"url": ".."}],
        responses={
            "4XX": {"model": Error, "description": "What is asked for cannot be."},
            "5XX": {"model": Error, "description": "It may succeed later (503), or a fault (500)."},
        },
    )
    app.state.opened = opened
    _add_errors(app)
    app.include_router(router)
    app.include_router(session_api.router)
    app.mount("/static", StaticFiles(directory=PAGE), name="static")
    return app


def _add_errors(app: FastAPI) -> None:
    def answer(status: int, text: str) -> JSONResponse:
        # A name in a request may hold what UTF-8 cannot.
        return JSONResponse({"error": text.encode("utf-8", "replace").decode()}, status)

    def says(kind: type[Exception], status: int) -> None:
        app.add_exception_handler(kind, lambda _, error: answer(status, str(error)))

    says(Conflict, 409)
    says(Refused, 400)
    says(Unrankable, 400)
    says(Unavailable, 503)
    says(ConnectionError, 503)

    @app.exception_handler(StarletteHTTPException)
    def refused(_: Request, error: StarletteHTTPException) -> JSONResponse:
        return answer(error.status_code, str(error.detail))

    @app.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        return answer(422, f"{where}: {first['msg']}" if where else first["msg"])

    @app.exception_handler(Missing)
    def missing(_: Request, error: Missing) -> JSONResponse:
        return answer(404, f"there is no session or upload {str(error)[:100]!r}")

    @app.exception_handler(Exception)
    def fault(request: Request, error: Exception) -> JSONResponse:
        """Whatever else goes wrong is a fault of this program: logged, not explained away."""
        number = secrets.token_hex(4)
        text = "".join(traceback.format_exception(error))
        say(f"fault {number} at {request.method} {request.url.path}:\n{text}")
        return answer(500, f"a fault of the server, number {number}; its log says more")


@router.get("/", include_in_schema=False)
def page() -> FileResponse:
    return FileResponse(PAGE / "index.html", headers={"cache-control": "no-cache"})


@router.get("/api/index")
def about_index(service: Opened) -> dict[str, Any]:
    """What the index holds, and what can be asked of it."""
    told = service.index.about
    kept = {key: told[key] for key in ("kind", "generation", "size", "dimension", "model")}
    engine = service.searcher.engine
    return kept | {
        "version": service.index.version,
        "name": service.index.path.resolve().name,
        "uploads": told["model"] is not None,
        "limits": {
            "upload_bytes": service.limits.bytes,
            "upload_pixels": service.limits.pixels,
            "round_seconds": service.long_work.seconds,
            "count": MOST_SHOWN,
        },
        "learners": list(engine.learners),
        "learner": DEFAULT_LEARNER,
        "shows": list(engine.shows),
    }


@router.get("/api/images")
def browse(
    service: Opened,
    offset: Annotated[int, Query(ge=0, le=2**40)] = 0,
    count: Annotated[int, Query(ge=1, le=PER_PAGE)] = 200,
) -> dict[str, Any]:
    """All images, in order of their paths."""
    images = service.index.ids[offset : offset + count].tolist()
    return {
        "generation": service.index.about["generation"],
        "version": service.index.version,
        "total": len(service.index.ids),
        "images": service.items(images),
    }


@router.get("/api/images/find")
def find(
    service: Opened,
    text: Annotated[str, Query(min_length=1, max_length=500)],
    count: Annotated[int, Query(ge=1, le=PER_PAGE)] = 50,
) -> dict[str, Any]:
    """Images by path or a part of it, or by id."""
    return {"images": [item(image) for image in service.index.find(text, count)]}


@router.get("/api/images/{image}")
def describe(image: Id, service: Opened) -> dict[str, Any]:
    """One image."""
    found = service.image(image)
    return item(found) | {"bytes": found.bytes}


@router.get("/api/images/{image}/thumbnail", response_class=Response)
def thumbnail(image: Id, service: Opened, if_none_match: Annotated[str, Header()] = "") -> Response:
    """A small JPEG."""
    content = service.index.thumbnail(image)
    if content is None:
        raise HTTPException(404, f"there is no thumbnail of image {image}")
    # An id is another image in another index at the same address, and a row of vectors may get
    # another picture: a browser has to ask again.
    tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    headers = {"cache-control": "private, no-cache", "etag": tag}
    if if_none_match == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type="image/jpeg", headers=headers)


@router.get("/api/images/{image}/preview", response_class=Response)
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


@router.post(UPLOADS)
async def upload(
    request: Request, service: Opened, content_type: Annotated[str, Header()] = ""
) -> dict[str, Any]:
    """An example from outside the index: the image file is the body."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind != "application/octet-stream" and not kind.startswith("image/"):
        raise HTTPException(415, f"Content-Type {kind!r}: expected image/*")
    return await run_in_threadpool(_keep_upload, service, await request.body())


def _keep_upload(service: Service, content: bytes) -> dict[str, Any]:
    index = service.index
    if index.about["model"] is None:
        raise HTTPException(
            409, "this index was made of vectors, without a net: uploads cannot be searched"
        )
    try:
        picture, width, height = decoding.open_image(content, service.limits)
    except ValueError as error:
        raise HTTPException(422, f"the file cannot be read as an image: {error}") from error
    thumbnail = decoding.thumbnail(picture, THUMBNAIL_SIDE)
    kept = Upload(index.about["codes"], width, height, index.encode(picture), thumbnail)
    return {"upload": service.store.add_upload(kept), "width": width, "height": height}


@router.get("/api/uploads/{token}/thumbnail", response_class=Response)
def upload_thumbnail(token: str, service: Opened) -> Response:
    """A small JPEG."""
    headers = {"cache-control": "private, max-age=86400"}  # tokens are not used again
    content = service.store.upload(token).thumbnail
    return Response(content, media_type="image/jpeg", headers=headers)
