"""What each figure is made of: from the files of a sweep's members to `figure3.json` and others.

Figure 3 is the first retrieval by five configurations at four depths, with claims (a) to (c).
Figure 4 is four methods over the rounds of feedback, with claim (d). The choices are nets with one
factor changed at a time, each compared with its base. The objectives are nets trained for different
things, each for several lengths of time.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from air_jax.baselines import baseline_codes
from air_jax.models import architecture
from air_jax.reproduce import claims, sweep
from air_jax.reproduce.claims import Values
from air_jax.reproduce.kept_results import KeptResults
from air_jax.reproduce.sweep import Member
from air_jax.run import pipeline
from air_jax.run.jobs import Job
from air_jax.run.work_directory import CODES_FILE, FEEDBACK_FOLDER, RETRIEVAL_FILE, stage_keys
from air_jax.runtime.atomic_files import read_npz
from air_jax.runtime.checksums import hash_of_code
from air_jax.search import distances, full_ranking, metrics
from air_jax.search.device_codes import DeviceCodes

BASELINES_FILE = "baselines.json"
BEST_DEPTH = 40  # claim (a)
DEEPER = (40, 60)  # claim (b): "deeper network architectures", read as the deeper two of the four
DENOISING, OTHER = ", denoising", "other"  # the latter: no configuration of the paper
# Each pooled, then not.
SYMMETRIC = ("Sortcut (con-decon)", "NoP_sortcut (con-decon)")
ASYMMETRIC = ("Sortcut", "NoP_sortcut")
# A net learns if its loss is clearly below the mean image's, and uses its code if decoding another
# image's code is clearly worse than decoding its own.
LEARNS_BELOW, USED_ABOVE = 0.9, 1.1

# What the JSON holds of a member, as `describe` returns it.
Entry = dict[str, Any]
Net = tuple[str, int]  # configuration, depth
# Average precisions of each method in each round, by seed.
ByRound = dict[str, list[Values]]


def variant(member: Member) -> str:
    """The paper's name for a member's net, and whether it is trained on corrupted input."""
    model, train = member.job.config.model, member.job.config.train
    name = architecture.configuration_name(model.pool, model.skip, model.input_residual)
    return (name or OTHER) + (DENOISING if train.corruption != "none" else "")


def describe(member: Member) -> Entry:
    """A member as the JSON holds it; "map" is null, with a reason beside it, if it is not done."""
    config = member.job.config
    entry: Entry = {
        "name": member.name,
        "net": member.net,
        "seed": member.seed,
        "objective": config.train.objective,
        "epochs": config.train.epochs,
        "configuration": variant(member),
        "depth": config.model.depth,
        "learning_rate": config.train.learning_rate,
        "clip_norm": config.train.clip_norm,
    }
    trained, retrieved = member.workdir.result("train"), member.workdir.result("retrieve")
    if trained is None or retrieved is None:
        return entry | {"map": None, "map_reason": sweep.error_of(member) or "not done yet"}
    described = {
        "map": retrieved["retrieval"]["map"],
        "map_ci95": retrieved["retrieval"]["map_ci95"],
        **{
            f"untrained_{key}": value
            for key, value in retrieved["baselines"]["untrained"].items()
            if key != "map_ci95"
        },
        **{
            key: value
            for key, value in trained.items()
            if "loss" in key or "second" in key or key in ("steps", "parameters")
        },
    }
    if trained["loss"] is None:  # nothing is reconstructed
        reason = trained["loss_reason"]
        unknown = dict.fromkeys(("learns", "code_used"))
        return entry | described | unknown | {f"{key}_reason": reason for key in unknown}
    described["learns"] = trained["loss"] < LEARNS_BELOW * trained["constant_loss"]
    shuffled = trained["code_shuffled_loss"]
    if shuffled is None:
        reason = trained["code_shuffled_loss_reason"]
        return entry | described | {"code_used": None, "code_used_reason": reason}
    return entry | described | {"code_used": shuffled > USED_ABOVE * trained["loss"]}


def baselines(job: Job, folder: Path) -> dict[str, Any]:
    """mAP, with its interval, of codes that need no net, by name; made once for the sweep.

    Codes that the images are too small for are left out.

    Args:
        job: the sweep's.
        folder: of the sweep, where the baselines are kept.
    """
    data = {k: v for k, v in stage_keys(job.config, "train").items() if k.startswith("data.")}
    made_from = {
        "images": job.dataset.fingerprint(),
        "code_dim": job.config.model.code_dim,
        "code": hash_of_code(baseline_codes.make),
        **data,
    }
    kept = KeptResults(folder / BASELINES_FILE, made_from)
    side = job.dataset.images.shape[1]
    fitting = [
        n for n in baseline_codes.WITHOUT_NET if side >= baseline_codes.SMALLEST_SIDE.get(n, 1)
    ]
    return {name: kept.get(name, partial(_baseline, name, job)) for name in fitting}


def _baseline(name: str, job: Job) -> dict[str, Any]:
    return claims.summary({0: pipeline.baseline_ap(name, job)}, job.query_labels())


def _ap(member: Member) -> np.ndarray:
    """Average precision [Q] of the first retrieval."""
    return read_npz(member.workdir / RETRIEVAL_FILE)["ap"]


def _mean(entries: list[Entry], *keys: str) -> Entry:
    found: Entry = {}
    for key in keys:
        found |= _pooled(entries, key, lambda values: float(np.mean(values)))
    return found


def _pooled(
    entries: list[Entry], key: str, how: Callable[[list[Any]], Any], name: str | None = None
) -> Entry:
    """What members have under a key, pooled, under a name or the same key.

    Null, with the reason beside it, if a member's is null.
    """
    name = name or key
    for entry in entries:
        if entry[key] is None:
            return {name: None, f"{name}_reason": entry[f"{key}_reason"]}
    return {name: how([entry[key] for entry in entries])}


def _figure3(job: Job, members: list[Member], entries: list[Entry]) -> dict[str, Any]:
    labels = job.query_labels()
    aps: dict[Net, dict[int, np.ndarray]] = {}
    seeds: dict[Net, list[Entry]] = {}
    for member, entry in zip(members, entries, strict=True):
        if entry["map"] is not None:
            net = entry["configuration"], entry["depth"]
            aps.setdefault(net, {})[member.seed] = _ap(member)
            seeds.setdefault(net, []).append(entry)
    nets = [
        {
            "net": own[0]["net"],
            "configuration": own[0]["configuration"],
            "depth": own[0]["depth"],
            "seeds": len(aps[net]),
            **claims.summary(aps[net], labels),
            "map_by_seed": [entry["map"] for entry in own],
            "learning_rate": own[0]["learning_rate"],
            "clip_norm": own[0]["clip_norm"],
            **_pooled(own, "learns", sum, "seeds_that_learn"),
            **_pooled(
                [entry for entry in own if entry["learns"] is not False],
                "code_used",
                sum,
                "seeds_that_use_the_code",
            ),
            **_mean(own, "untrained_map", "loss", "constant_loss", "code_shuffled_loss"),
            **_mean(own, "seconds", "images_per_second"),
        }
        for net, own in seeds.items()
    ]
    # The paper's order, each denoising variant after the one on clean images.
    names = (*architecture.CONFIGURATIONS, OTHER)
    order = [name + suffix for name in names for suffix in ("", DENOISING)]
    nets.sort(key=lambda net: (net["depth"], order.index(net["configuration"])))
    swept = {(entry["configuration"], entry["depth"]) for entry in entries}
    return {"nets": nets, "claims": _claims_about_nets(aps, labels, swept)}


def _claims_about_nets(
    aps: Mapping[Net, Values], labels: np.ndarray, swept: set[Net]
) -> list[dict[str, Any]]:
    """Claims (a) to (c), of the nets that the sweep has; one that is about none is left out."""
    depths = sorted({depth for _, depth in swept})
    judged = []

    def judge(name: str, says: str, pairs: list[tuple[Net, Net]]) -> None:
        compared = [
            ("{}, {} layers - {}, {} layers".format(*a, *b), aps.get(a, {}), aps.get(b, {}))
            for a, b in pairs
            if {a, b} <= swept
        ]
        if compared:
            judged.append(claims.judge(name, says, compared, labels))

    best = [
        ((configuration, BEST_DEPTH), (configuration, depth))
        for configuration in architecture.CONFIGURATIONS
        for depth in depths
        if depth != BEST_DEPTH
    ]
    pooled = [((a, depth), (b, depth)) for a, b in (SYMMETRIC, ASYMMETRIC) for depth in DEEPER]
    clean, denoising = (
        [
            ((a, depth), (s + suffix, depth))
            for depth in depths
            for a in ASYMMETRIC
            for s in SYMMETRIC
        ]
        for suffix in ("", DENOISING)
    )
    deeper = " and ".join(map(str, DEEPER))
    beat = "both asymmetric configurations beat both symmetric ones at every depth, "
    judge("a", f"{BEST_DEPTH} layers are best in every configuration", best)
    judge("b", f"pooling helps the deeper nets ({deeper} layers)", pooled)
    judge("c", beat + "trained on clean images", clean)
    judge("c'", beat + "the symmetric ones trained on denoising", denoising)
    shortcuts = [((ASYMMETRIC[0], depth), ("classic", depth)) for depth in depths]
    says = "not the paper's: asymmetric shortcuts help the pooled net at every depth"
    judge("c''", says, shortcuts)
    return judged


def _figure4(job: Job, members: list[Member], entries: list[Entry]) -> dict[str, Any]:
    feedback, methods = job.config.feedback, job.config.sweep.methods
    numbers = range(feedback.rounds + 1)
    rows, judged = [], []
    for learner in (name for name in feedback.learners if name != "none"):
        runs = {method: _simulations(members, net, learner) for method, net in methods.items()}
        some = next((s for by_seed in runs.values() for s in by_seed.values()), None)
        if some is None:
            continue
        full = _by_round(runs, "ap", numbers)
        residual = _by_round(runs, "residual_ap", numbers)
        first_residual = _by_round(runs, "baseline_residual_ap", numbers)
        # The paper's Baseline: AIR's codes, no learning; its residual set is of AIR's marks.
        full = {"Baseline": [full["AIR"][0] for _ in numbers]} | full
        residual = {"Baseline": first_residual["AIR"]} | residual
        labels = job.query_labels()[some["query"]]
        rows += [
            {
                "method": method,
                "learner": learner,
                "seeds": len(by_round[0]),
                "rounds": [
                    {"round": n}
                    | claims.summary(by_round[n], labels)
                    | claims.summary(residual[method][n], labels, "residual_map")
                    for n in numbers
                ],
            }
            for method, by_round in full.items()
            if by_round[0]
        ]
        judged += _claims_about_feedback(learner, full, residual, first_residual, labels)
    return {"methods": rows, "claims": judged}


def _by_round(
    runs: dict[str, dict[int, dict[str, np.ndarray]]], key: str, rounds: range
) -> ByRound:
    """What simulations hold under a key, [Q] of each round and seed."""
    return {
        method: [{seed: held[key][:, n] for seed, held in by_seed.items()} for n in rounds]
        for method, by_seed in runs.items()
    }


def _simulations(members: list[Member], net: str, learner: str) -> dict[int, dict[str, np.ndarray]]:
    """Feedback on the codes of one net, by seed; of members that are done."""
    return {
        member.seed: read_npz(member.workdir / FEEDBACK_FOLDER / f"{learner}.npz")
        for member in members
        if member.net == net and member.workdir.why_redo("feedback") is None
    }


def _claims_about_feedback(
    learner: str, full: ByRound, residual: ByRound, first_residual: ByRound, labels: np.ndarray
) -> list[dict[str, Any]]:
    """Claim (d) by one learner, and what feedback gains beyond the marked images."""
    methods = list(first_residual)
    rivals = [method for method in methods if method != "AIR"]
    beaten = [("AIR", rival) for rival in rivals] + [(method, "Baseline") for method in methods]
    after_feedback = range(1, len(full["AIR"]))
    ours = claims.judge(
        f"d ({learner})",
        f"{', '.join(rivals)} are beaten by AIR, and the Baseline by all, in every round "
        f"(full mAP, learner `{learner}`)",
        [
            (f"{better} - {worse}, round {n}", full[better][n], full[worse][n])
            for n in after_feedback
            for better, worse in beaten
        ],
        labels,
    )
    gains = claims.judge(
        f"d' ({learner})",
        "not the paper's: with every method's codes, feedback gains in every round on the images "
        f"that were not marked (residual mAP, learner `{learner}`)",
        [
            (
                f"{method} - first retrieval by its codes, round {n}, residual",
                residual[method][n],
                first_residual[method][n],
            )
            for n in after_feedback
            for method in methods
        ],
        labels,
    )
    return [ours, gains]


def _choices(job: Job, members: list[Member], entries: list[Entry]) -> dict[str, Any]:
    """Rankings by L2 and by L2 on standardised codes.

    Queries are drawn from the database part, so that nothing is chosen on test queries.
    """
    labels = job.query_labels()
    aps: dict[str, dict[str, dict[int, np.ndarray]]] = {"L2": {}, "standardised": {}}
    seeds: dict[str, list[Entry]] = {}
    for member, entry in zip(members, entries, strict=True):
        if entry["map"] is not None:
            aps["L2"].setdefault(member.net, {})[member.seed] = _ap(member)
            aps["standardised"].setdefault(member.net, {})[member.seed] = _standardised_ap(member)
            seeds.setdefault(member.net, []).append(entry)
    rows = [
        {
            "net": net,
            "metric": metric,
            "seeds": len(own[net]),
            **claims.summary(own[net], labels),
            **_mean(seeds[net], "loss", "code_shuffled_loss", "seconds"),
            **_pooled(seeds[net], "code_used", all),
            # Against the base by L2: choosing a metric is a factor too.
            "against": base,
            "comparison": claims.compare(
                f"{net}, {metric} - {base}, L2", own[net], aps["L2"].get(base, {}), labels
            ),
        }
        for net, base in job.config.sweep.compared_with
        for metric, own in aps.items()
        if net in own
    ]
    return {"choices": rows}


def _objectives(job: Job, members: list[Member], entries: list[Entry]) -> dict[str, Any]:
    """Each net's first retrieval and its difference to the longest training of each objective."""
    labels = job.query_labels()
    aps: dict[str, dict[int, np.ndarray]] = {}
    seeds: dict[str, list[Entry]] = {}
    for member, entry in zip(members, entries, strict=True):
        if entry["map"] is not None:
            aps.setdefault(member.net, {})[member.seed] = _ap(member)
            seeds.setdefault(member.net, []).append(entry)
    longest = {own[0]["objective"]: own[0] for own in sorted(seeds.values(), key=_epochs)}
    rows = [
        {
            "net": net,
            "objective": own[0]["objective"],
            "epochs": own[0]["epochs"],
            "seeds": len(own),
            **claims.summary(aps[net], labels),
            **_mean(own, "seconds", "images_per_second"),
            "comparisons": [
                claims.compare(f"{net} - {last['net']}", aps[net], aps[last["net"]], labels)
                for last in longest.values()
                if last["net"] != net
            ],
        }
        for net, own in seeds.items()
    ]
    return {"objectives": rows}


def _epochs(entries: list[Entry]) -> int:
    return entries[0]["epochs"]


def _standardised_ap(member: Member) -> np.ndarray:
    """Average precision [Q] by the metric "standardised"."""
    codes = read_npz(member.workdir / CODES_FILE)
    items = full_ranking.relevant_items(codes["query_label"], codes["database_label"])
    database, queries = distances.for_metric("standardised", codes["database"], codes["query"])
    ranks = full_ranking.ranks_by_distance(DeviceCodes(database), queries, items)
    return metrics.average_precision(ranks, len(database))


class Figure(NamedTuple):
    """What a figure is made of: the stages that every member goes through, and what makes of the
    sweep's job, its members and each one's description what the JSON holds of them."""

    stages: tuple[str, ...]
    find: Callable[[Job, list[Member], list[Entry]], dict[str, Any]]


# By `sweep.figure` of the config.
FIGURES = {
    "figure3": Figure(("train", "encode", "retrieve"), _figure3),
    "figure4": Figure(("train", "encode", "retrieve", "feedback"), _figure4),
    "choices": Figure(("train", "encode", "retrieve"), _choices),
    "objectives": Figure(("train", "encode", "retrieve"), _objectives),
}
