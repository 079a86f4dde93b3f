"""`status`, `logs` and `cancel` on a real Slurm, for jobs that are pending, run, end and die."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from iris.store import Store, split_id
from sweeps import __main__ as command_line
from sweeps.state.records import Folder, JobRecord, Launch, Records
from sweeps.state.study_status import Experiment, StudyStatus

from .cluster import Cluster
from .daemon import wait_for

StartCluster = Callable[..., Cluster]
ROOT = Path(__file__).parents[2]
# A job as the launcher submits it, except for its work: it waits for a file.
JOB = """\
import os, sys, time
from pathlib import Path
from iris.store import Store, split_id
from sweeps.state import heartbeat
from sweeps.state.records import Folder

heartbeat._SECONDS = 0.1
folder, number, stages, work = Folder(Path(sys.argv[1])), int(sys.argv[2]), sys.argv[3].split(), sys.argv[4]
store = Store(folder.path.parents[2])
attempt = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
with heartbeat.Heartbeat(folder, number, attempt=attempt) as reports:
    progress = heartbeat.FollowedProgress(reports)
    for stage in stages:
        reports.begin(stage)
        with progress.line(stage, 4, "steps") as line:
            line.advance(2)
            while not (folder.path / "go").exists():
                time.sleep(0.05)
            if work == "fail":
                raise ValueError("loss is nan")
            if work == "die":
                os.kill(os.getpid(), 9)
            line.advance(2)
        kind, key = split_id(stage)
        with store.claim(kind, key) as claim:
            results = {"average": 0.5, "stderr": None} if kind == "evaluate" else {}
            cost = {"seconds": 36.0, "gpu_seconds": 36.0, "cpu_seconds": 36.0, "tokens": 0, "processes": 1}
            manifest = {"inputs": {}, "identity": {}, "results": results, "cost": cost, "provenance": {}}
            store.commit(kind, key, claim, manifest)
