"""The stages of a run, in order; what each takes from the one before and leaves behind."""

import math
import time
from typing import Any

import numpy as np
from sklearn.neighbors import KNeighborsClassifier

from air_jax.baselines import baseline_codes
from air_jax.baselines import losses as baseline_losses
from air_jax.feedback import learners, simulated_user
from air_jax.models import encode, net_file
from air_jax.models.net import Net, count_parameters
from air_jax.run import report, trained_net
from air_jax.run.jobs import Job
from air_jax.run.work_directory import (
    CODES_FILE,
    FEEDBACK_FOLDER,
    NET_FILE,
    RECONSTRUCTIONS_FILE,
    RETRIEVAL_FILE,
    WorkDir,
)
from air_jax.runtime import distributed, sharding
from air_jax.runtime.atomic_files import read_npz
from air_jax.runtime.checksums import hash_of
from air_jax.runtime.command_line import flatten
from air_jax.runtime.progress import say
from air_jax.search import distances, full_ranking, metrics
from air_jax.search.codes import count_different
from air_jax.search.device_codes import DeviceCodes
from air_jax.training import loop
from air_jax.training.checkpoints import CHECKPOINTS
from air_jax.training.loop import MODEL_FILE

SIMULATED_BY = ("rounds", "marks_per_round", "queries", "seed", "show")  # of `config.feedback`
ENOUGH_DIFFERENT = 0.9  # of the codes; if fewer differ, a warning says so
RECONSTRUCTED = 10  # queries whose reconstructions are kept for the report
LOSSES = ("loss", "constant_loss", "pca_loss", "code_shuffled_loss")  # of reconstruction
PROBE_QUERIES, PROBE_DATABASE, PROBE_NEIGHBOURS = 1000, 5000, 20


def do_stage(stage: str, job: Job, workdir: WorkDir) -> None:
    """Do one of `work_directory.STAGES` unless it is done or skipped, saying which and why.

    All processes of a run do it together; the first one writes what it leaves.
    """
    if skipped := job.why_skipped(stage):
        say(f"{stage}: {skipped}")
        return
    reason = distributed.from_first(lambda: workdir.why_redo(stage))
    if reason is None:
        say(f"{stage}: done before")
        return
    say(f"{stage}: {reason}" if reason != "not done yet" else f"{stage}:")
    started = time.monotonic()
    result, left = _STAGES[stage](job, workdir)
    if distributed.is_first():
        workdir.finish(stage, result, left, time.monotonic() - started)
    distributed.barrier()


def _train(job: Job, workdir: WorkDir) -> tuple[dict[str, Any], list[str]]:
    config = job.config
    images = job.dataset.images[job.training_positions()]
    trained = loop.train(config, images, job.mesh, workdir.path, make_probe(job))
    checkpoint = f"{CHECKPOINTS}/{trained.steps}"
    left = [checkpoint, MODEL_FILE]
    result = {
        "objective": config.train.objective,
        "epochs": config.train.epochs,
        "steps": trained.steps,
        "batch": config.train.batch,
        "dtype": config.train.dtype,
        "precision": precision_of(config.train.dtype),
        "seconds": trained.seconds,
        "compile_seconds": trained.compile_seconds,
        "probe_seconds": trained.probe_seconds,
        "saving_seconds": trained.saving_seconds,
        "images_per_second": trained.steps * config.train.batch / trained.seconds,
        "parameters": count_parameters(trained.net.params),
    }
    if config.train.objective == "reconstruction":
        result |= _held_out(job, workdir, trained.net, images)
        left.append(RECONSTRUCTIONS_FILE)
    else:
        reason = f"{config.train.objective} does not reconstruct"
        for name in LOSSES:
            result |= {name: None, f"{name}_reason": reason}
        result["views_per_second"] = result["images_per_second"] * config.train.views
    return result, left


