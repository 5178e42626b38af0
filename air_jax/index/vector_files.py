"""Files about vectors of another model: an `.npy` file of them, and a table of their images."""

import codecs
import csv
import io
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from air_jax.runtime.progress import say

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
