"""Builds a searchable index, of a folder of images or of vectors; `air_jax.serve` opens it.

    python -m air_jax.index --images=FOLDER --model=WORKDIR --out=INDEX
    python -m air_jax.index --vectors=FILE.npy [--metadata=FILE.csv --images=FOLDER] --out=INDEX
    python -m air_jax.index ... --store=milvus://HOST:PORT/COLLECTION

Again on the same folder, it does only what is new or changed; stopped, it continues.
"""

from pathlib import Path

from absl import app, flags, logging

# Decoding processes import this module: what needs JAX is imported where it is used.
from air_jax.index import decode_pool
from air_jax.index.decoding import FITS, Limits

_IMAGES = flags.DEFINE_string("images", None, "folder of images, with the folders in it")
_MODEL = flags.DEFINE_string("model", None, "work directory of a trained run")
_VECTORS = flags.DEFINE_string("vectors", None, ".npy file [N, D] of codes of another model")
_METADATA = flags.DEFINE_string(
    "metadata", None, "CSV file with a head and a row for each vector; path: its image"
)
_OUT = flags.DEFINE_string("out", None, "folder of the index", required=True)
_FIT = flags.DEFINE_enum("fit", "crop", FITS, "how images become square")
_STORAGE = flags.DEFINE_enum(
    "storage", "float32", ["float32", "float16", "int8"], "of codes; int8 is searched fastest"
)
_STORE = flags.DEFINE_string(
    "store", None, "milvus://HOST:PORT/COLLECTION or milvus:FILE.db: where codes go; default: --out"
)
_WORKERS = flags.DEFINE_integer("workers", 0, "decoding processes; 0: as many as cores", 0)
_REHASH = flags.DEFINE_boolean("rehash", False, "compare contents, not only sizes and times")
_MEGAPIXELS = flags.DEFINE_integer("megapixels", 200, "largest image that is decoded", 1)


def main(_: list[str]) -> int:
    from air_jax.runtime import cache, command_line

    logging.set_verbosity(logging.WARNING)
    if (_VECTORS.value is None) == (_MODEL.value is None):
        command_line.fail("expected --model=WORKDIR with --images=FOLDER, or --vectors=FILE.npy")
    if _MODEL.value is not None and _IMAGES.value is None:
        command_line.fail("--images=FOLDER is missing")
    if _METADATA.value is not None and _VECTORS.value is None:
        command_line.fail("--metadata is of vectors: expected --vectors=FILE.npy")
    if _VECTORS.value is not None and _IMAGES.value is not None and _METADATA.value is None:
        command_line.fail("--images with --vectors needs --metadata=FILE.csv with a column path")
    cache.keep_compilations()
    return command_line.guard(_run, Path(_OUT.value))


def _run() -> None:
    from air_jax.index import build
    from air_jax.runtime.progress import duration, say

    out, images = Path(_OUT.value), _IMAGES.value and Path(_IMAGES.value)
    options = build.Options(
        fit=_FIT.value,
        storage=_STORAGE.value,
        workers=_WORKERS.value or decode_pool.usable_cores(),
        rehash=_REHASH.value,
        limits=Limits(pixels=_MEGAPIXELS.value * 10**6),
        store=_STORE.value,
    )
    if _VECTORS.value is not None:
        metadata = _METADATA.value and Path(_METADATA.value)
        found = build.index_vectors(Path(_VECTORS.value), metadata, images, out, options)
    else:
        found = build.index_images(images, Path(_MODEL.value), out, options)
    say(f"{duration(found['seconds'])}; now: python -m air_jax.serve --index={out}")


if __name__ == "__main__":
    app.run(main)
