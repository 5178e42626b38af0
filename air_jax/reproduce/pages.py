"""What a sweep found, on disk: `<figure>.json`, its pictures, and a page in markdown.

`claims.md` tells what the paper claims and what was measured; `choices.md` compares the choices,
`objectives.md` what nets are trained for.
"""

import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from air_jax.reproduce import figures, plots
from air_jax.reproduce.plots import remark
from air_jax.reproduce.sweep import Member
from air_jax.run import report
from air_jax.run.jobs import Job
from air_jax.runtime.atomic_files import write_json

SCHEMA_VERSION = 1
CLAIMS_FILE = "claims.md"
WITH_CLAIMS = ("figure3", "figure4")  # in the order of `claims.md`
DETAILS = "### Every interval"  # what follows it is too long for a terminal

# By head: a format of a row, or a function of it.
Columns = dict[str, str | Callable[[dict[str, Any]], str]]
_SIGNS = {"holds": "**holds**", "does not hold": "**does not hold**", "undecided": "undecided"}


def write(
    job: Job, members: list[Member], baselines: dict[str, dict[str, Any]], folder: Path
) -> list[str]:
    """Write what the members that are done show; returns the files' names, the last a page.

    Args:
        job: the sweep's.
        members: all of them, done or not.
        baselines: mAP by name, from `figures.baselines`.
        folder: of the sweep.
    """
    config = job.config
    name = config.sweep.figure
    entries = [figures.describe(member) for member in members]
    found = {
        "schema_version": SCHEMA_VERSION,
        "figure": name,
        "sweep": config.sweep.name,
        **report.commit(),
        "environment": report.environment(),
        "dataset": {
            "name": job.dataset.name,
            "split": config.data.split,
            "image_side": job.dataset.images.shape[1],
            "database": len(job.database),
            "training_images": len(job.training_positions()),
            "queries": len(job.queries),
        },
        "width": config.model.width,
        "epochs": config.train.epochs,
        "batch": config.train.batch,
        "dtype": config.train.dtype,
        "baselines": baselines,
        "members": entries,
        **figures.FIGURES[name].find(job, members, entries),
    }
    write_json(folder / f"{name}.json", found)
    pictures = plots.draw(found, members, folder)
    if name in WITH_CLAIMS:
        written = CLAIMS_FILE
        files = [folder / f"{known}.json" for known in WITH_CLAIMS]
        page = claims_page([json.loads(f.read_text()) for f in files if f.exists()])
    else:
        pages = {"choices": choices_page, "objectives": objectives_page}
        written, page = f"{name}.md", pages[name](found)
    (folder / written).write_text(page)
    return [f"{name}.json", *pictures, written]


def claims_page(found: list[dict[str, Any]]) -> str:
    """`claims.md`, from the contents of `figure3.json`, `figure4.json` or both."""
    claims = [claim for figure in found for claim in figure["claims"]]
    verdicts: Columns = {
        "claim": "{claim}",
        "says": "{statement}",
        "verdict": lambda claim: _SIGNS[claim["verdict"]],
        "intervals": "{why}",
        "seeds": "{seeds}",
    }
    parts = [
        "# The paper's claims, measured",
        "A claim holds when every one of its 95 % intervals lies above zero with at least three "
        "training seeds, does not hold when one lies below, and is undecided otherwise. Intervals "
        "are bootstraps over classes, then queries within them, of paired differences of AP, "
        "each query's AP averaged over the seeds. The figures of the paper exist nowhere as "
        "numbers, so only their order can be judged.",
        table(claims, verdicts),
    ]
    for figure in found:
        parts += [f"## Figure {figure['figure'].removeprefix('figure')}", *_what(figure)]
        parts += _nets(figure["nets"]) if "nets" in figure else []
        parts += [_methods(figure["methods"])] if "methods" in figure else []
    parts.append(DETAILS)
    intervals: Columns = {
        "difference of mAP": "{what}",
        "pooled": lambda row: _signed(row["difference"]),
        "95 %": lambda row: _interval(row["ci95"]),
        "by seed": lambda row: ", ".join(map(_signed, row["by_seed"])),
    }
    for claim in claims:
        parts.append(f"**({claim['claim']})** {claim['statement']}: {claim['verdict']}")
        parts.append(table(claim["comparisons"], intervals))
    return "\n\n".join(parts) + "\n"


def choices_page(found: dict[str, Any]) -> str:
    """`choices.md`, from the contents of `choices.json`."""
    columns: Columns = {
        "net": "{net}",
        "metric": "{metric}",
        "mAP": "{map:.4f}",
        "minus its base by L2": lambda row: _signed(row["comparison"]["difference"]),
        "95 %, paired": lambda row: _interval(row["comparison"]["ci95"]),
        "loss": "{loss:.3f}",
        "others' codes": lambda row: _number(row["code_shuffled_loss"], 3),
        "seeds": "{seeds}",
    }
    parts = ["# What the code should be", *_what(found), table(found["choices"], columns)]
    return "\n\n".join(parts) + "\n"


