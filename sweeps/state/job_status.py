"""The status of submitted jobs: recorded states checked against the queue, so that no dead job counts as running."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from iris.errors import UserError
from iris.store import Store
from sweeps.state import slurm_cli
from sweeps.state.exit_reason import ExitReasons
from sweeps.state.records import CANCELLED, DONE, ENDED, INTERRUPTED, QUEUED, RUNNING, Folder, JobRecord, Records, State
from sweeps.state.slurm_cli import Queued

PREEMPTED, STALLED, BLOCKED, UNKNOWN = "preempted", "stalled", "blocked", "unknown"  # unknown: squeue fails
LIVE = (RUNNING, STALLED, UNKNOWN, PREEMPTED, QUEUED)
STALE = 120.0  # seconds without a heartbeat after which a running job counts as stalled
VANISHED = "vanished: killed before it could record an error"
STOPPED = "stopped from outside, after a checkpoint"
NEVER_STARTED = "never started: what it needs has failed, or left the queue"
_PENDING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT")


@dataclass(frozen=True)
class JobStatus:
    """A job's state: one of LIVE, `done`, `failed`, `cancelled`, or `blocked` (it never started)."""

    state: str
    error: str = ""  # the last line
    reason: str = ""  # Slurm's reason for a pending job
    last: State | None = None

    @property
    def live(self) -> bool:
        return self.state in LIVE


@dataclass(frozen=True)
class Submitted:
    """A job of a launch and its status; `id` is `launch/n`."""

    folder: Folder
    record: JobRecord
    status: JobStatus

    @property
    def id(self) -> str:
        return f"{self.folder.id}/{self.record.job}"


class JobStatuses:
    """The status of every job of a store at one moment. Calls squeue once, and only if some job may be in it.

    With `tolerant`, jobs have the state UNKNOWN where squeue fails, and `squeue_error` says why; otherwise the
    UserError is raised.
    """

    def __init__(self, store: Store, exit_reasons: ExitReasons | None = None, *, tolerant: bool = False) -> None:
        self.store, self.records, self.tolerant = store, Records(store), tolerant
        self.squeue_error = ""
        self._exit_reasons = exit_reasons or ExitReasons()
        self._found: dict[str, Submitted] = {}
        self._schedulers: dict[str, bool] = {}
        self._asked = 0.0  # unix seconds of the call of squeue

    @cached_property
    def jobs(self) -> dict[str, tuple[Folder, JobRecord]]:
        """All submitted jobs by `launch/n`, the oldest first."""
        return {f"{folder.id}/{job.job}": (folder, job) for folder in self.records.launches() for job in folder.jobs()}

    @cached_property
    def queue(self) -> Mapping[str, Queued]:
        """The jobs in squeue of all users who have launched on this store."""
        # Read the records first: a job that is submitted after the call is not in its answer.
        users = {folder.launch.user for folder, _ in self.jobs.values()}
        self._asked = time.time()
        try:
            return slurm_cli.squeue(users)
        except UserError as error:
            if not self.tolerant:
                raise
            self.squeue_error = str(error)
            return {}

    def all(self) -> list[Submitted]:
        """Return every job of the store, the oldest first."""
        return [self.of(folder, job) for folder, job in self.jobs.values()]

    def launched_for(self, study: str) -> list[tuple[Folder, JobRecord]]:
        """Return the jobs that were launched for a study, the oldest first."""
        return [(folder, job) for folder, job in self.jobs.values() if folder.launch.study == study]

    def holders(self, stage: str) -> list[tuple[Folder, JobRecord]]:
        """Return the jobs that hold a stage (kind/key), the newest first."""
        return self._holders.get(stage, [])

    def newest(self, stage: str) -> Submitted | None:
        """Return the live job that holds a stage, or else the newest one."""
        newest = None
        for folder, job in self.holders(stage):
            found = self.of(folder, job)
            if found.status.live:
                return found
            newest = newest or found
        return newest

    def of(self, folder: Folder, job: JobRecord) -> Submitted:
        name = f"{folder.id}/{job.job}"
        if name not in self._found:
            self._found[name] = Submitted(folder, job, self._status(folder, job))
        return self._found[name]

    @cached_property
    def _holders(self) -> dict[str, list[tuple[Folder, JobRecord]]]:
        holders: dict[str, list[tuple[Folder, JobRecord]]] = {}
        for folder, job in reversed(self.jobs.values()):
            for stage in job.stages:
                holders.setdefault(stage, []).append((folder, job))
        return holders

    def _status(self, folder: Folder, job: JobRecord) -> JobStatus:
        last, place = folder.state(job.job), ""
        if last is None or last.state not in (DONE, CANCELLED):
            place = self._in_slurm(job.slurm) if job.slurm else self._here(folder, job.job)
            before, last = last, folder.state(job.job)  # again: a job that has left by now has recorded its end
            if place == QUEUED and last and last.state == RUNNING:
                started = last.time > self._asked if job.slurm else before is None  # since the first look
                place = RUNNING if started else QUEUED
        ended = last is not None and last.state in ENDED
        if self.squeue_error and job.slurm and not ended:
            return JobStatus(UNKNOWN, last=last)
        if place == RUNNING and not ended:  # an ended one may still be leaving
            return _running(last)
        if place == QUEUED and (job.slurm or not ended):  # even a failed one, requeued by hand
            reason = self.queue[job.slurm].reason if job.slurm else ""
            return JobStatus(PREEMPTED if last else QUEUED, reason=reason, last=last)
        return self._ended(folder, job, last)

    def _in_slurm(self, job: str) -> str:
        queued = self.queue.get(job)
        return "" if queued is None else QUEUED if queued.state in _PENDING else RUNNING

    def _here(self, folder: Folder, job: int) -> str:
        if folder.id not in self._schedulers:
            self._schedulers[folder.id] = folder.held("launcher") or folder.held("scheduler")
        return RUNNING if folder.held(str(job)) else QUEUED if self._schedulers[folder.id] else ""

    def _ended(self, folder: Folder, job: JobRecord, last: State | None) -> JobStatus:
        if last is not None and last.state in ENDED:
            return JobStatus(last.state, last.error, last=last)
        if all(map(self.store.has, job.stages)):
            return JobStatus(DONE, last=last)
        if job.slurm is None and (last is None or last.state == INTERRUPTED):
            return JobStatus(CANCELLED, last=last) if last else JobStatus(BLOCKED, NEVER_STARTED)  # with its scheduler
        if last is None and not all(map(self.store.has, self._needed(folder, job))):
            return JobStatus(BLOCKED, NEVER_STARTED)
        otherwise = STOPPED if last is not None and last.state == INTERRUPTED else VANISHED
        return JobStatus(*self._exit_reasons.of(folder, job, last, otherwise), last=last)

    def _needed(self, folder: Folder, job: JobRecord) -> list[str]:
        """Return the stages of the jobs that a job depends on."""
        names = [*(f"{folder.id}/{n}" for n in job.needs), *job.after]
        return [stage for name in names for stage in self.jobs[name][1].stages]


def _running(last: State | None) -> JobStatus:
    silent = last is not None and last.state == RUNNING and time.time() - last.time > STALE
    return JobStatus(STALLED if silent else RUNNING, last=last)
