"""Marks, rounds, steps back and undo against a plain list of snapshots; sessions as JSON."""

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from air_jax.serve import sessions
from air_jax.serve.sessions import Mark, Round, Session

IMAGES = st.integers(1, 6)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("mark"), st.dictionaries(IMAGES, st.sampled_from([True, False, None]))),
        st.tuples(st.just("round"), st.none()),
        st.tuples(st.just("back"), st.integers(0, 4)),
        st.tuples(st.just("uploads"), st.lists(st.sampled_from("abc"), max_size=2, unique=True)),
        st.tuples(st.just("undo"), st.none()),
    ),
    max_size=25,
)


def make_round(session: Session, number: int) -> Round:
    marks = [[image, mark.relevant] for image, mark in session.marks_now().items()]
    return Round(
        number=number,
        learner="discriminant" if number else None,
        show="best",
        count=2,
        hide_judged=True,
        seed=0,
        marks=marks,
        uploads=session.uploads_now(),
        images=[number + 1, number + 2],
        scores=[0.5, None],
        learnt=True,
        certain=True,
        seconds=0.1,
    )


def make_session() -> Session:
    session = Session("t", "name", "c", "u", "model:1", [1], [["a", 0]], False, 0)
    session.rounds = [make_round(session, 0)]
    return session


def state(session: Session) -> dict:
    """All but how to undo; the order of marks aside."""
    held = sessions.to_json(session)
    return {
        **held,
        "undo": None,
        "marks": sorted(held["marks"]),
        "uploads": sorted(held["uploads"]),
    }


def do(session: Session, kind: str, value: object) -> None:
    match kind:
        case "mark":
            sessions.mark(session, value)
        case "round":
            after = session.rounds[session.current]
            sessions.add_round(session, make_round(session, session.current + 1), after)
        case "back":
            sessions.back(session, min(value, len(session.rounds) - 1))
        case "uploads":
            sessions.add_uploads(session, value)


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_undo_takes_back_every_step_whatever_came_before(steps):
    session = make_session()
    snapshots = [state(session)]
    for kind, value in steps:
        if kind == "undo":
            if len(snapshots) == 1:
                with pytest.raises(ValueError, match="nothing to undo"):
                    sessions.undo(session)
                continue
            sessions.undo(session)
            snapshots.pop()
        else:
            do(session, kind, value)
            if state(session) != snapshots[-1] or kind == "round":
                snapshots.append(state(session))
        assert state(session) == snapshots[-1]
    while len(snapshots) > 1:
        sessions.undo(session)
        snapshots.pop()
        assert state(session) == snapshots[-1]


@settings(max_examples=100, deadline=None)
@given(STEPS)
def test_a_session_read_from_json_goes_on_as_the_one_written(steps):
    session = make_session()
    for kind, value in steps:
        if kind != "undo":
            do(session, kind, value)
    again = sessions.from_json(json.loads(json.dumps(sessions.to_json(session))))
    assert again.rounds == session.rounds
    assert again.marks == session.marks
    while session.undo:
        sessions.undo(session)
        sessions.undo(again)
        assert state(again) == state(session)
    assert not again.undo


def test_marks_of_later_rounds_do_not_count_after_a_step_back_and_do_after_going_on():
    session = make_session()
    sessions.mark(session, {5: True})
    do(session, "round", None)
    sessions.mark(session, {6: False})
    assert session.marks_now() == {5: Mark(True, 0), 6: Mark(False, 1)}
    sessions.back(session, 0)
    assert session.marks_now() == {5: Mark(True, 0)}
    sessions.back(session, 1)
    assert session.marks_now() == {5: Mark(True, 0), 6: Mark(False, 1)}


def test_a_new_round_takes_the_place_of_those_after_the_one_shown():
    session = make_session()
    for _ in range(3):
        do(session, "round", None)
        sessions.mark(session, {session.current: True})
    sessions.back(session, 1)
    later = copy.deepcopy(session.rounds[2:])
    do(session, "round", None)
    assert [made.number for made in session.rounds] == [0, 1, 2]
    assert set(session.marks) == {1}
    sessions.undo(session)
    assert session.rounds[2:] == later
    assert set(session.marks) == {1, 2, 3}


def test_marking_as_it_was_is_no_step():
    session = make_session()
    sessions.mark(session, {4: True})
    sessions.mark(session, {4: True})
    sessions.mark(session, {3: None})
    assert len(session.undo) == 1


def test_a_round_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match="round 1: expected from 0 to 0"):
        sessions.back(make_session(), 1)


@pytest.mark.parametrize(
    "damage",
    [
        {"format": 2},
        {"marks": [[1]]},
        {"rounds": [{"number": 0}]},
        {"rounds": [{"number": 0, "learner": None, "show": "best", "count": 2}]},
        {"undo": 3},
    ],
)
def test_a_damaged_session_is_an_error(damage):
    with pytest.raises(ValueError, match="session"):
        sessions.from_json(sessions.to_json(make_session()) | damage)
    with pytest.raises(ValueError, match="session"):
        sessions.from_json([])
