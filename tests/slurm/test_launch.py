"""Launches on a real Slurm: the jobs submitted, their results, and second launches."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from iris import compose
from iris.errors import UserError
from iris.store import Store
from sweeps.launch.launchers import Launcher, load_launcher
from sweeps.launch.submit import Request, launch
from sweeps.state.job_status import BLOCKED, JobStatuses
from sweeps.state.records import DONE, FAILED, RUNNING, Folder, Records
from sweeps.study.plan import Plan

from ..sweeps.tiny import files, tiny_plan, write_study
from .cluster import Cluster
from .daemon import wait_for

StartCluster = Callable[..., Cluster]
TWO = {"method": ["spin", "iris"]}
HELD = "resources.sbatch.hold=true"  # jobs that stay pending
CHEAP = {"method": "sft", "iterations": 0}  # base, data and sft in one job


def slurm(*changes: str) -> Launcher:
    return load_launcher("slurm", ["resources.cpus=1", *changes])


def statuses(store: Store) -> list[str]:
    """Return the states of the jobs of all launches."""
    return [job.status.state for job in JobStatuses(store).all()]


def ended(store: Store) -> bool:
    return not {"queued", "running", "preempted", "stalled"} & set(statuses(store))


def errors(folder: Folder) -> dict[str, str]:
    return {job.name: state.error for job in folder.jobs() if (state := folder.state(job.job)) and state.error}


def test_a_study_runs_and_gives_the_files_of_a_run_in_this_process(cluster: Cluster, tmp_path: Path) -> None:
    plan, store = tiny_plan(tmp_path, grid=TWO)
    report = launch(Request(plan), slurm(HELD), store)
    assert report.folder and len(report.jobs) == 7
    jobs = {job.job: job for job in report.folder.jobs()}
    assert {job.slurm for job in jobs.values()} == set(cluster.jobs())
    assert [jobs[n].needs for n in range(7)] == [[], [0], [0], [0], [0], [3], [4]]
    arrays = Counter(str(job.slurm).partition("_")[0] for job in jobs.values())
    assert sorted(arrays.values()) == [1, 2, 2, 2], "one shared job, its two evaluations, two iterations, theirs"
    assert statuses(store) == ["queued"] * 7

    twice = launch(Request(plan), slurm(), store)
    assert twice.jobs == [] and twice.folder is None and len(twice.found.live) == 12
    cluster.run("scontrol", "release", ",".join(cluster.jobs()))
    wait_for(lambda: ended(store), "the study", 900)
    assert statuses(store) == [DONE] * 7, errors(report.folder)
    assert launch(Request(plan), slurm(), store).cached == 12
    wait_for(lambda: not cluster.run("squeue", "-h"), "the last processes to leave")

    other = {"store": str(tmp_path / "other"), "output": str(tmp_path / "other")}
    same, _ = tiny_plan(tmp_path, grid=TWO, base=other)
    assert launch(Request(same), load_launcher("inline"), Store(tmp_path / "other")).failures == 0
    assert files(store) == files(Store(tmp_path / "other"))


def test_two_nodes_of_two_gpus_train_together(cluster: Cluster, tmp_path: Path) -> None:
    plan, store = tiny_plan(tmp_path, without=["evaluate"], base={"method": "iris"})
    launch(Request(plan), slurm("resources.nodes=2", "resources.gpus=2"), store)
    (job,) = Records(store).launches()[0].jobs()
    wait_for(lambda: cluster.jobs()[str(job.slurm)].node == "node[1-2]", "two nodes")
    wait_for(lambda: ended(store), "the job")
    assert statuses(store) == [DONE], errors(Records(store).launches()[0])
    for kind in ("sft", "train", "score", "generate"):
        for path in store.root.glob(f"{kind}/*/manifest.json"):
            shard = re.search(r"-\d{4}-", path.parent.name)
            assert json.loads(path.read_text())["cost"]["processes"] == (1 if shard else 4)
    logs = Records(store).launches()[0].logs
    assert len(list(logs.glob(f"{job.slurm}_*_log.err"))) == 4


# --- what is submitted

MANY = {"grid": TWO, "seeds": list(range(10)), "base": {"iterations": 2}}


def recorded(store: Store) -> list[str]:
    """Return the Slurm ids of all recorded jobs."""
    return [str(job.slurm) for folder in Records(store).launches() for job in folder.jobs()]


def test_arrays_are_split_where_the_cluster_wants_them_smaller(start_cluster: StartCluster, tmp_path: Path) -> None:
    cluster = start_cluster(nodes=1, accounting=False, max_array=4)
    plan, store = tiny_plan(tmp_path, **MANY)
    launch(Request(plan), slurm(HELD), store)
    assert sorted(recorded(store)) == sorted(cluster.jobs()), "each once"
    sizes = Counter(job.partition("_")[0] for job in recorded(store))
    assert max(sizes.values()) == 4 and sum(sizes.values()) == 10 * (1 + 2 + 2 * 2 * 2)
    for folder in Records(store).launches():
        jobs = folder.jobs()
        for job in jobs:
            waits = cluster.run("squeue", "-h", "-r", "-o", "%E", "-j", str(job.slurm)).strip()
            found = {re.sub(r"\(.*\)", "", part.partition(":")[2]) for part in waits.split(",") if ":" in part}
            needed = {str(jobs[n].slurm) for n in job.needs}
            assert found == needed or {f"{name}_*" for name in {n.partition("_")[0] for n in needed}} == found, waits


def launching(study: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start the command as a process."""
    command = [sys.executable, "-m", "sweeps", "launch", f"study={study}", "launcher=slurm", f"launcher.{HELD}"]
    pipe = subprocess.PIPE
    return subprocess.Popen([*command, *arguments], stdout=pipe, stderr=pipe, text=True, cwd=Path(__file__).parents[2])


