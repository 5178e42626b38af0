"""What a compiled program sends between devices, read from the text of its optimised HLO.

    compiled = jax.jit(step).lower(*arguments).compile()
    for collective in communication.collectives(compiled.as_text()):
        print(collective, collective.sent_bytes)

This depends on the program and the number of devices only: a busy machine, or virtual devices of
one CPU, show the same. It knows the two collectives that air_jax uses: an all-reduce (a sum over
devices) and an all-gather.
"""

import math
import re
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather")
# Type of the result (of a tuple in parentheses), opcode, operands and attributes.
_COLLECTIVE = re.compile(
    r" = (\(.*?\)|\S+) ([a-z-]*(?:all-|reduce-scatter|collective-)[a-z-]*?)(-start)?\((.*)"
)
# What the compiler notes about an instruction may look like one.
_NOTES = re.compile(r', metadata=\{(?:[^{}"]|"[^"]*")*\}|/\*.*?\*/')


class Collective(NamedTuple):
    """One collective operation of a program.

    Attributes:
        kind: one of `KINDS`; an asynchronous pair of start and done is one.
        payload_bytes: what each device has after one call.
        arrays: how many arrays one call takes.
        devices: how many devices take part, at least 2.
        in_loop: whether a loop of the program calls it, so that it may be called more than once.
    """

    kind: str
    payload_bytes: int
    arrays: int
    devices: int
    in_loop: bool

    @property
    def sent_bytes(self) -> float:
        """Bytes that each device sends in one call, if the devices stand in a ring.

        An all-gather sends all but one of `devices` equal parts. An all-reduce does so twice: it is
        a reduce-scatter and an all-gather. No other order needs fewer bytes.
        """
        times = 2 if self.kind == "all-reduce" else 1
        return times * (self.devices - 1) / self.devices * self.payload_bytes


def collectives(program: str) -> list[Collective]:
    """The collectives of a program, in the order of its text.

    Collectives among groups of one device, which are copies, are left out.

    Args:
        program: `as_text()` of a `jax.stages.Compiled`.

    Raises:
        ValueError: the text is not optimised HLO, or holds a collective of another kind or form.
    """
    # A computation is a paragraph that begins with its name; the first paragraph is the header.
    header, *texts = _NOTES.sub("", program).split("\n\n")
    named = (re.match(r"\s*(?:ENTRY )?%?([^\s(]+) \(", text) for text in texts)
    computations = {name[1]: text for name, text in zip(named, texts, strict=True) if name}
    if not header.startswith("HloModule") or not computations:
        raise ValueError(f"expected the text of optimised HLO: {program[:60]!r}")
    looped = _in_loops(computations)
    found = []
    for name, text in computations.items():
        for result, kind, start, rest in _COLLECTIVE.findall(text):
            if kind.endswith("-done"):
                continue
            if kind not in KINDS:
                raise ValueError(f"a collective of another kind than {', '.join(KINDS)}: {kind}")
            arrays = _array_bytes(result)
            if kind == "all-gather" and start:  # what goes in, then what comes out
                arrays = arrays[len(arrays) // 2 :]
            devices = _devices(rest, header)
            if devices > 1:
                found.append(Collective(kind, sum(arrays), len(arrays), devices, name in looped))
    return found


def totals(found: list[Collective]) -> dict[str, float]:
    """What one run of the program does in all.

    Returns:
        "calls", "payload_bytes" and "sent_bytes", the latter two on each device.

    Raises:
        ValueError: one of the collectives is in a loop.
    """
    if looped := [each.kind for each in found if each.in_loop]:
        raise ValueError(f"{', '.join(looped)} in a loop: how often it is called is not known")
    return {
        "calls": len(found),
        "payload_bytes": sum(each.payload_bytes for each in found),
        "sent_bytes": sum(each.sent_bytes for each in found),
    }


def _in_loops(computations: dict[str, str]) -> set[str]:
    """The names of the computations that loops call, directly or through others."""
    left = re.findall(r"\b(?:body|condition)=%?([^\s,]+)", "\n".join(computations.values()))
    found: set[str] = set()
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += computations.keys() & set(re.findall(r"[^\s,(){}=%]+", computations[name]))
    return found


def _array_bytes(result: str) -> list[int]:
    """The size of each array of a type, whose layouts are left out: they may hold brackets."""
    arrays = re.findall(r"\b([a-z]+)(\d*)\w*\[([^\]]*)\]", re.sub(r"\{[^{}]*\}", "", result))
    return [
        math.prod(map(int, re.findall(r"\d+", shape))) * (8 if kind == "pred" else int(bits)) // 8
        for kind, bits, shape in arrays
    ]


def _devices(rest: str, header: str) -> int:
    """How many devices take part in one group of a collective, the largest if they differ."""
    if listed := re.search(r"replica_groups=\{(\{.*?\})\}", rest):
        return max(len(re.findall(r"\d+", group)) for group in listed[1].split("},"))
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]<=", rest):
        return int(iota[1])
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, *device_ids=\S+)? *\{(.*?)\}", rest):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    if "replica_groups={}" in rest:
        counts = re.findall(r"\b(?:num_partitions|replica_count)=(\d+)", header)
        return math.prod(map(int, counts))
    raise ValueError(f"groups of devices of an unknown form: {rest}")
