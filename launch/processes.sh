# shellcheck shell=bash
# Sourced by scripts that run several processes on this machine.
#
#   log_folder NAME            makes a new folder of logs, $logs: LOGS, or one in runs/logs
#   start COMMAND...           starts one: the first with this terminal, the others into $logs
#   wait_for_all [SECONDS]     waits; statuses are then in `statuses`, the first that is not 0 in
#                              `first_failure`. So many seconds after it, whoever is left is ended
#
# SIGINT and SIGTERM are passed on to all of them.

pids=()

log_folder() {
  logs=${LOGS:-runs/logs/$1-$(date +%Y%m%d-%H%M%S)-$$}
  mkdir -p "$logs"
}

start() {
  local number=${#pids[@]}
  # Jobs of their own groups: what runs in the background otherwise ignores SIGINT, and Ctrl-C would
  # reach them twice.
  set -m
  if ((number == 0)); then
    "$@" </dev/null &
  else
    "$@" </dev/null >"$logs/process-$number.log" 2>&1 &
  fi
  pids+=($!)
  set +m
}

signal_all() {
  local pid
  for pid in "${pids[@]}"; do
    kill -s "$1" -- "$pid" 2>/dev/null || true
  done
}

wait_for_all() {
  local patience=${1:-} number status ended_by=
  statuses=()
  first_failure=0
  trap 'signal_all TERM' TERM
  trap 'signal_all INT' INT
  while ((${#statuses[@]} < ${#pids[@]})); do
    for number in "${!pids[@]}"; do
      [ -z "${statuses[number]:-}" ] || continue
      kill -0 "${pids[number]}" 2>/dev/null && continue
      status=0
      wait "${pids[number]}" || status=$?
      statuses[number]=$status
      ((status == 0)) || tell_of "$number" "$status"
      if ((status != 0 && first_failure == 0)); then
        first_failure=$status
        [ -z "$patience" ] || ended_by=$((SECONDS + patience))
      fi
    done
    if [ -n "$ended_by" ] && ((SECONDS >= ended_by)); then
      signal_all KILL
    fi
    sleep .1 || true # Ctrl-C ends it
  done
  trap - TERM INT
}

tell_of() {
  local log=$logs/process-$1.log
  echo "process $1 ended with $2" >&2
  [ ! -f "$log" ] || tail -n 5 "$log" | sed "s/^/  [process $1] /" >&2
}
