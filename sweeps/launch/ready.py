"""Find the jobs of a launch that may run now, for launchers that run them themselves."""

import time
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from iris.store import Store
from sweeps.launch.worker import Work
from sweeps.state.job_status import JobStatuses
from sweeps.state.records import CANCELLED, DONE, Folder

_READY, _WAITING, _DROPPED = "ready", "waiting", "dropped"
_REFRESH_SECONDS = 5.0  # between two looks at jobs of other launches


@dataclass(frozen=True)
class Task:
    """A job: its work, the indices of jobs it needs, and by stage the job (`launch/n`) of another launch it awaits."""

    work: Work
    needs: tuple[int, ...]
    awaited: Mapping[str, str]
    gpus: int


class ReadyJobs:
    """The jobs of one launch, which of them have ended, and which are ready."""

    def __init__(self, folder: Folder, tasks: Sequence[Task], store: Store) -> None:
        self.folder, self.tasks, self.store = folder, tasks, store
        self.ended: dict[int, bool] = {}  # job → whether it succeeded
        self._statuses, self._refreshed = JobStatuses(store), time.monotonic()

    def open(self) -> list[int]:
        return [n for n in range(len(self.tasks)) if n not in self.ended]

    def ready(self, running: Container[int] = ()) -> list[int]:
        """Return the jobs that may start; jobs that are cancelled or need a failed one end here."""
        while True:
            looks = {n: self._look(n) for n in self.open() if n not in running}
            dropped = [n for n, look in looks.items() if look == _DROPPED]
            if not dropped:
                return [n for n, look in looks.items() if look == _READY]
            self.ended |= dict.fromkeys(dropped, False)

    def _look(self, n: int) -> str:
        task, last = self.tasks[n], self.folder.state(n)
        if (last is not None and last.state == CANCELLED) or not all(self.ended.get(m, True) for m in task.needs):
            return _DROPPED
        if any(m not in self.ended for m in task.needs):
            return _WAITING
        outside = [job for stage, job in task.awaited.items() if not self.store.has(stage)]
        if not outside:
            return _READY
        # A job may have finished between the two looks.
        there = all(self._live(job) for job in outside) or all(map(self.store.has, task.awaited))
        return _WAITING if there else _DROPPED

    def end(self, n: int) -> None:
        """Note the end of a job, by its recorded state."""
        last = self.folder.state(n)
        self.ended[n] = last is not None and last.state == DONE

    def _live(self, job: str) -> bool:
        if time.monotonic() - self._refreshed > _REFRESH_SECONDS:
            self._statuses, self._refreshed = JobStatuses(self.store), time.monotonic()
        return self._statuses.of(*self._statuses.jobs[job]).status.live
