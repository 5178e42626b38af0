"""A sweep: the same stages for many nets and seeds, each member in a work directory of its own.

`config.sweep.nets` names the nets and what each changes in the config; every seed of every net is a
member, `<net>/seed<n>`. What is done is not done again, and a member that fails is reported while
the others go on.
"""

import copy
import json
import time
import traceback
from pathlib import Path
from typing import NamedTuple

import ml_collections

from air_jax.models.net import architecture_of
from air_jax.run import dry_run, jobs, pipeline
from air_jax.run.jobs import Job
from air_jax.run.work_directory import WorkDir
from air_jax.runtime import distributed
from air_jax.runtime.arguments import near_key
from air_jax.runtime.atomic_files import write_json
from air_jax.runtime.command_line import flatten
from air_jax.runtime.progress import duration, say
from air_jax.training import loop

# Of a member, about as long as one of the train step: that one, and the encoder and the decoder.
COMPILATIONS = 2
MEMBERS_FOLDER = "members"
ERROR_FILE = "error.json"


class Member(NamedTuple):
    """One net with one seed.

    Attributes:
        net: its name in `config.sweep.nets`.
        seed: of initialisation and order.
        job: its own config on the sweep's data.
        workdir: its own.
    """

    net: str
    seed: int
    job: Job
    workdir: WorkDir

    @property
    def name(self) -> str:
        return f"{self.net}/seed{self.seed}"

    def left_to_do(self, stages: tuple[str, ...]) -> list[str]:
        """The stages that are not done, or no longer current."""
        return [stage for stage in stages if self.workdir.why_redo(stage)]

    def work(self) -> float:
        """Multiplications of its training, about: what the time it takes goes with."""
        images = len(self.job.training_positions())
        config = self.job.config
        steps = loop.count_steps(config.train, images)
        shape = self.job.dataset.images.shape[1:]
        return steps * config.train.batch * architecture_of(config.model, shape).multiplications()


def make_members(job: Job, folder: Path) -> list[Member]:
    """All members of `job.config.sweep`, the first seed of every net first, checked.

    Raises:
        ValueError: a net's config cannot work, or the images have no labels to judge nets by.
    """
    if not job.labelled:
        raise ValueError(
            f"data.name={job.dataset.name!r}: the images have no labels, and a sweep compares nets "
            "by them"
        )
    config = job.config
    fingerprint = job.dataset.fingerprint()
    made = []
    for seed in config.sweep.seeds:
        for net, changes in config.sweep.nets.items():
            own = ml_collections.ConfigDict(copy.deepcopy(config.to_dict()))
            del own.sweep
            own.lock()
            known = flatten(own)
            for key in (key for key in flatten(changes) if key not in known):
                raise ValueError(
                    f"sweep.nets: {net!r}: {key}: there is no such key{near_key(key, known)}"
                )
            try:
                own.update(changes.to_dict())
                own.seed = seed
                member_job = Job(own, job.dataset, job.database, job.queries, job.mesh)
                jobs.check(member_job)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise ValueError(f"sweep.nets: {net!r}: {error}") from error
            path = folder / MEMBERS_FOLDER / net / f"seed{seed}"
            made.append(Member(net, seed, member_job, WorkDir(path, own, fingerprint)))
    return made


def select(members: list[Member], only: list[str]) -> list[Member]:
    """The members whose names begin with one of `only`; all if it is empty.

    Raises:
        ValueError: one of them begins no name.
    """
    for start in only:
        if not any(member.name.startswith(start) for member in members):
            nets = dict.fromkeys(member.net for member in members)
            raise ValueError(f"--only={start}: no member's name begins so; nets: {', '.join(nets)}")
    return [m for m in members if not only or m.name.startswith(tuple(only))]


def part(members: list[Member], which: str) -> list[Member]:
    """Every Nth of the members, from the Ith on, of `which` "I/N"; the N parts are all of them.

    Raises:
        ValueError: it is not of that form, or not 0 <= I < N.
    """
    index, _, count = which.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ValueError(f"--part={which}: expected I/N with 0 <= I < N")
    return members[int(index) :: int(count)]


def prepare(members: list[Member], anew: bool) -> None:
    """Make sure that the members' folders are theirs; with `anew` set aside what is in them.

    Raises:
        ValueError: a folder holds another training; the message names what changed.
    """
    for member in members:
        if not anew:
            member.workdir.check()
        elif distributed.is_first():
            member.workdir.set_aside()
    distributed.barrier()


