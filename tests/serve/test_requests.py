"""Requests drawn from the description of the interface, sensible and odd: none shows a fault."""

import json
import urllib.parse

import numpy as np
import pytest
from conftest import EXAMPLES, drawn
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("fastapi", reason="fastapi is not installed (pip install 'air_jax[app]')")
pytest.importorskip("httpx", reason="httpx is not installed (pip install 'air_jax[test]')")

from fastapi.testclient import TestClient

from air_jax.data.decoding import Limits
from air_jax.feedback.engine import LEARNER_NAMES, SHOW
from air_jax.index import build, vector_files
from air_jax.index.image_index import ImageIndex
from air_jax.serve.api import make_app
from air_jax.serve.service import Service
from air_jax.serve.session_store import SessionStore

SIZE, DIMENSION = 40, 6
ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=5,
)
# What a description cannot say, but a request needs to get far.
SENSIBLE = {
    "learner": st.sampled_from(LEARNER_NAMES),
    "show": st.sampled_from(SHOW),
    "image": st.integers(1, SIZE),
    "images": st.lists(st.integers(1, SIZE), max_size=3),
    "follows": st.none() | st.integers(0, 3),
    "round": st.integers(0, 3),
}


def values(schema: dict, described: dict, name: str = "") -> st.SearchStrategy:
    """What a schema allows; one time in twenty, anything."""
    if name in SENSIBLE:
        return SENSIBLE[name]
    if "$ref" in schema:
        schema = described["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        return st.one_of([values(one, described, name) for one in schema["anyOf"]])
    match schema.get("type"):
        case "integer":
            drawn = st.integers(schema.get("minimum"), schema.get("maximum"))
        case "boolean":
            drawn = st.booleans()
        case "null":
            drawn = st.none()
        case "array":
            drawn = st.lists(values(schema["items"], described), max_size=5)
        case "object":
            held = {key: values(one, described, key) for key, one in schema["properties"].items()}
            needed = {key: held.pop(key) for key in schema.get("required", [])}
            drawn = st.fixed_dictionaries(needed, optional=held)
        case _:
            drawn = st.text(max_size=30)
    return st.integers(0, 19).flatmap(lambda chance: drawn if chance else ODD)


@st.composite
def requests(draw: st.DrawFn, described: dict, tokens: list[str]) -> dict:
    """A request as `TestClient.request` takes it."""
    paths = described["paths"].items()
    operations = [(path, *one) for path, methods in paths for one in methods.items()]
    path, method, told = draw(st.sampled_from(operations))
    # No request deletes the sessions that others use.
    query = {}
    for one in told.get("parameters", []):
        if one["name"] == "token" and method != "delete" and draw(st.integers(0, 9)):
            value = draw(st.sampled_from(tokens))
        else:
            value = draw(values(one["schema"], described, one["name"]))
        text = value if isinstance(value, str) else json.dumps(value)
        text = text.encode("utf-8", "replace").decode()
        if one["in"] == "path":
            path = path.replace(f"{{{one['name']}}}", urllib.parse.quote(text, safe=""))
        elif one["in"] == "query":
            query[one["name"]] = text
    asked = {"method": method, "url": path, "params": query}
    if "requestBody" in told:
        body = draw(values(told["requestBody"]["content"]["application/json"]["schema"], described))
        raw = draw(st.integers(0, 19)) == 0
        content = draw(st.binary(max_size=40)) if raw else json.dumps(body).encode()
        asked |= {"content": content, "headers": {"content-type": "application/json"}}
    elif path == "/api/uploads":
        kind = draw(st.sampled_from(["image/png", "application/octet-stream", "text/html", "é"]))
        asked |= {
            "content": draw(st.binary(max_size=40)),
            "headers": {"content-type": kind.encode()},
        }
    return asked


def test_no_request_is_a_fault_of_the_server(tmp_path):
    count = max(EXAMPLES, 150)
    codes = np.random.default_rng(0).normal(size=(SIZE, DIMENSION))
    np.save(tmp_path / "codes.npy", codes)
    vector_files.index_vectors(
        tmp_path / "codes.npy", None, None, tmp_path / "index", build.Options()
    )
    store = SessionStore(tmp_path / "sessions.sqlite")
    service = Service(ImageIndex(tmp_path / "index"), store, Limits())
    client = TestClient(make_app(lambda: service), raise_server_exceptions=False)
    described = client.get("/api/openapi.json").json()
    starts = ({"images": [1]}, {"images": [2, 3]}, {"random": True})
    tokens = [
        client.post("/api/sessions", json=start | {"count": 6}).json()["session"]
        for start in starts
    ]
    seen: dict[int, int] = {}

    @settings(drawn, max_examples=count)
    @given(requests(described, tokens))
    def send(asked: dict) -> None:
        answer = client.request(**asked)
        seen[answer.status_code] = seen.get(answer.status_code, 0) + 1
        assert answer.status_code < 500, (asked, answer.text)
        if answer.status_code >= 400:
            assert answer.json()["error"]

    send()
    print(dict(sorted(seen.items())))
    assert seen[200] > count / 10
