"""Launching on this machine, in this process and in the background: twice, again after failures, and after kills."""

import multiprocessing
import os
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from iris.errors import UserError
from iris.store import Store, split_id
from sweeps import __main__ as command
from sweeps.launch.dispatch import cancel
from sweeps.launch.launchers import Launcher, load_launcher
from sweeps.launch.submit import Report, Request, launch
from sweeps.state.job_status import BLOCKED, VANISHED, JobStatuses
from sweeps.state.records import CANCELLED, DONE, FAILED, RUNNING, Folder, Records, State
from sweeps.study.plan import Plan
from tests.sweeps.tiny import files, tiny_plan, write_study

INLINE = load_launcher("inline")
LOCAL = load_launcher("local")
TWO = {"method": ["spin", "iris"]}
SLOW = {"train.sft.epochs": 2000, "execution.checkpoint_minutes": 0.0}  # minutes of steps, a checkpoint after each


def wait_for(condition: Callable[[], object], seconds: float = 900.0) -> None:  # only against hanging
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.05)


def finished(store: Store) -> bool:
    """Return whether no job of any launch is live."""
    return not any(job.status.live for job in JobStatuses(store).all())


def run(request: Request, launcher: Launcher, store: Store) -> Report:
    """Launch, and wait for the end."""
    report = launch(request, launcher, store)
    wait_for(lambda: finished(store))
    return report


def states(folder: Folder) -> list[str]:
    found = [folder.state(job.job) for job in folder.jobs()]
    return [state.state if state else "" for state in found]


def status(store: Store, job: int = 0) -> str:
    """Return the state of a job of the newest launch."""
    folder = Records(store).launches()[-1]
    return JobStatuses(store).of(folder, folder.jobs()[job]).status.state


def last_state(store: Store, job: int = 0) -> State:
    """Return the last state of a job of the newest launch, which must have started."""
    state = Records(store).launches()[-1].state(job)
    assert state is not None
    return state


