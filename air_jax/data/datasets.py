"""Data sets by name: images, labels and class names.

`cifar100` comes through `tensorflow_datasets` and is decoded once into a cache that is read
without TensorFlow; `digits` is embedded in scikit-learn; `arrays` is an `.npz` of the user's;
`folder` holds pictures of the user's.
"""

import dataclasses
import hashlib
import importlib.util
import os
from pathlib import Path

import numpy as np

from air_jax.data import folder
from air_jax.runtime.atomic_files import locked, read_npz, write_npz
from air_jax.runtime.cache import cache_directory
from air_jax.runtime.progress import say

NAMES = ("cifar100", "digits", "arrays", "folder")

_CIFAR100_VERSION = "3.0.2"
_CIFAR100_SHAPES = {
    "train_image": (50_000, 32, 32, 3),
    "train_label": (50_000,),
    "test_image": (10_000, 32, 32, 3),
    "test_label": (10_000,),
    "class_names": (100,),
}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Images in memory, labelled or not.

    Attributes:
        name: what it was asked for by.
        images: [N, S, S, C] uint8.
        labels: [N] int32, from 0 to the number of classes - 1; None if the images have none.
        class_names: one for each class.
        official_queries: [N] bool, the data set's own test part; None if it has none.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    official_queries: np.ndarray | None = None

    def fingerprint(self) -> str:
        """A SHA-256 of everything in it: two data sets with the same one are the same."""
        digest = hashlib.sha256()
        arrays = (self.images, self.labels, self.official_queries)
        for array in (a for a in arrays if a is not None):
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        digest.update("\0".join(self.class_names).encode())
        return digest.hexdigest()


def load(name: str, directory: str = "", size: int = 0) -> Dataset:
    """Load a data set whole.

    Args:
        name: one of `NAMES`.
        directory: for `cifar100` the folder that `tensorflow_datasets` prepared it in (empty: its
            default folder, downloading if needed); for `arrays` the `.npz` file; for `folder` the
            folder; unused otherwise.
        size: side of the images in pixels; 0: as they are, which a `folder` is not asked for.

    Raises:
        ValueError: unknown name, or the content is not what it has to be.
        FileNotFoundError: no data there; the message says where it looked and the ways on.
    """
    if name == "folder":
        return _folder(directory, size)
    if name == "cifar100":
        dataset = _cifar100(directory)
    elif name == "digits":
        dataset = _digits()
    elif name == "arrays":
        dataset = _arrays(directory)
    else:
        raise ValueError(f"data.name={name!r}: expected one of {', '.join(NAMES)}")
    return shrink(dataset, size) if size else dataset


def missing_extra(name: str) -> str:
    """The extra of air_jax that has to be installed before a data set can be loaded; "" if none."""
    needed = name == "cifar100" and not _cifar100_cache().exists()
    return "tfds" if needed and not importlib.util.find_spec("tensorflow_datasets") else ""


def shrink(dataset: Dataset, size: int) -> Dataset:
    """The same images at side `size`, each pixel the mean of those that it replaces.

    Raises:
        ValueError: `size` does not divide their side.
    """
    count, side, _, channels = dataset.images.shape
    if size < 1 or side % size:
        raise ValueError(f"data.size={size}: expected a divisor of the images' side, {side}")
    factor = side // size
    blocks = dataset.images.reshape(count, size, factor, size, factor, channels)
    images = np.round(blocks.mean(axis=(2, 4))).astype(np.uint8)
    return dataclasses.replace(dataset, images=images)


