"""What several test files use. JAX gets four virtual CPU devices.

All tests, and the programs they start, share one cache of compilations, which lasts from one test
run to the next: most compile the same few small nets.
"""

import atexit
import contextlib
import os
import shutil
import subprocess
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import jax
import ml_collections
import numpy as np
import pytest
from accelerator import plays_accelerator  # noqa: F401 (a fixture)
from faults import TABLE_VARIABLE, Launcher, Table
from hypothesis import HealthCheck, settings
from jax.sharding import Mesh
from PIL import Image

from air_jax.configs import default
from air_jax.data import datasets
from air_jax.main import main
from air_jax.runtime import cache, sharding

DAYS_KEPT = 10
# For tests that draw files and the like; AIR_JAX_FUZZ=10000 tries as many examples of each.
EXAMPLES = int(os.environ.get("AIR_JAX_FUZZ", "60"))
drawn = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=EXAMPLES <= 60,
)


def share_compilations() -> str:
    """A folder of compilations for this test run, which begins with those of earlier ones.

    Later test runs get the compilations of this one when it ends. Until then it has a folder of its
    own, because some tests kill programs or fill disks while JAX writes there.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        return os.environ["JAX_COMPILATION_CACHE_DIR"]
    kept = cache.cache_directory() / "compilations_of_tests"
    kept.mkdir(parents=True, exist_ok=True)
    own = Path(tempfile.mkdtemp(prefix="air_jax-tests-"))
    for path in kept.glob("*-cache"):
        with contextlib.suppress(FileNotFoundError):  # another test run may remove it
            if path.stat().st_mtime > time.time() - DAYS_KEPT * 24 * 3600:
                shutil.copy2(path, own)
            else:
                path.unlink()

    def keep() -> None:
        for path in own.glob("*-cache"):
            if not (kept / path.name).exists():
                with contextlib.suppress(zlib.error):  # JAX was killed while it wrote
                    zlib.decompress(path.read_bytes())
                    os.replace(shutil.copy2(path, kept / own.name), kept / path.name)
        shutil.rmtree(own, ignore_errors=True)

    atexit.register(keep)
    return str(own)


os.environ["JAX_COMPILATION_CACHE_DIR"] = share_compilations()
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_num_cpu_devices", 4)

ROOT = Path(__file__).parent.parent
MILVUS_IS_MISSING = "milvus-lite is not installed (pip install 'air_jax[milvus]')"


@pytest.fixture
def mesh() -> Mesh:
    """One device."""
    return sharding.make_mesh(jax.devices()[:1])


@pytest.fixture
def mesh4() -> Mesh:
    """Four devices."""
    return sharding.make_mesh(jax.devices()[:4])


@pytest.fixture
def small_config() -> ml_collections.ConfigDict:
    """The default config at a size that trains in seconds on 8x8 images."""
    config = default.get_config()
    config.data.queries_per_class = 4
    config.model.update(depth=4, width=8, code_dim=16)
    config.train.update(epochs=2, batch=16, warmup_steps=2)
    config.log.update(every_steps=2, checkpoint_steps=3)
    config.encode.batch = 32
    config.feedback.update(rounds=2, marks_per_round=5, queries=0)
    config.report.queries = 2
    config.lock()
    return config


@pytest.fixture
def unprivileged() -> list[str]:
    """What comes before a command to take from root the right to read what is closed to all."""
    if os.geteuid() != 0:
        return []
    prefix = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    if shutil.which("setpriv") is None or subprocess.run([*prefix, "true"]).returncode:
        pytest.skip("root reads everything, and setpriv cannot take that from it here")
    return prefix


def class_images(count: int, classes: int = 4, size: int = 8, seed: int = 0):
    """uint8 images [count, size, size, 3] that differ by class, and their labels [count]."""
    rng = np.random.default_rng(seed)
    prototypes = rng.integers(40, 215, (classes, size, size, 3))
    labels = np.arange(count) % classes
    noise = rng.integers(-40, 40, (count, size, size, 3))
    return (prototypes[labels] + noise).astype(np.uint8), labels.astype(np.int32)


@pytest.fixture
def small_arrays(tmp_path: Path) -> Path:
    """An `.npz` of 80 images of 8x8 in four classes."""
    path = tmp_path / "images.npz"
    images, labels = class_images(80)
    np.savez(path, image=images, label=labels)
    return path


@pytest.fixture(scope="session")
def cifar100(tmp_path_factory: pytest.TempPathFactory) -> datasets.Dataset:
    """The real CIFAR-100, where tensorflow_datasets has prepared it."""
    candidates = [os.environ.get("TFDS_DATA_DIR"), ROOT.parent / "shared" / "tensorflow_datasets"]
    for candidate in filter(None, candidates):
        if (Path(candidate) / "cifar100").is_dir():
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("AIR_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
                return datasets.load("cifar100", str(candidate))
    pytest.skip("CIFAR-100 is not prepared on this machine (TFDS_DATA_DIR names its folder)")


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work directory of a run that `air_jax.main` trained on scikit-learn's digits."""
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    small = {
        **{"model.depth": 4, "model.width": 4, "model.code_dim": 8, "train.epochs": 1},
        **{"train.batch": 160, "train.warmup_steps": 2, "log.checkpoint_steps": 100},
    }
    keys = [f"--config.{key}={value}" for key, value in small.items()]
    assert main(["--config=quickstart", f"--workdir={workdir}", "--stages=train", *keys]) == 0
    return workdir


