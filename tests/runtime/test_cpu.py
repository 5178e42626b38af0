import importlib.metadata

import pytest

from air_jax.runtime import cpu

FAST = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"


@pytest.mark.parametrize(
    ("version", "before", "after"),
    [
        ("0.10.1", "", ""),
        ("0.10.2", "", FAST),
        ("0.12.0.1", "--xla_a=1", f"--xla_a=1 {FAST}"),
        ("0.12.0.1", FAST, FAST),
        ("0.12.0.1", "--xla_cpu_experimental_ynn_fusion_type=", None),
        ("0.13.0", "--xla_a=1", "--xla_a=1"),
    ],
)
def test_the_flag_joins_others_where_jaxlib_knows_it(monkeypatch, version, before, after):
    monkeypatch.setenv("XLA_FLAGS", before)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    cpu.prefer_fast_convolutions()
    after = before if after is None else after
    assert cpu.os.environ["XLA_FLAGS"] == after


def test_without_jaxlib_nothing_is_set(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1")
    monkeypatch.setattr(importlib.metadata, "version", missing)
    cpu.prefer_fast_convolutions()
    assert cpu.os.environ["XLA_FLAGS"] == "--xla_a=1"
