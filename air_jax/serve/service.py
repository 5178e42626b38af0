"""What requests are answered by: an opened index with its sessions, replaced when it is outdated.

Errors are `HTTPException`; all else is plain values that JSON can hold.
"""

import threading
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
from fastapi import Depends, HTTPException, Request

from air_jax.feedback.engine import DEFAULT_LEARNER
from air_jax.index.decoding import Limits
from air_jax.index.image_index import Image, ImageIndex
from air_jax.runtime.progress import say
from air_jax.serve.rounds import Searcher
from air_jax.serve.session_store import SessionStore
from air_jax.serve.sessions import Round, Session

SECONDS = 2.0  # between looks at the catalogue


class Service:
    """An index as it was opened, with the sessions on it.

    Args:
        index: opened.
        store: the sessions.
        limits: of an upload.
    """

    def __init__(self, index: ImageIndex, store: SessionStore, limits: Limits):
        self.index, self.store, self.limits = index, store, limits
        self.searcher = Searcher(index)

    def warm_up(self) -> None:
        """Compile what the first rounds take, before someone waits for it."""
        engine, codes = self.searcher.engine, self.index.codes
        query, count = codes.get(np.array(0)), min(60, len(codes))
        engine.first(query, count)
        some = np.arange(min(4, len(codes)))
        none = np.zeros((0, codes.dimension), np.float32)
        engine.next_round(DEFAULT_LEARNER, query, none, some, some % 2 == 0, count)

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
        reopen: opens the index anew, and does what is to be done before someone is served.

    Attributes:
        service: what requests are to be answered by.
    """

    def __init__(self, service: Service, reopen: Callable[[], Service]):
        self.service, self._reopen = service, reopen
        self._ended = threading.Event()

    def look(self) -> bool:
        """Open what was published since; returns whether there was something.

        What cannot be opened is passed over, and tried again at the next look: an indexer may have
        replaced it meanwhile.
        """
        try:
            if self.service.index.is_newest():
                return False
            service = self._reopen()
        except (OSError, ValueError) as error:
            say(f"the index was published anew, but cannot be opened: {error}")
            return False
        self.service = service
        say(f"the index was published anew: {service.index.about['size']:,} images")
        return True

    def start(self, seconds: float = SECONDS) -> None:
        """Look again and again, in a thread of its own, until `end`."""

        def follow() -> None:
            while not self._ended.wait(seconds):
                self.look()

        threading.Thread(target=follow, daemon=True).start()

    def end(self) -> None:
        self._ended.set()
