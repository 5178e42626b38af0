#!/usr/bin/env bash
# Sets up .venv and runs the tests; with --all the long ones too (fault injection and the like).
#
#   launch/test.sh [--all] [arguments of pytest]
#
# Environment: PYTHON=interpreter, VENV=its environment (.venv). Two processes share the quick tests;
# `-n 0` as an argument runs them in one.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh
make_environment "test"
if [ "${1:-}" = --all ]; then
  shift
else
  set -- -m "not long" -n 2 --dist loadfile "$@"
fi
exec "$venv/bin/python" -m pytest "$@"
