"""Results in a JSON file: made once, and made again when what they are made from changes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from air_jax.runtime import distributed
from air_jax.runtime.checksums import read_checked_json, write_checked_json
from air_jax.runtime.progress import say


class KeptResults:
    """Results by name, in a file; a stopped command continues with those that are missing.

    Args:
        path: of the file, which need not exist.
        made_from: all that the results depend on, as JSON holds it. Results that were made from
            something else, and those of a damaged file, are made again.
    """

    def __init__(self, path: Path, made_from: dict[str, Any]):
        self.path, self.made_from = path, made_from
        self.found: dict[str, Any] = distributed.from_first(self._read)

    def get(self, name: str, make: Callable[[], Any]) -> Any:
        """The result of this name: the kept one, or what `make` returns, a value of JSON.

        All processes of a run call it alike; the first one writes the file.
        """
        if name not in self.found:
            self.found[name] = make()
            if distributed.is_first():
                write_checked_json(self.path, {"inputs": self.made_from, "found": self.found})
        return self.found[name]

    def _read(self) -> dict[str, Any]:
        try:
            held = read_checked_json(self.path)
            return dict(held["found"]) if held["inputs"] == self.made_from else {}
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError) as error:
            say(f"{error}; starting anew")
            return {}
