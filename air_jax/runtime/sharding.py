"""The mesh, and the shardings that everything uses: whole on every device, or split over them.

A mesh may span several processes. `put` and `put_share` bring arrays to it in either case.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from air_jax.runtime import distributed

UNKNOWN_MEMORY = 2**31  # bytes


def on_cpu() -> bool:
    """Whether JAX computes on CPUs: the one switch for what is faster another way there."""
    return jax.default_backend() == "cpu"


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A one-dimensional mesh ("data",) over some devices; by default over those of all processes.

    The devices of a process are neighbours, so that its share of a batch is one piece.

    Raises:
        ValueError: `JAX_PLATFORMS` asks for an accelerator, and JAX has none.
    """
    devices = devices or _devices_asked_for()
    devices = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def _devices_asked_for() -> list[jax.Device]:
    """The devices of all processes; ValueError if JAX took the CPU for want of a GPU."""
    devices, platforms = jax.devices(), jax.config.values["jax_platforms"] or "cpu"
    asked = platforms.split(",")[0]
    if asked != "cpu" and devices[0].platform == "cpu":
        raise ValueError(
            f"JAX_PLATFORMS={platforms}: JAX finds no {asked} device here; JAX_PLATFORMS=cpu "
            "computes on the CPU"
        )
    return devices


def local(mesh: Mesh) -> Mesh:
    """The mesh of those devices that are this process's own."""
    own = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    return mesh if len(own) == mesh.size else make_mesh(own)


def free_memory(device: jax.Device) -> int:
    """Bytes of a device's memory that are free; `UNKNOWN_MEMORY` if it does not say."""
    said = device.memory_stats() or {}
    if "bytes_limit" not in said:
        return UNKNOWN_MEMORY
    return int(said["bytes_limit"] - said.get("bytes_in_use", 0))


def put(tree: Any, sharding: NamedSharding) -> Any:
    """A pytree of arrays on the devices of a mesh.

    Args:
        tree: arrays, the same values in every process.
        sharding: where every leaf goes.
    """
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def put_leaf(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = put_leaf(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        values = np.asarray(leaf)
        return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

    return jax.tree.map(put_leaf, tree)


def put_share(rows: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """An array put together from the equal parts that the processes have for their own devices.

    Args:
        rows: this process's part along the axis that is split.
        sharding: splits one axis over the devices.
    """
    if sharding.is_fully_addressable:
        return jax.device_put(rows, sharding)
    axis = sharding.spec.index("data")
    shape = (
        *rows.shape[:axis],
        rows.shape[axis] * distributed.processes(),
        *rows.shape[axis + 1 :],
    )
    return jax.make_array_from_process_local_data(sharding, rows, shape)


def on_own_devices(tree: Any, mesh: Mesh) -> Any:
    """Arrays that every device holds whole, as arrays on this process's own devices."""
    own = replicated(local(mesh))
    return jax.tree.map(
        lambda leaf: (
            leaf if leaf.is_fully_addressable else jax.device_put(leaf.addressable_data(0), own)
        ),
        tree,
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device: parameters, data sets."""
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh) -> NamedSharding:
    """The first axis split over the devices: batches."""
    return NamedSharding(mesh, PartitionSpec("data"))


def by_columns(mesh: Mesh) -> NamedSharding:
    """The second axis split over the devices: the batches of several steps."""
    return NamedSharding(mesh, PartitionSpec(None, "data"))
