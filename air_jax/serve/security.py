"""What stands between the network and the page: origin, token, sizes, times, headers.

A plain ASGI wrapper. Requests of other sites are refused (by `Sec-Fetch-Site`, `Origin` and `Host`,
so that neither a page elsewhere nor a name that was re-bound to this machine reaches the index),
bodies are read whole, within a size and a time, before the application sees them.
"""

import asyncio
import http.cookies
import json
import secrets
import urllib.parse
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NamedTuple

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

COOKIE = "air_jax_token"
READING = ("GET", "HEAD")
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Bounds(NamedTuple):
    """What one request may take.

    Attributes:
        upload_bytes: body of an upload.
        body_bytes: of any other body.
        body_seconds: until the body is there.
        answer_seconds: until the answer begins.
    """

    upload_bytes: int = 20_000_000
    body_bytes: int = 1_000_000
    body_seconds: float = 60.0
    answer_seconds: float = 120.0


class Refused(Exception):
    """A request that is not let through: status and text."""

    def __init__(self, status: int, text: str):
        super().__init__(text)
        self.status, self.text = status, text


class Protection:
    """Wraps an application.

    Args:
        app: what is protected.
        hosts: names that this server may be called by; not looked at where there is a token.
        token: what every request has to bring, as a cookie, as `Authorization: Bearer` or once as
            `/?token=`; None: nothing.
        upload_path: where the larger bodies go.
        bounds: of a request.
    """

    def __init__(
        self,
        app: App,
        hosts: tuple[str, ...],
        token: str | None,
        upload_path: str,
        bounds: Bounds,
    ):
        self.app, self.hosts, self.token = app, hosts, token
        self.upload_path, self.bounds = upload_path, bounds

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            raise ValueError(f"a connection of type {scope['type']!r}; only http is served")
        answering = False

        async def send_protected(message: Message) -> None:
            nonlocal answering
            if message["type"] == "http.response.start":
                answering = True
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *own]}
            await send(message)

        try:
            headers = _headers(scope)
            self._check_origin(scope, headers)
            if self._sign_in(scope, headers):
                return await _answer(send_protected, 303, b"", self._cookie())
            body = await self._body(scope, headers, receive)
            async with asyncio.timeout(self.bounds.answer_seconds):
                await self.app(scope, _received(body, receive), send_protected)
        except Refused as refused:
            await _error(send_protected, refused.status, refused.text)
        except TimeoutError:
            if answering:
                raise
            await _error(send_protected, 503, "the answer took too long")

    def _check_origin(self, scope: Message, headers: dict[str, str]) -> None:
        host = headers.get("host", "")
        name = urllib.parse.urlsplit(f"//{host}").hostname or ""
        if self.token is None and name not in self.hosts:
            raise Refused(421, f"Host: {host!r} is none of {', '.join(self.hosts)}")
        origin = headers.get("origin")
        if origin is not None and origin != f"{scope['scheme']}://{host}":
            raise Refused(403, f"a request from {origin} is refused: it is another site")
        from_site = headers.get("sec-fetch-site", "none")
        opens_page = (
            scope["method"] in READING
            and scope["path"] == "/"
            and headers.get("sec-fetch-mode") == "navigate"
        )
        if from_site not in ("same-origin", "none") and not opens_page:
            raise Refused(403, f"a {from_site} request is refused: it is of another site")

    def _sign_in(self, scope: Message, headers: dict[str, str]) -> bool:
        """Whether this is the first visit, with the token in the address; Refused without it."""
        if self.token is None:
            return False
        given = urllib.parse.parse_qs(scope["query_string"].decode("latin-1")).get("token", [])
        if scope["path"] == "/" and given and self._is_token(given[0]):
            return True
        jar = http.cookies.SimpleCookie()
        try:
            jar.load(headers.get("cookie", ""))
        except http.cookies.CookieError:
            jar.clear()
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        brought = [jar[COOKIE].value] if COOKIE in jar else []
        brought += [bearer] if kind.lower() == "bearer" else []
        if not any(self._is_token(one) for one in brought):
            raise Refused(401, "open the address with ?token= that the server printed at its start")
        return False

    def _is_token(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), str(self.token).encode())

    def _cookie(self) -> list[tuple[bytes, bytes]]:
        cookie = f"{COOKIE}={self.token}; HttpOnly; SameSite=Strict; Path=/"
        return [(b"set-cookie", cookie.encode()), (b"location", b"/")]

    async def _body(self, scope: Message, headers: dict[str, str], receive: Receive) -> bytes:
        upload = scope["path"] == self.upload_path
        most = self.bounds.upload_bytes if upload else self.bounds.body_bytes
        too_large = Refused(413, f"the request is larger than the {most:,} bytes allowed")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > most:
            raise too_large
        parts, size = [], 0
        try:
            async with asyncio.timeout(self.bounds.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refused(400, "the request ended before its body did")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > most:
                        raise too_large
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            seconds = self.bounds.body_seconds
            raise Refused(408, f"the request did not arrive in {seconds:.0f} s") from None


def _headers(scope: Message) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def _received(body: bytes, receive: Receive) -> Receive:
    """The body in one message; after it, what the server has to say (that the client left)."""
    given = False

    async def once() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return once


async def _error(send: Send, status: int, text: str) -> None:
    body = json.dumps({"error": text}).encode()
    await _answer(send, status, body, [(b"content-type", b"application/json")])


async def _answer(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    headers = [*headers, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
