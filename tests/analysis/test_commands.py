"""The commands: what they print and leave, at two widths, and one clear line for what cannot be."""

import csv
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from analysis.__main__ import main
from tests.analysis import stores
from tests.analysis.stores import COMMIT, METHODS, SIZES, Made

TABLES = [
    "table",
    "table by=iteration",
    "table by=size",
    "table by=cost",
    "table by=state",
    "differences",
    "efficiency",
]


def run(made: Made, command: str) -> int:
    name, *words = command.split()
    return main([name, f"study={stores.STUDY}", f"store={made.store.root}", *words])


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("command", TABLES)
def test_tables_fit_the_terminal(
    made: Made, command: str, width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert run(made, command) == 0
    out = capsys.readouterr().out
    assert "iris" in out and all(len(line.rstrip()) <= width for line in out.splitlines())


@pytest.mark.parametrize("suffix", ["md", "tex", "csv", "html", "parquet"])
def test_tables_into_files(made: Made, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "new" / f"scores.{suffix}"
    assert run(made, f"table out={file}") == 0
    assert capsys.readouterr().out == f"wrote {file}\n"
    if suffix == "parquet":
        content = pd.read_parquet(file)
        assert len(content) == len(SIZES) * (len(METHODS) + 2) and content["average"].dtype == float
    elif suffix == "csv":
        rows = list(csv.DictReader(file.read_text().splitlines()))
        assert float(next(r["average"] for r in rows if r["method"] == "iris" and float(r["annotations"]) == 100)) > 50
    else:
        assert {"md": "| iris |", "tex": "\\toprule", "html": "<table>"}[suffix] in file.read_text()
    assert [p.name for p in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("command", ["table published=true", "differences", "efficiency", "table by=state"])
def test_every_table_is_a_frame_of_numbers(made: Made, command: str, tmp_path: Path) -> None:
    assert run(made, f"{command} out={tmp_path / 'x.parquet'}") == 0
    frame = pd.read_parquet(tmp_path / "x.parquet")
    texts = {"method", "task", "note", "against", "table"}
    assert {name for name in frame if frame[name].dtype != "float64"} <= texts and frame["method"].notna().all()


def test_published_results_beside_ours(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(made, "table published=true") == 0
    out = capsys.readouterr().out
    assert "44.57" in out and "T-SPIN" in out


def test_a_claim(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(made, "efficiency claim=iris@100:sft@200 task=sums") == 0
    out = capsys.readouterr().out
    gain = 100 * (stores.score("iris", 100, 0, 2, "sums") - stores.score("sft", 200, 0, 0, "sums"))
    assert f"{gain:+.2f}" in out and "P(better)" in out


def test_figures(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(made, f"figures out={tmp_path / 'figures'}") == 0
    drawn = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {f"{name}.{end}" for name in ("iterations", "efficiency", "tasks") for end in ("png", "svg", "pdf")} <= drawn
    assert "iterations: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("table by=tsak", "by=tsak: choose one of task, iteration, size, cost, state, trial. Did you mean 'task'?"),
        ("table out=x.doc", "out=x.doc: give a file that ends in .md, .tex, .csv, .html, .parquet."),
        ("table published=yes", "published=yes: choose one of false, true."),
        ("table baseline=sft", "'baseline=sft': no such argument. Choose from --rebuild, study=…, store=…, by=…"),
        ("table method=iris", "'method=iris': no such argument."),
        ("differences baseline=irsi", "baseline=irsi: choose one of"),
        ("efficiency task=sum", "task=sum: choose one of average, sums, words. Did you mean 'sums'?"),
        ("report out=x.pdf", "out=x.pdf: give a file that ends in .html."),
        ("tabel", "'tabel' is no command. Choose from"),
    ],
)
def test_what_cannot_be_is_one_line(made: Made, command: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(made, command) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {message}") and err.count("\n") == 1


def test_compare_takes_two_sides(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "one", f"store={made.store.root}"]) == 2
    assert capsys.readouterr().err.startswith("error: compare takes two sides")


def test_no_study_and_an_unknown_one(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", f"store={made.store.root}"]) == 2
    assert main(["table", "study=toi", f"store={made.store.root}"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: No study is given") and "Did you mean 'toy'?" in lines[1]


def test_a_file_that_cannot_be_written(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert run(made, f"table out={tmp_path / 'file' / 'x.md'}") == 2
    assert "x.md: Not a directory." in capsys.readouterr().err.replace("File exists", "Not a directory")


@pytest.mark.parametrize("command", ["table", "differences", "efficiency", "figures", "report", "compare"])
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert f"python -m analysis {command}" in capsys.readouterr().out.replace("table|differences|efficiency", command)


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "analysis", "--help"], capture_output=True, text=True, check=True)
    assert "python -m analysis COMMAND" in done.stdout


# --- two studies, two stores, two commits


@pytest.fixture
def other(tmp_path: Path) -> Made:
    return stores.make(tmp_path / "other", commit="fedcba9876543210", better=1)


def test_two_stores_are_compared(made: Made, other: Made, capsys: pytest.CaptureFixture[str]) -> None:
    sides = [f"toy@{each.store.root}" for each in (made, other)]
    assert main(["compare", *sides]) == 0
    out = capsys.readouterr().out
    assert COMMIT[:8] in out and "fedcba98" in out
    assert "+5.00" in out and "+10.00" in out, "one document of 20, and of 10, more"


def test_two_commits_are_compared(copy: Made, other: Made, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in stores.SEEDS:
        stage = copy.evaluation("iris", 100, seed, 2)
        copy.remove(stage)
        (other.store.root / stage).rename(copy.store.root / stage)
    sides = [f"toy@{copy.store.root}#{commit}" for commit in (COMMIT[:6], "fedcba")]
    assert main(["compare", *sides]) == 2, "nothing was computed by both"
    assert "no method, number of annotations, task and seed in common" in capsys.readouterr().err
    assert main(["compare", sides[0], f"toy@{copy.store.root}#77"]) == 2
    assert "no evaluation is of that commit. There are: 0123456789ab, fedcba987654." in capsys.readouterr().err


def test_what_one_side_alone_has_is_counted(made: Made, copy: Made, capsys: pytest.CaptureFixture[str]) -> None:
    copy.remove(copy.evaluation("iris", 100, 0, 2))
    assert main(["compare", f"toy@{made.store.root}", f"toy@{copy.store.root}"]) == 0
    out = capsys.readouterr().out
    assert "All scores are equal." in out and "one side alone has them: 3 scores" in out, "two tasks and the average"


def test_equal_studies_are_reported_equal(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *[f"toy@{made.store.root}"] * 2]) == 0
    out = capsys.readouterr().out
    assert "All scores are equal." in out and "Both were computed by the same code" in out
