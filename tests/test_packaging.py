"""The built wheel runs from any folder: configuration and tasks are package data."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TINY = [
    "data.size=64",
    "train.sft.epochs=1",
    "evaluate.limit=4",
    "iterations=1",
    "execution.tracking=[]",
    "execution.device=cpu",
]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder / "dist"), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (folder / "dist").glob("iris_selfplay-*.whl")
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(folder / "site"),
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True)
    return folder / "site"


def run(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_the_wheel_runs_the_main_job_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    done = run(installed, tmp_path, "iris.run", "+method=iris", *TINY)
    assert done.returncode == 0, done.stderr
    assert "t=1" in done.stdout
    assert {p.name for p in tmp_path.iterdir()} == {"iris-store", "outputs"}
    assert not (installed / "tests").exists()


def test_the_wheel_is_what_ran(installed: Path, tmp_path: Path) -> None:
    probe = "import iris, iris.compose; print(iris.__file__); print(iris.compose.conf_dir())"
    environment = os.environ | {"PYTHONPATH": str(installed)}
    found = subprocess.run([sys.executable, "-c", probe], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert found.stdout.split() == [str(installed / "iris" / "__init__.py"), str(installed / "iris" / "conf")]


def test_the_version_comes_from_git(installed: Path) -> None:
    (metadata,) = installed.glob("iris_selfplay-*.dist-info/METADATA")
    assert "\nLicense-Expression: Apache-2.0\n" in metadata.read_text()
    assert "\nVersion: 0." in metadata.read_text()
