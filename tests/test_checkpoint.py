"""States on disk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from air_jax import sharding
from air_jax.checkpoint import Checkpoints

STATE = {"step": jnp.int32(4), "params": {"w": jnp.arange(6.0).reshape(2, 3)}}


def test_a_state_comes_back_as_it_was_saved(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() is None
        checkpoints.save(4, STATE, {"seconds": 1.5})
    with Checkpoints(tmp_path) as checkpoints:
        state, info = checkpoints.restore(4, like=jax.tree.map(jnp.zeros_like, STATE))
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
        state, _ = checkpoints.restore(1, like)
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
        pytest.raises(ValueError, match=rf"checkpoint {tmp_path}/7 cannot be read"),
    ):
        checkpoints.restore(7, STATE)


def test_a_checkpoint_of_another_net_is_an_error(tmp_path):
    other = {"step": jnp.int32(0), "params": {"w": jnp.zeros((5, 5))}}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, STATE, {})
        with pytest.raises(ValueError, match="cannot be read"):
            checkpoints.restore(1, other)
