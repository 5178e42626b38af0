# shellcheck shell=bash
# Sourced by the other scripts, from the repository's root: makes .venv and installs air_jax in it.
#
#   make_environment EXTRAS    EXTRAS: "", "test", "cuda,test", ... (see setup.py)
#
# Takes the newest supported interpreter that runs, or the one in PYTHON. A second call with the
# same setup.py starts at once.

supported='import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'

find_python() {
  local candidate candidates=(python3.13 python3.12 python3.11 python3 python)
  [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    # Being on the PATH is not enough: version managers leave shims that refuse to run.
    if "$candidate" -c "$supported" >/dev/null 2>&1; then
      echo "$candidate"
      return
    fi
  done
  echo "error: no Python 3.11, 3.12 or 3.13 with venv found${PYTHON:+ at PYTHON=$PYTHON};" \
    "give one by PYTHON=/path/to/python" >&2
  return 1
}

make_environment() {
  local extras=$1 python stamp want
  if [ -n "${PYTHON:-}" ] || ! .venv/bin/python -c "$supported" >/dev/null 2>&1; then
    python=$(find_python) || return 1
    if [ "$("$python" -c 'import sys; print(sys.version)')" != \
      "$(.venv/bin/python -c 'import sys; print(sys.version)' 2>/dev/null)" ]; then
      echo "environment: .venv with $("$python" --version)"
      rm -rf .venv
      "$python" -m venv .venv || return 1
    fi
  fi
  stamp=".venv/.installed-${extras:-base}"
  want=$(cksum setup.py)
  if [ "$(cat "$stamp" 2>/dev/null)" != "$want" ]; then
    echo "environment: installing air_jax${extras:+[$extras]} and what it needs (minutes)"
    .venv/bin/python -m pip install -qq --upgrade pip || return 1
    .venv/bin/python -m pip install -qq --editable ".${extras:+[$extras]}" || return 1
    echo "$want" >"$stamp"
  fi
}
