"""How jobs stand while things happen between one look and the next: no state is wrong, not even for a moment."""

import dataclasses
import fcntl
import time
from collections.abc import Callable, Iterable, Mapping

import pytest

from sweeps.state import slurm_cli
from sweeps.state.job_status import JobStatus, JobStatuses
from sweeps.state.records import Folder, JobRecord
from sweeps.state.slurm_cli import Queued
from tests.sweeps.by_hand import ByHand, failed, running

Happening = Callable[[], object]
Asked = Callable[[Mapping[str, str], Happening, Happening], JobStatuses]
STAGES = ["sft/s"]


@pytest.fixture
def folder(hand: ByHand) -> Folder:
    return hand.launch("study", [{"stages": STAGES, "slurm": "7"}], launcher="slurm")


@pytest.fixture
def asked(hand: ByHand, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """`asked(jobs, before, after)`: statuses for which squeue lists jobs, between two events."""

    def make(jobs: Mapping[str, str], before: Happening, after: Happening) -> JobStatuses:
        def squeue(_: Iterable[int]) -> Mapping[str, Queued]:
            before()
            found = {job: Queued(job, state, "", "", "", "") for job, state in jobs.items()}
            after()
            return found

        monkeypatch.setattr(slurm_cli, "squeue", squeue)
        return JobStatuses(hand.store)

    return make


def stands(statuses: JobStatuses, folder: Folder, n: int = 0) -> JobStatus:
    return statuses.of(*statuses.jobs[f"{folder.id}/{n}"]).status


def nothing() -> None:
    pass


def test_a_job_that_fails_just_before_the_look_at_the_queue_says_why(asked: Asked, folder: Folder) -> None:
    folder.write_state(0, running("sft/s"))
    found = stands(asked({}, lambda: folder.write_state(0, failed("sft/s", "no luck")), nothing), folder)
    assert (found.state, found.error) == ("failed", "no luck")


def test_a_job_that_begins_just_after_the_look_at_the_queue_is_not_preempted(asked: Asked, folder: Folder) -> None:
    def begin() -> None:
        folder.write_state(0, running("sft/s", seconds_ago=-0.1))

    assert stands(asked({"7": "PENDING"}, nothing, begin), folder).state == "running"


def test_a_job_that_was_requeued_is_preempted(asked: Asked, folder: Folder) -> None:
    folder.write_state(0, running("sft/s"))
    assert stands(asked({"7": "PENDING"}, nothing, nothing), folder).state == "preempted"
    folder.write_state(0, dataclasses.replace(running("sft/s"), state="interrupted", time=time.time() + 1))
    assert stands(asked({"7": "PENDING"}, nothing, nothing), folder).state == "preempted"


def test_a_job_that_is_submitted_after_the_look_at_the_queue_has_not_left(asked: Asked, folder: Folder) -> None:
    late = JobRecord(1, "late", "train", ["train/t"], [], [], [], "8")
    statuses = asked({"7": "PENDING"}, nothing, lambda: folder.add_jobs([late]))
    assert stands(statuses, folder).state == "queued"
    assert [job.job for _, job in statuses.jobs.values()] == [0], "it is not there yet"


def test_jobs_are_queued_while_their_scheduler_starts(hand: ByHand) -> None:
    folder = hand.launch("study", [{"stages": STAGES}])
    with folder.lock("launcher").acquire(timeout=0):
        assert stands(JobStatuses(hand.store), folder).state == "queued"
    assert stands(JobStatuses(hand.store), folder).state == "blocked"


def test_who_looks_whether_a_lock_is_held_does_not_hold_it(
    hand: ByHand, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with folder.lock("0").acquire(timeout=0):
        assert folder.held("0")
    original, seen = fcntl.flock, []

    def flock(file: int, operation: int) -> None:
        original(file, operation)
        if not seen:
            seen.append(True)
            seen.append(folder.held("0"))  # by another one, meanwhile

    monkeypatch.setattr(fcntl, "flock", flock)
    assert not folder.held("0")
    assert seen == [True, False]
