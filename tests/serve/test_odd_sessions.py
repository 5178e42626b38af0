"""Exported sessions that were changed: replayed, or refused with a reason."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import drawn
from hypothesis import given
from hypothesis import strategies as st

from air_jax.index import build, vector_files
from air_jax.index.image_index import ImageIndex
from air_jax.serve import session_files, sessions
from air_jax.serve.rounds import Searcher
from air_jax.serve.sessions import Session

SIZE, DIMENSION = 30, 4


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[Path, ImageIndex, dict]:
    """A file for sessions, an index, and a session on it: an upload, two rounds, marks."""
    place = tmp_path_factory.mktemp("odd")
    codes = np.random.default_rng(0).normal(size=(SIZE, DIMENSION)).astype(np.float32)
    np.save(place / "v.npy", codes)
    vector_files.index_vectors(place / "v.npy", None, None, place / "index", build.Options())
    index = ImageIndex(place / "index")
    time = sessions.now()
    made = Session(
        **{"token": "t", "name": "n", "created": time, "updated": time},
        codes=index.about["codes"],
        images=[1, 2],
        uploads=[["u", 0]],
        random=False,
        seed=1,
    )
    searcher, code_of = Searcher(index), {"u": codes[3]}.__getitem__
    made.rounds = [searcher.first_round(made, code_of, 5)]
    sessions.mark(made, {4: True, 5: False})
    after = made.rounds[0]
    asked = {"learner": "discriminant", "show": "best", "count": 5, "hide_judged": True}
    sessions.add_round(made, searcher.next_round(made, code_of, **asked), after)
    return place / "s.json", index, session_files.as_json(made, index, code_of)


ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 40)
    | st.sampled_from((2**31, 2**53, 2**64, 10**40, 1e300, float("nan"), float("inf")))
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(("best", "uncertain", "svc", "ridge", "u", "1")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)


@st.composite
def changes(draw: st.DrawFn) -> list[tuple[list[int], str, object]]:
    one = st.tuples(
        st.lists(st.integers(0, 30), min_size=1, max_size=6),
        st.sampled_from(("replace", "replace", "delete", "double")),
        ODD,
    )
    return draw(st.lists(one, min_size=1, max_size=3))


def change(held: object, way: list[int], how: str, value: object) -> None:
    """Change what lies at the end of a way through a value of JSON."""
    for left, step in zip(range(len(way) - 1, -1, -1), way, strict=True):
        if not isinstance(held, (dict, list)) or not held:
            return
        keys = list(held) if isinstance(held, dict) else range(len(held))
        key = keys[step % len(keys)]
        inner = held[key]
        if not left or not isinstance(inner, (dict, list)):
            if how == "delete":
                del held[key]
            elif how == "double" and isinstance(held, list):
                held.append(inner)
            else:
                held[key] = value
            return
        held = inner


def replayed(path: Path, index: ImageIndex) -> None:
    try:
        held = session_files.read(path)
        pairs = session_files.replay(held, index)
    except ValueError as error:
        assert str(error)
        return
    for pair in pairs:
        session_files.compared(*pair)


@drawn
@given(changes())
def test_a_changed_session_is_replayed_or_refused(exported, changes):
    path, index, whole = exported
    held = copy.deepcopy(whole)
    for way, how, value in changes:
        change(held, way, how, value)
    path.write_text(json.dumps(held))
    replayed(path, index)


@drawn
@given(
    st.binary(max_size=100)
    | st.text(max_size=60).map(str.encode)
    | ODD.map(json.dumps).map(str.encode)
)
def test_any_bytes_are_no_session(exported, content):
    path, index, _ = exported
    path.write_bytes(content)
    replayed(path, index)


def test_a_session_nested_too_deeply_is_refused(exported):
    path = exported[0]
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="is no JSON file"):
        session_files.read(path)


def test_a_whole_session_gives_the_same_rankings(exported):
    path, index, whole = exported
    path.write_text(json.dumps(whole))
    pairs = session_files.replay(session_files.read(path), index)
    assert [session_files.compared(*pair)["same"] for pair in pairs] == [True, True]
