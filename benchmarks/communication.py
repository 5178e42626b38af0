"""What a compiled program sends between devices, read from the text of its optimised HLO.

    compiled = jax.jit(step).lower(*arguments).compile()
    for collective in communication.collectives(compiled.as_text()):
        print(collective, collective.sent_bytes)

This depends on the program and the number of devices only: a busy machine, or virtual devices of
one CPU, show the same.
"""

import math
import re
from typing import NamedTuple

KINDS = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
_COMPUTATION = re.compile(r"^(ENTRY )?%?([^\s(]+) \(.*\{$")
# Name, type (of a tuple in parentheses), opcode, operands and attributes.
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?(\S+) = (\(.*?\)|\S+) ([a-z][\w-]*)\((.*)$")
_CALLED = re.compile(
    r"\b(?:body|condition|calls|to_apply|\w+_computation|\w+_computations)=(\{[^{}]*\}|[^\s,]+)"
)
# What the compiler notes about an instruction may look like one.
_NOTES = re.compile(r', metadata=\{(?:[^{}"]|"[^"]*")*\}|/\*.*?\*/')


class Instruction(NamedTuple):
    """One line of a program: the type of its result, its opcode, operands and attributes."""

    result: str
    opcode: str
    rest: str


class Collective(NamedTuple):
    """One collective operation of a program.

    Attributes:
        kind: one of `KINDS`; an asynchronous pair of start and done is one.
        calls: how often a run of the program does it; None: it is in a loop whose length the
            program does not tell. Each branch of a conditional counts as taken.
        payload_bytes: on each device and call, of what is reduced, of what is there after an
            all-gather, of what is there before a reduce-scatter, else of what is moved.
        arrays: that it takes at once.
        devices: that take part in one of them, at least 2.
    """

    kind: str
    calls: int | None
    payload_bytes: int
    arrays: int
    devices: int

    @property
    def sent_bytes(self) -> float:
        """Bytes that each device sends in one call, if the devices stand in a ring.

        An all-reduce is a reduce-scatter and an all-gather, each of which sends all but one of
        `devices` equal parts; no order of sending needs fewer bytes for those.
        """
        parts = (self.devices - 1) / self.devices
        if self.kind == "all-reduce":
            return 2 * parts * self.payload_bytes
        if self.kind in ("collective-permute", "collective-broadcast"):
            return float(self.payload_bytes)
        return parts * self.payload_bytes


def collectives(program: str) -> list[Collective]:
    """The collectives of a program, in the order of its text.

    Those among groups of one device, which are copies, are left out.

    Args:
        program: `as_text()` of a `jax.stages.Compiled`.

    Raises:
        ValueError: it is not optimised HLO, or a collective in it is of an unknown form.
    """
    computations, entry = _computations(program)
    found = []
    for name, calls in _calls(computations, entry).items():
        instructions = computations[name]
        for each in instructions.values():
            kind = each.opcode.removesuffix("-done")
            if kind not in KINDS:  # a start is counted where it is done: there its result is plain
                continue
            if kind != each.opcode:
                start = re.match(r"(?:.* )?%?([^\s,)]+)\)", each.rest)
                each = each._replace(rest=instructions[start[1]].rest if start else "")
            devices = _devices(kind, each, program)
            if devices > 1:
                arrays = _array_bytes(each.result)
                payload = sum(arrays) * (devices if kind == "reduce-scatter" else 1)
                found.append(Collective(kind, calls, payload, len(arrays), devices))
    return found


def totals(found: list[Collective]) -> dict[str, float]:
    """What one run of the program does in all.

    Returns:
        "calls", "payload_bytes" and "sent_bytes", the latter two on each device.

    Raises:
        ValueError: one of them is in a loop of unknown length.
    """
    if unknown := [each.kind for each in found if each.calls is None]:
        raise ValueError(f"{', '.join(unknown)}: in a loop whose length the program does not tell")
    return {
        "calls": sum(each.calls for each in found),
        "payload_bytes": sum(each.calls * each.payload_bytes for each in found),
        "sent_bytes": sum(each.calls * each.sent_bytes for each in found),
    }


def _computations(program: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    """The instructions of each computation, by name, and the entry's name."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry = None
    for line in program.splitlines():
        if header := _COMPUTATION.match(line):
            computations[header[2]] = current = {}
            entry = header[2] if header[1] else entry
        elif computations and (found := _INSTRUCTION.match(_NOTES.sub("", line))):
            current[found[1]] = Instruction(*found.groups()[1:])
    if entry is None:
        raise ValueError(
            f"expected the text of optimised HLO, which has an ENTRY: {program[:60]!r}"
        )
    return computations, entry


def _calls(computations: dict[str, dict[str, Instruction]], entry: str) -> dict[str, int | None]:
    """How often a run of the program enters each computation; None where it is not told."""
    calls: dict[str, int | None] = dict.fromkeys(computations, 0)

    def enter(name: str, times: int | None) -> None:
        before = calls[name]
        calls[name] = None if times is None or before is None else before + times
        for each in computations[name].values():
            if each.opcode in ("async-update", "async-done"):  # they name what async-start runs
                continue
            repeats = times
            if each.opcode == "while":
                told = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', each.rest)
                repeats = times * int(told[1]) if told and times is not None else None
            for names in _CALLED.findall(re.sub(r'"[^"]*"', "", each.rest)):
                for called in re.findall(r"[^\s,{}%]+", names):
                    if called in computations:
                        enter(called, repeats)

    enter(entry, 1)
    return calls


def _array_bytes(result: str) -> list[int]:
    """The size of each array of a type, whose layouts are left out: they may hold brackets."""
    arrays = re.findall(r"\b([a-z]+)(\d*)\w*\[([^\]]*)\]", re.sub(r"\{[^{}]*\}", "", result))
    return [
        math.ceil(
            math.prod(map(int, re.findall(r"\d+", shape)))
            * (8 if kind == "pred" else int(bits or 0))  # a token has none
            / 8
        )
        for kind, bits, shape in arrays
    ]


def _devices(kind: str, each: Instruction, program: str) -> int:
    """How many devices take part in one group of a collective, the largest if they differ."""
    text = each.rest
    if kind == "collective-permute":
        pairs = re.search(r"source_target_pairs=\{(\{.*?\})\}", text)
        return len(set(re.findall(r"\d+", pairs[1]))) if pairs else 1
    if listed := re.search(r"replica_groups=\{(\{.*?\})\}", text):
        return max(len(re.findall(r"\d+", group)) for group in listed[1].split("},"))
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]<=", text):
        return int(iota[1])
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, *device_ids=\S+)? *\{(.*?)\}", text):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    if "replica_groups={}" in text:
        header = program.split("\n", 1)[0]
        counts = re.findall(r"\b(?:num_partitions|replica_count)=(\d+)", header)
        return math.prod(map(int, counts))
    raise ValueError(
        f"groups of devices of an unknown form: {each.result} {each.opcode}({each.rest}"
    )
