"""Optuna's side: every sampler and pruner by its name, the journal, databases, and passwords that nobody sees."""

import multiprocessing
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from iris.errors import UserError
from sweeps.search import journal
from sweeps.search.file import Search
from sweeps.search.optuna_study import (
    PRUNERS,
    SAMPLERS,
    hidden,
    make_pruner,
    make_sampler,
    open_storage,
    open_study,
    shown,
)
from sweeps.search.space import read_space, suggest

SPACE = read_space({"a": {"low": 0, "high": 1, "step": 0.25, "per": "iteration"}, "b": [1, 2]}, "space")
SEARCH = Search("s", (), SPACE)


def play(search: Search, storage: optuna.storages.BaseStorage, trials: int, rungs: int = 3) -> optuna.Study:
    """Trials whose score is the mean of their values so far."""
    study = open_study(search, storage, make_sampler(search, 1), make_pruner(search, rungs))
    for _ in range(trials):
        trial = study.ask()
        values = suggest(search.space, trial, rungs)["a"]
        for step in range(1, rungs + 1):
            if search.cost is None:
                trial.report(sum(values[:step]) / step, step)
                if trial.should_prune():
                    study.tell(trial, state=TrialState.PRUNED)
                    break
        else:
            study.tell(trial, [sum(values) / rungs] + ([1.0] if search.cost else []))
    return study


