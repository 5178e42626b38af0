"""Requests that have to be refused, by raw ASGI calls."""

import asyncio
import json
import urllib.parse

import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed (pip install 'air_jax[app]')")

from fastapi import FastAPI, Request, Response

from air_jax.serve.security import HEADERS, Bounds, Guard, cookie_name

BOUNDS = Bounds(upload_bytes=100, body_bytes=10, body_seconds=0.2, seconds=0.4)
HOST = {"host": "localhost:8000"}
COOKIE = cookie_name("secret")
app = FastAPI()


@app.api_route("/slow")
async def slow() -> None:
    await asyncio.sleep(60)


@app.post("/json")
def total(numbers: list[int]) -> int:
    return sum(numbers)


@app.get("/where/{path:path}")
async def where(request: Request) -> str:
    return request.scope["path"]


@app.api_route("/{path:path}", methods=["GET", "POST"])
async def echo(request: Request) -> Response:
    return Response(await request.body())


def request(
    method="GET",
    path="/api/index",
    headers=HOST,
    body=(b"",),
    query=b"",
    token=None,
    wait=0.0,
    public=("", ""),
):
    """Status, headers and body of one request; `body` comes in parts."""
    hosts = ("localhost", "127.0.0.1", "::1")
    guard = Guard(app, hosts, token, "/api/uploads", BOUNDS, *public)
    parts = list(body)
    sent = []

    async def receive():
        await asyncio.sleep(wait)
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "scheme": "http",
        "query_string": query,
        "headers": [(key.encode(), value.encode()) for key, value in headers.items()],
    }
    asyncio.run(guard(scope, receive, send))
    found = {key.decode(): value.decode() for key, value in sent[0]["headers"]}
    return sent[0]["status"], found, sent[1]["body"]


def status(**how):
    return request(**how)[0]


def test_a_request_of_the_page_passes_with_every_header():
    code, headers, body = request(
        method="POST",
        headers=HOST | {"origin": "http://localhost:8000", "sec-fetch-site": "same-origin"},
        body=(b"12", b"34"),
    )
    assert (code, body) == (200, b"1234")
    assert {key: value for key, value in headers.items() if key != "content-length"} == HEADERS
    assert "unsafe" not in headers["content-security-policy"]


@pytest.mark.parametrize("site", ["cross-site", "same-site", "anything"])
def test_requests_of_other_sites_are_refused_but_for_opening_the_page(site):
    headers = HOST | {"sec-fetch-site": site}
    assert status(headers=headers) == 403
    opening = headers | {"sec-fetch-mode": "navigate"}
    assert status(headers=opening) == 403
    assert status(headers=opening, path="/") == 200
    assert status(headers=opening, path="/", method="POST") == 403


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://localhost:8000", ""])
def test_another_origin_is_refused(origin):
    assert status(method="POST", headers=HOST | {"origin": origin}) == 403


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "", "localhost@evil.example", "[::2]:8000"]
)
def test_a_name_that_is_not_this_servers_is_refused(host):
    assert status(headers={"host": host}) == 421


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1:8000", "[::1]:8000"])
def test_every_name_of_this_server_is_answered(host):
    assert status(headers={"host": host}) == 200


def test_bodies_are_bounded_whether_or_not_they_say_their_length():
    for path, most in (("/api/index", 10), ("/api/uploads", 100)):
        fits = (b"x" * most,)
        assert status(method="POST", path=path, body=fits) == 200
        assert status(method="POST", path=path, body=(*fits, b"x")) == 413
        said = HOST | {"content-length": str(most + 1)}
        assert status(method="POST", path=path, headers=said) == 413


def test_a_body_that_does_not_come_is_given_up():
    assert status(method="POST", body=(b"x",) * 9, wait=0.05) == 408


def test_the_bounds_are_those_of_a_body_that_is_parsed_too():
    def post(*body, wait=0.0):
        headers = HOST | {"content-type": "application/json"}
        return status(method="POST", path="/json", headers=headers, body=body, wait=wait)

    assert post(b"[1,", b"2]") == 200
    assert post(b"[1,", b"2,3,4,5,6]") == 413
    assert post(*(b"[", b"1", b",", b"2", b"]"), wait=0.05) == 408


