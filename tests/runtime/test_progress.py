"""What long work prints."""

import pytest

from air_jax.runtime import progress


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (3.4, "3 s"),
        (59.6, "60 s"),
        (65, "1 min 05 s"),
        (3599.7, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations_read_well(seconds, text):
    assert progress.duration(seconds) == text


def test_plain_lines_come_with_a_rate_and_the_time_left(capsys, monkeypatch):
    clock = iter([0.0, 10.0, 20.0, 20.0, 20.0, 40.0, 40.0, 40.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.Progress("train", 400, done=100) as bar:
        bar.advance(50)  # at 10 s: too early for a line
        bar.advance(50, "loss 0.5")  # at 20 s
        bar.advance(200)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "train: 200/400 images, 5.0/s, 40 s left, loss 0.5"
    assert lines[1] == "train: 400/400 images, 7.5/s, done"
    assert len(lines) == 2
