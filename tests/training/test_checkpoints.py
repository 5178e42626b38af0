"""States on disk."""

import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from air_jax.runtime import sharding
from air_jax.training.checkpoints import Checkpoints

STATE = {"step": jnp.int32(4), "params": {"w": jnp.arange(6.0).reshape(2, 3)}}


def test_a_state_comes_back_as_it_was_saved(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() is None
        checkpoints.save(4, STATE, {"seconds": 1.5})
    with Checkpoints(tmp_path) as checkpoints:
        _, state, info = checkpoints.restore(4, like=jax.tree.map(jnp.zeros_like, STATE))
    assert info == {"seconds": 1.5}
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), state, STATE))


def test_only_the_newest_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, STATE, {})
        assert checkpoints.latest_step() == 3
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["2", "3"]


def test_a_state_can_come_back_on_other_devices(tmp_path, mesh, mesh4):
    whole = {"w": jax.device_put(np.arange(8.0), sharding.by_rows(mesh4))}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, whole, {})
        like = {"w": jax.device_put(np.zeros(8), sharding.replicated(mesh))}
        state = checkpoints.restore(1, like).state
    assert state["w"].tolist() == list(range(8))
    assert len(state["w"].sharding.device_set) == 1


def test_a_damaged_checkpoint_is_an_error_that_names_its_folder(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, STATE, {})
    for file in (tmp_path / "7" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(ValueError, match=rf"checkpoint {tmp_path}/7 is damaged"),
    ):
        checkpoints.restore(7, STATE)


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 0x10
    path.write_bytes(bytes(content))


def test_any_flipped_byte_of_a_checkpoint_is_noticed_and_its_file_named(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, STATE, {})
        for path in files_of(tmp_path / "1"):
            before = path.read_bytes()
            if not before:
                continue
            flip(path, len(before) // 2)
            with pytest.raises(
                ValueError, match=rf"checkpoint {tmp_path}/1 is damaged: .*"
            ) as said:
                checkpoints.restore(1, STATE)
            assert path.name in str(said.value) or path.name == "checksums.json"
            path.write_bytes(before)
            os.utime(path, ns=(0, 0))  # the clock of files may not have ticked since the flip
        assert checkpoints.restore(1, STATE).step == 1


def test_of_a_damaged_newest_checkpoint_the_one_before_is_taken_and_it_can_be_saved_again(
    tmp_path, capsys
):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (3, 6):
            checkpoints.save(step, STATE | {"step": jnp.int32(step)}, {"at": step})
        flip(files_of(tmp_path / "6" / "state")[0], 5)
        found = checkpoints.restore_newest(STATE)
        assert (found.step, int(found.state["step"]), found.info) == (3, 3, {"at": 3})
        said = capsys.readouterr().out
        assert f"checkpoint {tmp_path}/6 is damaged" in said
        assert "going on from the one of step 3" in said
        assert checkpoints.latest_step() == 3
        checkpoints.save(6, STATE | {"step": jnp.int32(6)}, {"at": 6})
        assert checkpoints.restore_newest(STATE).info == {"at": 6}
    assert (tmp_path / "damaged" / "6-0").is_dir()


def test_where_every_checkpoint_is_damaged_that_is_an_error(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_newest(STATE) is None
        checkpoints.save(2, STATE, {})
        flip(files_of(tmp_path / "2" / "state")[0], 5)
        with pytest.raises(ValueError, match="2 is damaged: .*no other checkpoint is whole"):
            checkpoints.restore_newest(STATE)


def test_a_checkpoint_killed_before_its_checksums_were_written_is_taken_as_it_is(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, STATE, {})
        (tmp_path / "2" / "checksums.json").unlink()
        assert checkpoints.restore_newest(STATE).step == 2


def test_a_checkpoint_that_cannot_be_written_is_an_error_that_names_it(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, STATE, {})
        monkeypatch.setattr(checkpoints._manager, "save", full)
        with pytest.raises(OSError, match=rf"{tmp_path}/2 cannot be written .*No space left"):
            checkpoints.save(2, STATE, {})
        assert checkpoints.restore_newest(STATE).step == 1


def test_an_error_of_the_thread_that_writes_is_raised_at_the_next_look(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, STATE, {})
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints._manager, "save", full)
            checkpoints.save_meanwhile(2, STATE, {})
            checkpoints._thread.shutdown()
            with pytest.raises(OSError, match=rf"{tmp_path}/2 cannot be written .*No space left"):
                checkpoints.check()
        checkpoints.check()
        assert checkpoints.latest_step() == 1


def test_an_error_of_the_thread_that_writes_is_raised_at_the_end(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    def save_within_a_block():
        with Checkpoints(tmp_path) as checkpoints:
            monkeypatch.setattr(checkpoints._manager, "save", full)
            checkpoints.save_meanwhile(3, STATE, {})

    with pytest.raises(OSError, match="3 cannot be written"):
        save_within_a_block()


def test_a_state_that_is_being_written_is_whole_after_the_block(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_meanwhile(4, STATE, {"seconds": 1.5})
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_newest(STATE).info == {"seconds": 1.5}


def test_after_a_failed_save_late_reports_to_a_closed_loop_are_not_printed(
    tmp_path, monkeypatch, capsys
):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    class RaisesWhenDeleted:
        def __init__(self, message):
            self.message = message

        def __del__(self):
            raise RuntimeError(self.message)

    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    with Checkpoints(tmp_path) as checkpoints:
        monkeypatch.setattr(checkpoints._manager, "save", full)
        with pytest.raises(OSError, match="No space left"):
            checkpoints.save(2, STATE, {})
    RaisesWhenDeleted("Event loop is closed")
    assert capsys.readouterr().err == ""
    RaisesWhenDeleted("something else")
    assert "RuntimeError: something else" in capsys.readouterr().err


def test_a_checkpoint_of_another_net_is_an_error(tmp_path):
    other = {"step": jnp.int32(0), "params": {"w": jnp.zeros((5, 5))}}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, STATE, {})
        with pytest.raises(ValueError, match="cannot be read"):
            checkpoints.restore(1, other)