def run(members: list[Member], stages: tuple[str, ...]) -> list[str]:
    """Do the stages of every member that are not done yet.

    Args:
        members: to do, in this order.
        stages: of `work_directory.STAGES`.

    Returns:
        The names of the members that failed; why is in each one's `error.json`.

    Raises:
        KeyboardInterrupt: stopped; the same call goes on.
        OSError: the disk is full, or the like: no other member would fare better.
    """
    left = distributed.from_first(lambda: [member.left_to_do(stages) for member in members])
    waiting = [(member, to_do) for member, to_do in zip(members, left, strict=True) if to_do]
    say(f"{len(members)} members, {len(members) - len(waiting)} done before")
    pace, failed = _Pace(), []
    started = time.monotonic()
    for number, (member, to_do) in enumerate(waiting, start=1):
        say(f"\n[{number}/{len(waiting)}] {member.name}")
        began = time.monotonic()
        if error := _do(member, stages):
            say(f"{member.name} failed ({error}); the others go on")
            failed.append(member.name)
        pace.add(member, to_do, time.monotonic() - began)
        if number < len(waiting):
            rest = duration(sum(pace.seconds(waiting[number:])))
            elapsed = duration(time.monotonic() - started)
            say(f"{number} of {len(waiting)} in {elapsed}, about {rest} left")
    return failed


def _do(member: Member, stages: tuple[str, ...]) -> str | None:
    """Do a member's stages; returns what went wrong, in words, after writing it down."""
    error_file = member.workdir / ERROR_FILE
    try:
        with member.workdir.opened():
            for stage in stages:
                pipeline.do_stage(stage, member.job, member.workdir)
    except OSError:
        raise
    except Exception as error:  # whatever it is, the other members go on
        text = f"{type(error).__name__}: {error}"
        if distributed.is_first():
            write_json(error_file, {"error": text, "traceback": traceback.format_exc()})
        return text
    if distributed.is_first():
        error_file.unlink(missing_ok=True)
    return None


def error_of(member: Member) -> str | None:
    """Why a member failed when it was last tried; None if it did not."""
    try:
        return json.loads((member.workdir / ERROR_FILE).read_text())["error"]
    except FileNotFoundError:
        return None


class _Pace:
    """How long members take: the steps of training by their work, and all else alike for each."""

    def __init__(self) -> None:
        self.steps = self.work = self.besides = 0.0
        self.members = 0

    def add(self, member: Member, done: list[str], seconds: float) -> None:
        """Count a member of which these stages were done in so many seconds."""
        trained = member.workdir.result("train") if "train" in done else None
        steps = trained["seconds"] if trained else 0.0
        if trained:
            self.steps, self.work = self.steps + steps, self.work + member.work()
        self.besides += max(seconds - steps, 0.0)
        self.members += 1

    def seconds(self, waiting: list[tuple[Member, list[str]]]) -> tuple[float, float]:
        """Of the steps that members have left, and of all else that they have left."""
        work = sum(member.work() for member, to_do in waiting if "train" in to_do)
        steps = self.steps / self.work * work if self.work else 0.0
        return steps, self.besides / self.members * len(waiting)


def describe(members: list[Member], stages: tuple[str, ...]) -> str:
    """What is done, what is left, and about how long it takes, in lines for a terminal.

    The time is judged by the members that are done, or else by a few steps of the first.
    """
    lines, waiting, pace = [], [], _Pace()
    for member in members:
        to_do = member.left_to_do(stages)
        if to_do:
            waiting.append((member, to_do))
        taken = [s for stage in stages if (s := member.workdir.seconds(stage)) is not None]
        if len(taken) == len(stages):
            pace.add(member, list(stages), sum(taken))
        error = error_of(member)
        state = "to do: " + ", ".join(to_do) if to_do else "done"
        lines.append(f"{member.name:<44}{state}{f' (failed: {error})' if error else ''}")
    lines.append(f"{len(members)} members, {len(waiting)} to do")
    if waiting:
        judged, rest = "those done", "compiling and evaluation"
        if not pace.members:
            judged = "a few steps of the first"
            rest = "compiling; encoding, ranking and feedback come on top"
            _measure(waiting[0][0], pace)
        steps, besides = pace.seconds(waiting)
        lines.append(
            f"takes about {duration(steps + besides)}, judged by {judged}: {duration(steps)} of "
            f"training steps, {duration(besides)} of {rest}"
        )
    return "\n".join(lines)


def _measure(member: Member, pace: _Pace) -> None:
    """Count a member that was not done, by compiling its step and doing a few."""
    train = member.job.config.train
    measured = dry_run.measure(member.job)
    images = len(member.job.training_positions())
    pace.steps = loop.count_steps(train, images) * train.batch / measured.images_per_second
    pace.work = member.work()
    pace.besides, pace.members = COMPILATIONS * measured.compile_seconds, 1
