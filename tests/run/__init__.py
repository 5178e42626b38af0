"""Tests of whole runs. A package, so that its `conftest` is another one than that of `tests/`."""
