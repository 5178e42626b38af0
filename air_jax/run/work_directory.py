"""What a work directory holds, and whether it still is what the config says.

Each finished stage leaves a record `stages/<stage>.json`: the config keys, the code and (as a
fingerprint) the data and the earlier records that the stage was made from, the checksums of its
files, and its result. The run does a stage again when one of these no longer agrees. A key that an
older record does not have means its default, and code that a record does not tell of is taken for
today's.
"""

import contextlib
import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_collections

from air_jax.configs import default
from air_jax.runtime import distributed
from air_jax.runtime.atomic_files import locked, write_json, write_npz
from air_jax.runtime.checksums import (
    difference,
    hash_of,
    hash_of_code,
    read_checked_json,
    sha256_of,
    write_checked_json,
)
from air_jax.runtime.command_line import flatten

CONFIG_FILE = "config.json"
LOCK_FILE = "lock"
NET_FILE = "net.npz"
CODES_FILE = "codes.npz"
RECONSTRUCTIONS_FILE = "reconstructions.npz"
RETRIEVAL_FILE = "retrieval.npz"
FEEDBACK_FOLDER = "feedback"
RESULTS_FILE = "results.json"
PER_QUERY_FILE = "per_query.npz"
FIGURES_FOLDER = "figures"

STAGES = ("train", "encode", "retrieve", "feedback", "report")

# What each stage is made from: sections or keys of the config, and what earlier stages left.
_SECTIONS = {
    "train": ("seed", "data", "model", "train"),
    "encode": ("encode",),
    "retrieve": ("retrieval",),
    "feedback": ("feedback", "retrieval.metric"),
    "report": ("report",),
}
_READS = {
    "train": (),
    "encode": ("train",),
    "retrieve": ("encode",),
    "feedback": ("encode",),
    "report": ("train", "encode", "retrieve", "feedback"),
}
# Where the data lies and how it travels does not change what is computed from it, nor how the
# computation is cut into calls.
_WITHOUT_EFFECT = (
    *("data.dir", "data.loader", "train.steps_per_call", "train.remat"),
    "encode.batch",
)


def all_needs(stage: str) -> tuple[str, ...]:
    """The stages that a stage cannot do without; the report takes the stages that are done."""
    if stage == "report":
        return ()
    return tuple(s for earlier in _READS[stage] for s in (*all_needs(earlier), earlier))


def config_hash(config: ml_collections.ConfigDict) -> str:
    """SHA-256 of all the config's keys and values."""
    return hash_of(flatten(config))


def stage_keys(config: ml_collections.ConfigDict, stage: str) -> dict[str, Any]:
    """The keys of the config that change what a stage computes itself."""
    keys = {
        key: value
        for key, value in flatten(config).items()
        if {key, key.split(".")[0]} & {*_SECTIONS[stage]} and key not in _WITHOUT_EFFECT
    }
    if stage == "encode":
        keys["codes of the untrained net"] = "untrained" in config.retrieval.baselines
    return keys


def stage_code(config: ml_collections.ConfigDict, stage: str) -> dict[str, dict[str, Any]]:
    """What the functions that a stage takes by name are fixed to, with hashes of their code."""
    # Here: commands read their flags, and this module, before JAX is imported.
    from air_jax.baselines import baseline_codes
    from air_jax.feedback import learners

    if stage == "feedback":
        return {name: learners.made_from(name) for name in config.feedback.learners}
    if stage == "retrieve":
        names = [n for n in baseline_codes.WITHOUT_NET if n in config.retrieval.baselines]
        return {name: {"code": hash_of_code(baseline_codes.make)} for name in names}
    return {}


