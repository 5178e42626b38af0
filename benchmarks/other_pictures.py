"""First retrieval of pictures that a net was not trained on, by its codes and by codes without it.

    python -m air_jax.demo_images /tmp/pictures
    python benchmarks/other_pictures.py --model=runs/contrastive_small --images=/tmp/pictures/digits

The sub-folders of a folder are the classes; a tenth of each is queries, the rest the database, as
`data.name=folder` splits them. Nothing is fitted to them but PCA. No time is measured.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # this clone, and `benchmarks`

import numpy as np

from air_jax.baselines import baseline_codes
from air_jax.configs import folder as folder_config
from air_jax.models import encode, net_file
from air_jax.run import jobs
from air_jax.run.work_directory import NET_FILE
from air_jax.search import full_ranking, metrics
from air_jax.search.device_codes import DeviceCodes
from benchmarks import measure

WITHOUT_NET = ("pixels", "pca")
COLOURS = 3  # of pictures in a folder


def main() -> None:
    arguments = _parse()
    mesh = measure.make_mesh(arguments.devices)
    path = arguments.model / NET_FILE if arguments.model.is_dir() else arguments.model
    kept = net_file.read(path, mesh)
    shape = kept.about["image_shape"]
    if shape[2] != COLOURS:
        raise SystemExit(
            f"{path}: the net reads images of shape {shape}; expected {COLOURS} colours"
        )
    rows = []
    for images in arguments.images:
        config = folder_config.get_config()
        config.data.dir, config.data.size = str(images), shape[0]
        job = jobs.load(config)
        if not job.labelled:
            raise SystemExit(f"{images}: no sub-folders that could be classes")
        pictures = job.database_images(), job.query_images()
        codes = {"net": tuple(encode.encode(kept.net, part, mesh, label=None) for part in pictures)}
        for name in WITHOUT_NET:
            codes[name] = baseline_codes.make(name, *pictures, kept.dimension)
        rows += [{"images": images.name, **_retrieval(job, *codes[name], name)} for name in codes]
    by = {(row["images"], row["codes"]): row["map"] for row in rows}
    summary = {f"map_{images}_{codes}": value for (images, codes), value in by.items()}
    measure.report(arguments, summary, rows, net=kept.about["name"])


def _parse() -> argparse.Namespace:
    parser = measure.parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a run's folder, or its net.npz")
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="folders of pictures")
    return parser.parse_args()


def _retrieval(
    job: jobs.Job, database: np.ndarray, queries: np.ndarray, name: str
) -> dict[str, Any]:
    items = full_ranking.relevant_items(job.query_labels(), job.database_labels())
    ranks = full_ranking.ranks_by_distance(DeviceCodes(database), queries, items)
    ap = metrics.average_precision(ranks, len(database))
    found = {
        "codes": name,
        "database": len(database),
        "queries": len(queries),
        "map": metrics.mean(ap),
        "map_ci95": metrics.bootstrap_interval(ap, job.query_labels()),
        "precision_at_10": float(metrics.precision_at(ranks, 10).mean()),
        "nn_accuracy": float(metrics.precision_at(ranks, 1).mean()),
    }
    print(
        f"{name:8} mAP {found['map']:.4f}, P@10 {found['precision_at_10']:.3f}, "
        f"1-NN {found['nn_accuracy']:.3f}",
        flush=True,
    )
    return found


if __name__ == "__main__":
    main()
