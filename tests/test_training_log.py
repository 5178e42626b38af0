"""`metrics.jsonl` and the check that losses are finite."""

import json

import jax.numpy as jnp
import pytest

from air_jax import training_log
from air_jax.training_log import NonFiniteError, TrainingLog, read_metrics


def make_log(path, resumed_at=0, **kwargs):
    return TrainingLog(
        path,
        resumed_at=resumed_at,
        every_steps=3,
        batch=10,
        learning_rate=lambda s: 0.1,
        gradients=path.with_name("gradients.jsonl"),
        gradients_at=(1, 4),
        parameters=["kernel", "bias"],
        **kwargs,
    )


def metrics(loss, grad_norm=1.0):
    norms = jnp.array([grad_norm, 0.0], jnp.float32)
    return {"loss": jnp.float32(loss), "grad_norm": norms[0], "grad_norms": norms}


def test_a_line_holds_the_means_over_its_window(tmp_path):
    log = make_log(tmp_path / "m.jsonl")
    for step in range(1, 8):
        log.add(step, metrics(step, 2 * step))
    log.settle()
    log.close()
    lines = read_metrics(tmp_path / "m.jsonl")
    assert [(m["step"], m["loss"], m["grad_norm"]) for m in lines] == [(3, 2, 4), (6, 5, 10)]


def test_steps_after_the_one_resumed_from_are_dropped(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps({"step": s, "loss": 0.5}) + "\n" for s in (3, 6, 9)))
    make_log(path, resumed_at=6).close()
    assert [m["step"] for m in read_metrics(path)] == [3, 6]


def test_a_line_cut_short_by_a_crash_is_left_out(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 3, "loss": 0.5}\n{"step": 6, "lo')
    assert [m["step"] for m in read_metrics(path)] == [3]
    assert read_metrics(tmp_path / "nothing.jsonl") == []


@pytest.mark.parametrize("bad", [metrics(float("nan")), metrics(1.0, float("inf"))])
def test_the_first_step_that_is_not_finite_is_named(tmp_path, bad):
    log = make_log(tmp_path / "m.jsonl")
    log.add(1, metrics(1.0))
    log.add(2, bad)
    log.add(4, metrics(float("nan")))
    with pytest.raises(NonFiniteError, match="^step 2: loss"):
        log.settle()


def test_adding_waits_for_no_step_but_those_before_the_end_of_a_window(tmp_path):
    class Unfetchable:
        def __float__(self):
            raise AssertionError("waited for the device")

    log = make_log(tmp_path / "m.jsonl")
    for step in range(1, 6):
        late = {"loss": Unfetchable(), "grad_norm": Unfetchable()}
        log.add(step, late if step >= 3 else metrics(1.0))
    with pytest.raises(AssertionError, match="waited"):
        log.add(6, metrics(1.0))


def test_rates_are_of_the_windows_own_time(tmp_path, monkeypatch):
    clock = {"now": 100.0}
    monkeypatch.setattr(training_log.time, "monotonic", lambda: clock["now"])
    log = make_log(tmp_path / "m.jsonl")
    for step in range(1, 8):
        clock["now"] += 2.0 if step <= 3 else 0.5
        log.add(step, metrics(1.0))
    log.finish()
    rates = [m["images_per_second"] for m in read_metrics(tmp_path / "m.jsonl")]
    assert rates == pytest.approx([10 / 2.0, 10 / 0.5, 10 / 0.5])


def test_finishing_writes_the_last_window_though_it_is_short(tmp_path):
    log = make_log(tmp_path / "m.jsonl")
    for step in range(1, 6):
        log.add(step, metrics(step))
    log.finish()
    assert [(m["step"], m["loss"]) for m in read_metrics(tmp_path / "m.jsonl")] == [
        (3, 2),
        (5, 4.5),
    ]


def test_tensorboard_gets_the_same_figures(tmp_path):
    pytest.importorskip("tensorboardX")
    log = make_log(tmp_path / "m.jsonl", tensorboard=tmp_path / "board")
    for step in range(1, 4):
        log.add(step, metrics(step))
    log.settle()
    log.close()
    assert any(path.stat().st_size > 200 for path in (tmp_path / "board").iterdir())
