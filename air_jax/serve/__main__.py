"""Opens the page on an index: `python -m air_jax.serve --index=INDEX`.

Local by default: only this machine can reach it. `--host=0.0.0.0` opens it to others, who then need
the token in the address that is printed; behind a proxy, `--public-url` names the address that they
open. Ctrl-C ends it; sessions are on disk at every moment.
"""

import datetime
import errno
import ipaddress
import os
import secrets
import socket
import sys
import threading
import urllib.parse
import webbrowser
from argparse import Namespace
from pathlib import Path
from typing import NamedTuple

# The flags are read before JAX is imported: what needs JAX is imported where it is used.
from air_jax.runtime import cache, command_line
from air_jax.runtime.arguments import Arguments, names
from air_jax.runtime.progress import say

SESSIONS_FILE = "sessions.sqlite"
TOKEN_VARIABLE = "AIR_JAX_TOKEN"
LOCAL = ("127.0.0.1", "::1", "localhost")
PORTS = {"http": 80, "https": 443}
ALL = ("0.0.0.0", "::")  # of no machine: what listens there is called by another address
NOWHERE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}  # for documentation
SECONDS_TO_END = 1  # that requests under way get
UPLOADS_KEPT = datetime.timedelta(days=1)  # of no session
# A learner compiled in a tenth of a second is worth keeping: a person waits for it.
SHORTEST_KEPT_COMPILATION = 0.1


def main(arguments: list[str] | None = None) -> int:
    """Serve the index that the command line names; returns the exit status."""
    told = read(arguments)
    return command_line.guard(lambda: _run(told), told.index)


def read(arguments: list[str] | None) -> Namespace:
    """The command line's flags; exits if they are wrong."""
    parser = Arguments("air_jax.serve", __doc__)
    add = parser.add_argument
    add("--index", metavar="INDEX", type=Path, required=True, help="folder of air_jax.index")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: all")
    parser.number("--port", 8000, "0: any that is free", 0, 65535)
    add("--token", default="", help="what visitors have to know; without it a new one if needed")
    add(
        "--public-url",
        metavar="URL",
        help="what browsers open if a proxy stands before this server: https://NAME/PATH",
    )
    add(
        "--trusted-proxies",
        metavar="ADDRESSES",
        default="",
        help="other machines whose X-Forwarded-Proto is believed, as 10.0.0.7,172.17.0.0/16",
    )
    add("--open", action="store_true", help="open the page in the browser")
    parser.number("--upload_megabytes", 20, "largest file to upload", 1, 1000)
    parser.number("--upload_megapixels", 50, "largest image to upload", 1, 1000)
    parser.number("--round_seconds", 50, "after which a round is given up", 1, 3600)
    told = parser.parse_args(arguments)
    try:
        told.public = None if told.public_url is None else read_public(told.public_url)
    except ValueError as error:
        parser.error(f"--public-url={error}")
    told.proxies = [name for name in names(told.trusted_proxies) if name]
    for name in told.proxies:
        try:
            ipaddress.ip_network(name)
        except ValueError as error:
            parser.error(f"--trusted-proxies: {error}")
    return told


class Public(NamedTuple):
    """The address that browsers open, where a proxy stands before this server.

    Attributes:
        origin: "https://photos.example.org", as a browser's `Origin` says it.
        path: "" or "/pictures", which the proxy may take off the paths that it passes on, or not.
    """

    origin: str
    path: str

    @property
    def host(self) -> str:
        """The name in it."""
        return urllib.parse.urlsplit(self.origin).hostname or ""


def read_public(text: str) -> Public:
    """An address such as "https://photos.example.org/pictures".

    Raises:
        ValueError: it is none; the message says why.
    """
    try:
        parts = urllib.parse.urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from error
    if parts.scheme not in PORTS or not parts.hostname or parts.username is not None:
        raise ValueError(f"{text!r}: expected https://NAME or https://NAME/PATH")
    if parts.query or parts.fragment:
        raise ValueError(f"{text!r}: expected nothing after the path")
    path = parts.path.rstrip("/")
    if path.split("/")[1:2] in (["api"], ["static"]):
        raise ValueError(f"{text!r}: the page itself has addresses below /api and /static")
    name = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    shown = "" if port in (None, PORTS[parts.scheme]) else f":{port}"
    return Public(f"{parts.scheme}://{name}{shown}", path)


