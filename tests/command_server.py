"""Runs commands of air_jax as forks of a process that has imported what they import.

Starting Python with JAX takes seconds, nearly all of them imports; a fork of this takes none. It is
started by `faults.Launcher`, reads a request in JSON from each line of its input, {"module",
"arguments", "output", "errors", "largest_file": bytes or null}, and answers with two lines: the
process's number when it has begun, its exit status when it has ended. No fork shares anything that
JAX starts: that happens with the first computation.
"""

import importlib
import json
import os
import pkgutil
import resource
import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # this clone, whatever else is installed

import air_jax
from air_jax.__main__ import COMMANDS


def import_what_commands_import() -> None:
    """Every module but the commands themselves, each of which becomes a fork's main module."""
    for module in pkgutil.walk_packages(air_jax.__path__, "air_jax."):
        name = module.name.removeprefix("air_jax.")
        if not name.endswith("__main__") and (module.ispkg or name not in COMMANDS):
            importlib.import_module(module.name)


def next_command() -> str:
    """Answers requests; returns only in a fork, with the module that it is to run."""
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if not child:
            sys.argv = [asked["module"], *asked["arguments"]]
            writable = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(os.open(asked["output"], writable, 0o644), 1)
            os.dup2(os.open(asked["errors"], writable, 0o644), 2)
            if asked["largest_file"] is not None:
                limit = asked["largest_file"]
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            return asked["module"]
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    sys.exit()


if __name__ == "__main__":
    import_what_commands_import()
    print("ready", flush=True)
    runpy.run_module(next_command(), run_name="__main__", alter_sys=True)