def _held_out(job: Job, workdir: WorkDir, net: Net, images: np.ndarray) -> dict[str, Any]:
    """Losses of reconstruction on the queries, `LOSSES`; leaves a few reconstructions.

    Args:
        job: of the run.
        workdir: of the run.
        net: trained.
        images: the training images [N, S, S, C] uint8, which the mean image and PCA are of.
    """
    config = job.config
    held_out = job.query_images()
    say(f"train: loss on {len(held_out):,} held-out images")
    batch = trained_net.encoded_at_once(config, held_out.shape[1:], job.mesh)
    losses = encode.held_out_losses(net, held_out, job.mesh, batch)
    std = np.asarray(net.std)

    shown = held_out[job.some_queries(RECONSTRUCTED, seed=0)]
    codes = encode.encode(net, shown, job.mesh, batch, label=None)
    standardised = encode.reconstruct(net, shown, codes, job.mesh, batch)
    pixels = (standardised * std + np.asarray(net.mean)) * 255
    workdir.write_npz(
        RECONSTRUCTIONS_FILE,
        image=shown,
        reconstruction=np.clip(np.round(pixels), 0, 255).astype(np.uint8),
    )
    say(f"train: loss of the mean image, and of PCA to {config.model.code_dim} dimensions")
    result: dict[str, Any] = {
        "loss": losses.loss,
        "constant_loss": baseline_losses.constant_loss(images, held_out, std),
        "pca_loss": baseline_losses.kept_pca_loss(images, held_out, std, config.model.code_dim),
        "code_shuffled_loss": losses.code_shuffled_loss,
    }
    if result["pca_loss"] is None:
        result["pca_loss_reason"] = (
            f"PCA to {config.model.code_dim} dimensions is lossless on these images"
        )
    if losses.code_shuffled_loss is None:
        result["code_shuffled_loss_reason"] = "there is one query, and no other image's code"
    return result


def precision_of(dtype: str) -> str:
    """What is computed in with this `train.dtype` on these devices: CPUs have no TF32."""
    return "float32" if dtype == "tf32" and sharding.on_cpu() else dtype