@pytest.mark.parametrize("pruner", PRUNERS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_works_with_every_pruner(sampler: str, pruner: str, tmp_path: Path) -> None:
    search = replace(SEARCH, sampler={"name": sampler}, pruner={"name": pruner})
    trials = play(search, open_storage(tmp_path, None), 12).trials
    states = [trial.state for trial in trials]
    assert set(states) <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert (TrialState.PRUNED in states) == (pruner != "none")
    assert len({tuple(trial.params.values()) for trial in trials}) > 6


def test_the_shipped_pruner_keeps_a_third_of_a_rung(tmp_path: Path) -> None:
    study = play(replace(SEARCH, sampler={"name": "random"}), open_storage(tmp_path, None), 60)
    stopped = [trial.last_step for trial in study.trials if trial.state == TrialState.PRUNED]
    assert set(stopped) == {1, 3}, "rungs of one and of three iterations"
    assert 15 < stopped.count(1) < 45


def test_a_grid_is_complete_and_needs_steps(tmp_path: Path) -> None:
    space = read_space({"a": {"low": 0, "high": 1, "step": 0.5, "per": "iteration"}}, "space")
    search = replace(SEARCH, space=space, sampler={"name": "grid"}, pruner={"name": "none"})
    trials = play(search, open_storage(tmp_path, None), 9, rungs=2).trials
    assert len({tuple(trial.params.values()) for trial in trials}) == 9
    free = read_space({"a": {"low": 0, "high": 1}}, "space")
    with pytest.raises(UserError, match=r"sampler=grid: a has no step"):
        make_sampler(replace(search, space=free), 0)


def test_workers_draw_differently_and_one_alone_the_same_again(tmp_path: Path) -> None:
    def first(seed: int, name: str) -> dict[str, Any]:
        search = replace(SEARCH, name=name)
        study = open_study(search, open_storage(tmp_path, None), make_sampler(search, seed), make_pruner(search, 1))
        return suggest(search.space, study.ask(), 4)

    assert first(1, "one") == first(1, "two") != first(2, "three")


def test_two_objectives(tmp_path: Path) -> None:
    search = replace(SEARCH, cost="gpu_hours", pruner={"name": "none"}, sampler={"name": "nsga2"})
    study = play(search, open_storage(tmp_path, None), 5)
    assert [d.name for d in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    with pytest.raises(UserError, match="other objectives"):
        open_study(replace(search, cost=None), study._storage, make_sampler(search, 0), make_pruner(search, 1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": {"name": "tpee"}}, "sampler=tpee: choose one of tpe, cmaes.*Did you mean 'tpe'"),
        ({"sampler": {"name": "tpe", "startup": 3}}, "sampler=tpe: startup: no such key.*n_startup_trials"),
        ({"sampler": {"name": "nsga2", "population_size": 1}}, "sampler=nsga2: .*population_size"),
        ({"pruner": {"name": "hyper"}}, "pruner=hyper: choose one of .*Did you mean 'hyperband'"),
        ({"pruner": {"name": "asha", "factor": 2}}, "pruner=asha: factor: no such key.*reduction_factor"),
        ({"pruner": {"name": "asha", "reduction_factor": 1}}, "pruner=asha: .*reduction_factor >= 2"),
    ],
)
def test_a_mistaken_sampler_or_pruner_is_told(changes: dict[str, Any], message: str) -> None:
    search = replace(SEARCH, **changes)
    with pytest.raises(UserError, match=message):
        make_sampler(search, 0)
        make_pruner(search, 3)


# --- where trials are kept


def test_a_line_that_a_killed_worker_left_unfinished_does_no_harm(tmp_path: Path) -> None:
    study = play(SEARCH, open_storage(tmp_path, None), 3)
    with (tmp_path / journal.NAME).open("ab") as file:
        file.write(b'{"op_code":4,"worker_id":"x","stu')
    assert len(play(SEARCH, open_storage(tmp_path, None), 2).trials) == 5
    assert len(study.trials) == 5, "a reader that was there before sees them too"


def _write(folder: Path) -> None:
    study = optuna.load_study(study_name="s", storage=open_storage(folder, None))
    while True:
        study.ask()


def test_writers_that_are_killed_hold_up_nobody(tmp_path: Path) -> None:
    play(SEARCH, open_storage(tmp_path, None), 1)
    context, dice = multiprocessing.get_context("fork"), random.Random(0)
    for _ in range(2):
        writers = [context.Process(target=_write, args=(tmp_path,)) for _ in range(3)]
        for writer in writers:
            writer.start()
        size = (tmp_path / journal.NAME).stat().st_size
        while (tmp_path / journal.NAME).stat().st_size < size + 2000:
            time.sleep(0.05)
        time.sleep(dice.random() / 5)
        for writer in writers:
            assert writer.pid is not None
            os.kill(writer.pid, signal.SIGKILL)
            writer.join()
        started = time.monotonic()
        study = play(SEARCH, open_storage(tmp_path, None), 1)
        assert time.monotonic() - started < 20, "Optuna's own locks wait for half a minute"
        assert [t.number for t in study.trials] == list(range(len(study.trials)))


def test_a_database_can_keep_the_trials(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'trials.db'}"
    play(SEARCH, open_storage(tmp_path / "unused", url), 3)
    assert len(play(SEARCH, open_storage(tmp_path / "unused", url), 1).trials) == 4
    assert not (tmp_path / "unused").exists()


SECRET = "postgresql://anna:s3cret@db.lan/trials?sslpassword=hush"


def test_a_password_is_not_shown() -> None:
    assert shown(SECRET) == "postgresql://anna:…@db.lan/trials?…"
    assert shown("sqlite:////tmp/a.db") == "sqlite:////tmp/a.db"
    text = hidden(f"cannot reach {SECRET} as anna with s3cret or hush", SECRET)
    assert "s3cret" not in text and "hush" not in text and "as anna" in text


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (SECRET, "anna:…@db.lan/trials?… needs a driver that is not installed: pip install psycopg2-binary"),
        ("mysql://anna:s3cret@db.lan/x", "pip install mysqlclient"),
        ("oracul://anna:s3cret@db.lan/x", "cannot be opened: NoSuchModuleError"),
        ("sqlite:////no/such/folder/s3cret.db", "cannot be opened: OperationalError"),
    ],
)
def test_a_database_that_cannot_be_had_is_told_without_its_password(url: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        open_storage(tmp_path, url)
    assert message in str(error.value)
    assert ":s3cret" not in str(error.value) and "hush" not in str(error.value)
