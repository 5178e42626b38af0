"""The wheel, installed outside the clone: configs and page are in it, and the programs run."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import urllib.request
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT, write_pictures

SOURCES = ("air_jax", "configs", "README.md", "pyproject.toml", "setup.py")
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"JAX_PLATFORMS": "cpu"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, for building leaves folders in the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "."]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_it_holds_code_configs_and_page_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {
        str(path.relative_to(ROOT))
        for path in [*(ROOT / "air_jax").rglob("*.py"), *(ROOT / "air_jax/serve/page").iterdir()]
    }
    expected |= {f"air_jax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    assert "air_jax/serve/page/index.html" in names
    assert names == expected


def run(program: Path, folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [program, *arguments], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def opens_the_page(program: Path, folder: Path, index: str) -> int:
    """How many images the page's server has, that was asked for the page too."""
    command = [program, "serve", f"--index={index}", "--port=0"]
    with subprocess.Popen(
        command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            said = iter(server.stdout.readline, "")
            address = next(m[1] for line in said if (m := re.search(r"open (http://\S+)", line)))
            with urllib.request.urlopen(address) as page:
                assert b"<html" in page.read()
            with urllib.request.urlopen(f"{address}api/index") as about:
                return json.load(about)["size"]
        finally:
            server.terminate()


def test_the_console_command_finds_its_configs_and_page_outside_the_clone(
    wheel, trained_run, tmp_path
):
    """In an environment of its own that finds other packages in this one's folder."""
    env, folder = tmp_path / "env", tmp_path / "elsewhere"
    folder.mkdir()
    venv.create(env)
    pip = [sys.executable, "-m", "pip", "--python", str(env / "bin/python")]
    subprocess.run([*pip, "install", "--no-deps", str(wheel)], check=True, capture_output=True)
    (site,) = env.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    program = env / "bin/air_jax"
    found = run(env / "bin/python", folder, "-c", "import air_jax; print(air_jax.__file__)")
    assert found.startswith(str(site))
    keys = [f"--config.{key}" for key in ("data.size=8", "model.depth=4", "model.width=4")]
    assert "digits" in run(program, folder, "main", "--config=quickstart", "--dry-run", *keys)
    write_pictures(folder / "pictures", 12)
    run(program, folder, "index", "--images=pictures", f"--model={trained_run}", "--out=index")
    assert opens_the_page(program, folder, "index") == 12


@pytest.mark.long
def test_a_fresh_environment_with_what_the_wheel_requires_runs_the_whole_quickstart(
    wheel, tmp_path
):
    venv.create(tmp_path / "env", with_pip=True)
    python, program = tmp_path / "env/bin/python", tmp_path / "env/bin/air_jax"
    subprocess.run([python, "-m", "pip", "install", "-q", f"{wheel}[app]"], check=True)
    run(program, tmp_path, "main", "--config=quickstart")
    results = json.loads((tmp_path / "runs/quickstart/results.json").read_text())
    assert results["retrieval"]["map"] > 0.6
    run(program, tmp_path, "demo_images", "images")
    made = ["--images=images", "--model=runs/quickstart", "--out=index"]
    run(program, tmp_path, "index", *made)
    assert opens_the_page(program, tmp_path, "index") == len([*tmp_path.glob("images/**/*.png")])
