"""JSON and `.npz` files: written whole or not at all, read with errors that name them."""

import json
from pathlib import Path
from typing import Any

import numpy as np


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all; ValueError if it holds NaN or infinity."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Write an `.npz` file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        np.savez(file, **arrays)
    partial.replace(path)


def read_npz(path: Path, required: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """Every array of an `.npz` file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or lacks an array of `required`; the message names the file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except FileNotFoundError:
        raise
    except Exception as error:  # NumPy, zipfile and zlib raise a dozen kinds on damaged files
        raise ValueError(f"{path} cannot be read as an .npz file: {error}") from error
    missing = [key for key in required if key not in arrays]
    if missing:
        raise ValueError(
            f"{path} has no array named {' or '.join(map(repr, missing))}; "
            f"found {', '.join(sorted(arrays)) or 'nothing'}"
        )
    return arrays
