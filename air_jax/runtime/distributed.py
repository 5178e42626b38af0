"""A run of several processes on one or more hosts: `jax.distributed`, and what they agree on.

Every process starts with the same command, on a file system that all processes see. The first
process writes files and prints; the devices of all processes share the work. In a run of one
process the functions below do nothing that takes time.

`multihost_utils` and Orbax have functions for a part of this. They do not serve here:
`sync_global_devices` and `broadcast_one_to_all` compute on all devices, and on a CPU Gloo gives up
on a process that comes half a minute later, as one does that writes or compiles;
`reached_preemption_sync_point`, which Orbax calls too, needs SIGTERM for itself, and would leave
it without effect in every stage but training.
"""

import ctypes
import faulthandler
import importlib.util
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

HEARTBEAT_SECONDS = 30  # a process that is silent for so long counts as lost
SECONDS_FOR_OTHERS = 2.0
LOST = 75  # exit status, EX_TEMPFAIL: the same command continues
_PATIENCE_MS = 24 * 3600 * 1000  # for long work of one process; its loss ends the wait
_DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG


class Place(NamedTuple):
    """Where a process stands in its run.

    Attributes:
        coordinator: "HOST:PORT" that the first process listens on; None: JAX finds it.
        processes: number of processes of the run.
        process: number of this process, from 0; None: JAX finds it.
    """

    coordinator: str | None
    processes: int
    process: int | None


ALONE = Place(None, 1, 0)
_place = ALONE
_calls = itertools.count()


def find_place(
    coordinator: str | None,
    processes: int | None,
    process: int | None,
    environment: Mapping[str, str] = os.environ,
) -> Place:
    """Where this process stands, by its flags, else by what a scheduler left in the environment.

    The schedulers are Slurm (within `srun`), Open MPI, Cloud TPU, and any that sets
    `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`; in an indexed job of
    Kubernetes its index serves for the last.

    Raises:
        ValueError: the flags do not go together, or a variable holds no number.
    """
    if processes == 1:
        return ALONE
    if (coordinator, processes, process) != (None, None, None):
        return _checked("--coordinator", coordinator, processes, process)
    if address := environment.get("JAX_COORDINATOR_ADDRESS"):
        index = environment.get("JAX_PROCESS_ID", environment.get("JOB_COMPLETION_INDEX"))
        count = _number(environment, "JAX_NUM_PROCESSES")
        own = None if index is None else _number({"JAX_PROCESS_ID": index}, "JAX_PROCESS_ID")
        return ALONE if count == 1 else _checked("JAX_COORDINATOR_ADDRESS", address, count, own)
    # The count of the Slurm step: without `srun` a batch script is one process of a larger job.
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        count = _number(environment, name)
        if count is not None and count > 1:
            return Place(None, count, None)
    count = _tpu_hosts()
    return Place(None, count, None) if count > 1 else ALONE


def _checked(
    said_by: str, coordinator: str | None, processes: int | None, process: int | None
) -> Place:
    found = f"coordinator={coordinator}, processes={processes}, process={process}"
    if coordinator is None or processes is None or process is None:
        raise ValueError(
            f"{said_by}: {found}; expected all three: --coordinator=HOST:PORT --processes=N "
            "--process=I"
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"{said_by}: coordinator={coordinator!r}; expected HOST:PORT")
    if not 0 <= process < processes:
        raise ValueError(f"{said_by}: {found}; expected 0 <= process < processes")
    return Place(coordinator, processes, process)


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name)
    if text is None:
        return None
    if not text.isdigit():
        raise ValueError(f"{name}={text!r}: expected a whole number")
    return int(text)


def _tpu_hosts() -> int:
    """Number of hosts of this host's Cloud TPU slice; 1 elsewhere."""
    if importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ:
        return 1
    # JAX has no public name for its own detection, which asks the metadata server.
    from jax._src.clusters import cloud_tpu_cluster

    for kind in (cloud_tpu_cluster.GkeTpuCluster, cloud_tpu_cluster.GceTpuCluster):
        if kind.is_env_present():
            return kind.get_process_count()
    return 1