def _digits() -> Dataset:
    """scikit-learn's 1,797 handwritten digits, 8x8 in 17 greys, enlarged to 32x32x3."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    grey = np.round(raw.images * (255 / 16)).astype(np.uint8)
    # Whole pixels are repeated, so distances between images stay those of the originals.
    images = grey.repeat(4, axis=1).repeat(4, axis=2)[..., None].repeat(3, axis=3)
    return Dataset(
        "digits", images, raw.target.astype(np.int32), tuple(str(n) for n in raw.target_names)
    )


def _folder(directory: str, size: int) -> Dataset:
    images, paths = folder.read(directory, size)
    found = folder.label(paths)
    queries = folder.draw_queries(len(images), found)
    if found is None:
        return Dataset("folder", images, None, (), queries)
    return Dataset("folder", images, found.labels, found.class_names, queries)


def _arrays(file_name: str) -> Dataset:
    if not file_name:
        raise ValueError("data.name='arrays' needs data.dir=FILE.npz (arrays `image` and `label`)")
    path = Path(file_name).expanduser()
    if path.is_dir():
        raise ValueError(f"data.dir={file_name} is a folder; data.name='arrays' needs an .npz file")
    try:
        arrays = read_npz(path, ("image", "label"))
    except FileNotFoundError:
        raise FileNotFoundError(f"data.dir={file_name}: there is no such file") from None
    images = _as_uint8(arrays["image"], path)
    labels = arrays["label"]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{path}: label is {labels.dtype} {list(labels.shape)}; expected whole numbers [N]"
        )
    if len(images) != len(labels):
        raise ValueError(f"{path}: {len(images)} images but {len(labels)} labels")
    if not len(images):
        raise ValueError(f"{path}: holds no images")
    classes, labels = np.unique(labels, return_inverse=True)
    official = arrays.get("query")
    if official is not None and (official.dtype != bool or official.shape != labels.shape):
        raise ValueError(
            f"{path}: query is {official.dtype} {list(official.shape)}; "
            f"expected bool [{len(labels)}], true for queries"
        )
    return Dataset(
        "arrays", images, labels.astype(np.int32), tuple(str(c) for c in classes), official
    )


def _as_uint8(images: np.ndarray, path: Path) -> np.ndarray:
    """uint8 as it is, floats from [0, 1]; [N, S, S] becomes [N, S, S, 1]."""
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4:
        raise ValueError(f"{path}: image has shape {list(images.shape)}; expected [N, S, S, C]")
    if images.shape[-1] not in (1, 3) or 0 in images.shape[1:]:
        raise ValueError(
            f"{path}: image has shape {list(images.shape)}; expected [N, S, S, C] with one or "
            "three channels"
        )
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"{path}: image is {images.dtype}; expected uint8, or floats in [0, 1]")
    finite = np.isfinite(images)
    if not finite.all():
        first = np.argwhere(~finite)[0].tolist()
        raise ValueError(
            f"{path}: {np.count_nonzero(~finite)} pixels are NaN or infinite, "
            f"the first at image{first}"
        )
    low, high = images.min(initial=0), images.max(initial=0)
    if low < 0 or high > 1:
        raise ValueError(f"{path}: float pixels span [{low:g}, {high:g}]; expected [0, 1]")
    return np.round(images * 255).astype(np.uint8)


def _cifar100_cache() -> Path:
    return cache_directory() / f"cifar100-{_CIFAR100_VERSION}.npz"


def _cifar100(directory: str) -> Dataset:
    if directory and not Path(directory).expanduser().is_dir():
        raise FileNotFoundError(
            f"data.dir={directory}: there is no such folder. "
            "Give the one that tensorflow_datasets prepared cifar100 in (it holds a folder "
            "`cifar100`), or leave data.dir out to have it downloaded."
        )
    cache = _cifar100_cache()
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        with locked(cache.with_suffix(".lock"), str(cache), wait=True):
            if not cache.exists():  # another process was at it
                write_npz(cache, **_decode_cifar100(directory, cache))
                say(f"cifar100: decoded into {cache}; TensorFlow is not needed from now on")
    arrays = read_npz(cache, tuple(_CIFAR100_SHAPES))
    for key, shape in _CIFAR100_SHAPES.items():
        if arrays[key].shape != shape:
            raise ValueError(
                f"{cache}: {key} has shape {list(arrays[key].shape)}, CIFAR-100's is "
                f"{list(shape)}; delete the file to have it decoded again"
            )
    return Dataset(
        "cifar100",
        np.concatenate([arrays["train_image"], arrays["test_image"]]),
        np.concatenate([arrays["train_label"], arrays["test_label"]]).astype(np.int32),
        tuple(str(name) for name in arrays["class_names"]),
        np.arange(60_000) >= 50_000,
    )


def _decode_cifar100(directory: str, cache: Path) -> dict[str, np.ndarray]:
    """Read the TFRecords with tensorflow_datasets, the one place that needs it."""
    ways_on = (
        "Two ways on: download it on a machine with a network "
        "(python -c \"import tensorflow_datasets as t; t.load('cifar100')\") and give the folder "
        "by --config.data.dir=FOLDER; or copy the decoded cache of such a machine to "
        f"{cache} (AIR_JAX_CACHE names another folder). "
        "To see the program at work without it: --config=configs/quickstart.py."
    )
    try:
        from air_jax.data.loaders import import_tensorflow

        import_tensorflow()
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise FileNotFoundError(
            f"CIFAR-100: no decoded cache at {cache}, and decoding it needs a package that cannot "
            f"be imported ({error}): pip install 'air_jax[tfds]'. {ways_on}"
        ) from error
    data_dir = os.path.expanduser(directory) or None
    if not directory:
        say(
            f"cifar100: no decoded cache at {cache}; asking tensorflow_datasets for it, which "
            "downloads 169 MB if it has to (without a network it tries for some minutes)"
        )
    try:
        parts, info = tfds.load(
            f"cifar100:{_CIFAR100_VERSION}",
            split=["train", "test"],
            data_dir=data_dir,
            download=not directory,
            batch_size=-1,
            with_info=True,
        )
    except Exception as error:  # tfds raises its own, TensorFlow's and the network's errors
        looked = directory or tfds.core.constants.DATA_DIR
        raise FileNotFoundError(
            f"CIFAR-100: no decoded cache at {cache}, and tensorflow_datasets could not load it "
            f"from {looked} ({type(error).__name__}: {str(error).strip().partition(chr(10))[0]}). "
            f"{ways_on}"
        ) from error
    train, test = tfds.as_numpy(parts)
    return {
        "train_image": train["image"],
        "train_label": train["label"],
        "test_image": test["image"],
        "test_label": test["label"],
        "class_names": np.array(info.features["label"].names),
    }
