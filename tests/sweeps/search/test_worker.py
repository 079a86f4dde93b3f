"""Workers of a search: on this machine with kills, of several processes, stopped and started again."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from optuna.trial import TrialState

from iris import compose, run
from iris.execution import interruption
from iris.execution.interruption import Interrupted
from iris.store import split_id
from sweeps import __main__ as command
from sweeps.launch import dispatch
from sweeps.launch.dispatch import Batch
from sweeps.launch.launchers import load_launcher
from sweeps.search.launch import Request, submit
from sweeps.search.lease import held
from sweeps.search.optuna_study import STORAGE
from sweeps.search.trial_queue import valid
from sweeps.state.job_status import JobStatuses
from sweeps.state.records import INTERRUPTED, RUNNING, Records
from tests.sweeps.search_tiny import search, session, stored, write_search


@pytest.fixture(autouse=True)
def no_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STORAGE, "")


def wait_for_end(path: Path) -> None:
    deadline = time.monotonic() + 1500  # only against hanging
    records = Records(session(path).store)
    while any(launch.held("scheduler") for launch in records.launches()):
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.2)


def living(path: Path) -> dict[int, str]:
    """Return the running workers' processes and the stage each is in."""
    found = {}
    for folder in Records(session(path).store).launches():
        for job in folder.jobs():
            state = folder.state(job.job)
            if state and state.state == RUNNING and folder.held(str(job.job)):
                found[state.pid] = state.stage
    return found


def test_thirty_trials_with_four_workers_and_random_kills(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_search(tmp_path, trials=30)
    assert search(path, "launcher=local", "workers=4") == 0
    assert "4 local workers of search mine for 30 trials" in capsys.readouterr().out
    assert search(path, "launcher=local", "workers=4") == 0
    assert "nothing to do: search mine has the workers it needs" in capsys.readouterr().out
    assert command.main(["status", "study=search-mine", f"store={tmp_path}/store"]) == 0, "before there is a trial"
    dice, kills, deadline = random.Random(0), 0, time.monotonic() + 1500  # only against hanging
    records = Records(session(path).store)
    (launch,) = records.launches()
    while launch.held("scheduler") and time.monotonic() < deadline:
        time.sleep(dice.random())
        processes = living(path)
        if processes and kills < 9:
            os.kill(dice.choice(list(processes)), signal.SIGKILL)
            kills += 1
    wait_for_end(path)
    assert kills >= 5
    assert len(records.launches()) == 1, "no worker was started twice"
    assert not any(job.status.live for job in JobStatuses(session(path).store).all())

    trials = session(path).study().trials
    counted = [trial for trial in trials if valid(trial)]
    assert len(counted) == 30 and len({tuple(t.params.values()) for t in counted}) == 30
    assert not [t for t in trials if t.state in (TrialState.RUNNING, TrialState.WAITING)]
    assert not [t for t in trials if t.state == TrialState.FAIL and "duplicate_of" not in t.user_attrs]
    # No stage has been computed twice: a second one would have taken the place of the first, or have been set aside.
    assert not list((tmp_path / "store" / ".corrupt").glob("*"))
    assert not [p for p in (tmp_path / "store").glob("*/.new-*") if p.is_dir() and any(p.iterdir())]
    assert (tmp_path / "outputs" / "search-mine" / "mine-best.yaml").exists(), "the last worker has written the report"
    costs = json.loads((tmp_path / "outputs" / "search-mine" / "costs.json").read_text())
    assert costs["trials"] == 30 and costs["executed"] < costs["whole"] / 2

    # The best one has the score of an undisturbed run of its experiment.
    base = yaml.safe_load((tmp_path / "outputs" / "search-mine" / "mine-best.yaml").read_text())["base"]
    lines = run.run(compose.load([*base, f"store={tmp_path}/other", f"output={tmp_path}/other"]))
    assert lines[-1].score == min(t.values[0] for t in counted if t.state == TrialState.COMPLETE)


def one_worker(path: Path) -> Batch:
    """Submit one worker, without starting it."""
    found = session(path)
    found.declare()
    config = compose.load([*found.search.base, "schedule.levels=[1]"])
    batch = submit(found, Request(load_launcher("inline"), 1, config, [], []))
    assert batch is not None
    return batch


def test_a_worker_that_is_told_to_stop_leaves_its_trial_to_the_next(tmp_path: Path) -> None:
    path = write_search(tmp_path, trials=2)
    batch = one_worker(path)
    folder, work = batch.folder, batch.work(0)
    heartbeat, stops = work.heartbeat(), []

    def begin(stage: str) -> None:
        if stage.startswith("train") and not stops:
            stops.append(stage)
            interruption.request()

    heartbeat.begin = begin  # type: ignore[method-assign]
    try:
        with pytest.raises(Interrupted), heartbeat:
            work.run(heartbeat)
    finally:
        interruption.clear()
    state = folder.state(0)
    assert state is not None and state.state == INTERRUPTED
    (trial,) = session(path).study().trials
    assert trial.state == TrialState.RUNNING and not held(session(path).folder, 0)
    before = stored(tmp_path)
    dispatch.run(batch)
    after = session(path).study().trials
    assert [t.number for t in after if valid(t)] == [0, 1] and after[0].params == trial.params
    assert before.items() <= stored(tmp_path).items(), "finished stages are kept"


TWO = """
import sys
from iris import compose
from sweeps.search.worker import SearchWork

store, launch, output = sys.argv[1:]
execution = compose.load(["method=iris", "execution.device=cpu"]).execution  # with its tracker
work = SearchWork(store, launch, 0, (), execution, output, "mine")
with work.heartbeat() as heartbeat:
    work.run(heartbeat)
"""


def test_the_verdict_reaches_every_process(tmp_path: Path) -> None:
    path = write_search(tmp_path, trials=4)
    folder = one_worker(path).folder
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-c", TWO, str(tmp_path / "store"), folder.id, str(tmp_path / "outputs")]
    common = os.environ | {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    both = [
        subprocess.Popen(command, env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=900)[1].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    trials = [trial for trial in session(path).study().trials if valid(trial)]
    assert len(trials) == 4 and TrialState.PRUNED in [trial.state for trial in trials]
    assert "pruned" in errors[0] and "trial" not in errors[1], "one of them prints"
    for name in stored(tmp_path):
        if name.startswith("train/"):
            assert session(path).store.get(*split_id(name)).manifest["cost"]["processes"] == 2
