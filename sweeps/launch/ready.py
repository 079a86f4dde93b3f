"""Which jobs of a launch may run now, for launchers that run them themselves."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from iris.store import Store
from sweeps.launch.worker import Work
from sweeps.state.job_status import JobStatuses
from sweeps.state.records import CANCELLED, DONE, Folder, Records

READY, WAITING, DROPPED = "ready", "waiting", "dropped"
_LOOK_SECONDS = 5.0  # between two looks at jobs of other launches


@dataclass(frozen=True)
class Task:
    """A job: its work, the indices of jobs it needs, and by stage the job (`launch/n`) outside that computes it."""

    work: Work
    needs: tuple[int, ...]
    awaited: Mapping[str, str]
    gpus: int


class ReadyJobs:
    """The jobs of one launch and how they have ended so far."""

    def __init__(self, folder: Folder, tasks: Sequence[Task], store: Store) -> None:
        self.folder, self.tasks, self.store = folder, tasks, store
        self.ended: dict[int, bool] = {}  # job → whether it succeeded
        self._outside: dict[str, bool] = {}  # job of another launch → whether it was live at the last look
        self._looked = 0.0

    def open(self) -> list[int]:
        """The jobs that have not ended."""
        return [n for n in range(len(self.tasks)) if n not in self.ended]

    def look(self, n: int) -> str:
        """READY, WAITING for another job, or DROPPED: cancelled, or what it needs has failed."""
        task, last = self.tasks[n], self.folder.state(n)
        if (last is not None and last.state == CANCELLED) or not all(self.ended.get(m, True) for m in task.needs):
            return DROPPED
        if any(m not in self.ended for m in task.needs):
            return WAITING
        outside = [job for stage, job in task.awaited.items() if not self.store.has(stage)]
        if not outside:
            return READY
        # A job may have finished between the two looks.
        there = all(self._live(job) for job in outside) or all(map(self.store.has, task.awaited))
        return WAITING if there else DROPPED

    def end(self, n: int) -> bool:
        """Note how a job has ended by what it said; whether it succeeded."""
        last = self.folder.state(n)
        self.ended[n] = last is not None and last.state == DONE
        return self.ended[n]

    def _live(self, job: str) -> bool:
        if time.monotonic() - self._looked > _LOOK_SECONDS:
            self._outside, self._looked = {}, time.monotonic()
            self._statuses = JobStatuses(Records(self.store), self.store)
        if job not in self._outside:
            launch, _, number = job.rpartition("/")
            folder = Records(self.store).folder(launch)
            self._outside[job] = self._statuses.of(folder, self._statuses.job(folder, int(number))).live
        return self._outside[job]
