"""Builds a searchable index, of a folder of images or of vectors; `air_jax.serve` opens it.

    python -m air_jax.index --images=FOLDER --model=WORKDIR --out=INDEX
    python -m air_jax.index --vectors=FILE.npy [--metadata=FILE.csv --images=FOLDER] --out=INDEX
    python -m air_jax.index ... --store=milvus://HOST:PORT/COLLECTION

Again on the same folder, it does only what is new or changed; stopped, it continues.
"""

import sys
from argparse import Namespace
from pathlib import Path

# Decoding processes import this module: what needs JAX is imported where it is used.
from air_jax.data import decode_pool
from air_jax.data.decoding import FITS, Limits
from air_jax.data.image_files import EXCLUDED
from air_jax.runtime.arguments import Arguments

STORAGES = ("float32", "float16", "int8")


def main(arguments: list[str] | None = None) -> int:
    """Build or update the index that the command line tells of; returns the exit status."""
    told = read(arguments)
    from air_jax.runtime import command_line

    return command_line.guard(lambda: _run(told), told.out)


def read(arguments: list[str] | None) -> Namespace:
    """The command line's flags; exits if they are wrong."""
    parser = Arguments("air_jax.index", __doc__)
    add = parser.add_argument
    add("--images", metavar="FOLDER", type=Path, help="folder of images, with the folders in it")
    add("--model", metavar="WORKDIR", type=Path, help="work directory of a trained run")
    add("--vectors", metavar="FILE", type=Path, help=".npy file [N, D], codes of another model")
    add(
        "--metadata",
        metavar="FILE",
        type=Path,
        help="CSV file with a head and a row for each vector; a column path: its image",
    )
    add("--out", metavar="INDEX", type=Path, required=True, help="folder of the index")
    add("--fit", choices=FITS, default="crop", help="how images become square")
    add("--storage", choices=STORAGES, default="float32", help="of codes; int8: fastest search")
    add(
        "--store",
        metavar="ADDRESS",
        help="milvus://HOST:PORT/COLLECTION or milvus:FILE.db: where codes go, instead of --out",
    )
    parser.number("--workers", 0, "decoding processes; 0: as many as cores", 0)
    add("--rehash", action="store_true", help="compare contents, not only sizes and times")
    add(
        "--exclude",
        metavar="GLOB",
        action="append",
        default=[],
        help="leave out files and folders of such names, or such paths if it has a slash; may be "
        "given several times; an empty one takes what is otherwise left out: "
        + ", ".join(EXCLUDED).replace("%", "%%"),
    )
    add("--drop-missing", action="store_true", help="drop images that are gone, even very many")
    parser.number("--megapixels", 200, "largest image that is decoded", 1)
    told = parser.parse_args(arguments)
    if (told.vectors is None) == (told.model is None):
        parser.error("expected --model=WORKDIR with --images=FOLDER, or --vectors=FILE.npy")
    if told.model is not None and told.images is None:
        parser.error("--images=FOLDER is missing")
    if told.metadata is not None and told.vectors is None:
        parser.error("--metadata is of vectors: expected --vectors=FILE.npy")
    if told.vectors is not None and told.images is not None and told.metadata is None:
        parser.error("--images with --vectors needs --metadata=FILE.csv with a column path")
    return told


def _run(told: Namespace) -> None:
    from air_jax.runtime import cache
    from air_jax.runtime.progress import duration, say

    say(f"loading JAX and {told.vectors or told.model}")
    from air_jax.index import build, vector_files
    from air_jax.index.index_writer import Options

    cache.keep_compilations()
    options = Options(
        fit=told.fit,
        storage=told.storage,
        workers=told.workers or decode_pool.usable_cores(),
        rehash=told.rehash,
        exclude=tuple(told.exclude) if "" in told.exclude else (*EXCLUDED, *told.exclude),
        drop_missing=told.drop_missing,
        limits=Limits(pixels=told.megapixels * 10**6),
        store=told.store,
    )
    if told.vectors is not None:
        found = vector_files.index_vectors(
            told.vectors, told.metadata, told.images, told.out, options
        )
    else:
        found = build.index_images(told.images, told.model, told.out, options)
    say(f"{duration(found['seconds'])}; now: python -m air_jax.serve --index={told.out}")


if __name__ == "__main__":
    sys.exit(main())