"""


@dataclass
class Study:
    """A study with jobs on a cluster."""

    cluster: Cluster
    folder: Folder
    store: Store
    jobs: list[str] = field(default_factory=list)

    def submit(self, stages: Sequence[str], work: str = "", *options: str, needs: Sequence[int] = ()) -> str:
        """Submit a job of these stages and record it as the launcher does; return its Slurm id."""
        number = len(self.jobs)
        log = f"{self.folder.logs}/%j_0_log"
        after = [f"--dependency=afterok:{':'.join(self.jobs[n] for n in needs)}"] if needs else []
        words = f"'{self.folder.path}' {number} '{' '.join(stages)}' '{work}'"
        script = f"cd '{ROOT}' && srun --quiet '{sys.executable}' '{self.folder.path}/job.py' {words}"
        own = [f"--comment={self.folder.id}", f"--output={log}.out", f"--error={log}.err", "--kill-on-invalid-dep=yes"]
        job = self.cluster.submit(script, *own, "--open-mode=append", *after, *options)
        self.jobs.append(job)
        kind = split_id(stages[-1])[0]
        self.folder.add_jobs([JobRecord(number, f"job{number}", kind, list(stages), list(needs), [], ["a"], job)])
        return job

    def look(self, name: str = "a") -> Experiment:
        """Return an experiment as it is now."""
        return next(e for e in StudyStatus(self.store).experiments("study") if e.name == name)

    def wait(self, *states: str, name: str = "a") -> Experiment:
        """Return the experiment once it is in one of these states."""
        wait_for(lambda: self.look(name).state in states, f"{name}: {' or '.join(states)}")
        return self.look(name)

    def go(self) -> None:
        """Let jobs continue."""
        (self.folder.path / "go").touch()

    def started(self, number: int = 0) -> None:
        """Wait until a job makes progress."""

        def progress() -> bool:
            state = self.folder.state(number)
            return state is not None and state.done > 0

        wait_for(progress, "progress")

    def left(self, job: str) -> None:
        """Wait until Slurm has forgotten a job but for its history."""
        wait_for(lambda: not self.cluster.run("squeue", "-h", f"--jobs={job}", "-t", "R,PD,CG"), "the job's end")


MakeStudy = Callable[..., Study]


@pytest.fixture
def make_study(tmp_path: Path) -> MakeStudy:
    """`make_study(cluster, name=stages, …)`: a study that was just launched."""

    def make(cluster: Cluster, **experiments: Any) -> Study:
        store = Store(tmp_path / "store")
        store.prepare()
        records = Records(store)
        launch = Launch("0-study", "study", "slurm", [], [], None, "", time.time(), "here", {"kind": "slurm"})
        folder = records.create(launch)
        (folder.path / "job.py").write_text(JOB)
        points = [{"name": name, "overrides": [], "stages": stages} for name, stages in experiments.items()]
        records.write_study("study", launch.id, points)
        return Study(cluster, folder, store)

    return make


def shown(study: Study, capsys: pytest.CaptureFixture[str], command: str = "status", *words: str) -> str:
    capsys.readouterr()
    assert command_line.main([command, "study=study", f"store={study.store.root}", *words]) == 0
    return capsys.readouterr().out


def test_from_pending_to_done(cluster: Cluster, make_study: MakeStudy, capsys: pytest.CaptureFixture[str]) -> None:
    study = make_study(cluster, a=["sft/s", "train/t", "evaluate/e"])
    assert study.look().state == "planned"
    first = study.submit(["sft/s"], "", "--hold")
    study.submit(["train/t", "evaluate/e"], needs=[0])
    assert (study.look().state, study.look().where) == ("queued", "sft")
    assert "waits: JobHeldUser" in shown(study, capsys)
    cluster.run("scontrol", "release", first)
    assert study.wait("running").where == "sft"
    study.started()
    assert "2/4 steps" in shown(study, capsys)
    study.go()
    assert study.wait("done").state == "done"
    assert "score 50.0" in shown(study, capsys)
    assert "3 of 3 stages done, cost so far 108 GPU-seconds" in shown(study, capsys)


def test_failed_shows_its_error_line_and_its_log(
    cluster: Cluster, make_study: MakeStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study(cluster, a=["sft/s", "train/t"])
    study.submit(["sft/s"], "fail")
    study.submit(["train/t"], needs=[0])
    study.go()
    experiment = study.wait("failed")
    assert (experiment.where, experiment.error) == ("sft", "ValueError: loss is nan")
    assert "ValueError: loss is nan" in shown(study, capsys)
    wait_for(lambda: "ValueError: loss is nan" in shown(study, capsys, "logs"), "the log")
    assert f"==> {study.folder.logs}/{study.jobs[0]}_0_log.err <==" in shown(study, capsys, "logs")
    wait_for(lambda: study.jobs[1] not in cluster.run("squeue", "-h", "-o", "%i"), "the end of what needs it")
    assert study.look().state == "failed"


@pytest.mark.parametrize("accounting", [True, False])
def test_a_killed_task_does_not_run(
    accounting: bool, cluster: Cluster, start_cluster: StartCluster, make_study: MakeStudy
) -> None:
    at = cluster if accounting else start_cluster(nodes=1, accounting=False)
    study = make_study(at, a=["sft/s"])
    job = study.submit(["sft/s"], "die")
    study.started()
    assert study.look().state == "running"
    study.go()
    study.left(job)
    experiment = study.look()
    assert experiment.state == "failed"
    assert "vanished: killed before it could record an error" in experiment.error and "Killed" in experiment.error


@pytest.mark.parametrize("accounting", [True, False])
def test_scancel_by_hand_is_cancelled(
    accounting: bool, cluster: Cluster, start_cluster: StartCluster, make_study: MakeStudy
) -> None:
    at = cluster if accounting else start_cluster(nodes=1, accounting=False)
    study = make_study(at, a=["sft/s"], b=["sft/t"])
    runs, waits = study.submit(["sft/s"]), study.submit(["sft/t"], "", "--hold")
    study.started()
    at.run("scancel", runs, waits)
    for job in (runs, waits):
        study.left(job)
    assert [study.look("a").state, study.look("b").state] == ["cancelled", "cancelled"]


def test_a_crashed_node_is_not_shown_as_running(start_cluster: StartCluster, make_study: MakeStudy) -> None:
    cluster = start_cluster(nodes=2)
    study = make_study(cluster, a=["sft/s"], b=["sft/t"])
    stays = study.submit(["sft/s"], "", "--no-requeue", "--nodelist=node1")
    study.submit(["sft/t"], "", "--requeue", "--nodelist=node2")
    study.started(0)
    study.started(1)
    for node in (1, 2):
        cluster.kill_node(node)
        cluster.down(node)  # as when Slurm notices
    assert study.wait("preempted", name="b").job is not None
    study.left(stays)
    assert study.look("a").state == "failed"
    wait_for(lambda: "its node failed" in study.look("a").error, "Slurm's accounting")


def test_cancel_leaves_a_shared_job(
    cluster: Cluster, make_study: MakeStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study(cluster, a=["sft/s", "train/a"], b=["sft/s", "train/b"])
    study.submit(["sft/s"])
    study.submit(["train/a"], needs=[0])
    study.submit(["train/b"], needs=[0])
    study.started()
    out = shown(study, capsys, "cancel", "a")
    assert "cancelled 1 job of a" in out and "left: sft job0, which is also for b" in out
    study.left(study.jobs[1])
    assert [study.look("a").state, study.look("b").state] == ["cancelled", "running"]
    study.go()
    assert study.wait("done", name="b").state == "done"
    assert study.look("a").state == "cancelled"


def test_without_a_controller_no_job_is_shown_as_running(
    start_cluster: StartCluster, make_study: MakeStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = start_cluster(nodes=1, accounting=False, extra=("MessageTimeout=5",))
    study = make_study(cluster, a=["sft/s"])
    study.submit(["sft/s"])
    study.started()
    cluster.kill_controller()
    out = shown(study, capsys)
    assert "1 unknown" in out and "squeue" in out
