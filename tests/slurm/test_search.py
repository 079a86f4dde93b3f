"""A search on a real Slurm: workers wait for the stages that all trials share, and die without losing a trial."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from optuna.trial import TrialState

from sweeps.search.optuna_study import STORAGE
from sweeps.search.trial_queue import valid
from sweeps.state.job_status import JobStatuses
from sweeps.state.records import FAILED, RUNNING, Folder, Records

from ..sweeps.search_tiny import search, session, stored, write_search
from .cluster import Cluster
from .daemon import wait_for

SLURM = ("launcher=slurm", "launcher.resources.cpus=1", "launcher.resources.gpus=0")


@pytest.fixture(autouse=True)
def no_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove an address that other tests left in the environment."""
    monkeypatch.setenv(STORAGE, "")


def live(path: Path) -> int:
    """Return the number of live jobs of the search."""
    return sum(job.status.live for job in JobStatuses(session(path).store).all())


def workers(folder: Folder) -> list[int]:
    """Return the processes of running workers, on the nodes of this machine."""
    states = [folder.state(job.job) for job in folder.jobs() if job.kind == "search"]
    return [state.pid for state in states if state and state.state == RUNNING and Path(f"/proc/{state.pid}").exists()]


def test_a_search_loses_workers_and_no_trial(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_search(tmp_path, trials=20)
    assert search(path, *SLURM, "workers=16") == 0
    (folder,) = Records(session(path).store).launches()
    jobs = folder.jobs()
    assert [job.kind for job in jobs] == ["score", *["search"] * 16]
    assert jobs[0].stages[0].startswith("base/") and any(stage.startswith("sft/") for stage in jobs[0].stages)
    assert {job.slurm for job in jobs} == set(cluster.jobs()), "one job and one array, and the terminal may close"
    assert search(path, *SLURM, "workers=16") == 0
    assert "nothing to do" in capsys.readouterr().out

    dice, kills, deadline = random.Random(0), 0, time.monotonic() + 1500  # only against hanging
    while live(path):
        assert time.monotonic() < deadline
        time.sleep(0.5)
        if kills < 8 and len(running := workers(folder)) > 1:
            os.kill(dice.choice(running), signal.SIGKILL)
            kills += 1
            time.sleep(1)
    assert kills == 8
    states = [job.status.state for job in JobStatuses(session(path).store).all()]
    assert states.count(FAILED) == 8, "killed workers do not count as done"

    trials = session(path).study().trials
    counted = [trial for trial in trials if valid(trial)]
    assert len(counted) == 20 and len({tuple(t.params.values()) for t in counted}) == 20
    assert not [t for t in trials if t.state == TrialState.RUNNING]
    assert (tmp_path / "outputs" / "search-mine" / "mine-best.yaml").exists()
    before = stored(tmp_path)
    assert search(path, *SLURM) == 0
    assert "20 of 20 trials" in capsys.readouterr().out and stored(tmp_path) == before


def test_a_preempted_worker_comes_back_to_its_trial(cluster: Cluster, tmp_path: Path) -> None:
    path = write_search(tmp_path, {"execution.checkpoint_minutes": 0.0}, trials=2)
    assert search(path, *SLURM) == 0
    (folder,) = Records(session(path).store).launches()
    wait_for(lambda: workers(folder) and session(path).study().trials, "the first trial")
    worker = next(str(job.slurm) for job in folder.jobs() if job.kind == "search")
    cluster.run("scontrol", "requeue", worker)
    cluster.again(worker)
    wait_for(lambda: not live(path), "the search", 900)
    trials = session(path).study().trials
    assert sum(map(valid, trials)) == 2 and not [t for t in trials if t.state == TrialState.FAIL]