def objectives_page(found: dict[str, Any]) -> str:
    """`objectives.md`, from the contents of `objectives.json`."""
    columns: Columns = {
        "objective": "`{objective}`",
        "epochs": "{epochs}",
        "seconds of training": "{seconds:.0f}",
        "mAP": "{map:.4f}",
        "95 %": lambda row: _interval(row["map_ci95"]),
        "minus the longest of the others, paired": lambda row: "; ".join(
            f"{c['what'].partition(' - ')[2]}: {_signed(c['difference'])} ({_interval(c['ci95'])})"
            for c in row["comparisons"]
        ),
        "seeds": "{seeds}",
    }
    parts = ["# What a net is trained for", *_what(found), table(found["objectives"], columns)]
    return "\n\n".join(parts) + "\n"


def _what(figure: dict[str, Any]) -> list[str]:
    """What was run on what, the baselines, and the members that are missing."""
    members = figure["members"]
    missing = [member for member in members if member["map"] is None]
    dataset, environment = figure["dataset"], figure["environment"]
    baselines = ", ".join(f"{name} {b['map']:.4f}" for name, b in figure["baselines"].items())
    nets = (
        f"Width {figure['width']}, {figure['epochs']} epochs, batch {figure['batch']}, "
        f"{figure['dtype']}. "
    )
    parts = [
        f"{dataset['name']} ({dataset['split']} split) at {dataset['image_side']}x"
        f"{dataset['image_side']} pixels: {dataset['training_images']:,} training images, "
        f"{dataset['queries']:,} queries in {dataset['database']:,}. "
        f"{'' if figure['figure'] == 'objectives' else nets}On "
        f"{environment['devices']} x {environment['device']} ({environment['system']}, "
        f"{environment['processors']} processors), JAX {environment['packages'].get('jax')}, "
        f"commit {(figure['commit'] or 'unknown')[:12]}. {len(members) - len(missing)} of "
        f"{len(members)} members are done.",
        f"Codes without a net: {baselines}.",
    ]
    if missing:
        lines = (f"- {member['name']}: {member['map_reason']}" for member in missing)
        parts.append("Not done:\n\n" + "\n".join(lines))
    return parts


def _nets(nets: list[dict[str, Any]]) -> list[str]:
    """The nets of Figure 3, pooled over their seeds."""
    columns: Columns = {
        "configuration, layers": "{configuration}, {depth}",
        "mAP": "{map:.4f}",
        "95 %": lambda net: _interval(net["map_ci95"]),
        "untrained": lambda net: _number(net["untrained_map"]),
        "loss": lambda net: _number(net["loss"], 3),
        "mean image": lambda net: _number(net["constant_loss"], 3),
        "others' codes": lambda net: _number(net["code_shuffled_loss"], 3),
        "rate, clip": "{learning_rate:g}, {clip_norm:g}",
        "seconds": "{seconds:.0f}",
        "remark": remark,
    }
    if all(net["loss"] is None for net in nets):
        return [table(nets, columns), "Nothing is reconstructed, so there are no losses."]
    return [
        table(nets, columns),
        "Losses are of held-out queries, per standardised pixel: of the net, of predicting the "
        "mean image, and of decoding other images' codes. *Code unused*: those cost nothing, "
        "as the decoder sees the image by shortcuts around the code, and hardly any gradient "
        "reaches the code (`gradients.png`). Each mAP is the mean over its seeds.",
    ]


def _methods(methods: list[dict[str, Any]]) -> str:
    """The methods of Figure 4 by learner: full mAP and, in brackets, residual mAP by round."""

    def maps(number: int, row: dict[str, Any]) -> str:
        found = row["rounds"][number]
        return f"{_number(found['map'])} ({_number(found['residual_map'])})"

    numbers = range(len(methods[0]["rounds"]) if methods else 0)
    columns: Columns = {"learner": "`{learner}`", "method": "{method}"}
    columns |= {f"round {number}": partial(maps, number) for number in numbers}
    return table(methods, columns | {"seeds": "{seeds}"})


def table(rows: Iterable[dict[str, Any]], columns: Columns) -> str:
    """A table in markdown.

    Args:
        rows: what each line is made of.
        columns: by head a format for `str.format` of a row, or a function of it.
    """
    cells = [
        [how(row) if callable(how) else how.format(**row) for how in columns.values()]
        for row in rows
    ]
    lines = [[*columns], ["---"] * len(columns), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(value: float | None, places: int = 4) -> str:
    return "-" if value is None else f"{value:.{places}f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4f}".replace("-", "−")


def _interval(interval: list[float] | None) -> str:
    if interval is None:
        return "-"
    return " to ".join(f"{bound:.4f}".replace("-", "−") for bound in interval)
