"""The report: which trials are best, ties, and two objectives."""

from collections.abc import Sequence
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from iris.store import Store
from sweeps.search.file import Search
from sweeps.search.report import write_report
from sweeps.study.declare import points
from sweeps.study.file import load_study

SEARCH = Search("s", ("seed=0",), (), trials=4)
RECORD = {"rungs": [], "path": [], "whole": "evaluate/none", "facts": {}}


def report(folder: Path, search: Search, values: Sequence[Sequence[float]]) -> str:
    """Write the report on trials with these values and on one that was pruned."""
    study = optuna.create_study(directions=["maximize", "minimize"][: len(values[0])])
    for n, own in enumerate(values):
        facts = {"stages": RECORD, "overrides": [f"schedule.levels=[{n}]"]}
        study.add_trial(optuna.trial.create_trial(values=own, user_attrs=facts))
    if len(values[0]) == 1:
        facts = {"stages": RECORD, "overrides": ["schedule.levels=[9]"]}
        study.add_trial(optuna.trial.create_trial(state=TrialState.PRUNED, user_attrs=facts))
    return "\n".join(write_report(search, study, Store(folder / "store"), folder, folder))


def launched(folder: Path) -> list[str]:
    """Return the α of the experiments in the study of the best trials."""
    return [point.overrides[1].partition("=")[2] for point in points(load_study(str(folder / "s-best.yaml")))]


@pytest.fixture(autouse=True)
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.search.plots.write_plots", lambda *_: [])


def test_the_best_trial_and_its_equals(tmp_path: Path) -> None:
    text = report(tmp_path, SEARCH, [[0.25], [0.5], [0.5], [0.125]])
    assert "best trial 1: 0.5000 average  schedule.levels=[1]" in text and "equal to it: trial 2" in text
    assert launched(tmp_path) == ["[1]"]


def test_equal_trials_have_no_best_one(tmp_path: Path) -> None:
    assert "best trial 0: 0.5000 average" in report(tmp_path, SEARCH, [[0.5]])
    text = report(tmp_path, SEARCH, [[0.5], [0.5], [0.5]])
    assert "all 3 complete trials are equal (0.5000 average): none is the best" in text and "best trial" not in text
    assert not (tmp_path / "s-best.yaml").exists(), "nor the one of an earlier report"


def test_two_objectives_have_a_front(tmp_path: Path) -> None:
    values = [[0.5, 3.0], [0.25, 1.0], [0.25, 2.0], [0.5, 3.0], [0.75, 4.0]]
    lines = report(tmp_path, Search("s", ("seed=0",), (), cost="gpu_hours"), values).splitlines()
    shown = [line.partition(":")[0] for line in lines if "gpu_hours" in line]
    assert shown == ["best trial 4", "and  trial 0", "and  trial 1"] and "equal to it: trial 3" in lines
    assert launched(tmp_path) == ["[4]", "[0]", "[1]"]


def test_no_trial_is_complete(tmp_path: Path) -> None:
    study = optuna.create_study()
    facts = {"stages": RECORD, "overrides": []}
    study.add_trial(optuna.trial.create_trial(state=TrialState.PRUNED, user_attrs=facts))
    assert "no trial is complete yet" in write_report(SEARCH, study, Store(tmp_path / "store"), tmp_path, tmp_path)
