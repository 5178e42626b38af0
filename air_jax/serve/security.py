"""What stands between the network and the page: host, origin, token, size, time, headers.

`Guard` is a layer around the application. It refuses requests of other sites by `Sec-Fetch-Site`,
`Origin` and `Host`, so that neither a page elsewhere nor a name that was re-bound to this machine
reaches the index. It asks for the token, and bounds the size and the time of every request.
"""

import asyncio
import hashlib
import secrets
import urllib.parse
from typing import NamedTuple

from fastapi import HTTPException
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "air_jax_token"  # the beginning of its name; see `cookie_name`
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


def cookie_name(token: str) -> str:
    """The name of the cookie that holds a token: another one for each token.

    A browser sends cookies to all ports of a host, and those of a path to the paths below it.
    Servers with other tokens there, behind a proxy or not, so keep cookies of their own.
    """
    return f"{COOKIE}_{hashlib.sha256(token.encode()).hexdigest()[:8]}"


class Bounds(NamedTuple):
    """What one request may take.

    Attributes:
        upload_bytes: in the body of an upload.
        body_bytes: in any other body.
        body_seconds: until the body has come.
        seconds: until the answer has gone, the body included.
    """

    upload_bytes: int = 20_000_000
    body_bytes: int = 1_000_000
    body_seconds: float = 60.0
    seconds: float = 180.0


class Guard:
    """An application that only gets the requests it may get.

    `HEAD` is answered as `GET` is; the server leaves the body out.

    Args:
        app: what is guarded; it turns an `HTTPException` into an answer.
        hosts: names that this server may be called by; not looked at where there is a token.
        token: what every request has to bring, as a cookie, as `Authorization: Bearer` or once as
            `/?token=`; None: nothing.
        upload_path: where the larger bodies go.
        bounds: of a request.
        origin: where browsers find the page if a proxy stands before this server, as their
            `Origin` says it: "https://photos.example.org"; "": here.
        path: of the page there: "" or "/pictures". The proxy may take it off the paths that it
            passes on, or not.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: tuple[str, ...],
        token: str | None,
        upload_path: str,
        bounds: Bounds,
        origin: str = "",
        path: str = "",
    ):
        self.app, self.token, self.origin, self.path = app, token, origin, path
        self.hosts = (*hosts, urllib.parse.urlsplit(origin).hostname or "localhost")
        self.upload_path, self.bounds = upload_path, bounds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            raise ValueError(f"a connection of type {scope['type']!r}; only http is served")
        answering = False

        async def send_with_headers(message: Message) -> None:
            nonlocal answering
            if message["type"] == "http.response.start":
                answering = True
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        scope = self._as_asked_of_this_server(scope)
        try:
            request = Request(scope)
            self._check_site(request)
            answer = self._to_folder(request) or self._sign_in(request) or self.app
            async with asyncio.timeout(self.bounds.seconds):
                await answer(scope, self._bounded(request, receive), send_with_headers)
        except (HTTPException, TimeoutError) as error:
            if answering:
                raise
            status, text = 503, "the answer took too long"
            if isinstance(error, HTTPException):
                status, text = error.status_code, error.detail
            await JSONResponse({"error": text}, status)(scope, receive, send_with_headers)
        except Exception:
            if not answering:
                raise
            # The application has answered it with status 500, and logged it.

    def _as_asked_of_this_server(self, scope: Scope) -> Scope:
        """A request without the path of the public address; HEAD is GET."""
        path, method = scope["path"], scope["method"]
        if path.startswith(f"{self.path}/"):
            path = path[len(self.path) :]
        return {**scope, "path": path, "method": "GET" if method == "HEAD" else method}

    def _to_folder(self, request: Request) -> Response | None:
        """Where the page's relative addresses lead somewhere, from the same without a slash."""
        if not self.path or request.scope["path"] != self.path:
            return None
        query = request.scope["query_string"].decode("latin-1")
        return RedirectResponse(f"{self.path}/" + (f"?{query}" if query else ""), 303)

    def _check_site(self, request: Request) -> None:
        host = request.headers.get("host", "")
        name = urllib.parse.urlsplit(f"//{host}").hostname or ""
        if self.token is None and name not in self.hosts:
            raise HTTPException(421, f"Host: {host!r} is none of {', '.join(self.hosts)}")
        origin = request.headers.get("origin")
        own = [f"{request.scope['scheme']}://{host}"]
        own += [self.origin] if self.origin else []
        if origin not in (None, *own):
            raise HTTPException(
                403,
                f"a request from {origin} is refused: this server is {' or '.join(own)}. If that "
                f"is its address behind a proxy, start it with --public-url={origin}",
            )
        from_site = request.headers.get("sec-fetch-site", "none")
        opens_page = (
            request.method == "GET"
            and request.scope["path"] == "/"
            and request.headers.get("sec-fetch-mode") == "navigate"
        )
        if from_site not in ("same-origin", "none") and not opens_page:
            raise HTTPException(403, f"a {from_site} request is refused: it is of another site")

    def _sign_in(self, request: Request) -> Response | None:
        """The answer to a first visit, with the token in the address; HTTPException without it."""
        if self.token is None:
            return None
        if request.scope["path"] == "/" and self._is_token(request.query_params.get("token", "")):
            # Relative, and a cookie without a path, which is then the address's own: a proxy may
            # show the page below a path that this server does not know.
            secure = (self.origin or request.scope["scheme"]).startswith("https")
            answer = RedirectResponse("./", 303)
            answer.set_cookie(
                cookie_name(self.token),
                self.token,
                path=None,
                httponly=True,
                secure=secure,
                samesite="strict",
            )
            return answer
        kind, _, bearer = request.headers.get("authorization", "").partition(" ")
        cookie = request.cookies.get(cookie_name(self.token), "")
        brought = [cookie, bearer if kind.lower() == "bearer" else ""]
        if not any(self._is_token(one) for one in brought):
            text = "open the address with ?token= that the server printed at its start"
            raise HTTPException(401, text)
        return None

    def _is_token(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), str(self.token).encode())

    def _bounded(self, request: Request, receive: Receive) -> Receive:
        """Receives a body; HTTPException where it is too large, or takes too long."""
        upload = request.scope["path"] == self.upload_path
        most = self.bounds.upload_bytes if upload else self.bounds.body_bytes
        too_large = HTTPException(413, f"the request is larger than the {most:,} bytes allowed")
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and int(length) > most:
            raise too_large
        size, more = 0, True
        end = asyncio.get_running_loop().time() + self.bounds.body_seconds

        async def bounded() -> Message:
            nonlocal size, more
            try:
                async with asyncio.timeout_at(end if more else None):
                    message = await receive()
            except TimeoutError:
                seconds = self.bounds.body_seconds
                raise HTTPException(408, f"the request did not come in {seconds:.0f} s") from None
            size += len(message.get("body", b""))
            more = message.get("more_body", False)
            if size > most:
                raise too_large
            return message

        return bounded