def test_a_killed_launcher_leaves_nothing_behind(cluster: Cluster, tmp_path: Path) -> None:
    study = write_study(tmp_path, **MANY)
    one_by_one = "launcher.max_parallel=5"
    first = launching(study, one_by_one)
    wait_for(lambda: len(cluster.jobs()) > 9, "some of the jobs")
    first.kill()
    first.communicate()
    store = Store(tmp_path / "store")
    (folder,) = Records(store).launches()
    before = len(cluster.jobs())
    assert 9 < before < 110
    # The kill may hit between Slurm's answer and our record: make sure that it did.
    jobs = folder.path / "jobs.jsonl"
    jobs.write_text("".join(jobs.read_text().splitlines(keepends=True)[:-1]) + '{"job": 7, "na')
    again = launching(study, one_by_one)
    _, output = again.communicate()
    assert again.returncode == 0, output
    wait_for(lambda: len(waiting(cluster)) == 110, "the cancelled job to leave")
    assert sorted(set(recorded(store)) & waiting(cluster)) == sorted(waiting(cluster))
    live = [s for folder in Records(store).launches() for job in folder.jobs() for s in job.stages]
    assert len(live) == len(set(live)), "each stage once"


def waiting(cluster: Cluster) -> set[str]:
    return {job.id for job in cluster.jobs().values() if job.state == "PENDING"}


def test_two_launches_at_once_submit_each_job_once(cluster: Cluster, tmp_path: Path) -> None:
    study = write_study(tmp_path, **MANY)
    both = [launching(study), launching(study)]
    output = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], output
    store = Store(tmp_path / "store")
    assert sorted(recorded(store)) == sorted(waiting(cluster)) and len(waiting(cluster)) == 110
    assert len(Records(store).launches()) == 1
    assert sorted("nothing to do" in out for out, _ in output) == [False, True]


def test_what_left_the_study_is_cancelled_when_asked(cluster: Cluster, tmp_path: Path) -> None:
    def plan(name: str, methods: list[str]) -> Request:
        sections = {"grid": {"method": methods}, "base": {"store": str(tmp_path / "store")}}
        write_study(tmp_path)
        made, _ = tiny_plan(tmp_path, **sections)
        made.study = name
        return Request(made, cancel_orphans=True)

    store = Store(tmp_path / "store")
    launch(plan("first", ["sft", "spin", "iris"]), slurm(HELD), store)
    launch(plan("second", ["spin"]), slurm(HELD), store)
    assert len(waiting(cluster)) == 1 + 2 + 1 + 2 + 2 * 2, "the second study adds nothing"
    smaller = plan("first", ["iris"])
    report = launch(Request(smaller.plan), slurm(HELD), store)
    assert (report.orphans, report.cancelled) == (2, False), "what spin needs is needed by the second study"
    report = launch(smaller, slurm(HELD), store)
    assert (report.orphans, report.cancelled) == (2, True)
    left = {job.name for folder in Records(store).launches() for job in folder.jobs() if job.slurm in waiting(cluster)}
    shared = {"tiny", "sums-20-tiny-s0-sft", "sums-20-tiny-s0-sft-y0"}
    assert left == shared | {"spin-sums-20-tiny-s0-t1", "iris-sums-20-tiny-s0-t1"}
    assert launch(smaller, slurm(HELD), store).jobs == []
    back = launch(plan("first", ["sft", "spin", "iris"]), slurm(HELD), store)
    assert [job.name for job in back.jobs] == ["sft-sums-20-tiny-s0-t1"] * 2, "what was cancelled is missing again"