class WorkDir:
    """A run's folder.

    Args:
        path: of the folder; need not exist.
        config: the run's.
        data_fingerprint: of the data set that it is run on.
    """

    def __init__(self, path: Path, config: ml_collections.ConfigDict, data_fingerprint: str):
        self.path = path
        self.config = config
        self.data_fingerprint = data_fingerprint

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def exists(self) -> bool:
        """Whether there is a run in the folder; ValueError if there is something else."""
        if not self.path.exists():
            return False
        if not self.path.is_dir():
            raise ValueError(f"--workdir={self.path} is a file; expected a folder")
        found = sorted(p.name for p in self.path.iterdir() if p.name != LOCK_FILE)
        if found and CONFIG_FILE not in found:
            raise ValueError(
                f"--workdir={self.path} holds {found[0]!r} but no {CONFIG_FILE}: it is no run "
                "of air_jax. Give another folder."
            )
        return bool(found)

    def check(self) -> None:
        """Raise ValueError if the folder holds something else than a run of the same training.

        Changed keys of data, model or training are named; keys of later stages may change.
        """
        if not self.exists():
            return
        try:
            before = dict(read_checked_json(self / CONFIG_FILE)["training"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self / CONFIG_FILE} does not tell what the run is of ({error}). Give another "
                "--workdir, or --overwrite to start anew (the old one is kept aside)."
            ) from error
        if changed := _changes(_with_defaults(before, "train"), self._training()):
            raise ValueError(
                f"--workdir={self.path} holds a run of another training:\n  "
                + "\n  ".join(changed)
                + "\nGive another --workdir, or --overwrite to start anew (the old one is kept "
                "aside)."
            )

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Make the folder, keep other runs out of it, and write down the config.

        Of several processes the first does this, before any other goes on.

        Raises:
            ValueError: the folder cannot be made, or another run works in it.
        """
        with contextlib.ExitStack() as stack:
            if distributed.is_first():
                try:
                    self.path.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(locked(self / LOCK_FILE, f"--workdir={self.path}"))
                except OSError as error:
                    raise ValueError(
                        f"--workdir={self.path} cannot be made or written to: {error.strerror}"
                    ) from error
                write_checked_json(
                    self / CONFIG_FILE,
                    {"training": self._training(), "config": flatten(self.config)},
                )
            distributed.barrier()
            yield

    def write_npz(self, name: str, **arrays: Any) -> None:
        """Write an `.npz` file in the folder; of several processes the first writes it."""
        if distributed.is_first():
            write_npz(self / name, **arrays)

    def set_aside(self) -> Path | None:
        """Rename the folder, if there is a run in it; returns its new path."""
        if not self.exists():
            return None
        now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        aside = self.path.with_name(f"{self.path.name}.old-{now}")
        self.path.rename(aside)
        return aside

    def why_redo(self, stage: str) -> str | None:
        """Why a stage has to be done, in words for the user; None if its files are current."""
        record = self._record(stage)
        if record is None:
            return "not done yet"
        changed = _changes(_with_defaults(record["config"], stage), stage_keys(self.config, stage))
        changed += _changes_of_code(record, stage_code(self.config, stage))
        if changed:
            return "; ".join(changed)
        if record["fingerprint"] != self._fingerprint(stage, record["config"]):
            return "made from an earlier state of the stages before it"
        return difference(self.path, record["files"])

    def finish(
        self, stage: str, result: dict[str, Any], files: list[str], seconds: float = 0.0
    ) -> None:
        """Record that a stage is done, what it found, what it left, and how long it took in all."""
        checksums = {name: sha256_of(self / name) for name in files}
        keys = stage_keys(self.config, stage)
        write_json(
            self._record_path(stage),
            {
                "fingerprint": self._fingerprint(stage, keys),
                "config": keys,
                "code": stage_code(self.config, stage),
                "files": checksums,
                "result": result,
                "seconds": seconds,
                "checksum": hash_of([checksums, result]),
            },
        )

    def result(self, stage: str) -> dict[str, Any] | None:
        """What a finished stage found; None if the stage is not done, or no longer current."""
        if self.why_redo(stage):
            return None
        record = self._record(stage)
        return record["result"] if record else None

    def seconds(self, stage: str) -> float | None:
        """How long a finished stage took; None where that is not written down."""
        record = None if self.why_redo(stage) else self._record(stage)
        return record.get("seconds") if record else None

    def _training(self) -> dict[str, Any]:
        return stage_keys(self.config, "train") | {"data (SHA-256)": self.data_fingerprint}

    def _record_path(self, stage: str) -> Path:
        return self / "stages" / f"{stage}.json"

    def _record(self, stage: str) -> dict[str, Any] | None:
        try:
            record = json.loads(self._record_path(stage).read_text())
            whole = record["checksum"] == hash_of([record["files"], record["result"]])
            whole = whole and isinstance(record["config"], dict)
        except (OSError, ValueError, KeyError, TypeError):  # absent or damaged
            return None
        return record if whole else None

    def _fingerprint(self, stage: str, keys: dict[str, Any]) -> str:
        """A hash of what a stage is made from: data, config keys, records of earlier stages."""
        made_from = [self.state(earlier) for earlier in _READS[stage]]
        return hash_of([self.data_fingerprint, keys, made_from])

    def state(self, stage: str) -> str | None:
        """A hash of a stage's record; None if the stage is not done, or no longer current."""
        return None if self.why_redo(stage) else hash_of(self._record(stage))


def _with_defaults(keys: dict[str, Any], stage: str) -> dict[str, Any]:
    """A stage's keys as a run wrote them down; those that it did not have yet by their defaults."""
    return stage_keys(default.get_config(), stage) | keys


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The keys whose values differ, with both values, in words."""
    changed = []
    for key in sorted(before.keys() | now.keys()):
        if key not in now:
            changed.append(f"{key} was {before[key]!r}, and there is no such key any more")
        elif before.get(key) != now[key]:
            changed.append(f"{key} was {before.get(key)!r}, now {now[key]!r}")
    return changed


def _changes_of_code(record: dict[str, Any], now: dict[str, dict[str, Any]]) -> list[str]:
    """The constants, and the code, that are not as a stage's record says, in words."""
    before = record.get("code")
    if before is None:  # an older record tells of the learners' constants only
        before = {name: record["result"].get(name, {}).get("params", {}) for name in now}
    changed = []
    for name, current in now.items():
        for key, value in before.get(name, {}).items():
            if value != current.get(key):
                what = f"{key} was {value!r}, now {current.get(key)!r}"
                changed.append(f"{name}: {what if key != 'code' else 'its code changed'}")
    return changed