@pytest.fixture(scope="session")
def launcher() -> Iterator[Launcher]:
    """Starts commands without the seconds of their imports."""
    found = Launcher()
    yield found
    found.close()


@pytest.fixture(scope="session")
def faults_tried() -> Iterator[Table]:
    """Counts faults; the table goes to the file that `FAULTS_TABLE` names, if it does."""
    table = Table()
    yield table
    if path := os.environ.get(TABLE_VARIABLE):
        Path(path).write_text(table.markdown())


def write_pictures(folder: Path, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random 40x30 PNG files in a folder; their pixels by path."""
    rng = np.random.default_rng(seed)
    pictures = {
        f"{number % 3}/{number:03d}.png": rng.integers(0, 256, (30, 40, 3)).astype(np.uint8)
        for number in range(count)
    }
    for path, pixels in pictures.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / path)
    return pictures


def write_odd_pictures(folder: Path) -> list[str]:
    """Picture files as people have them, and what only looks like one; returns the usable paths."""
    rng = np.random.default_rng(0)
    colours = Image.fromarray(rng.integers(0, 256, (24, 40, 3)).astype(np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    usable = {
        "a/colour.png": (colours, {}),
        "a/turned.JPG": (colours, {"exif": turned}),
        "a/grey.png": (colours.convert("L"), {}),
        "b/palette.gif": (colours.convert("P"), {"transparency": 3}),
        "b/palette.png": (colours.convert("P"), {"transparency": 3}),
        "b/deep/alpha.webp": (colours.convert("RGBA"), {}),
        "b/deep/Zürich $x$ 写真.png": (colours, {}),
        "写真/cmyk.jpg": (colours.convert("CMYK"), {}),
    }
    for path, (picture, told) in usable.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        picture.save(folder / path, **told)
    (folder / "b/broken.png").write_bytes(b"no picture")
    (folder / "b/empty.jpg").touch()
    (folder / "b/notes.txt").write_text("no picture")
    (folder / "b/raw.dng").write_bytes(b"a format that is not read")
    (folder / "b/.hidden.png").write_bytes((folder / "a/grey.png").read_bytes())
    (folder / "empty").mkdir()
    (folder / "again").symlink_to(folder / "a", target_is_directory=True)
    return list(usable)