def make_probe(job: Job) -> loop.Probe | None:
    """The thermometer of a training: nearest neighbours tell the class of validation queries.

    The queries are images of the database, so that no test query is looked at; the net is made
    ready for each probe as it is for the codes. None without labels or `log.probe_steps`.
    """
    config = job.config
    if not config.log.probe_steps or not job.labelled:
        return None
    positions = np.random.default_rng(0).permutation(job.database)[: PROBE_QUERIES + PROBE_DATABASE]
    count = min(PROBE_QUERIES, len(positions) // 2)
    images, labels = job.dataset.images[positions], job.labels()[positions]
    batch = trained_net.encoded_at_once(config, images.shape[1:], job.mesh)

    def probe(net: Net) -> dict[str, float]:
        net = trained_net.ready(net, config, images[count:], job.mesh)
        codes = encode.encode(net, images, job.mesh, batch, label=None)
        neighbours = KNeighborsClassifier(min(PROBE_NEIGHBOURS, len(codes) - count))
        neighbours.fit(codes[count:], labels[count:])
        return {"knn_accuracy": float(neighbours.score(codes[:count], labels[:count]))}

    return probe


def _encode(job: Job, workdir: WorkDir) -> tuple[dict[str, Any], list[str]]:
    config = job.config
    trained = workdir.result("train")
    assert trained, "stages are done in order"
    net = loop.load_net(config, workdir.path, job.mesh, trained["steps"])
    training_images = job.dataset.images[job.training_positions()[: trained_net.MOST_IMAGES]]
    shape = training_images.shape[1:]
    batch = trained_net.encoded_at_once(config, shape, job.mesh)
    net = trained_net.ready(net, config, training_images, job.mesh)
    kept = trained_net.about(workdir.path, flatten(config), trained["steps"], shape)
    if distributed.is_first():
        net_file.write(workdir / NET_FILE, net_file.keep(net, kept))
    images = encode.on_devices(
        np.concatenate([job.database_images(), job.query_images()]), job.mesh
    )
    encode.encode(net, images[:batch], job.mesh, batch, label=None)  # compiles
    started = time.monotonic()
    codes = encode.encode(net, images, job.mesh, batch)
    seconds = time.monotonic() - started
    size = len(job.database)
    untrained = {}
    if "untrained" in config.retrieval.baselines:
        fresh = loop.new_net(config, shape, net.mean, net.std, job.mesh)
        fresh = trained_net.ready(fresh, config, training_images, job.mesh)
        made = encode.encode(fresh, images, job.mesh, batch, label="encode, untrained net")
        untrained = {"untrained_database": made[:size], "untrained_query": made[size:]}
    workdir.write_npz(
        CODES_FILE,
        database=codes[:size],
        query=codes[size:],
        database_index=job.database,
        query_index=job.queries,
        **untrained,
        **_labels(job),
    )
    result = {
        "seconds": seconds,
        "images_per_second": len(images) / seconds,
        "dimensions": codes.shape[1],
    }
    return result, [NET_FILE, CODES_FILE]


def _labels(job: Job) -> dict[str, np.ndarray]:
    if not job.labelled:
        return {}
    return {"database_label": job.database_labels(), "query_label": job.query_labels()}


def _retrieve(job: Job, workdir: WorkDir) -> tuple[dict[str, Any], list[str]]:
    codes = read_npz(workdir / CODES_FILE)
    labels = codes["query_label"]
    items = full_ranking.relevant_items(labels, codes["database_label"])
    size = len(codes["database"])
    metric, precision = job.config.retrieval.metric, job.config.retrieval.precision

    # A mesh on a CPU would only divide its cores anew.
    mesh = None if sharding.on_cpu() else sharding.local(job.mesh)

    def ranking_of(
        name: str, database_codes: np.ndarray, query_codes: np.ndarray
    ) -> full_ranking.Ranking:
        database = DeviceCodes(database_codes, mesh)
        label = f"retrieve by {name}"
        return full_ranking.ranking_by_distance(
            database, query_codes, items, kept, block, label, precision
        )

    compared = distances.for_metric(metric, codes["database"], codes["query"])
    kept = min(simulated_user.TOP, size)
    own = math.ceil(len(items) / distributed.processes())
    block = distances.queries_at_once(own, size)
    # Compiles, so that the seconds below do not hold it.
    full_ranking.ranking_by_distance(
        DeviceCodes(compared[0], mesh), compared[1][:1], items[:1], kept, block, None, precision
    )
    started = time.monotonic()
    ranks, top = ranking_of("codes", *compared)
    seconds = time.monotonic() - started
    per_query = {"ap": metrics.average_precision(ranks, size)}
    different = count_different(codes["database"])
    if different < ENOUGH_DIFFERENT * size:
        say(
            f"retrieve: WARNING: the {size:,} images of the database have only {different:,} "
            "different codes: images of one code are ranked at random; the net may be dead"
        )
    result: dict[str, Any] = {
        "different_codes": different,
        "map": metrics.mean(per_query["ap"]),
        "map_ci95": metrics.bootstrap_interval(per_query["ap"], labels),
        "precision_at_10": float(metrics.precision_at(ranks, 10).mean()),
        "precision_at_100": float(metrics.precision_at(ranks, 100).mean()),
        "recall_at_1000": metrics.mean(metrics.recall_at(ranks, 1000, size)),
        "nn_accuracy": float(metrics.precision_at(ranks, 1).mean()),
        "seconds": seconds,
    }
    wanted = job.config.retrieval.baselines
    maps: dict[str, Any] = {}
    if "random" in wanted:
        relevant = np.count_nonzero(items != full_ranking.PADDING, axis=1)
        per_query["random_ap"] = metrics.random_average_precision(relevant, size)
    if "untrained" in wanted:
        untrained = codes["untrained_database"], codes["untrained_query"]
        untrained = distances.for_metric(metric, *untrained)
        ranks, _ = ranking_of("the untrained net's codes", *untrained)
        per_query["untrained_ap"] = metrics.average_precision(ranks, size)
    for name in (n for n in baseline_codes.WITHOUT_NET if n in wanted):
        per_query[f"{name}_ap"] = baseline_ap(name, job)
    for name in baseline_codes.NAMES:
        ap = per_query.get(f"{name}_ap")
        maps[name] = {"map": None if ap is None else metrics.mean(ap)}
        if ap is None:
            maps[name]["map_reason"] = "not in retrieval.baselines"
        elif name != "random":
            maps[name]["map_ci95"] = metrics.bootstrap_interval(ap, labels)
    workdir.write_npz(RETRIEVAL_FILE, top=top, **per_query)
    return {"retrieval": result, "baselines": maps}, [RETRIEVAL_FILE]


def baseline_ap(name: str, job: Job) -> np.ndarray:
    """Average precision [Q] float64 of the first retrieval by codes of `WITHOUT_NET`."""
    images = job.database_images(), job.query_images()
    say(f"retrieve: {name} codes of {len(images[0]):,} images")
    database, queries = baseline_codes.kept(name, *images, job.config.model.code_dim)
    items = full_ranking.relevant_items(job.query_labels(), job.database_labels())
    ranks = full_ranking.ranks_by_distance(
        DeviceCodes(database), queries, items, label=f"retrieve by {name}"
    )
    return metrics.average_precision(ranks, len(database))


def _feedback(job: Job, workdir: WorkDir) -> tuple[dict[str, Any], list[str]]:
    config = job.config.feedback
    codes = read_npz(workdir / CODES_FILE)
    chosen = simulated_user.choose_queries(codes["query_label"], config.queries, config.seed)
    labels = codes["query_label"][chosen]
    metric = job.config.retrieval.metric
    database, queries = distances.for_metric(metric, codes["database"], codes["query"])
    searched = DeviceCodes(database)
    encoded, settings = workdir.state("encode"), [config[key] for key in SIMULATED_BY]
    # A file for each learner: an interrupted stage goes on with the next.
    names = {learner: f"{FEEDBACK_FOLDER}/{learner}.npz" for learner in config.learners}
    made_from = {
        learner: hash_of([encoded, learners.made_from(learner, config.solver), [*settings, metric]])
        for learner in names
    }
    kept = {
        learner: found
        for learner, name in names.items()
        if (found := _load_simulation(workdir, name, made_from[learner]))
    }
    waiting = distributed.from_first(lambda: [learner for learner in names if learner not in kept])
    if others := _learners_on_disk(workdir) - names.keys():
        say(
            f"feedback: {', '.join(sorted(others))}: not in feedback.learners, so not in the "
            f"report; what was found is kept in {workdir / FEEDBACK_FOLDER}"
        )
    result = {}
    for learner, name in names.items():
        if learner in waiting:
            kept[learner] = simulated_user.simulate(
                learner,
                searched,
                queries[chosen],
                labels,
                codes["database_label"],
                rounds_count=config.rounds,
                marks_per_round=config.marks_per_round,
                seed=config.seed,
                show=config.show,
                solver=config.solver,
            )
            workdir.write_npz(
                name,
                made_from=np.array(made_from[learner]),
                query=chosen,
                **kept[learner]._asdict(),
            )
        result[learner] = {
            "params": learners.parameters(learner, config.solver),
            "marks_per_round": config.marks_per_round,
            "queries": len(chosen),
            "rounds": simulated_user.summarise(kept[learner], labels),
        }
    return result, [*names.values()]


def _learners_on_disk(workdir: WorkDir) -> set[str]:
    return {path.stem for path in (workdir / FEEDBACK_FOLDER).glob("*.npz")}


def _load_simulation(
    workdir: WorkDir, name: str, made_from: str
) -> simulated_user.Simulation | None:
    """A learner's sessions from an earlier run of this stage, if they were made from the same."""
    try:
        held = read_npz(workdir / name, ("made_from", *simulated_user.Simulation._fields))
    except (FileNotFoundError, ValueError):  # a damaged file is made again
        return None
    if str(held["made_from"]) != made_from:
        return None
    return simulated_user.Simulation(*(held[field] for field in simulated_user.Simulation._fields))


def _report(job: Job, workdir: WorkDir) -> tuple[dict[str, Any], list[str]]:
    return {}, report.write(job, workdir) if distributed.is_first() else []


_STAGES = {
    "train": _train,
    "encode": _encode,
    "retrieve": _retrieve,
    "feedback": _feedback,
    "report": _report,
}
