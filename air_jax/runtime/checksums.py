"""SHA-256 checksums: of values, of code, of files and folders, and files that carry their own.

A process reads a file for its checksum once, as long as the file's size, time and inode stay the
same.
"""

import ast
import functools
import hashlib
import inspect
import json
import os
import sys
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from air_jax.runtime.atomic_files import write_json

CHECKSUMS_FILE = "checksums.json"


def hash_of(value: Any) -> str:
    """SHA-256 of anything that JSON can hold, as 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def hash_of_array(array: np.ndarray) -> str:
    """SHA-256 of an array's dtype, shape and numbers."""
    found = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
    found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def hash_of_code(function: Callable[..., Any]) -> str:
    """SHA-256 of the code of a function, and of all that it uses of its own package.

    These are functions, classes and constants of modules, and what they use in turn. Comments,
    docstrings and formatting do not count, nor do the keywords of a `partial`.
    """
    found: dict[str, str] = {}
    if isinstance(function, functools.partial):
        found["arguments"] = repr(function.args)
        function = function.func
    _add_code(function, found)
    return hash_of(found)


def _add_code(used: Any, found: dict[str, str]) -> None:
    """Add the source of a function or class, and of what it uses of its package, by name."""
    used = inspect.unwrap(used)
    if not (inspect.isfunction(used) or inspect.isclass(used)):
        used = type(used)
    called = f"{used.__module__}.{used.__qualname__}"
    if called in found:
        return
    tree = _parse(used)
    found[called] = ast.unparse(tree)
    names = dict(vars(sys.modules[used.__module__]))
    if inspect.isfunction(used):
        names |= inspect.getclosurevars(used).nonlocals
    for node in ast.walk(tree):
        match node:
            case ast.Name(name):
                owner, value = used.__module__, names.get(name)
            case ast.Attribute(ast.Name(module), name) if inspect.ismodule(names.get(module)):
                owner, value = names[module].__name__, getattr(names[module], name, None)
            case _:
                continue
        if isinstance(value, bool | int | float | str | tuple):
            found[f"{owner}.{name}"] = repr(value)
        elif _package(getattr(value, "__module__", None)) == _package(used.__module__):
            _add_code(value, found)


def _package(module: Any) -> str:
    return str(module).partition(".")[0]


@functools.cache
def _parse(used: Any) -> ast.Module:
    """The source of a function or class, without docstrings and the types of arguments."""
    source = inspect.getsource(used)
    try:
        tree = ast.parse(textwrap.dedent(source))
    except SyntaxError:  # a lambda's is a piece of a line
        return ast.parse(repr(source))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        if isinstance(node, ast.arg):
            node.annotation = None
    return tree


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of all files in a folder.

    Raises:
        OSError: a file is missing or cannot be read.
    """
    if path.is_dir():
        inner = sorted(p for p in path.rglob("*") if p.is_file())
        return hash_of([[p.relative_to(path).as_posix(), sha256_of(p)] for p in inner])
    return _sha256_of_file(path.absolute(), *_state(path))


def difference(folder: Path, checksums: dict[str, str]) -> str | None:
    """The first file of a folder that is not as its checksum says, in words; None if all are.

    Args:
        folder: where the files lie.
        checksums: `sha256_of` the files and folders in it, by name.
    """
    for name, checksum in checksums.items():
        try:
            found = sha256_of(folder / name)
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
        if found != checksum:
            return f"{name} is damaged: its checksum is not the recorded one"
    return None


def write_checksums(folder: Path, files: Iterable[Path]) -> None:
    """Write `checksums.json` with the SHA-256 of files in a folder, for `damage`.

    Raises:
        OSError: it cannot be written.
    """
    checksums = {path.relative_to(folder).as_posix(): sha256_of(path) for path in sorted(files)}
    write_json(folder / CHECKSUMS_FILE, checksums)


def damage(folder: Path, within: str = "") -> str | None:
    """What is wrong with the files that `write_checksums` knows, in words; None if nothing.

    A folder without `checksums.json` is taken as it is.

    Args:
        folder: that `write_checksums` was given.
        within: only files whose name begins so are compared.
    """
    try:
        checksums = json.loads((folder / CHECKSUMS_FILE).read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        return f"{CHECKSUMS_FILE} cannot be read ({type(error).__name__}: {error})"
    if not isinstance(checksums, dict):
        return f"{CHECKSUMS_FILE} holds no checksums"
    return difference(
        folder, {name: value for name, value in checksums.items() if name.startswith(within)}
    )


def write_checked_json(path: Path, value: dict[str, Any]) -> None:
    """As `write_json`, with a checksum in it that `read_checked_json` compares."""
    write_json(path, value | {"checksum": hash_of(value)})


def read_checked_json(path: Path) -> dict[str, Any]:
    """What `write_checked_json` wrote. A file without a checksum is taken as it is.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged; the message names it.
    """
    try:
        value = json.loads(path.read_text())
        checksum = value.pop("checksum", None)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if checksum not in (None, hash_of(value)):
        raise ValueError(f"{path} is damaged: its content is not that of its checksum")
    return value


def _state(path: Path) -> tuple[int, int, int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns, status.st_dev, status.st_ino


@functools.lru_cache(maxsize=10_000)
def _sha256_of_file(path: Path, *_: int) -> str:
    """SHA-256 of a file; the other arguments tell whether it has changed since."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
