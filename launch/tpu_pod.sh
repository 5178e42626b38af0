#!/usr/bin/env bash
# Runs the main job on all workers of a Cloud TPU slice at once, by ssh from a machine with gcloud.
#
#   launch/tpu_pod.sh [--help | --dry-run] [arguments of air_jax.main]
#
# --dry-run prints the command, needs no gcloud and changes nothing; anywhere but first it is the
# program's own. Without --config: configs/depth40.py. The workers find each other by what the slice
# tells them, and share each batch; of several, --workdir must be a folder that all of them see, such
# as a mounted Filestore. No TPU was at hand: the command is tested, a run on a slice is not.
#
# Environment:
#   TPU_NAME, ZONE  of the slice; needed
#   REPO_DIR        needed: this repository on every worker, absolute or from the home folder there
#   PROJECT         of Google Cloud. Default: gcloud's own
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh
read_options configs/depth40.py "$@"

for name in TPU_NAME ZONE REPO_DIR; do
  [ -n "${!name:-}" ] || fail "$name is not set; launch/tpu_pod.sh --help says what it is"
done
if [ -z "$dry_run" ] && ! command -v gcloud >/dev/null; then
  fail "gcloud is not on the PATH; it comes with the Google Cloud CLI"
fi
remote="cd $(quote "$REPO_DIR") && "
remote+=$(quote env EXTRAS=tpu JAX_PLATFORMS=tpu,cpu launch/quickstart.sh "${arguments[@]}")
launch gcloud compute tpus tpu-vm ssh "$TPU_NAME" "--zone=$ZONE" \
  ${PROJECT:+"--project=$PROJECT"} --worker=all "--command=$remote"
