"""Where a process stands in its run, and what processes share."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.experimental import multihost_utils

from air_jax.runtime import distributed
from air_jax.runtime.distributed import ALONE, Place, find_place


@pytest.mark.parametrize(
    ("flags", "environment", "place"),
    [
        ((None, None, None), {}, ALONE),
        (("host:123", 4, 3), {}, Place("host:123", 4, 3)),
        (("[::1]:123", 2, 0), {"SLURM_STEP_NUM_TASKS": "8"}, Place("[::1]:123", 2, 0)),
        ((None, None, None), {"SLURM_STEP_NUM_TASKS": "8"}, Place(None, 8, None)),
        ((None, None, None), {"OMPI_COMM_WORLD_SIZE": "2"}, Place(None, 2, None)),
        ((None, 1, None), {"OMPI_COMM_WORLD_SIZE": "2"}, ALONE),
        # In a Slurm batch script without srun the job has many tasks and this step one.
        ((None, None, None), {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "8"}, ALONE),
        (
            (None, None, None),
            {
                "JAX_COORDINATOR_ADDRESS": "pod-0.svc:8476",
                "JAX_NUM_PROCESSES": "4",
                "JOB_COMPLETION_INDEX": "2",
            },
            Place("pod-0.svc:8476", 4, 2),
        ),
    ],
)
def test_a_process_finds_its_place_by_flags_or_by_what_a_scheduler_says(flags, environment, place):
    assert find_place(*flags, environment) == place


@pytest.mark.parametrize(
    ("flags", "environment", "message"),
    [
        (("host:123", None, None), {}, "expected all three"),
        ((None, 2, None), {}, "coordinator=None, processes=2"),
        (("host", 2, 0), {}, "coordinator='host'; expected HOST:PORT"),
        (("host:", 2, 0), {}, "expected HOST:PORT"),
        (("host:1", 2, 2), {}, "expected 0 <= process < processes"),
        ((None, None, None), {"SLURM_STEP_NUM_TASKS": "two"}, "SLURM_STEP_NUM_TASKS='two'"),
        (
            (None, None, None),
            {"JAX_COORDINATOR_ADDRESS": "host:1", "JAX_NUM_PROCESSES": "2"},
            "JAX_COORDINATOR_ADDRESS: .*process=None",
        ),
    ],
)
def test_a_place_that_cannot_be_is_an_error(flags, environment, message):
    with pytest.raises(ValueError, match=message):
        find_place(*flags, environment)


@given(st.integers(0, 50), st.integers(2, 9), st.sampled_from([np.float64, np.int32, bool]))
def test_shares_are_even_and_gathered_in_order(count, processes, dtype):
    rows = np.arange(3 * count).reshape(count, 3).astype(dtype)
    places = [Place("host:1", processes, number) for number in range(processes)]
    shares, sent = [], []
    with pytest.MonkeyPatch.context() as patch:
        exchange = multihost_utils
        for place in places:
            patch.setattr(distributed, "_place", place)
            patch.setattr(distributed, "barrier", lambda: None)
            shares.append(rows[distributed.share(count)])
            # What each would send; what comes back does not matter yet.
            patch.setattr(
                exchange, "process_allgather", lambda own: sent.append(own) or [own] * processes
            )
            distributed.gather(shares[-1], count)
        patch.setattr(exchange, "process_allgather", lambda own: np.stack(sent))
        for place, share in zip(places, shares, strict=True):
            patch.setattr(distributed, "_place", place)
            together = distributed.gather(share, count)
            assert together.dtype == rows.dtype
            np.testing.assert_array_equal(together, rows)
    np.testing.assert_array_equal(np.concatenate(shares), rows)
    lengths = [len(share) for share in shares]
    assert max(lengths) - min(lengths) <= 1


def test_alone_nothing_is_exchanged():
    assert distributed.is_first()
    assert distributed.from_first(lambda: {"a": [1, None]}) == {"a": [1, None]}
    assert distributed.share(7) == slice(0, 7)
    distributed.barrier()


def test_without_the_gpu_that_was_asked_for_nothing_goes_on_on_the_cpu():
    # "cuda,cpu" is what the launch scripts set; JAX itself says nothing where it finds no GPU.
    done = subprocess.run(
        [sys.executable, "-c", "from air_jax.runtime import sharding; sharding.make_mesh()"],
        env=os.environ | {"JAX_PLATFORMS": "cuda,cpu", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode
    assert "JAX_PLATFORMS=cuda,cpu: JAX finds no cuda device" in done.stderr