def test_what_a_job_asks_for(cluster: Cluster, tmp_path: Path) -> None:
    plan, store = tiny_plan(tmp_path, without=["evaluate"], base={"method": "iris"})
    settings = ["nodes=2", "gpus=2", "cpus=3", "memory=1G", "minutes=90", "partition=high", "sbatch.nice=5"]
    launcher = slurm(HELD, *(f"resources.{s}" for s in settings), "stages.sft={gres: 'gpu:1', gpus: 1, nodes: 1}")
    launch(Request(plan), launcher, store)
    first, sft, last = (cluster.run("scontrol", "show", "job", job) for job in recorded(store))
    for text in (first, last):
        assert re.search(r"NumNodes=2\S* ", text) and "ReqTRES" not in text
        for wanted in ("NumTasks=4", "CPUs/Task=3", "MinMemoryNode=1G", "TimeLimit=01:30:00", "Partition=high"):
            assert wanted in text, text
        assert "TresPerNode=gres:gpu:2" in text and "Nice=5" in text and "Requeue=1" in text
    assert "TresPerNode=gres:gpu:1" in sft and "NumTasks=1" in sft


def test_what_slurm_refuses_is_one_line_and_the_rest_is_submitted_later(cluster: Cluster, tmp_path: Path) -> None:
    plan, store = tiny_plan(tmp_path, grid=TWO)
    refused = (
        r"^Slurm rejected the submission: Batch job submission failed: Invalid partition name specified\. Earlier .*\.$"
    )
    with pytest.raises(UserError, match=refused):
        launch(Request(plan), slurm(HELD, "stages.evaluate.partition=nowhere"), store)
    assert sorted(recorded(store)) == sorted(waiting(cluster)) and 0 < len(waiting(cluster)) < 7
    launch(Request(plan), slurm(HELD), store)
    assert sorted(recorded(store)) == sorted(waiting(cluster)) and len(waiting(cluster)) == 7


def test_no_slurm_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, store = tiny_plan(tmp_path, base=CHEAP)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"squeue: no such program here.*launcher=local"):
        launch(Request(plan), slurm(), store)


# --- what runs


def test_an_edit_after_the_launch_does_not_reach_its_jobs(cluster: Cluster, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for package in ("iris", "sweeps"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(Path(find_spec(package).origin).parent, tree / package, ignore=ignored)  # type: ignore[union-attr, arg-type]
    shutil.copytree(compose.conf_dir(), tree / "conf")
    study = write_study(tmp_path, base=CHEAP)
    command = ["launch", f"study={study}", "launcher=slurm", "launcher.resources.cpus=1", f"launcher.{HELD}"]
    environment = os.environ | {"PYTHONPATH": str(tree)}
    done = subprocess.run(
        [sys.executable, "-m", "sweeps", *command], cwd=tree, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for package in ("iris", "sweeps"):
        (tree / package / "__init__.py").write_text("raise SystemExit('this is the edited code')\n")
    store = Store(tmp_path / "store")
    (folder,) = Records(store).launches()
    cluster.run("scontrol", "release", str(folder.jobs()[0].slurm))
    wait_for(lambda: folder.state(0) and statuses(store)[0] != RUNNING, "the job")
    assert statuses(store)[0] == DONE, errors(folder)
    (manifest,) = (json.loads(path.read_text()) for path in store.root.glob("sft/*/manifest.json"))
    assert manifest["provenance"]["code"] == json.loads((Path(folder.launch.code) / "iris/code.json").read_text())
    assert Path(folder.launch.code).parent == store.root / ".sweeps" / "code"


def test_a_failure_in_an_array_stops_only_what_needs_it(cluster: Cluster, tmp_path: Path) -> None:
    wild = {"if": {"method": "spin"}, "set": {"train.learning_rate": 1e30, "train.max_grad_norm": 1e6}}
    plan, store = tiny_plan(tmp_path, without=["evaluate"], grid=TWO, when=[wild], base={"iterations": 2})
    launch(Request(plan), slurm(), store)
    (folder,) = Records(store).launches()
    assert len({str(job.slurm).partition("_")[0] for job in folder.jobs()}) == 3, "an array for each iteration"
    wait_for(lambda: ended(store), "the study", 900)
    found = dict(zip([job.name for job in folder.jobs()], statuses(store), strict=True))
    name = "sums-20-tiny-s0"
    assert found == {
        f"{name}-sft": DONE,
        f"spin-{name}-t1": FAILED,
        f"iris-{name}-t1": DONE,
        f"spin-{name}-t2": BLOCKED,
        f"iris-{name}-t2": DONE,
    }
    assert re.match(r"The loss of step \d/2 is", errors(folder)[f"spin-{name}-t1"])


def test_no_more_jobs_at_once_than_allowed(cluster: Cluster, tmp_path: Path) -> None:
    def plan(seeds: list[int]) -> Plan:
        return tiny_plan(tmp_path, without=["evaluate"], base=CHEAP, seeds=seeds)[0]

    launcher, store = slurm("max_parallel=2"), Store(tmp_path / "store")
    launch(Request(plan([0])), launcher, store)
    launch(Request(plan([0, 1, 2, 3])), launcher, store)
    assert len(cluster.jobs()) == 4
    most = 0
    while not ended(store):
        most = max(most, len([job for job in cluster.jobs().values() if job.state == "RUNNING"]))
        time.sleep(0.2)
    assert most == 2 and set(statuses(store)) == {DONE}
