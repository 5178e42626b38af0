"""The mesh, and the shardings that everything uses: whole on every device, or split over them."""

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A one-dimensional mesh ("data",) over the given devices, by default all there are."""
    devices = devices or jax.devices()
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device: parameters, data sets."""
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh) -> NamedSharding:
    """The first axis split over the devices: batches."""
    return NamedSharding(mesh, PartitionSpec("data"))


def by_columns(mesh: Mesh) -> NamedSharding:
    """The second axis split over the devices: batches of several nets trained together."""
    return NamedSharding(mesh, PartitionSpec(None, "data"))


def of_steps(sharding: NamedSharding) -> NamedSharding:
    """The same with an axis for several steps before it, which is not split."""
    return NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))
