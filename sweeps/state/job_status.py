"""How a submitted job stands: what it said last, held against the queue, so that a dead job never counts as running."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from iris.store import Store
from sweeps.state import slurm_cli
from sweeps.state.exit_reason import ExitReasons
from sweeps.state.records import CANCELLED, DONE, ENDED, INTERRUPTED, QUEUED, RUNNING, Folder, JobRecord, Records, State
from sweeps.state.slurm_cli import Queued

PREEMPTED, STALLED, BLOCKED, UNKNOWN = "preempted", "stalled", "blocked", "unknown"  # unknown: squeue fails
LIVE = (RUNNING, STALLED, UNKNOWN, PREEMPTED, QUEUED)
STALE = 120.0  # seconds without a word after which a running job counts as stalled
VANISHED = "vanished: it was killed without a word"
STOPPED = "stopped from outside, after a checkpoint"
_WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT")


@dataclass(frozen=True)
class JobStatus:
    """A job's state: one of LIVE, `done`, `failed`, `cancelled`, or `blocked` (it never began)."""

    state: str
    error: str = ""  # for failed: its last line
    reason: str = ""  # for queued: why Slurm lets it wait
    last: State | None = None

    @property
    def live(self) -> bool:
        """Whether it waits or runs."""
        return self.state in LIVE


class JobStatuses:
    """The status of every job of a store at one moment; squeue is asked once, and only if some job may be in it."""

    def __init__(
        self,
        records: Records,
        store: Store,
        squeue: Callable[[Iterable[int]], Mapping[str, Queued]] = slurm_cli.squeue,
        exit_reasons: ExitReasons | None = None,
    ) -> None:
        self.records, self.store, self._squeue = records, store, squeue
        self._exit_reasons = exit_reasons or ExitReasons()
        self._jobs: dict[str, dict[int, JobRecord]] = {}
        self._schedulers: dict[str, bool] = {}
        self._asked = 0.0  # unix seconds at which squeue was

    @cached_property
    def launches(self) -> list[Folder]:
        """The launches there were at that moment, the oldest first."""
        return self.records.launches()

    @cached_property
    def queue(self) -> Mapping[str, Queued]:
        """What squeue says of the jobs of all who have launched on this store."""
        # Their jobs are read first: one that is submitted after the question is not in the answer.
        users = {folder.launch().user for folder in self.launches if self.jobs(folder)}
        self._asked = time.time()
        return self._squeue(users)

    def jobs(self, folder: Folder) -> list[JobRecord]:
        """A launch's jobs, read once."""
        return list(self._by_number(folder).values())

    def job(self, folder: Folder, number: int) -> JobRecord:
        """One job of a launch."""
        return self._by_number(folder)[number]

    def _by_number(self, folder: Folder) -> dict[int, JobRecord]:
        if folder.id not in self._jobs:
            self._jobs[folder.id] = {job.job: job for job in folder.jobs()}
        return self._jobs[folder.id]

    def of(self, folder: Folder, job: JobRecord) -> JobStatus:
        """How one job stands."""
        last, place = folder.state(job.job), ""
        if last is None or last.state not in (DONE, CANCELLED):
            place = self._in_slurm(job.slurm) if job.slurm else self._here(folder, job.job)
            before, last = last, folder.state(job.job)  # once more: what has left by now has said how it ended
            if place == QUEUED and last and last.state == RUNNING:
                begun = last.time > self._asked if job.slurm else before is None  # since that look
                place = RUNNING if begun else QUEUED
        ended = last is not None and last.state in ENDED
        if place == RUNNING and not ended:  # its processes may be about to leave
            return _running(last)
        if place == QUEUED and (job.slurm or not ended):  # even a failed one, requeued by hand
            reason = self.queue[job.slurm].reason if job.slurm else ""
            return JobStatus(PREEMPTED if last else QUEUED, reason=reason, last=last)
        return self._ended(folder, job, last)

    def _in_slurm(self, job: str) -> str:
        queued = self.queue.get(job)
        return "" if queued is None else QUEUED if queued.state in _WAITING else RUNNING

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
            return JobStatus(BLOCKED if last is None else CANCELLED, last=last)  # stopped with what ran it
        if last is None and not all(map(self.store.has, self._needed(folder, job))):
            return JobStatus(BLOCKED)
        stopped = last is not None and last.state == INTERRUPTED
        said = STOPPED if stopped else VANISHED
        return JobStatus(*self._exit_reasons.of(folder, job, self.jobs(folder), last, said), last=last)

    def _needed(self, folder: Folder, job: JobRecord) -> list[str]:
        """The stages of the jobs it waited for."""
        others = [(folder, n) for n in job.needs]
        for name in job.after:
            launch, _, number = name.rpartition("/")
            others.append((self.records.folder(launch), int(number)))
        return [stage for other, n in others for stage in self.job(other, n).stages]


def _running(last: State | None) -> JobStatus:
    silent = last is not None and last.state == RUNNING and time.time() - last.time > STALE
    return JobStatus(STALLED if silent else RUNNING, last=last)
