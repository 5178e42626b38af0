"""Files of vectors of another model become an index.

They are an `.npy` file, and maybe a table of the vectors' images and the folder of those images.
"""

import codecs
import contextlib
import csv
import hashlib
import io
import json
import re
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from air_jax.data import decode_pool, image_files
from air_jax.data.decode_pool import Task
from air_jax.data.decoding import Decoded
from air_jax.data.image_files import File
from air_jax.index import index_writer, milvus_index
from air_jax.index.catalogue import Catalogue
from air_jax.index.index_writer import BATCH, Options, Update
from air_jax.runtime.checksums import sha256_of
from air_jax.runtime.progress import Progress, say

DELIMITERS = (",", ";", "\t", "|")
PATH = "path"
LIKE_PATH = ("filename", "file", "filepath")  # a column that is taken where none is called `path`
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_vectors(path: Path) -> np.ndarray:
    """The array [N, D] of floats in an `.npy` file, memory-mapped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such array; the message names the file.
    """
    try:
        codes = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise FileNotFoundError(f"--vectors={path}: there is no such file") from None
    except Exception as error:  # NumPy and zipfile raise a dozen kinds on damaged files
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"--vectors={path} cannot be read as an .npy file: {reason}") from error
    if not isinstance(codes, np.ndarray):
        names = ", ".join(codes.files)
        codes.close()
        raise ValueError(
            f"--vectors={path} holds several arrays ({names}): it is an .npz file; expected an "
            ".npy file, which numpy.save writes"
        )
    if codes.ndim != 2 or not codes.size or not np.issubdtype(codes.dtype, np.floating):
        raise ValueError(
            f"--vectors={path} holds {list(codes.shape)} {codes.dtype}; expected [N > 0, D > 0] "
            "floats"
        )
    return codes


class Row(NamedTuple):
    """A row of the table: the path of its image, "" if there is none, and its other cells."""

    path: str
    metadata: dict[str, str]


def read_metadata(path: Path, count: int, *, with_images: bool) -> list[Row]:
    """The rows of a CSV file in UTF-8 or UTF-16, whose first line names the columns.

    The delimiter is found out. A column without a name is left out if it is empty or counts the
    rows, as pandas writes it. A name that comes again gets a number.

    Args:
        path: of the file.
        count: rows that are expected.
        with_images: whether a column has to name the images: `path`, or else one of `LIKE_PATH`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or is not as expected; the message names it.
    """
    head, rows = _best_table(path, _text(path))
    if len(rows) != count:
        taken = f"; its first line, {', '.join(head)!r}, names the columns"
        hint = taken if len(rows) == count - 1 else ""
        raise ValueError(f"--metadata={path} has {len(rows)} rows for {count} vectors{hint}")
    for number, row in enumerate(rows, 1):
        if any(row[len(head) :]):
            raise ValueError(f"--metadata={path}: row {number} has more cells than the head")
        row += [""] * (len(head) - len(row))
    place = _place_of_path(path, head, needed=with_images)
    names = _names(head, rows)
    return [
        Row(
            "" if place is None else row[place],
            {name: row[at] for at, name in names.items() if at != place},
        )
        for row in rows
    ]


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"--metadata={path}: there is no such file") from None
    encoding = "utf-16" if content.startswith(UTF_16) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"--metadata={path} cannot be read as CSV in UTF-8: {error}") from error


def _best_table(path: Path, text: str) -> tuple[list[str], list[list[str]]]:
    """Head and rows by the delimiter that gives a column of paths, fitting rows, most columns."""
    told = re.match(r"sep=([,;:|\t])\r?\n", text)  # as Excel writes it
    delimiters = DELIMITERS if told is None else (told[1],)
    text = text if told is None else text[told.end() :]
    line = text.lstrip("\r\n").partition("\n")[0]
    best = None
    errors: list[Exception] = []
    for delimiter in delimiters:
        if delimiter not in line and delimiter != delimiters[0]:
            continue
        try:
            head, rows = _table(text, delimiter, spaced=f"{delimiter} " in line)
        except csv.Error as error:
            errors.append(error)
            continue
        fits = all(len(row) == len(head) for row in rows)
        rank = (bool(_like_path(head)), fits, len(head))
        if best is None or rank > best[0]:
            best = rank, head, rows
    if best is None:
        raise ValueError(f"--metadata={path} cannot be read as CSV: {errors[0]}") from errors[0]
    return best[1:]


def _table(text: str, delimiter: str, spaced: bool) -> tuple[list[str], list[list[str]]]:
    lines = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=spaced, strict=True
    )
    head, *rows = [line for line in lines if line] or [[]]
    return [name.strip() for name in head], rows


def _like_path(head: list[str]) -> list[int]:
    """The places of columns that may name images: of the first way of naming that there is."""
    ways = ((PATH,), LIKE_PATH)
    exact = [at for at, name in enumerate(head) if name == PATH]
    folded = [re.sub(r"[ _-]", "", name.casefold()) for name in head]
    found = [[at for at, name in enumerate(folded) if name in way] for way in ways]
    return next((places for places in (exact, *found) if places), [])


def _place_of_path(path: Path, head: list[str], needed: bool) -> int | None:
    places = _like_path(head)
    if len(places) == 1:
        if head[places[0]] != PATH:
            say(f"--metadata={path}: the column {head[places[0]]!r} names the images")
        return places[0]
    found = ", ".join(map(repr, head)) or "no column"
    if places and needed:
        raise ValueError(
            f"--metadata={path}: {len(places)} columns may name the images, of {found}; expected "
            f"one of them to be {PATH!r}"
        )
    if needed:
        raise ValueError(
            f"--metadata={path}: no column names the images for --images; found {found}; expected "
            f"a column {PATH!r} (or {', '.join(map(repr, LIKE_PATH))})"
        )
    return None


