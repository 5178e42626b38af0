"""`metrics.jsonl` and the check that losses are finite."""

import json

import jax
import jax.numpy as jnp
import pytest

from air_jax.training import training_log
from air_jax.training.training_log import NonFiniteError, TrainingLog, read_metrics


def make_log(directory, resumed_at=0, **kwargs):
    return TrainingLog(
        directory,
        resumed_at=resumed_at,
        every_steps=3,
        batch=10,
        gradients_at=(1, 4),
        parameters=["kernel", "bias"],
        **kwargs,
    )


def metrics(loss, grad_norm=1.0):
    norms = jnp.array([grad_norm, 0.0], jnp.float32)
    scalars = {"loss": jnp.float32([loss]), "learning_rate": jnp.float32([loss / 10])}
    return {**scalars, "grad_norm": norms[:1], "grad_norms": norms[None]}


def test_a_line_holds_the_means_over_its_window(tmp_path):
    log = make_log(tmp_path)
    for step in range(1, 8):
        log.add(step, metrics(step, 2 * step), 0.0)
    log.settle()
    log.close()
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [(m["step"], m["loss"], m["grad_norm"]) for m in lines] == [(3, 2, 4), (6, 5, 10)]
    # The rate is that of the last step.
    assert [m["learning_rate"] for m in lines] == pytest.approx([0.3, 0.6])


def test_a_line_holds_its_whole_window_though_training_was_stopped_in_it(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = make_log(tmp_path)
    for step in range(1, 6):
        log.add(step, metrics(step), 0.0)
    log.settle()
    log.close()
    log = make_log(tmp_path, resumed_at=5, window=json.loads(json.dumps(log.window)))
    log.add(6, metrics(6), 0.0)
    log.settle()
    log.close()
    assert [(m["step"], m["loss"]) for m in read_metrics(path)] == [(3, 2), (6, 5)]


def test_steps_after_the_one_resumed_from_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": s, "loss": 0.5}) + "\n" for s in (3, 6, 9)))
    make_log(tmp_path, resumed_at=6).close()
    assert [m["step"] for m in read_metrics(path)] == [3, 6]


def test_a_line_cut_short_by_a_crash_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 3, "loss": 0.5}\n{"step": 6, "lo')
    assert [m["step"] for m in read_metrics(path)] == [3]
    assert read_metrics(tmp_path / "nothing.jsonl") == []


@pytest.mark.parametrize("bad", [metrics(float("nan")), metrics(1.0, float("inf"))])
def test_the_first_step_that_is_not_finite_is_named(tmp_path, bad):
    log = make_log(tmp_path)
    log.add(1, metrics(1.0), 0.0)
    log.add(2, bad, 0.0)
    log.add(4, metrics(float("nan")), 0.0)
    with pytest.raises(NonFiniteError, match="^step 2: loss"):
        log.settle()


def test_adding_waits_for_no_step_but_those_before_the_end_of_a_window(tmp_path):
    class Unfetchable:
        def __float__(self):
            raise AssertionError("waited for the device")

    log = make_log(tmp_path)
    for step in range(1, 6):
        late = {"loss": [Unfetchable()], "grad_norm": [Unfetchable()]}
        log.add(step, late if step >= 3 else metrics(1.0), 0.0)
    with pytest.raises(AssertionError, match="waited"):
        log.add(6, metrics(1.0), 0.0)


def test_rates_are_of_the_windows_own_time_without_pauses(tmp_path, monkeypatch):
    clock = {"now": 100.0}
    monkeypatch.setattr(training_log.time, "monotonic", lambda: clock["now"])
    log = make_log(tmp_path)
    for last, seconds in ((3, 6.0), (6, 1.5), (7, 0.5)):
        clock["now"] += 50  # compiling, or saving a checkpoint
        started = clock["now"]
        log.add(last, several(last - (0 if last == 7 else 2), last), started)
        clock["now"] += seconds
        log.settle()
    log.finish()
    rates = [m["images_per_second"] for m in read_metrics(tmp_path / "metrics.jsonl")]
    assert rates == pytest.approx([10 / 2.0, 10 / 0.5, 10 / 0.5])


def several(first, last):
    """Of a call of the steps from `first` to `last`, whose losses are their numbers."""
    calls = [metrics(step) for step in range(first, last + 1)]
    return jax.tree.map(lambda *values: jnp.concatenate(values), *calls)


def test_calls_of_several_steps_give_the_lines_of_single_ones(tmp_path):
    log = make_log(tmp_path)
    for first, last in ((1, 4), (5, 5), (6, 12), (13, 13)):
        log.add(last, several(first, last), 0.0)
    log.finish()
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [(m["step"], m["loss"]) for m in lines] == [(3, 2), (6, 5), (9, 8), (12, 11), (13, 13)]
    assert [m["step"] for m in read_metrics(tmp_path / "gradients.jsonl")] == [1, 4]


def test_finishing_writes_the_last_window_though_it_is_short(tmp_path):
    log = make_log(tmp_path)
    for step in range(1, 6):
        log.add(step, metrics(step), 0.0)
    log.finish()
    assert [(m["step"], m["loss"]) for m in read_metrics(tmp_path / "metrics.jsonl")] == [
        (3, 2),
        (5, 4.5),
    ]


def test_tensorboard_gets_the_same_figures(tmp_path):
    pytest.importorskip("tensorboardX")
    log = make_log(tmp_path, tensorboard=True)
    for step in range(1, 4):
        log.add(step, metrics(step), 0.0)
    log.settle()
    log.close()
    assert any(path.stat().st_size > 200 for path in (tmp_path / "tensorboard").iterdir())
