"""Faults of a cluster: time limits, preemption, kills. Each study ends with the files of an undisturbed one."""

import json
import os
import re
import resource
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from iris.config import Execution
from iris.errors import UserError
from iris.store import Store
from sweeps.launch.launchers import Launcher, load_launcher
from sweeps.launch.slurm_job import Requeue, SlurmJob
from sweeps.launch.submit import Request, launch
from sweeps.launch.worker import Work
from sweeps.state.job_status import BLOCKED, PREEMPTED, VANISHED, JobStatus, JobStatuses
from sweeps.state.records import CANCELLED, DONE, FAILED, INTERRUPTED, RUNNING, JobRecord, Records, State
from sweeps.study.plan import Plan

from ..sweeps.tiny import files, tiny_plan
from .cluster import Cluster
from .daemon import alive, wait_for

StartCluster = Callable[..., Cluster]
Files = Mapping[tuple[str, str], dict[str, str]]
# Some seconds of steps in one job, with a checkpoint after each step, so that a fault hits it between two of them.
SLOW = {"method": "sft", "iterations": 0, "train.sft.epochs": 150, "execution.checkpoint_minutes": 0.0}


def slurm(*changes: str) -> Launcher:
    return load_launcher("slurm", ["resources.cpus=1", "resources.gpus=0", *changes])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Return the files of the slow stage without a fault."""
    plan, store = slow_plan(tmp_path_factory.mktemp("undisturbed"))
    assert launch(Request(plan), load_launcher("inline"), store).failures == 0
    return files(store)


def slow_plan(folder: Path, **base: Any) -> tuple[Plan, Store]:
    return tiny_plan(folder, without=["evaluate"], base=SLOW | base)


def steps(store: Store) -> int:
    """Return the checkpointed steps of the slow stage."""
    found = list(store.root.glob("sft/.work-*/checkpoint-*"))
    return max((int(path.name.rpartition("-")[2]) for path in found), default=0)


def job(store: Store, number: int = 0) -> JobRecord:
    """Return a job of the newest launch."""
    return next(job for job in Records(store).launches()[-1].jobs() if job.job == number)


def status(store: Store, number: int = 0) -> JobStatus:
    return JobStatuses(store).of(Records(store).launches()[-1], job(store, number)).status


def last_state(store: Store, number: int = 0) -> State:
    """Return its last recorded state."""
    state = Records(store).launches()[-1].state(number)
    assert state is not None
    return state


def log(store: Store) -> str:
    return "".join(path.read_text() for path in sorted(Records(store).launches()[-1].logs.glob("*_log.err")))


def at_step(store: Store, more: int = 3) -> int:
    """Wait until the slow stage has made some more steps."""
    before = steps(store)
    wait_for(lambda: steps(store) >= before + more, "steps")
    return steps(store)


def continues(store: Store, before: int) -> None:
    """Wait until the second run of a job makes progress, and check that it starts where the first one was."""
    seen = set()

    def progresses() -> bool:
        seen.add(steps(store) or before)  # none: it has finished
        return last_state(store).attempt == 1 and (max(seen) > before or status(store).state == DONE)

    wait_for(progresses, "the next run to continue")
    assert min(seen) >= before


def finish(store: Store, undisturbed: Files) -> None:
    wait_for(lambda: status(store).state == DONE, "the end")
    assert files(store) == undisturbed


def skip_the_wait(cluster: Cluster, store: Store) -> None:
    """Start a requeued job now, and not when its old credential has expired."""
    cluster.again(str(job(store).slurm))


# --- signals


def test_a_signalled_job_requeues_and_continues_as_often_as_needed(
    cluster: Cluster, tmp_path: Path, undisturbed: Files
) -> None:
    plan, store = slow_plan(tmp_path)
    launch(Request(plan), slurm(), store)
    for restarts in range(3):
        before = at_step(store)
        cluster.run("scancel", "--signal=USR2", str(job(store).slurm))
        wait_for(lambda: last_state(store).state == INTERRUPTED, "the checkpoint")
        assert status(store).state in (RUNNING, PREEMPTED), "it waits, or still leaves"
        assert steps(store) >= before
        cluster.wait(str(job(store).slurm), "PENDING")
        assert status(store).state == PREEMPTED
        assert launch(Request(plan), slurm(), store).jobs == [], "it is as good as queued"
        skip_the_wait(cluster, store)
        wait_for(lambda n=restarts: last_state(store).attempt == n + 1, "the next run")
    finish(store, undisturbed)
    assert len(re.findall(r"INFO iris: start sft", log(store))) == 4


def test_processes_of_several_nodes_stop_and_continue_together(cluster: Cluster, tmp_path: Path) -> None:
    plan, store = slow_plan(tmp_path, **{"train.sft.epochs": 40})
    launch(Request(plan), slurm("resources.nodes=2", "resources.gpus=1"), store)
    before = at_step(store)
    cluster.run("scancel", "--signal=USR2", str(job(store).slurm))
    wait_for(lambda: last_state(store).state == INTERRUPTED, "the checkpoint")
    assert steps(store) >= before
    skip_the_wait(cluster, store)
    continues(store, before)
    wait_for(lambda: status(store).state == DONE, "the end")
    assert len(re.findall(r"INFO iris: start sft", log(store))) == 2 * 2
    (manifest,) = (json.loads(path.read_text()) for path in store.root.glob("sft/*/manifest.json"))
    assert manifest["cost"]["processes"] == 2 and manifest["results"]["steps"] == 100


def test_preemption_without_notice(cluster: Cluster, tmp_path: Path, undisturbed: Files) -> None:
    plan, store = slow_plan(tmp_path)
    launch(Request(plan), slurm("resources.sbatch.nodelist=node1", "resources.sbatch.exclusive=true"), store)
    before = at_step(store)
    other = cluster.submit(":", "--nodelist=node1", "--partition=high", "--exclusive")
    cluster.wait(other, "COMPLETED")
    wait_for(lambda: status(store).state == PREEMPTED, "the preempted job to wait")
    assert last_state(store).state == INTERRUPTED, "SIGTERM came first, and there was time for a checkpoint"
    assert log(store).count("Job is pending execution") < 2, "it has left, and not asked for what Slurm had done"
    skip_the_wait(cluster, store)
    continues(store, before)
    finish(store, undisturbed)


def test_preemption_with_notice(start_cluster: StartCluster, tmp_path: Path, undisturbed: Files) -> None:
    cluster = start_cluster(nodes=1, accounting=False, grace=600)
    plan, store = slow_plan(tmp_path)
    launch(Request(plan), slurm("resources.sbatch.exclusive=true"), store)
    before = at_step(store)
    other = cluster.submit(":", "--partition=high", "--exclusive")
    cluster.wait(other, "COMPLETED")  # the job has left by itself, before the notice is over
    assert last_state(store).state == INTERRUPTED and steps(store) >= before
    skip_the_wait(cluster, store)
    finish(store, undisturbed)


def test_a_real_time_limit(cluster: Cluster, tmp_path: Path) -> None:
    """Slurm gives notice of it up to a minute early: a limit of three minutes is then as good as reached."""
    plan, store = slow_plan(tmp_path, **{"train.sft.epochs": 1500})
    launch(Request(plan), slurm("signal_seconds=150"), store)
    before = at_step(store)
    cluster.run("scontrol", "update", f"JobId={job(store).slurm}", "TimeLimit=3")
    wait_for(lambda: last_state(store).state == INTERRUPTED, "the time limit")
    assert steps(store) >= before
    skip_the_wait(cluster, store)
    continues(store, before)


def test_a_stage_that_cannot_stop_in_time_starts_again(cluster: Cluster, tmp_path: Path, undisturbed: Files) -> None:
    plan, store = slow_plan(tmp_path)
    launch(Request(plan), slurm("signal_seconds=2"), store)
    wait_for(
        lambda: Records(store).launches()[-1].state(0), "the start"
    )  # torch is imported first, which takes seconds
    cluster.run("scancel", "--signal=USR2", str(job(store).slurm))
    wait_for(lambda: last_state(store).state == INTERRUPTED, "the requeue")
    skip_the_wait(cluster, store)
    wait_for(lambda: last_state(store).attempt == 1, "the next run")
    finish(store, undisturbed)


def test_a_job_without_progress_fails_in_the_end(tmp_path: Path) -> None:
    """The second run in a row that keeps nothing until its time limit is the last one."""
    folder = Records(Store(tmp_path)).folder("launch")
    for run, status in ((1, 0), (2, 1)):
        child = os.fork()
        if not child:
            signal.signal(signal.SIGUSR2, lambda *_: os._exit(0))  # in place of submitit's handler, which requeues
            try:
                work = Work(str(tmp_path), "launch", 0, (), Execution(), str(tmp_path))
                with work.heartbeat(run) as heartbeat:
                    heartbeat.begin("evaluate/some-key")
                    Requeue(SlurmJob(work, minutes=0, notice=1, fruitless=run - 1), heartbeat).announce()
                    time.sleep(300)
            finally:
                os._exit(3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == status
        last = folder.state(0)
        assert last and (last.state, last.attempt) == ({0: INTERRUPTED, 1: FAILED}[status], run)
    assert re.match("evaluate/some-key makes no progress: .* Raise launcher.stages.evaluate.minutes.", last.error)


# --- kills

CHAIN = {"iterations": 1, "train.epochs": 1}  # a second job, for the training that needs what the first one leaves
PARTED = "stages.train.gpus=1"


def test_a_killed_task_fails_its_job_and_retry_continues(cluster: Cluster, tmp_path: Path) -> None:
    plan, store = slow_plan(tmp_path, **CHAIN)
    launch(Request(plan), slurm(PARTED), store)
    before = at_step(store)
    os.kill(last_state(store).pid, signal.SIGKILL)
    wait_for(lambda: status(store).state == FAILED, "the end of the job")
    assert status(store).error.startswith(VANISHED)
    wait_for(lambda: status(store, 1).state == BLOCKED, "Slurm to cancel what needs it")
    assert waiting_or_running(cluster) == set()

    report = launch(Request(plan), slurm(PARTED), store)
    assert report.jobs == [] and report.found.behind == {n for n in plan.stages if n.startswith("train/")}
    assert report.found.failed.keys() == {n for n in plan.stages if n.startswith("sft/")}
    assert len(launch(Request(plan, retry=True), slurm(PARTED), store).jobs) == 2
    wait_for(lambda: steps(store) > before and "start sft" in log(store), "the next run to continue")
    wait_for(lambda: status(store, 1).state == DONE, "the end")
    wait_for(lambda: not waiting_or_running(cluster), "the last process to leave")


def waiting_or_running(cluster: Cluster) -> set[str]:
    return {job.id for job in cluster.jobs().values() if job.state in ("PENDING", "RUNNING")}


def test_scancel_from_outside(cluster: Cluster, tmp_path: Path, undisturbed: Files) -> None:
    plan, store = slow_plan(tmp_path)
    launch(Request(plan), slurm(), store)
    before = at_step(store)
    cluster.run("scancel", str(job(store).slurm))
    wait_for(lambda: not status(store).live, "the end of the job")
    assert status(store).state == CANCELLED and last_state(store).state == INTERRUPTED and steps(store) >= before
    assert len(launch(Request(plan), slurm(), store).jobs) == 1, "as good as never submitted"
    finish(store, undisturbed)


def test_a_job_that_dies_before_it_starts(cluster: Cluster, tmp_path: Path) -> None:
    plan, store = slow_plan(tmp_path, **CHAIN)
    launch(Request(plan), slurm(PARTED, "setup=['echo the module is not there >&2', 'exit 3']"), store)
    wait_for(lambda: status(store).state == FAILED, "the end of the job")
    assert status(store).error == f"{VANISHED} (the module is not there)"
    wait_for(lambda: status(store, 1).state == BLOCKED, "Slurm to cancel what needs it")
    assert launch(Request(plan), slurm(PARTED), store).jobs == []


def test_a_full_store_is_reported_and_the_rest_is_kept(cluster: Cluster, tmp_path: Path, undisturbed: Files) -> None:
    plan, store = slow_plan(tmp_path)
    launch(Request(plan), slurm(), store)
    before = at_step(store)
    resource.prlimit(last_state(store).pid, resource.RLIMIT_FSIZE, (2000, 2000))  # a stand-in for the end of the disk
    wait_for(lambda: status(store).state == FAILED, "the end of the job")
    assert re.match(r"The store .* (takes no file of this size|is full)", status(store).error)  # torch says less
    kept = files(store)
    assert {kind for kind, _ in kept} == {"base", "data"} and steps(store) >= before
    launch(Request(plan, retry=True), slurm(), store)
    finish(store, undisturbed)


def test_a_node_that_crashes(start_cluster: StartCluster, tmp_path: Path, undisturbed: Files) -> None:
    cluster = start_cluster(nodes=2, accounting=False)
    plan, store = slow_plan(tmp_path)
    launch(Request(plan), slurm(), store)
    before = at_step(store)
    node = cluster.at(str(job(store).slurm))
    cluster.kill_node(node)
    assert status(store).state == RUNNING, "Slurm does not know yet"
    cluster.down(node)  # as when it notices
    cluster.wait(str(job(store).slurm), "PENDING")
    assert (status(store).state, last_state(store).state) == (PREEMPTED, RUNNING), "it could not say"
    skip_the_wait(cluster, store)
    continues(store, before)
    finish(store, undisturbed)


def test_the_controller_dies_while_jobs_run(start_cluster: StartCluster, tmp_path: Path, undisturbed: Files) -> None:
    cluster = start_cluster(nodes=1, accounting=False, extra=("MessageTimeout=5",))
    plan, store = slow_plan(tmp_path)
    launch(Request(plan), slurm(), store)
    at_step(store)
    cluster.save()
    cluster.kill_controller()
    with pytest.raises(UserError, match=r"^squeue failed: .*"):
        launch(Request(plan), slurm(), store)
    cluster.start_controller()
    assert launch(Request(plan), slurm(), store).jobs == []
    finish(store, undisturbed)


def test_a_job_that_slurm_has_forgotten(start_cluster: StartCluster, tmp_path: Path, undisturbed: Files) -> None:
    cluster = start_cluster(nodes=1, accounting=False)
    cluster.save()
    before = Path(shutil.copytree(cluster.folder / "state", tmp_path / "state"))
    plan, store = slow_plan(tmp_path)
    launch(Request(plan), slurm("resources.sbatch.hold=true"), store)
    cluster.rewind_controller(before)  # as if it had died before it wrote the job down
    assert job(store).slurm not in cluster.jobs()
    assert not status(store).live
    assert len(launch(Request(plan), slurm(), store).jobs) == 1, "it never began"
    finish(store, undisturbed)


def test_two_copies_of_a_job(start_cluster: StartCluster, tmp_path: Path) -> None:
    """A node that Slurm has lost may still run a job that another node has started: the later copy wins."""
    cluster = start_cluster(nodes=2, accounting=False)
    plan, store = slow_plan(tmp_path, **{"train.sft.epochs": 5000})
    launch(Request(plan), slurm(), store)
    at_step(store)
    first = last_state(store).pid
    node = cluster.at(str(job(store).slurm))
    cluster.kill_node(node, crash=False)
    cluster.down(node)
    skip_the_wait(cluster, store)
    wait_for(lambda: last_state(store).attempt == 1, "the second copy")
    second = last_state(store).pid
    assert second != first and alive(first)
    wait_for(lambda: not alive(first), "the first copy to leave")
    between = steps(store)
    wait_for(lambda: steps(store) > between, "the second copy to continue")
    assert (last_state(store).pid, last_state(store).state) == (second, RUNNING)
