"""Pages in markdown: `claims.md`, what the paper claims and what was measured; `choices.md`."""

from typing import Any

DETAILS = "### Every interval"  # what follows it is too long for a terminal

_SIGNS = {"holds": "**holds**", "does not hold": "**does not hold**", "undecided": "undecided"}


def page(figures: list[dict[str, Any]]) -> str:
    """The page, in markdown, from the contents of `figure3.json`, `figure4.json` or both."""
    parts = [
        "# The paper's claims, measured",
        "A claim holds when every one of its 95 % intervals lies above zero with at least three "
        "training seeds, does not hold when one lies below, and is undecided otherwise. Intervals "
        "are bootstraps over classes, then queries within them, of paired differences of AP, "
        "each query's AP averaged over the seeds. The figures of the paper exist nowhere as "
        "numbers, so only their order can be judged.",
        _table(
            ("claim", "says", "verdict", "intervals", "seeds"),
            [
                (c["claim"], c["statement"], _SIGNS[c["verdict"]], c["why"], str(c["seeds"]))
                for figure in figures
                for c in figure["claims"]
            ],
        ),
    ]
    for figure in figures:
        parts += _section(figure)
    parts.append(DETAILS)
    for figure in figures:
        for claim in figure["claims"]:
            parts += _comparisons(claim)
    return "\n\n".join(parts) + "\n"


def choices_page(found: dict[str, Any]) -> str:
    """`choices.md`, from the contents of `choices.json`."""
    rows = [
        (
            row["net"],
            row["metric"],
            f"{row['map']:.4f}",
            _signed(row["comparison"]["difference"]),
            _interval(row["comparison"]["ci95"]),
            f"{row['loss']:.3f}",
            f"{row['code_shuffled_loss']:.3f}",
            str(row["seeds"]),
        )
        for row in found["choices"]
    ]
    heads = ("net", "metric", "mAP", "minus its base by L2", "95 %, paired", "loss")
    parts = ["# What the code should be", *_what(found)]
    parts.append(_table((*heads, "others' codes", "seeds"), rows))
    return "\n\n".join(parts) + "\n"


def _section(figure: dict[str, Any]) -> list[str]:
    parts = [f"## Figure {figure['figure'].removeprefix('figure')}", *_what(figure)]
    if "nets" in figure:
        parts.append(net_table(figure))
        parts.append(
            "Losses are of held-out queries, per standardised pixel: of the net, of predicting the "
            "mean image, and of decoding other images' codes. *Code unused*: those cost nothing, "
            "as the decoder sees the image by shortcuts around the code, and hardly any gradient "
            "reaches the code (`gradients.png`). Each mAP is the mean over its seeds."
        )
    if "methods" in figure:
        parts.append(method_table(figure))
    return parts


def _what(figure: dict[str, Any]) -> list[str]:
    """What was run on what, the baselines, and the members that are missing."""
    members = figure["members"]
    missing = [member for member in members if member["map"] is None]
    dataset, environment = figure["dataset"], figure["environment"]
    parts = [
        f"{dataset['name']} ({dataset['split']} split) at {dataset['image_side']}x"
        f"{dataset['image_side']} pixels: {dataset['training_images']:,} training images, "
        f"{dataset['queries']:,} queries in {dataset['database']:,}. Width {figure['width']}, "
        f"{figure['epochs']} epochs, batch {figure['batch']}, {figure['dtype']}. On "
        f"{environment['devices']} x {environment['device']} ({environment['system']}, "
        f"{environment['processors']} processors), JAX {environment['packages'].get('jax')}, "
        f"commit {(figure['commit'] or 'unknown')[:12]}. {len(members) - len(missing)} of "
        f"{len(members)} members are done."
    ]
    baselines = ", ".join(f"{name} {b['map']:.4f}" for name, b in figure["baselines"].items())
    parts.append(f"Codes without a net: {baselines}.")
    if missing:
        lines = (f"- {member['name']}: {member['map_reason']}" for member in missing)
        parts.append("Not done:\n\n" + "\n".join(lines))
    return parts


def _comparisons(claim: dict[str, Any]) -> list[str]:
    rows = [
        (
            c["what"],
            _signed(c["difference"]),
            _interval(c["ci95"]),
            ", ".join(map(_signed, c["by_seed"])),
        )
        for c in claim["comparisons"]
    ]
    return [
        f"**({claim['claim']})** {claim['statement']}: {claim['verdict']}",
        _table(("difference of mAP", "pooled", "95 %", "by seed"), rows),
    ]


def net_table(figure: dict[str, Any]) -> str:
    """The nets of Figure 3, pooled over their seeds."""
    rows = [
        (
            f"{net['configuration']}, {net['depth']}",
            f"{net['map']:.4f}",
            _interval(net["map_ci95"]),
            f"{net['untrained_map']:.4f}",
            f"{net['loss']:.3f}",
            f"{net['constant_loss']:.3f}",
            f"{net['code_shuffled_loss']:.3f}",
            f"{net['learning_rate']:g}, {net['clip_norm']:g}",
            f"{net['seconds']:.0f}",
            remark(net),
        )
        for net in figure["nets"]
    ]
    heads = ("configuration, layers", "mAP", "95 %", "untrained", "loss", "mean image")
    return _table((*heads, "others' codes", "rate, clip", "seconds", "remark"), rows)


def remark(net: dict[str, Any]) -> str:
    """What to know of a net before its mAP is read."""
    seeds, learn = net["seeds"], net["seeds_that_learn"]
    unused = learn - net["seeds_that_use_the_code"]
    remarks = [
        f"{text}{'' if count == seeds else f' in {count} of {seeds} seeds'}"
        for text, count in (("does not learn", seeds - learn), ("code unused", unused))
        if count
    ]
    return ", ".join(remarks)


def method_table(figure: dict[str, Any]) -> str:
    """The methods of Figure 4 by learner: full mAP and, in brackets, residual mAP by round."""
    rounds = len(figure["methods"][0]["rounds"]) if figure["methods"] else 0
    rows = [
        (
            f"`{entry['learner']}`",
            entry["method"],
            *(f"{_number(r['map'])} ({_number(r['residual_map'])})" for r in entry["rounds"]),
            str(entry["seeds"]),
        )
        for entry in figure["methods"]
    ]
    heads = [f"round {number}" for number in range(rounds)]
    return _table(("learner", "method", *heads, "seeds"), rows)


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4f}".replace("-", "−")


def _interval(interval: list[float] | None) -> str:
    if interval is None:
        return "-"
    return " to ".join(f"{bound:.4f}".replace("-", "−") for bound in interval)