def start(place: Place) -> None:
    """Join the other processes; returns once all have joined, before any device is used.

    In a run of several processes the caller is then a child of the process that was started, which
    waits for it and ends with its status. JAX aborts when another process is lost, and only a
    parent can then say why.

    Raises:
        ConnectionError: the processes do not find each other in time.
    """
    global _place
    if place.processes == 1:
        return
    _supervise()
    import jax  # here and below: commands read their flags before JAX is imported

    try:
        jax.distributed.initialize(
            place.coordinator,
            place.processes,
            place.process,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        raise ConnectionError(f"the run's processes do not find each other: {error}") from error
    _place = Place(place.coordinator, jax.process_count(), jax.process_index())


def _supervise() -> None:
    """Return in a child; this process forwards signals to the child and ends with its status."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        # The child has a group of its own, lest Ctrl-C reach it twice; it ends with its parent.
        os.setpgid(0, 0)
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_DIES_WITH_PARENT, signal.SIGKILL)
        faulthandler.disable()  # its pages of frames would bury why JAX aborts
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda signum, frame: os.kill(child, signum))
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        why = (
            "another process of the run was lost"
            if code == -signal.SIGABRT
            else f"ended by signal {-code}"
        )
        print(f"error: {why}; the same command continues from the last checkpoint", file=sys.stderr)
        code = LOST
    sys.stderr.flush()
    os._exit(code)


def leave(status: int) -> None:
    """End this process of several without waiting for the others; a single process goes on."""
    if _place.processes > 1:
        if is_first():
            # Others with the same error print it before they notice that this process is gone.
            time.sleep(SECONDS_FOR_OTHERS)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def is_first() -> bool:
    """Whether this is the process that writes files and speaks."""
    return _place.process == 0


def processes() -> int:
    """Number of processes of the run."""
    return _place.processes


def process() -> int:
    """Number of this process, from 0."""
    assert _place.process is not None
    return _place.process


def number_of_call() -> int:
    """A new number, the same in all processes that make the same calls."""
    return next(_calls)


def tell(key: str, value: str) -> None:
    """Give all processes a value under a key."""
    _client().key_value_set(f"air_jax/{key}", value, allow_overwrite=True)


def hear(key: str, seconds: float | None = None) -> str | None:
    """The value that a process told under a key; None if no process did within the time."""
    import jax

    patience = _PATIENCE_MS if seconds is None else int(1000 * seconds)
    try:
        return _client().blocking_key_value_get(f"air_jax/{key}", patience)
    except jax.errors.JaxRuntimeError:
        if seconds is None:
            raise
        return None


def from_first(make: Callable[[], Any]) -> Any:
    """What `make` returns in the first process, a JSON value; the others do not call it."""
    if _place.processes == 1:
        return make()
    key = f"first/{number_of_call()}"
    if is_first():
        tell(key, json.dumps(make()))
    return json.loads(str(hear(key)))


def barrier() -> None:
    """Wait for all processes: the others can then read what the first process wrote."""
    if _place.processes > 1:
        _client().wait_at_barrier(f"air_jax/barrier/{number_of_call()}", _PATIENCE_MS)


def share(count: int) -> slice:
    """This process's part of `count` things, which the processes divide evenly and in order."""
    return _share(count, process())


def _share(count: int, process: int) -> slice:
    return slice(count * process // _place.processes, count * (process + 1) // _place.processes)


def shares(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """This process's rows of equally long arrays [N, ...]; the first row if its share is empty.

    Results computed from the rows then have the right shapes and dtypes in every process, and
    `gather` drops the row that is too many.
    """
    own = share(len(arrays[0]))
    rows = own if own.stop > own.start else slice(0, 1)
    return tuple(array[rows] for array in arrays)


def gather(rows: np.ndarray, count: int) -> np.ndarray:
    """The rows of all processes' shares, put together in order: [count, ...].

    Args:
        rows: those of `share(count)`, and others after them, which are dropped; of any dtype.
        count: number of rows of all processes.
    """
    if _place.processes == 1:
        return rows
    from jax.experimental import multihost_utils

    own = share(count)
    rows = rows[: own.stop - own.start]
    width = rows.dtype.itemsize * int(np.prod(rows.shape[1:]))
    # As bytes, padded to the largest share: JAX would turn 64-bit numbers into 32-bit ones.
    most = -(-count // _place.processes)
    sent = np.zeros((most, width), np.uint8)
    sent[: len(rows)] = np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), width)
    barrier()  # Gloo gives up on a process that comes half a minute later
    received = np.asarray(multihost_utils.process_allgather(sent))
    shares = [_share(count, number) for number in range(_place.processes)]
    whole = [part[: own.stop - own.start] for part, own in zip(received, shares, strict=True)]
    together = np.ascontiguousarray(np.concatenate(whole))
    return together.view(rows.dtype).reshape(count, *rows.shape[1:])


def gather_all(value: np.ndarray) -> np.ndarray:
    """The arrays of all processes, which have the same shape: [processes, ...]."""
    return gather(value[None], _place.processes)


def _client() -> Any:
    # JAX's key-value store of a run has no public name; Orbax takes it from here too.
    from jax._src import distributed

    return distributed.global_state.client