def steps(store: Store) -> int:
    """Return the checkpointed steps of the supervised stage."""
    found = list(store.root.glob("sft/.work-*/checkpoint-*"))
    return max((int(path.name.rpartition("-")[2]) for path in found), default=0)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run a study in this process; return its folder, whose store tests must not change."""
    folder = tmp_path_factory.mktemp("undisturbed")
    plan, store = tiny_plan(folder, grid=TWO)
    report = launch(Request(plan), INLINE, store)
    assert report.failures == 0 and len(report.jobs) == 7
    return folder


def copy_of(undisturbed: Path, folder: Path, *, less: Sequence[str] = ()) -> tuple[Plan, Store]:
    """Return the same study on a copy of its store, without artifacts of some kinds and without records."""
    shutil.copytree(undisturbed / "store", folder / "store", ignore=shutil.ignore_patterns(".sweeps", *less))
    found = {"data.path": str(undisturbed / "rows.jsonl"), "evaluate.include": [str(undisturbed / "tasks")]}
    return tiny_plan(folder, grid=TWO, base=found)


def test_inline_computes_every_stage_and_records_it(undisturbed: Path) -> None:
    store = Store(undisturbed / "store")
    (folder,) = Records(store).launches()
    assert states(folder) == [DONE] * 7
    assert {f"{kind}/{key}" for kind, key in files(store)} >= {s for job in folder.jobs() for s in job.stages}
    study = Records(store).study("tiny")
    assert study and [point["name"] for point in study["points"]] == ["method=spin", "method=iris"]
    assert study["launch"] == folder.id


def test_a_second_launch_submits_nothing(undisturbed: Path) -> None:
    plan, store = tiny_plan(undisturbed, grid=TWO)
    report = launch(Request(plan), INLINE, store)
    assert report.folder is None and report.jobs == [] and report.cached == len(plan.stages)
    assert len(Records(store).launches()) == 1
    study = Records(store).study("tiny")
    assert study and study["launch"] == Records(store).launches()[0].id


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = write_study(tmp_path, base={"method": "sft", "iterations": 0})
    words = ["launch", f"study={study}", "launcher=inline"]
    assert command.main(words) == 0
    out = capsys.readouterr().out
    assert "study tiny: ran 3 jobs for 5 stages\n" in out and "status study=tiny" in out
    assert command.main(words) == 0
    assert "study tiny: nothing to do, 5 stages cached\n" in capsys.readouterr().out
    for wrong, message in {
        "launcher=inlin": "choose one of inline, local, slurm",
        "study=nowhere": "choose one of",
        "--retri": "Did you mean '--retry'",
        "launcher.workres=2": "no such key",
        "seeed=1": "seeed",
    }.items():
        kept = [word for word in words if word.partition("=")[0] != wrong.partition("=")[0]]
        assert command.main([*kept, wrong]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and message in line


# --- failures


def errors(folder: Folder) -> list[str]:
    found = [folder.state(job.job) for job in folder.jobs()]
    return [state.error for state in found if state is not None and state.error]


def test_failed_stages_are_submitted_with_retry_only(tmp_path: Path) -> None:
    plan, store = tiny_plan(tmp_path, grid=TWO)
    rows = (tmp_path / "rows.jsonl").rename(tmp_path / "away.jsonl")
    first = launch(Request(plan), INLINE, store)
    assert first.failures == 1 and first.folder and states(first.folder) == [FAILED, *[""] * 6]
    (error,) = errors(first.folder)
    assert "rows.jsonl" in error

    rows.rename(tmp_path / "rows.jsonl")
    again = launch(Request(plan), INLINE, store)
    assert [job.name for job in again.jobs] == ["tiny"], "the evaluation of the base, which is there"
    assert {split_id(name)[0] for name in again.found.failed} == {"data", "sft", "generate", "score"}
    assert {status.error for status in again.found.failed.values()} == {error}
    assert {split_id(name)[0] for name in again.found.behind} == {"train", "evaluate"}

    retried = launch(Request(plan, retry=True), INLINE, store)
    assert retried.folder and states(retried.folder) == [DONE] * len(retried.jobs)
    assert launch(Request(plan), INLINE, store).jobs == []


def test_other_experiments_continue(tmp_path: Path) -> None:
    wild = {"if": {"method": "spin"}, "set": {"train.learning_rate": 1e30, "train.max_grad_norm": 1e6}}
    study = write_study(tmp_path, grid=TWO, when=[wild], base={"iterations": 2})
    assert command.main(["launch", f"study={study}", "launcher=inline"]) == 1
    (folder,) = Records(Store(tmp_path / "store")).launches()
    by_state = Counter((state, "spin" in job.name) for state, job in zip(states(folder), folder.jobs(), strict=True))
    assert by_state == {(DONE, False): 1 + 2 + 4, (FAILED, True): 1, ("", True): 3}
    (error,) = errors(folder)
    assert re.match(r"The loss of step \d/2 is .* Lower the learning rate", error)


# --- in the background


def test_a_failure_in_the_background_is_reported(tmp_path: Path) -> None:
    plan, store = tiny_plan(tmp_path, without=["evaluate"], base={"method": "sft"})
    (tmp_path / "rows.jsonl").unlink()
    report = run(Request(plan), LOCAL, store)
    assert report.folder and states(report.folder) == [FAILED]
    assert "holds no file" in errors(report.folder)[0]
    log = report.folder.logs / "0_0_log.err"
    wait_for(lambda: "UserError" in log.read_text())  # written once the state is


def test_local_gives_the_files_of_inline(undisturbed: Path, tmp_path: Path) -> None:
    plan, store = copy_of(undisturbed, tmp_path, less=["train", "evaluate"])
    report = launch(Request(plan), LOCAL, store)
    assert report.folder and {job.slurm for job in report.folder.jobs()} == {None}
    assert report.folder.held("scheduler")
    queued = launch(Request(plan), LOCAL, store)
    assert queued.jobs == [] and len(queued.found.live) == 6
    wait_for(lambda: finished(store))
    assert states(report.folder) == [DONE] * 6
    assert files(store) == files(Store(undisturbed / "store"))
    assert "start train" in (report.folder.logs / "2_0_log.err").read_text()
    left = {state.pid for n in range(6) if (state := report.folder.state(n))}
    wait_for(lambda: not any(alive(pid) for pid in left))


def test_a_job_may_be_several_processes(undisturbed: Path, tmp_path: Path) -> None:
    plan, store = copy_of(undisturbed, tmp_path, less=["train"])
    report = run(Request(plan), load_launcher("local", ["gpus=[0,1]", "resources.gpus=2"]), store)
    assert report.folder and states(report.folder) == [DONE] * 2, errors(report.folder)
    for path in store.root.glob("train/*/manifest.json"):
        assert '"processes": 2' in path.read_text()
    assert files(store).keys() == files(Store(undisturbed / "store")).keys()


def test_a_process_that_dies_takes_the_others_with_it(tmp_path: Path) -> None:
    plan, store = tiny_plan(tmp_path, without=["evaluate"], base=SLOW | {"method": "sft", "iterations": 0})
    report = launch(Request(plan), load_launcher("local", ["gpus=[0,1]", "resources.gpus=2"]), store)
    assert report.folder
    wait_for(lambda: steps(store) > 3)
    first, other = last_state(store).pid, processes_of(report.folder, "0-1")
    os.kill(other, signal.SIGKILL)
    wait_for(lambda: finished(store) and not alive(first))
    assert states(report.folder) == [FAILED] and errors(report.folder)


def processes_of(folder: Folder, lock: str) -> int:
    """Return the process that holds a lock, from /proc/locks."""
    inode = (folder.path / "state" / f"{lock}.lock").stat().st_ino
    lines = Path("/proc/locks").read_text().splitlines()
    return next(int(line.split()[4]) for line in lines if line.split()[5].endswith(f":{inode}"))


def test_gpus_that_are_not_there(undisturbed: Path, tmp_path: Path) -> None:
    plan, store = copy_of(undisturbed, tmp_path, less=["train"])
    with pytest.raises(UserError, match="gpus=3: there are only 2 GPUs here"):
        launch(Request(plan), load_launcher("local", ["gpus=[0,1]", "resources.gpus=3"]), store)
    assert Records(store).launches() == []
    assert launch(Request(plan), INLINE, store).failures == 0, "nothing of it counts as submitted"


def test_a_killed_job_fails_and_retry_continues_at_its_checkpoint(tmp_path: Path) -> None:
    plan, store = tiny_plan(tmp_path, without=["evaluate"], base=SLOW | {"method": "sft", "iterations": 0})
    launch(Request(plan), LOCAL, store)
    wait_for(lambda: steps(store) > 5)
    assert status(store) == RUNNING
    os.kill(last_state(store).pid, signal.SIGKILL)
    wait_for(lambda: status(store) == FAILED)
    assert last_state(store).error == "killed by SIGKILL"
    before = steps(store)
    assert launch(Request(plan), LOCAL, store).jobs == []
    launch(Request(plan, retry=True), LOCAL, store)
    wait_for(lambda: steps(store) > before)
    assert last_state(store).stage.startswith("sft/")

    folder = Records(store).launches()[-1]
    cancel([JobStatuses(store).of(folder, folder.jobs()[0])])
    wait_for(lambda: not folder.held("0") and not folder.held("scheduler"))
    assert status(store) == CANCELLED
    kept = steps(store)
    assert len(launch(Request(plan), LOCAL, store).jobs) == 1, "what was cancelled is submitted again"
    wait_for(lambda: steps(store) > kept)
    folder = Records(store).launches()[-1]
    cancel([JobStatuses(store).of(folder, folder.jobs()[0])])
    wait_for(lambda: finished(store) and not Records(store).launches()[-1].held("0"))


def test_a_killed_scheduler_leaves_its_jobs_and_the_next_launch_the_rest(undisturbed: Path, tmp_path: Path) -> None:
    plan, store = copy_of(undisturbed, tmp_path, less=["train", "evaluate"])
    one = load_launcher("local", ["workers=1"])
    report = launch(Request(plan), one, store)
    assert report.folder
    wait_for(lambda: RUNNING in states(report.folder))
    scheduler = int((report.folder.logs / "scheduler.log").read_text().split()[1])
    os.kill(scheduler, signal.SIGKILL)
    wait_for(lambda: finished(store))
    found = Counter(job.status.state for job in JobStatuses(store).all())
    assert found[BLOCKED] >= 1 and found[DONE] == 6 - found[BLOCKED]
    again = run(Request(plan), one, store)
    assert len(again.jobs) == found[BLOCKED]
    assert files(store) == files(Store(undisturbed / "store"))


def test_a_killed_launch_in_this_process(tmp_path: Path) -> None:
    plan, store = tiny_plan(tmp_path, without=["evaluate"], base=SLOW | {"method": "sft", "iterations": 0})
    process = multiprocessing.get_context("forkserver").Process(target=launch, args=(Request(plan), INLINE, store))
    process.start()
    wait_for(lambda: steps(store) > 5)
    assert status(store) == RUNNING
    assert launch(Request(plan), INLINE, store).found.live
    process.kill()
    process.join()
    assert status(store) == FAILED and last_state(store).state == RUNNING
    (error,) = {s.error for s in launch(Request(plan), INLINE, store).found.failed.values()}
    assert error == VANISHED
