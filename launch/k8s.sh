#!/usr/bin/env bash
# Runs the main job on Kubernetes: fills in launch/k8s_jobset.yaml and applies it. The cluster needs
# GPUs and a JobSet controller that knows failurePolicy.restartStrategy.
#
#   launch/k8s.sh [--help | --dry-run] [arguments of air_jax.main]
#
# --dry-run prints the manifest, needs no kubectl and changes nothing; anywhere but first it is the
# program's own. Without --config: depth40. --workdir is a folder in /storage, where the claimed
# volume is. Default: /storage/runs/NAME. No cluster was at hand: the manifest is tested, a run is
# not.
#
# Environment:
#   IMAGE         what launch/Dockerfile builds, where the cluster finds it; needed
#   CLAIM         persistent volume claim that all pods can write (ReadWriteMany); needed
#   NAME=air-jax  of the run; delete it by: kubectl delete jobset NAME
#   PROCESSES=2   pods, on a node each or not
#   GPUS=1        of each
#   NAMESPACE     of Kubernetes. Default: kubectl's own
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh
read_options depth40 "$@"

NAME=${NAME:-air-jax} PROCESSES=${PROCESSES:-2} GPUS=${GPUS:-1}
whole_number PROCESSES
whole_number GPUS
for name in IMAGE CLAIM; do
  [ -n "${!name:-}" ] || fail "$name is not set; launch/k8s.sh --help says what it is"
done
# A pod's host name is NAME-run-0-INDEX, of 63 characters at most.
if ! [[ $NAME =~ ^[a-z]([a-z0-9-]{0,48}[a-z0-9])?$ ]]; then
  fail "NAME=$NAME: expected small letters, digits and hyphens, at most 50"
fi
for name in IMAGE CLAIM; do
  if ! [[ ${!name} =~ ^[A-Za-z0-9][A-Za-z0-9./:@_-]*$ ]]; then
    fail "$name=${!name}: expected letters, digits and ./:@_-"
  fi
done
if [ -z "$dry_run" ] && ! command -v kubectl >/dev/null; then
  fail "kubectl is not on the PATH"
fi

# A word as a string of JSON, which YAML reads, and with $ doubled, which Kubernetes halves.
as_string() {
  local word=$1
  word=${word//\\/\\\\}
  word=${word//\"/\\\"}
  word=${word//$'\n'/\\n}
  word=${word//$'\t'/\\t}
  [[ $word != *[[:cntrl:]]* ]] || fail "argument with control characters: $(quote "$1")"
  printf '"%s"' "${word//\$/\$\$}"
}

workdir=--workdir=/storage/runs/$NAME
for argument in "${arguments[@]}"; do
  case $argument in
    --workdir | --workdir=* | -workdir | -workdir=*) workdir= ;;
  esac
done
ARGUMENTS=
for argument in "${arguments[@]}" ${workdir:+"$workdir"} \
  "--coordinator=$NAME-run-0-0.$NAME:8476" "--processes=$PROCESSES"; do
  ARGUMENTS+="$(as_string "$argument"), "
done
ARGUMENTS="[$ARGUMENTS\"--process=\$(JOB_COMPLETION_INDEX)\"]"

manifest=$(grep -v '^#' launch/k8s_jobset.yaml)
for name in NAME PROCESSES GPUS IMAGE CLAIM ARGUMENTS; do
  manifest=${manifest//"\${$name}"/"${!name}"}
done
if [ -n "$dry_run" ]; then
  printf '%s\n' "$manifest"
else
  printf '%s\n' "$manifest" | kubectl apply ${NAMESPACE:+"--namespace=$NAMESPACE"} --filename=-
fi