def _names(head: list[str], rows: list[list[str]]) -> dict[int, str]:
    """The columns that are kept, by place, each with a name of its own."""
    names: dict[int, str] = {}
    for at, name in enumerate(head):
        if not name and _is_index([row[at] for row in rows]):
            continue
        name = name or f"column {at + 1}"
        times, own = 1, name
        while own in names.values() or (times > 1 and own in head):
            times += 1
            own = f"{name} {times}"
        names[at] = own
    return names


def _is_index(cells: list[str]) -> bool:
    """Whether a column is empty, or counts the rows."""
    numbers = [str(number) for number in range(len(cells) + 1)]
    return not any(cells) or cells in (numbers[:-1], numbers[1:])


def index_vectors(
    vectors: Path, metadata: Path | None, folder: Path | None, out: Path, options: Options
) -> dict[str, Any]:
    """Index vectors of any other model.

    Args:
        vectors: an `.npy` file, [N, D] of any float type.
        metadata: a CSV file with a head and N rows, of which a column names the images; see
            `read_metadata`.
        folder: of the images.
        out: the index.
        options: `storage`, `workers`, `rehash`, `limits` and `store` are used.

    Returns:
        What `index.json` holds.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: vectors and rows are not as many, a file is damaged, none of the images is in
            the folder, or the index is of images or of another folder.
    """
    started = time.monotonic()
    codes = read_vectors(vectors)
    rows = [Row("", {})] * len(codes)
    if metadata is not None:
        rows = read_metadata(metadata, len(codes), with_images=folder is not None)
    files = {} if folder is None else _files_of(rows, folder)
    told = json.dumps([sha256_of(vectors), rows], ensure_ascii=True)
    fingerprint = hashlib.sha256(told.encode()).hexdigest()
    made_from = {
        "kind": "vectors",
        "folder": None if folder is None else str(folder.resolve()),
    }
    with index_writer.opened(out, made_from, options, codes.shape[1]) as index:
        about = made_from | {
            "codes": f"vectors:{sha256_of(vectors)}",
            "model": None,
            "dimension": codes.shape[1],
            "size": len(codes),
            "storage": options.storage,
            "fingerprint": fingerprint,
        }
        about |= milvus_index.about_store(index.catalogue, index.store, sha256_of(vectors))
        ids = list(range(1, len(codes) + 1))
        if not index_writer.is_published(index, ids, about):
            about["generation"] = index.generation + 1
            index_writer.write_codes(index, codes, ids, about)
            index.catalogue.publish_rows(rows, about)
        index.catalogue.set_meta(made_from=index.made_from)
        index_writer.delete_leftovers(index)
        broken = {}
        if folder is not None:
            broken = _update_pictures(index.catalogue, folder, files, options)
        update = Update(ids, broken, len(codes), fingerprint=fingerprint)
        return index_writer.write_summary(
            index, update, {"other_files": 0}, time.monotonic() - started
        )


def _files_of(rows: list[Row], folder: Path) -> dict[str, File]:
    """The files of the images that rows name, by the path in the row.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: none of the images is in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"--images={folder}: there is no such folder")
    files = {}
    named = {row.path for row in rows} - {""}
    for path in named:
        place = image_files.inside(folder, path)
        if place is not None:
            with contextlib.suppress(OSError):  # it is gone by now
                status = place.stat()
                files[path] = File(str(place), status.st_size, status.st_mtime_ns)
    if not files:
        first = next((f", the first of them {row.path!r}" for row in rows if row.path), "")
        raise ValueError(
            f"--images={folder}: no image of the metadata is in this folder; {len(named):,} are "
            f"named{first}"
        )
    return files


def _update_pictures(
    catalogue: Catalogue, folder: Path, files: dict[str, File], options: Options
) -> dict[str, str]:
    """Bring the thumbnails of vectors up to date.

    A thumbnail stays where its file is not there, or cannot be read this time.

    Args:
        catalogue: of the index.
        folder: of the images.
        files: of the images by the path in their row.
        options: see there.

    Returns:
        Reasons by path of files that cannot be used.
    """
    known_broken = catalogue.broken()
    broken: dict[str, str] = {}
    todo: list[tuple[int, File, File]] = []
    for image, before in catalogue.pictures():
        path = before.path
        file = files.get(path)
        if file is None:
            broken[path] = "there is no such file in the folder"
        elif options.rehash or file[1:] != before[1:]:
            todo.append((image, file._replace(path=path), file))
        elif path in known_broken:
            broken[path] = known_broken[path][2]
    task = Task(str(folder.resolve()), None, options.fit, options.limits)
    batch: list[tuple[int, File, Decoded]] = []
    with Progress("thumbnails", len(todo)) as progress:
        decoded = decode_pool.decode([place.path for *_, place in todo], task, options.workers)
        for (image, file, _), one in zip(todo, decoded, strict=True):
            progress.advance(1)
            if one.error is not None:
                broken[file.path] = one.error
            if one.error is None or one.lasting:
                batch.append((image, file, one))
            if len(batch) == BATCH:
                catalogue.set_pictures(batch)
                batch = []
    catalogue.set_pictures(batch)
    catalogue.keep_broken(set(broken))
    return broken