def is_local(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def addresses(host: str, port: int, public: Public | None, token: str | None) -> list[str]:
    """Addresses of the page that a browser can open as they are, the best one first."""
    shown = [] if public is None else [public.origin + public.path]
    for name in _names(host):
        shown.append(f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}")
    query = f"?token={urllib.parse.quote(token, safe='')}" if token else ""
    return [f"{address}/{query}" for address in shown]


def _names(host: str) -> list[str]:
    """What this machine is called by those who can reach a server that listens on `host`."""
    if host not in ALL:
        return [host]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    own = "::1" if ":" in host else "127.0.0.1"
    with socket.socket(family, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect((NOWHERE[family], 9))  # sends nothing; chooses the address to send from
        except OSError:
            return [own]
        return [asking.getsockname()[0], own]


def _run(told: Namespace) -> None:
    try:
        import fastapi  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise ValueError(f"{error}; the page needs: pip install 'air_jax[app]'") from error
    say(f"loading JAX and the index {told.index}")

    from air_jax.data.decoding import Limits
    from air_jax.index.image_index import ImageIndex
    from air_jax.serve.api import UPLOADS, make_app
    from air_jax.serve.security import Bounds, Guard
    from air_jax.serve.service import Following, Service
    from air_jax.serve.session_store import SessionStore

    cache.keep_compilations(SHORTEST_KEPT_COMPILATION)
    index = ImageIndex(told.index)
    store = SessionStore(index.path / SESSIONS_FILE)
    yesterday = datetime.datetime.now(datetime.UTC) - UPLOADS_KEPT
    store.delete_unused_uploads(yesterday.isoformat(timespec="milliseconds"))
    limits = Limits(bytes=told.upload_megabytes * 10**6, pixels=told.upload_megapixels * 10**6)
    service = Service(index, store, limits, told.round_seconds)

    def reopen(before: Service) -> Service:
        index = ImageIndex(before.index.path)
        store = before.store
        if not store.is_in_place():
            store = SessionStore(store.path)
        newer = Service(index, store, limits, told.round_seconds)
        newer.warm_up()
        return newer

    following = Following(service, reopen)
    public = told.public
    local = is_local(told.host) and (public is None or is_local(public.host))
    token = told.token or os.environ.get(TOKEN_VARIABLE) or None
    if token is None and not local:
        token = secrets.token_urlsafe(24)
    protected = Guard(
        make_app(lambda: following.service),
        hosts=(*LOCAL, told.host),
        token=token,
        upload_path=UPLOADS,
        bounds=Bounds(
            upload_bytes=limits.bytes, seconds=max(Bounds().seconds, told.round_seconds + 60)
        ),
        origin=public.origin if public else "",
        path=public.path if public else "",
    )
    listening = _listen(told.host, told.port)
    port = listening.getsockname()[1]
    shown = addresses(told.host, port, public, token)
    say(f"{index.about['size']:,} images of {index.path}; Ctrl-C ends it")
    say(f"open {shown[0]}")
    for address in shown[1:]:
        say(f"  or {address}" + ("" if public else " on this machine"))
    if not local:
        encrypted = public is not None and public.origin.startswith("https:")
        say("whoever has this address sees the images")
        if not encrypted:
            say("traffic is not encrypted")
    threading.Thread(target=service.warm_up, daemon=True).start()
    following.start()
    if told.open:
        webbrowser.open(shown[-1])
    config = uvicorn.Config(
        protected, log_level="warning", timeout_keep_alive=30, server_header=False,
        timeout_graceful_shutdown=SECONDS_TO_END, forwarded_allow_ips=[*LOCAL[:2], *told.proxies],
    )  # fmt: skip
    try:
        uvicorn.Server(config).run([listening])
    finally:  # uvicorn raises Ctrl-C again when it has ended
        following.end()
        store.close()


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens before anything is said: a port in use is an error in one line."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen()  # whoever opens the address that is printed next, waits
    except OSError as error:
        listening.close()
        way_out = "; --port=0 takes any that is free" if error.errno == errno.EADDRINUSE else ""
        raise ValueError(f"--host={host} --port={port}: {error.strerror}{way_out}") from error
    listening.set_inheritable(True)
    return listening


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # rounds that are under way are not waited for
