"""What a compiled program sends between devices, read from the text of its optimised HLO.

    compiled = jax.jit(step).lower(*arguments).compile()
    for collective in communication.collectives(compiled.as_text()):
        print(collective, collective.sent_bytes)

A property of the program and of the number of devices: it is the same on a busy machine, and on
virtual devices of one CPU.
"""

import math
import re
from collections.abc import Iterator
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
# Attributes that name the computations an instruction runs.
_CALLED = re.compile(
    r"\b(?:body|condition|calls|to_apply|\w+_computation|\w+_computations)=(\{[^{}]*\}|[^\s,]+)"
)
_COMPUTATION = re.compile(r"^(ENTRY )?%?([^\s(]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?\S+ = (.*)$")
_NOTES = re.compile(r', metadata=\{(?:[^{}"]|"[^"]*")*\}|/\*.*?\*/')
_ARRAY = re.compile(r"\b([a-z]+\d*)\w*\[([^\]]*)\]")


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
    calls = _calls(computations, entry)
    found = []
    for name, count in calls.items():
        for text in computations[name]:
            kind, result = _collective(text)
            if kind is None:
                continue
            devices = _devices(kind, text, program)
            if devices > 1:
                arrays = _array_bytes(result)
                payload = sum(arrays) * (devices if kind == "reduce-scatter" else 1)
                found.append(Collective(kind, count, payload, len(arrays), devices))
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


def _computations(program: str) -> tuple[dict[str, list[str]], str]:
    """The instructions of each computation, what follows their "=", and the entry's name."""
    computations: dict[str, list[str]] = {}
    entry = None
    for line in program.splitlines():
        if header := _COMPUTATION.match(line):
            computations[header[2]] = current = []
            entry = header[2] if header[1] else entry
        elif computations and (instruction := _INSTRUCTION.match(line)):
            # What the compiler notes about an instruction may look like one.
            current.append(_NOTES.sub("", instruction[1]))
    if entry is None:
        raise ValueError(
            f"expected the text of optimised HLO, which has an ENTRY: {program[:60]!r}"
        )
    return computations, entry


def _calls(computations: dict[str, list[str]], entry: str) -> dict[str, int | None]:
    """How often a run of the program enters each computation; None where it is not told."""
    calls: dict[str, int | None] = dict.fromkeys(computations, 0)

    def enter(name: str, times: int | None) -> None:
        before = calls[name]
        calls[name] = None if times is None or before is None else before + times
        for text in computations[name]:
            for called, repeats in _called(text):
                if called in computations:
                    enter(called, None if times is None or repeats is None else times * repeats)

    enter(entry, 1)
    return calls


def _called(text: str) -> Iterator[tuple[str, int | None]]:
    """The computations that an instruction runs, and how often; None: a loop of unknown length."""
    opcode = _opcode(text)[0]
    if opcode in ("async-update", "async-done"):  # they name what async-start runs
        return
    repeats: int | None = 1
    if opcode == "while":
        told = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', text)
        repeats = int(told[1]) if told else None
    for names in _CALLED.findall(re.sub(r'"[^"]*"', "", text)):
        for name in re.findall(r"[^\s,{}%]+", names):
            yield name, repeats


def _opcode(text: str) -> tuple[str, str]:
    """An instruction's opcode and its result's type."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if letter == " " and depth == 0:
            return text[i + 1 :].split("(", 1)[0], text[:i]
    return "", text


def _collective(text: str) -> tuple[str | None, str]:
    """Which kind of collective an instruction is, or None, and the type of what it makes."""
    opcode, result = _opcode(text)
    kind = opcode.removesuffix("-start")
    if kind not in KINDS:
        return None, result
    if kind != opcode:
        # Operands, results, and what the pair keeps to itself; an all-reduce's are its results.
        parts = _parts(result)
        if kind != "all-reduce" or parts[0].startswith("("):
            return kind, parts[1]
    return kind, result


def _parts(tuple_type: str) -> list[str]:
    """The elements of a tuple's type; of another type itself."""
    if not tuple_type.startswith("("):
        return [tuple_type]
    parts, depth = [""], 0
    for letter in tuple_type[1:-1]:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _array_bytes(result: str) -> list[int]:
    """The size of each array of a type, whose layouts are left out: they may hold brackets."""
    return [
        math.ceil(math.prod(map(int, re.findall(r"\d+", shape))) * _bits(kind) / 8)
        for kind, shape in _ARRAY.findall(re.sub(r"\{[^{}]*\}", "", result))
    ]


def _bits(kind: str) -> int:
    if kind == "pred":
        return 8
    digits = re.search(r"\d+$", kind)
    return int(digits[0]) if digits else 0  # a token


def _devices(kind: str, text: str, program: str) -> int:
    """How many devices take part in one group of a collective, the largest if they differ."""
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
    raise ValueError(f"groups of devices of an unknown form: {text[:300]}")
