# shellcheck shell=bash
# Sourced by the other scripts, from the repository's root.
#
#   make_environment EXTRAS            makes the environment and installs air_jax in it
#                                      EXTRAS: "", "test", "cuda,test", ... (see setup.py)
#   install_data_extra MODULE ARGUMENT...
#                                      installs what the data set of the config needs besides, of
#                                      `python -m MODULE ARGUMENT...`; exits if they are wrong
#   $venv                              its folder: VENV from the environment, or .venv
#   default_config FILE ARGUMENT...    sets `arguments`, --config=FILE added if none is there;
#                                      none is if FILE is ""
#   whole_number NAME                  fails unless the variable NAME is a whole number from 1 on
#   read_options FILE ARGUMENT...      likewise, after a leading --help or --dry-run of the script's
#   launch COMMAND...                  becomes COMMAND; after --dry-run, prints it as bash reads it
#   quote WORD...                      prints the words as bash reads them back
#   fail MESSAGE                       says what is wrong and exits
#
# make_environment takes the newest supported interpreter that runs, or the one in PYTHON. A second
# call with the same setup.py starts at once.

venv=${VENV:-.venv}
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
  local extras=$1 extra python want missing=
  if [ -n "${PYTHON:-}" ] || ! "$venv/bin/python" -c "$supported" >/dev/null 2>&1; then
    python=$(find_python) || return 1
    if [ "$("$python" -c 'import sys; print(sys.version)')" != \
      "$("$venv/bin/python" -c 'import sys; print(sys.version)' 2>/dev/null)" ]; then
      if [ -n "${VENV:-}" ] && [ -e "$venv" ] && [ ! -e "$venv/.air_jax" ]; then
        fail "VENV=$venv has another Python than $python, and was not made here: it is left alone"
      fi
      echo "environment: $venv with $("$python" --version)"
      rm -rf "$venv"
      "$python" -m venv "$venv" && touch "$venv/.air_jax" || return 1
    fi
  fi
  want=$(cksum setup.py)
  for extra in base ${extras//,/ }; do
    [ "$(cat "$venv/.installed-$extra" 2>/dev/null)" = "$want" ] || missing=yes
  done
  [ -n "$missing" ] || return 0
  echo "environment: installing air_jax${extras:+[$extras]} and what it needs (minutes)"
  "$venv/bin/python" -u -m pip install --disable-pip-version-check --progress-bar off --no-compile \
    --editable ".${extras:+[$extras]}" 2> >(grep -v ^WARNING >&2) | tell_of_installing || return 1
  # What is imported is a third of what pip would compile. Later PYTHONDONTWRITEBYTECODE may forbid it.
  env -u PYTHONDONTWRITEBYTECODE "$venv/bin/python" -c \
    'import air_jax.index.build, air_jax.reproduce.pages, air_jax.run.pipeline' || return 1
  [[ ,$extras, != *,test,* ]] || extras+=,app,tfds # which it holds
  for extra in base ${extras//,/ }; do
    echo "$want" >"$venv/.installed-$extra"
  done
}

# Of pip's lines those on large packages, and the number of all when they are unpacked.
tell_of_installing() {
  awk '
    /^ *(Downloading|Using cached) .* MB\)/ {
      split($0, size, /[()]/)
      if (size[2] + 0 >= 5) tell("  " ($1 == "Using" ? $3 : $2) ", " size[2])
    }
    /^Installing collected packages/ { tell("  unpacking " NF - 3 " packages") }
    /^Successfully installed/ { tell("installed") }
    function tell(text) { print "environment: " text; fflush() }
  '
}

install_data_extra() {
  local extra
  extra=$("$venv/bin/python" -c '
import importlib, sys
from air_jax.data import datasets
from air_jax.runtime import command_line
name = sys.argv[1]
name += ".__main__" * hasattr(importlib.import_module(name), "__path__")
config = command_line.read(importlib.import_module(name).parser(), sys.argv[2:])[1]
print(datasets.missing_extra(config.data.name))
' "$@") || exit
  # Not what --help prints.
  [ "$extra" != tfds ] || make_environment tfds
}

# shellcheck disable=SC2034 # read by the scripts
default_config() {
  local file=$1 argument
  shift
  arguments=("$@")
  [ -n "$file" ] || return 0
  for argument in "$@"; do
    case $argument in
      --config | --config=* | -config | -config=*) return ;;
    esac
  done
  arguments=("--config=$file" "$@")
}

read_options() {
  local file=$1
  shift
  dry_run=
  case ${1:-} in
    --help)
      awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "launch/${0##*/}"
      exit
      ;;
    --dry-run)
      dry_run=yes
      shift
      ;;
  esac
  default_config "$file" "$@"
}

launch() {
  if [ -n "$dry_run" ]; then
    quote "$@"
  else
    exec "$@"
  fi
}

quote() {
  local line
  printf -v line '%q ' "$@"
  printf '%s\n' "${line% }"
}

whole_number() {
  [[ ${!1} =~ ^[1-9][0-9]*$ ]] || fail "$1=${!1}: expected a whole number from 1 on"
}

fail() {
  echo "error: $*" >&2
  exit 2
}