def test_an_answer_that_does_not_come_is_given_up():
    code, _, body = request(path="/slow")
    assert code == 503
    assert "too long" in json.loads(body)["error"]


def test_with_a_token_nothing_is_answered_without_it():
    for headers in (HOST, HOST | {"cookie": f"{COOKIE}=wrong"}, HOST | {"cookie": "é; ;="}):
        assert status(token="secret", headers=headers) == 401
        assert status(token="secret", headers=headers, path="/") == 401
    assert status(token="secret", query=b"token=wrong", path="/") == 401
    assert status(token="secret", query=b"token=secret") == 401  # only the page's address
    assert status(token="secret", headers=HOST | {"authorization": "Bearer secret"}) == 200
    assert status(token="secret", headers=HOST | {"cookie": f"a=b; {COOKIE}=secret"}) == 200


def test_the_address_with_the_token_leaves_a_cookie_that_scripts_cannot_read():
    code, headers, _ = request(token="secret", query=b"token=secret", path="/")
    assert (code, headers["location"]) == (303, "./")
    # Without a path of its own it holds for the path that the browser knows.
    assert headers["set-cookie"] == f"{COOKIE}=secret; HttpOnly; SameSite=strict"
    _, headers, _ = request(
        token="secret", query=b"token=secret", path="/", public=("https://photos.example.org", "")
    )
    assert headers["set-cookie"] == f"{COOKIE}=secret; HttpOnly; SameSite=strict; Secure"


def test_servers_on_two_ports_of_a_host_keep_a_cookie_each():
    jar = {}  # a browser's, of one host and path: it knows no ports
    tokens = {"localhost:8000": "one", "localhost:8001": 'an"other;'}
    for host, token in tokens.items():
        query = urllib.parse.urlencode({"token": token}).encode()
        _, headers, _ = request(headers={"host": host}, query=query, path="/", token=token)
        name, _, value = headers["set-cookie"].partition(";")[0].partition("=")
        jar[name] = value
    cookie = "; ".join(f"{name}={value}" for name, value in jar.items())
    for host, token in tokens.items():
        assert status(headers={"host": host, "cookie": cookie}, token=token) == 200
        assert status(headers={"host": host, "cookie": cookie}, token="a third") == 401


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", ["/", "/api/index"])
def test_a_monitor_s_head_is_answered_as_get_is(method, path):
    assert status(method=method, path=path) == 200
    assert status(method=method, path=path, token="secret") == 401
    assert status(method=method, path=path, headers={"host": "evil.example"}) == 421


def test_a_proxy_needs_no_headers_where_the_public_address_is_named():
    public = ("https://photos.example.org", "")
    for host in ("photos.example.org", "127.0.0.1:8000", "10.0.0.7:8000"):
        how = {"headers": {"host": host, "origin": "https://photos.example.org"}, "token": "secret"}
        how["headers"]["authorization"] = "Bearer secret"
        assert status(method="POST", public=public, **how) == 200
        code, _, body = request(method="POST", **how)
        assert code == 403
        assert "--public-url=https://photos.example.org" in json.loads(body)["error"]
    evil = {"host": "photos.example.org", "origin": "https://evil.example"}
    assert status(method="POST", headers=evil, public=public) == 403


def test_the_public_path_is_taken_off_where_the_proxy_did_not():
    public = ("https://example.org", "/photos")
    for path in ("/photos/where/x", "/where/x"):
        assert request(path=path, public=public)[2] == b'"/where/x"'
    assert request(path="/where/photos/x", public=public)[2] == b'"/where/photos/x"'
    code, headers, _ = request(path="/photos", query=b"token=a%2Bb", public=public)
    assert (code, headers["location"]) == (303, "/photos/?token=a%2Bb")


def test_a_cookie_does_not_let_another_site_in():
    headers = HOST | {"cookie": f"{COOKIE}=secret", "origin": "http://evil.example"}
    assert status(token="secret", method="POST", headers=headers) == 403
