"""Opens the page on an index: `python -m air_jax.serve --index=INDEX`.

Local by default: only this machine can reach it. `--host=0.0.0.0` opens it to others, who then need
the token in the address that is printed. Ctrl-C ends it; sessions are on disk at every moment.
"""

import datetime
import ipaddress
import os
import secrets
import socket
import sys
import threading
import webbrowser
from argparse import Namespace
from pathlib import Path

# The flags are read before JAX is imported: what needs JAX is imported where it is used.
from air_jax.runtime import cache, command_line
from air_jax.runtime.arguments import Arguments
from air_jax.runtime.progress import say

SESSIONS_FILE = "sessions.sqlite"
TOKEN_VARIABLE = "AIR_JAX_TOKEN"
LOCAL = ("127.0.0.1", "::1", "localhost")
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
    add("--open", action="store_true", help="open the page in the browser")
    parser.number("--upload_megabytes", 20, "largest file to upload", 1, 1000)
    parser.number("--upload_megapixels", 50, "largest image to upload", 1, 1000)
    return parser.parse_args(arguments)


def is_local(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _run(told: Namespace) -> None:
    try:
        import fastapi  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise ValueError(f"{error}; the page needs: pip install 'air_jax[app]'") from error
    say(f"loading JAX and the index {told.index}")
    import jax

    from air_jax.index.decoding import Limits
    from air_jax.index.image_index import ImageIndex
    from air_jax.serve.api import UPLOADS, make_app
    from air_jax.serve.security import Bounds, Guard
    from air_jax.serve.service import Following, Service
    from air_jax.serve.session_store import SessionStore

    jax.config.update("jax_persistent_cache_min_compile_time_secs", SHORTEST_KEPT_COMPILATION)
    cache.keep_compilations()
    index = ImageIndex(told.index)
    store = SessionStore(index.path / SESSIONS_FILE)
    yesterday = datetime.datetime.now(datetime.UTC) - UPLOADS_KEPT
    store.delete_unused_uploads(yesterday.isoformat(timespec="milliseconds"))
    limits = Limits(bytes=told.upload_megabytes * 10**6, pixels=told.upload_megapixels * 10**6)
    service = Service(index, store, limits)

    def reopen() -> Service:
        newer = Service(ImageIndex(index.path), store, limits)
        newer.warm_up()
        return newer

    following = Following(service, reopen)
    local = is_local(told.host)
    token = told.token or os.environ.get(TOKEN_VARIABLE) or None
    if token is None and not local:
        token = secrets.token_urlsafe(24)
    protected = Guard(
        make_app(lambda: following.service),
        hosts=(*LOCAL, told.host),
        token=token,
        upload_path=UPLOADS,
        bounds=Bounds(upload_bytes=limits.bytes),
    )
    listening = _listen(told.host, told.port)
    port = listening.getsockname()[1]
    name = f"[{told.host}]" if ":" in told.host else told.host
    address = f"http://{name}:{port}/" + (f"?token={token}" if token else "")
    say(f"{index.about['size']:,} images of {index.path}; Ctrl-C ends it")
    say(f"open {address}")
    if not local:
        say("whoever has this address sees the images; traffic is not encrypted")
    threading.Thread(target=service.warm_up, daemon=True).start()
    following.start()
    if told.open:
        webbrowser.open(address)
    config = uvicorn.Config(
        protected, log_level="warning", timeout_keep_alive=30, server_header=False,
        timeout_graceful_shutdown=5,
    )  # fmt: skip
    uvicorn.Server(config).run([listening])
    following.end()
    store.close()
    say("ended")


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
        raise ValueError(f"--host={host} --port={port}: {error.strerror}") from error
    listening.set_inheritable(True)
    return listening


if __name__ == "__main__":
    sys.exit(main())
