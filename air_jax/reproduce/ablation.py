"""What the code should be: one factor changed at a time, each compared with its base in pairs.

Rankings by L2 and by L2 on standardised codes; queries are drawn from the database part, so that
nothing is chosen on test queries.
"""

from pathlib import Path
from typing import Any

import numpy as np

from air_jax.reproduce import claims, plots
from air_jax.reproduce.sweep import Member
from air_jax.reproduce.sweep_report import Figure
from air_jax.run.jobs import Job
from air_jax.run.work_directory import CODES_FILE, RETRIEVAL_FILE
from air_jax.runtime.atomic_files import read_npz
from air_jax.search import distances, full_ranking, metrics
from air_jax.search.device_codes import DeviceCodes


def _find(job: Job, members: list[Member], entries: list[dict[str, Any]]) -> dict[str, Any]:
    labels = job.query_labels()
    plain: dict[str, dict[int, np.ndarray]] = {}
    standardised: dict[str, dict[int, np.ndarray]] = {}
    described: dict[str, list[dict[str, Any]]] = {}
    for member, entry in zip(members, entries, strict=True):
        if entry["map"] is not None:
            held = read_npz(member.workdir / RETRIEVAL_FILE)
            plain.setdefault(member.net, {})[member.seed] = held["ap"]
            standardised.setdefault(member.net, {})[member.seed] = _standardised_ap(member)
            described.setdefault(member.net, []).append(entry)
    rows = []
    for net, base in job.config.sweep.compared_with:
        for metric, aps in (("L2", plain), ("standardised", standardised)):
            if net in aps:
                rows.append(
                    {
                        "net": net,
                        "metric": metric,
                        "seeds": len(aps[net]),
                        **claims.summary(aps[net], labels),
                        **{
                            key: float(np.mean([entry[key] for entry in described[net]]))
                            for key in ("loss", "code_shuffled_loss", "seconds")
                        },
                        "code_used": all(entry["code_used"] for entry in described[net]),
                        # Against the base by L2: choosing a metric is a factor too.
                        "against": base,
                        "comparison": claims.compare(
                            f"{net}, {metric} - {base}, L2", aps[net], plain.get(base, {}), labels
                        ),
                    }
                )
    return {"choices": rows}


def _standardised_ap(member: Member) -> np.ndarray:
    """Average precision [Q] by the metric "standardised"."""
    codes = read_npz(member.workdir / CODES_FILE)
    items = full_ranking.relevant_items(codes["query_label"], codes["database_label"])
    database, queries = distances.for_metric("standardised", codes["database"], codes["query"])
    ranks = full_ranking.ranks_by_distance(DeviceCodes(database), queries, items)
    return metrics.average_precision(ranks, len(database))


def _draw(found: dict[str, Any], members: list[Member], folder: Path) -> list[str]:
    plots.choices(folder / "choices.png", found["choices"])
    return ["choices.png"]


FIGURE = Figure(("train", "encode", "retrieve"), _find, _draw)
