"""Commands and their command lines: names, flags, help and exit statuses."""

import importlib
import subprocess
import sys

import pytest
from program import call

from air_jax.__main__ import COMMANDS

FLAGS = {
    "main": "config workdir stages overwrite dry-run dry_run coordinator processes process",
    "reproduce": "config workdir only part stages overwrite smoke dry-run dry_run coordinator "
    "processes process",
    "compare": "codes of out queries validation rounds marks metric",
    "index": "images model vectors metadata out fit storage store workers rehash megapixels",
    "serve": "index host port token open upload_megabytes upload_megapixels",
    "replay": "index out",
    "demo_images": "",
}


def main_of(command: str):
    packages = ("reproduce", "index", "serve")
    name = f"air_jax.{command}" + (".__main__" if command in packages else "")
    return importlib.import_module(name).main


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_flag_and_a_wrong_one_is_an_error_in_one_line(command):
    helped = call(main_of(command), "--help")
    assert helped.returncode == 0
    assert helped.stdout.startswith(f"usage: python -m air_jax.{command} ")
    for flag in f"{FLAGS[command]} verbosity".split():
        assert f"  --{flag}" in helped.stdout or f", --{flag}" in helped.stdout, flag
    wrong = call(main_of(command), "--config=quickstart", "--workdirs=x", "--dry-run")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: ")
    assert wrong.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("compare", "--codes=c --out=o --marks=0", "--marks: '0': expected a whole number from 1"),
        ("compare", "--codes c", "required: --out"),
        ("compare", "--codes c --out o --metric l3", "--metric=l3: expected one of l2"),
        ("index", "--out=o", "expected --model=WORKDIR with --images=FOLDER, or --vectors"),
        ("index", "--out o --model m", "--images=FOLDER is missing"),
        ("index", "--out=o --vectors=v --images=i", "needs --metadata=FILE.csv"),
        ("serve", "--index=i --port=70000", "--port: '70000': expected a whole number from 0 to"),
        ("replay", "", "required: SESSION.json"),
        ("reproduce", "--config=figure3 --processes=two", "--processes: 'two': expected a whole"),
        ("main", "--config=quickstart --config.train.epochs=x", "--config.train.epochs=x"),
        ("main", "--config", "--config/-config: expected one argument"),
        ("main", "", "--config=FILE is missing"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_its_flag(command, arguments, message):
    done = call(main_of(command), *arguments.split())
    assert done.returncode == 2
    assert message in done.stderr


def test_the_console_command_lists_the_commands_without_jax_and_runs_them():
    listing = "import sys; from air_jax.__main__ import main; sys.argv = ['air_jax', '--help']\n"
    listing += "try: main()\nfinally: sys.exit(3 if 'jax' in sys.modules else 0)"
    listed = subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True)
    assert listed.returncode == 0, listed.stderr
    assert all(f"\n  {name} " in listed.stdout for name in COMMANDS)
    command = [sys.executable, "-m", "air_jax", "index", "--out", "o"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.startswith("error: expected --model=WORKDIR")


HEAVY = ("jax", "flax", "orbax", "sklearn", "matplotlib", "scipy")


@pytest.mark.parametrize("command", COMMANDS)
def test_flags_are_read_before_jax_and_the_like_are_imported(command):
    module = main_of(command).__module__
    program = f"""import sys, {module}
try: {module}.main(["--config=quickstart", "--ot=x"])
finally: print([name for name in {HEAVY} if name in sys.modules])"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "[]\n"), done.stderr


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (
            "main",
            "--config=quickstart --workdirs=x",
            "--workdirs: there is no such flag; did you mean",
        ),
        ("serve", "--index=i --prt=1", "--prt: there is no such flag; did you mean --port?"),
        ("index", "--out=o --zzzzzz", "--zzzzzz: there is no such flag; --help shows all"),
        ("compare", "--codes=c --out=o more", "unexpected argument 'more'"),
        ("compare", "--codes=c --out=o --of=pixel", "--of=pixel: expected one of codes"),
        (
            "main",
            "--config=quickstart --config.train.colour=x",
            "--config.train.colour: there is no such key; known are train.batch, ",
        ),
        (
            "main",
            "--config=quickstart --config.train.depht=4",
            "--config.train.depht: there is no such key; did you mean model.depth?",
        ),
        (
            "main",
            "--config=quickstart --config.colour=4",
            "--config.colour: there is no such key; known are profile, seed",
        ),
        (
            "reproduce",
            "--config=figure3_small --config.sweep.nmae=x",
            "--config.sweep.nmae: there is no such key; did you mean ",
        ),
    ],
)
def test_of_an_unknown_flag_or_key_those_near_it_are_named(command, arguments, message):
    done = call(main_of(command), *arguments.split())
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("flag", ["--noconfig.profile", "--config.profile"])
def test_a_key_of_true_or_false_may_be_given_without_its_value(flag, tmp_path):
    done = call(main_of("main"), "--config=quickstart", flag, "--stages=wrong")
    assert "--stages: 'wrong'" in done.stderr
