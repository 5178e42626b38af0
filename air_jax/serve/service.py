"""What requests are answered by: an opened index with its sessions, replaced when it is outdated.

Errors are `HTTPException`; all else is plain values that JSON can hold.
"""

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import Depends, HTTPException, Request

from air_jax.data.decoding import Limits
from air_jax.feedback.engine import DEFAULT_LEARNER
from air_jax.index.catalogue import Unavailable
from air_jax.index.image_index import Image, ImageIndex
from air_jax.runtime.progress import say
from air_jax.serve.rounds import Searcher
from air_jax.serve.session_store import SessionStore
from air_jax.serve.sessions import Round, Session

T = TypeVar("T")
SECONDS = 2.0  # between looks at the catalogue
SHORTEST_PAUSE = 0.1  # between looks that requests ask for
AT_ONCE = 8  # rounds; the cores are shared by those under way


class Service:
    """An index as it was opened, with the sessions on it.

    Args:
        index: opened.
        store: the sessions.
        limits: of an upload.
        round_seconds: after which a round is given up; proxies wait a minute by default.
    """

    def __init__(
        self,
        index: ImageIndex,
        store: SessionStore,
        limits: Limits,
        round_seconds: float = 50,
    ):
        self.index, self.store, self.limits = index, store, limits
        self.searcher = Searcher(index)
        self.long_work = LongWork(round_seconds)

    def warm_up(self) -> None:
        """Compile what the first rounds take, before someone waits for it."""
        engine, codes = self.searcher.engine, self.index.codes
        query, count = codes.get(np.array(0)), min(60, len(codes))
        engine.first(query, count)
        some = np.arange(min(4, len(codes)))
        none = np.zeros((0, codes.dimension), np.float32)
        engine.next_round(DEFAULT_LEARNER, query, none, some, some % 2 == 0, count)

    def is_in_place(self) -> bool:
        """Whether the files are those that were opened, not deleted and not others."""
        return self.index.is_in_place() and self.store.is_in_place()

    def image(self, image: int) -> Image:
        """An image of the index; HTTPException 404 if it holds none of that id."""
        if self.index.position(image) is None:
            raise HTTPException(404, f"there is no image {image} in the index")
        return self.index.images([image])[0]

    def items(self, images: list[int]) -> list[dict[str, Any]]:
        """Items of images; one that is in the index no more has only its id."""
        held = [image for image in images if self.index.position(image) is not None]
        found = {image.id: item(image) for image in self.index.images(held)}
        gone = {"label": "(no longer in the index)", "width": None, "height": None}
        return [
            found.get(image, {"image": image, **gone, "metadata": {}, "thumbnail": False})
            for image in images
        ]

    def code_of(self, token: str) -> np.ndarray:
        """The code of an upload, if the index's net made it."""
        kept = self.store.upload(token)
        if kept.codes != self.index.about["codes"]:
            raise HTTPException(409, "this example was uploaded for an index of another net")
        return kept.code

    def session(self, token: str) -> Session:
        """A session; HTTPException 409 if its images are not those that the index has now."""
        session = self.store.session(token)
        self.check(session)
        return session

    def check(self, session: Session) -> None:
        if session.codes != self.index.about["codes"]:
            raise HTTPException(
                409,
                "the index's codes were made anew by another net or from other vectors since this "
                "session began: start a new session",
            )

    def shown(self, session: Session) -> dict[str, Any]:
        """A session as the page shows it."""
        made = session.rounds[session.current]
        marks = session.marks_now()
        items = self.items(made.images)
        results = [one | {"score": score} for one, score in zip(items, made.scores, strict=True)]
        keys = ("number", "learner", "show", "count", "hide_judged")
        head = ("learnt", "certain", "solved", "seconds")
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


class Following:
    """The service of the index as it was published last.

    Requests under way keep the service they began with: its codes stay readable, as the files of an
    older generation are deleted but not closed.

    Args:
        service: of the index as it is now.
        reopen: opens anew what is not as it was: the index, and the sessions if their file is
            another; it is given the service so far.
    """

    def __init__(self, service: Service, reopen: Callable[[Service], Service]):
        self._service, self._reopen = service, reopen
        self._ended, self._wanted = threading.Event(), threading.Event()
        self._said = ""

    @property
    def service(self) -> Service:
        """What requests are to be answered by.

        Raises:
            Unavailable: the folder of the index was deleted or replaced, and is not open yet.
        """
        service = self._service
        if not service.is_in_place():
            self._wanted.set()
            raise Unavailable(
                f"{service.index.path} was deleted or replaced; it is opened as soon as there is "
                "a whole index" + (f" ({self._said})" if self._said else "")
            )
        return service

    def look(self) -> bool:
        """Open what was published since; returns whether there was something.

        What cannot be opened is passed over, and tried again at the next look: an indexer may have
        replaced it meanwhile.
        """
        before = self._service
        try:
            if before.is_in_place() and before.index.is_newest():
                return False
            service = self._reopen(before)
        except Exception as error:  # whatever it is, the next look may succeed
            if str(error) != self._said:
                self._said = str(error)
                say(f"the index was changed, but cannot be opened anew: {error}")
            return False
        self._said = ""
        self._service = service
        say(f"the index was published anew: {service.index.about['size']:,} images")
        if service.store is not before.store:
            say("the sessions so far were deleted with the folder of the index")
        return True

    def start(self, seconds: float = SECONDS) -> None:
        """Look again and again, in a thread of its own, until `end`."""

        def follow() -> None:
            while not self._ended.is_set():
                self._wanted.wait(seconds)
                self._wanted.clear()
                self.look()
                self._ended.wait(SHORTEST_PAUSE)

        threading.Thread(target=follow, daemon=True).start()

    def end(self) -> None:
        self._ended.set()
        self._wanted.set()


class Attempt:
    """Work that either has its result kept, or is given up: whichever is decided first."""

    def __init__(self) -> None:
        self._access, self._decided = threading.Lock(), ""

    def keep(self) -> None:
        """Decide, right before the result is stored, that it counts.

        Raises:
            GivenUp: it does not.
        """
        if not self._decide("keep"):
            raise GivenUp

    def give_up(self) -> bool:
        """Decide that it does not count; False where it does already."""
        return self._decide("give up")

    def _decide(self, how: str) -> bool:
        with self._access:
            self._decided = self._decided or how
            return self._decided == how


class GivenUp(Exception):
    """Nobody waits for the result any more."""


class LongWork:
    """Does what may take long in threads of its own, so that all other requests are answered.

    A computation cannot be cut off: where it is given up, its thread goes on, and its result is
    thrown away.

    Args:
        seconds: after which work is given up.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._threads = concurrent.futures.ThreadPoolExecutor(AT_ONCE, "long")

    async def do(self, work: Callable[[Attempt], T]) -> T:
        """What `work` returns, which stores nothing before `Attempt.keep`.

        Raises:
            HTTPException: 503, it took too long; nothing was stored.
        """
        attempt = Attempt()
        future = asyncio.wrap_future(self._threads.submit(work, attempt))
        try:
            await asyncio.wait([future], timeout=self.seconds)
            if not future.done() and attempt.give_up():
                raise HTTPException(
                    503,
                    f"this took longer than {self.seconds:.0f} s and was given up; nothing was "
                    "changed. Try another learner; --round_seconds of the server allows more",
                )
            return await future
        finally:
            attempt.give_up()  # the request may have been cancelled
            future.cancel()  # work that has not begun need not begin
