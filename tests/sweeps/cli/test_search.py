"""Searches from the command line: inline, rerun, with failed trials, with two objectives, and with mistakes."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from optuna.trial import TrialState

from iris.store import split_id
from sweeps.search.optuna_study import STORAGE
from sweeps.search.trial_queue import valid
from sweeps.study.declare import points
from sweeps.study.experiments import compose_all
from sweeps.study.file import load_study
from sweeps.study.plan import make_plan
from tests.sweeps.search_tiny import search, session, stored, write_search

PICTURES = ("history.png", "importance.png", "pareto.png", "rungs.png", "slice.png")
OUTPUT = (*PICTURES, "mine-best.yaml", "costs.json", "report.md", "trials.csv")


@pytest.fixture(autouse=True)
def no_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the address of a database that a command left in the environment for its workers."""
    monkeypatch.setenv(STORAGE, "")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run a search of six trials to its end."""
    path = write_search(tmp_path_factory.mktemp("finished"))
    assert search(path, "launcher=inline") == 0
    return path


def test_a_search_ends_with_a_report_and_a_study_to_launch(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = finished.parent / "outputs" / "search-mine"
    assert {path.name for path in folder.iterdir()} == set(OUTPUT)
    assert search(finished, "--report") == 0
    output = capsys.readouterr().out
    trials = session(finished).study().trials
    counted = [trial for trial in trials if valid(trial)]
    assert len(counted) == 6 and "6 of 6 trials" in output
    best = min((t for t in counted if t.state == TrialState.COMPLETE), key=lambda t: t.values[0])
    assert f"best trial {best.number}: {best.values[0]:.4f} average" in output
    costs = json.loads((folder / "costs.json").read_text())
    assert 0 < costs["executed"] < costs["whole"]
    for line in ("run whole", "supervised stage once", "share once", "left out by pruning", "executed"):
        assert line in output and line in (folder / "report.md").read_text()

    (experiment,) = compose_all(points(load_study(str(folder / "mine-best.yaml"))))
    plan = make_plan([experiment], session(finished).store)
    left = {stage.id for stage in plan.missing}
    assert all(name.startswith("evaluate/") for name in left), "only evaluations that the search has not needed"
    assert experiment.chain.rows[-1].evaluate.id not in left
    assert best.user_attrs["overrides"][0] in yaml.safe_load((folder / "mine-best.yaml").read_text())["base"]


def test_pruned_trials_run_no_further(finished: Path) -> None:
    done = stored(finished.parent)
    trials = [trial for trial in session(finished).study().trials if valid(trial)]
    ran: set[str] = set()
    for trial in trials:
        record = trial.user_attrs["stages"]
        reached = record["rungs"][: trial.last_step]
        own = {name for rung in reached for name in (*rung["stages"], rung["part"])}
        ran |= own | ({record["whole"]} if trial.state == TrialState.COMPLETE else set())
        assert trial.last_step == (2 if trial.state == TrialState.COMPLETE else trial.last_step)
    assert TrialState.PRUNED in [trial.state for trial in trials]
    shards = {name for name in done if split_id(name)[0] in ("generate", "score")} - ran
    assert set(done) - shards == ran, "nothing else"


def test_the_same_command_again_does_nothing(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = stored(finished.parent)
    assert search(finished, "launcher=inline") == 0
    assert "6 of 6 trials" in capsys.readouterr().out
    assert stored(finished.parent) == before and len(session(finished).study().trials) >= 6


def test_more_trials_go_on_where_the_search_ended(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = session(finished).study().trials
    assert search(finished, "launcher=inline", "trials=7", "sampler=random") == 0
    assert "7 of 7 trials" in capsys.readouterr().out
    after = session(finished).study().trials
    assert [t.params for t in after[: len(before)]] == [t.params for t in before]


def test_a_report_needs_the_name_and_the_store_alone(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search(finished, "--report", "seed=9", "trials=99", "space.schedule.levels=null", "sampler=tp") == 0
    assert capsys.readouterr().out.startswith("search mine: ")
    path = write_search(tmp_path, trials=1)
    session(path, "name=other", "seed=1", "trials=3", "method.loss.scale=0.2").declare()
    assert search(path, "--report", "name=other") == 0
    assert capsys.readouterr().out == "search other: 0 of 3 trials\n"
    monkeypatch.setenv(STORAGE, f"sqlite:///{tmp_path}/another.db")
    assert search(path, "--report", "name=other") == 0, "its trials are in a journal"
    capsys.readouterr()
    assert search(path, "--report", "name=othr") == 2
    assert "Searches there: other" in capsys.readouterr().err


def test_a_damaged_journal_is_reported(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = session(finished).folder / "journal.log"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b"\n" + whole[:20])
    try:
        assert search(finished, "--report") == 0
    finally:
        journal.write_bytes(whole)
    output = capsys.readouterr().out
    assert f"{journal}: an unfinished record at its end, 1 blank lines" in output and "best trial" in output


def test_a_search_cannot_become_another(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for word, what in (("seed=1", "base"), ("share=0.5", "share"), ("space.schedule.levels.high=1.25", "space")):
        assert search(finished, "launcher=inline", word) == 2
        assert f"started with another {what}" in capsys.readouterr().err
    assert search(finished, "launcher=inline", f"storage=sqlite:///{finished.parent}/t.db") == 2
    assert "keeps its trials in a journal in the store" in capsys.readouterr().err


def test_status_shows_the_trials(finished: Path) -> None:
    from sweeps.state.records import Records

    store = session(finished).store
    study = Records(store).study("search-mine")
    assert study is not None
    states = {point["name"]: point.get("state", "done") for point in study["points"]}
    trials = [trial for trial in session(finished).study().trials if valid(trial)]
    expected = {f"trial-{t.number}": "pruned" if t.state == TrialState.PRUNED else "done" for t in trials}
    assert states == expected
    for point in study["points"]:
        if states[point["name"]] == "done":
            assert all(map(store.has, point["stages"]))
            assert [(row[0], row[-1]) for row in point["rows"]] == [("t=1", True), ("t=2", True), ("t=2", False)]
            evaluated = [point["stages"][row[3]] for row in point["rows"]]
            assert evaluated == [stage for stage in point["stages"] if stage.startswith("evaluate/")]


def test_a_trial_that_cannot_work_fails_alone(tmp_path: Path) -> None:
    space = {"train.learning_rate": [0.01, 1e30], "method.loss.scale": [0.1, 0.2]}
    base = {"iterations": 1, "schedule": "constant", "train.learning_rate": None}
    path = write_search(tmp_path, base, space=space, trials=4, sampler={"name": "grid"}, pruner="none")
    assert search(path, "launcher=inline") == 0
    trials = [trial for trial in session(path).study().trials if "duplicate_of" not in trial.user_attrs]
    states = {(t.params["train.learning_rate"], t.params["method.loss.scale"]): t.state for t in trials}
    expected = {0.01: TrialState.COMPLETE, 1e30: TrialState.FAIL}
    assert states == {(rate, scale): expected[rate] for rate in (0.01, 1e30) for scale in (0.1, 0.2)}, "the whole space"
    errors = [t.user_attrs["error"] for t in trials if t.state == TrialState.FAIL]
    assert all("train.learning_rate=1e+30" in error and "gradient norm nan" in error for error in errors), errors


def test_two_objectives_and_a_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(STORAGE, f"sqlite:///{tmp_path}/trials.db")
    space = {"iterations": {"type": "int", "low": 0, "high": 2}}
    base = {"iterations": None, "schedule": "constant"}
    path = write_search(tmp_path, base, space=space, cost="cpu_hours", pruner="none")
    assert search(path, "launcher=inline", "trials=3", "sampler=nsga2") == 0
    trials = sorted((t for t in session(path).study().trials if valid(t)), key=lambda t: t.params["iterations"])
    store = session(path).store
    for iterations, trial in enumerate(trials):
        trained = [name for name in trial.user_attrs["stages"]["path"] if name.startswith(("sft/", "train/"))]
        costs = [store.get(*split_id(name)).manifest["cost"]["cpu_seconds"] / 3600 for name in trained]
        assert len(costs) == 1 + iterations
        assert trial.values[1] > sum(costs), "what it costs by itself, whoever has paid for it"
    assert not any(trial.intermediate_values for trial in trials)
    assert not [name for name in stored(tmp_path) if "-part-" in name], "no rungs"
    assert "3 of 3 trials" in capsys.readouterr().out
    assert points(load_study(str(tmp_path / "outputs" / "search-mine" / "mine-best.yaml")))
    assert (tmp_path / "trials.db").exists() and not list(tmp_path.rglob("journal.log"))


def test_a_database_is_named_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_search(tmp_path, trials=1)
    word = "storage=postgresql://anna:s3cret@localhost/trials"
    monkeypatch.setattr(sys, "argv", ["sweeps", "search", word])
    assert search(path, "launcher=inline", word) == 2
    assert sys.argv[-1] == "storage=postgresql://anna:…@localhost/trials"
    error = capsys.readouterr().err
    assert "psycopg2" in error and "s3cret" not in error
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert written and not [file for file in written if b"s3cret" in file.read_bytes()]


MISTAKES: list[tuple[list[str], str]] = [
    ([], "No launcher is given: launcher=slurm, launcher=local or launcher=inline"),
    (["launcher=inlin"], "Did you mean 'inline'"),
    (["launcher=inline", "workers=2"], "launcher=inline is one worker; use launcher=local"),
    (["launcher=local", "workers=0"], "workers=0: expected a whole number of at least 1"),
    (
        ["launcher=inline", "worker=2"],
        "worker: .*Did you mean 'workers'",
    ),
    (
        ["launcher=inline", "trails=3"],
        "trails: neither the search nor the configuration has such a key. Did you mean 'trials'",
    ),
    (["launcher=inline", "data.sise=1k"], "data.sise: the configuration has no such key. Did you mean 'data.size'"),
    (["launcher=inline", "sampler=tp"], "sampler=tp: choose one of tpe"),
    (["launcher=inline", "pruner=ash"], "pruner=ash: choose one of asha"),
    (["launcher=inline", "objective=gsm8k"], "evaluate.tasks does not lead to a task 'gsm8k'.*average, tiny_texts"),
    (["launcher=inline", "storage=here"], "storage=here: expected an address"),
    (["launcher=inline", "space.train.optimizer=[adamw,adm]"], "train.optimizer=adm.*choose one of adamw, rmsprop"),
    (["launcher=inline", "method=spin"], r"schedule.levels makes no difference to these experiments \(method=spin\)"),
    (["launcher=inline", "--reprot"], "no such flag.*Did you mean '--report'"),
    (["--report", "name=other"], "search other was never started on the store"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_a_mistake_is_told_before_anything_is_spent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    import re

    assert search(write_search(tmp_path), *words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and re.search(message, error, re.DOTALL), error
    assert not list((tmp_path / "store").glob("[!.]*/*/manifest.json"))


def test_help_needs_neither_torch_nor_optuna(capsys: pytest.CaptureFixture[str]) -> None:
    import subprocess

    code = "import sys; from sweeps.__main__ import main; main(['search', '--help']); "
    code += "sys.exit(bool({'torch', 'optuna', 'pandas'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)
