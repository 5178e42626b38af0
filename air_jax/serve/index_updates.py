"""Keeps a server on what its index published last: indexing again needs no new start."""

import threading
from collections.abc import Callable

from air_jax.runtime.progress import say
from air_jax.serve.api import Service

SECONDS = 2.0  # between looks at the catalogue


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
