"""How far the experiments of a study are at one moment: the store's folders, the records, and one look at the queue."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from iris.errors import UserError
from iris.plan import VERSIONS
from iris.store import MANIFEST, Store, split_id
from sweeps.state import slurm_cli
from sweeps.state.exit_reason import ExitReasons
from sweeps.state.job_status import BLOCKED, LIVE, PREEMPTED, STALLED, UNKNOWN, JobStatus, JobStatuses
from sweeps.state.records import CANCELLED, DONE, ENDED, FAILED, QUEUED, RUNNING, Folder, JobRecord, Records
from sweeps.state.slurm_cli import Queued

PLANNED, PRUNED = "planned", "pruned"
# An experiment is in the first of these states that one of its missing stages is in.
_DECIDING = (FAILED, CANCELLED, STALLED, UNKNOWN, RUNNING, PREEMPTED, QUEUED, PLANNED)
SEARCH = "search"  # the kind of jobs that run trials
_NO_WORKER = "its worker has ended; the same search command goes on with it"
_NEVER_BEGAN = "never began: what it needs has failed, or left the queue"


@dataclass(frozen=True)
class Submitted:
    """A job, how it stands, and the stage (kind/key) that it works on or would work on next."""

    folder: Folder
    job: JobRecord
    status: JobStatus
    current: str

    @property
    def id(self) -> str:
        """`launch/n`."""
        return f"{self.folder.id}/{self.job.job}"


@dataclass(frozen=True)
class Experiment:
    """An experiment of a study. `stage` (kind/key) decides its state; `job` is the newest that holds that stage."""

    study: str
    name: str
    overrides: tuple[str, ...]
    stages: tuple[str, ...]
    state: str
    missing: tuple[str, ...] = ()
    stage: str = ""
    job: Submitted | None = None
    error: str = ""  # the last line of what went wrong

    @property
    def live(self) -> bool:
        """Whether something of it waits or runs, and nothing has to be launched again."""
        return self.state in LIVE

    @property
    def evaluation(self) -> str | None:
        """The last evaluation (kind/key) of the experiment."""
        return next((stage for stage in reversed(self.stages) if split_id(stage)[0] == "evaluate"), None)

    @property
    def where(self) -> str:
        """The stage in words: `train t=2/3`, counted from 1; before the first iteration `sft`."""
        if not self.stage:
            return ""
        trainings = [n for n, stage in enumerate(self.stages) if split_id(stage)[0] == "train"]
        here, work = self.stages.index(self.stage), split_id(self.stage)[0]
        before = sum(n < here for n in trainings)
        iteration = before + (work in ("generate", "score", "train"))
        return f"{work} t={iteration}/{len(trainings)}" if iteration else work


class StudyStatus:
    """One moment of a store. squeue is asked once, and only if some job may be in it."""

    def __init__(self, store: Store, exit_reasons: ExitReasons | None = None) -> None:
        self.store, self.records = store, Records(store)
        self.statuses = JobStatuses(self.records, store, self._squeue, exit_reasons)
        self.stored = store.finished(VERSIONS)
        self.silence = ""  # what squeue said if it did not answer: states of Slurm's jobs are then unknown
        self._workers: dict[str, list[Submitted]] = {}
        self._newest: dict[str, Submitted | None] = {}
        self._submitted: dict[tuple[str, int], Submitted] = {}

    def experiments(self, study: str) -> list[Experiment]:
        """The experiments of a study as it was last launched, in its order."""
        points = (self.records.study(study) or {"points": []})["points"]
        return [self._experiment(study, point) for point in points]

    def submitted(self, stage: str) -> Submitted | None:
        """The newest job that holds a missing stage: a live one, if there is one."""
        if stage not in self._newest:
            found = [self._look(folder, job) for folder, job in self.holders(stage)]
            live = next((submitted for submitted in found if submitted.status.live), None)
            self._newest[stage] = live or next(iter(found), None)
        return self._newest[stage]

    def state(self, stage: str) -> str:
        """How a stage stands; one that was never submitted, or has been removed since, is planned."""
        if stage in self.stored:
            return DONE
        submitted = self.submitted(stage)
        if submitted is None:
            return PLANNED
        if submitted.status.state == DONE:  # just now, or removed since
            return DONE if (self.store.root / stage / MANIFEST).is_file() else PLANNED
        state = submitted.status.state
        if state == BLOCKED:
            return CANCELLED
        if state in (QUEUED, CANCELLED) or stage == submitted.current:
            return state
        return CANCELLED if state == FAILED else QUEUED  # behind the current one in the same job

    def live_jobs(self) -> list[Submitted]:
        """Every job of the store that waits or runs, whatever it is for."""
        jobs = [(folder, job) for folder in self.statuses.launches for job in self.statuses.jobs(folder)]
        open_jobs = [(f, j) for f, j in jobs if not self.stored.issuperset(j.stages)]
        return [found for found in (self._look(f, j) for f, j in open_jobs) if found.status.live]

    def workers(self, study: str) -> list[Submitted]:
        """The workers of a search that wait or run; none for any other study."""
        if study not in self._workers:
            own = [folder for folder in self.statuses.launches if folder.launch().study == study]
            jobs = [(f, j) for f in own for j in self.statuses.jobs(f) if j.kind == SEARCH]
            self._workers[study] = [w for w in (self._look(f, j) for f, j in jobs) if w.status.live]
        return self._workers[study]

    def is_search(self, study: str) -> bool:
        """Whether the study's experiments are trials, which workers take up."""
        launches = (folder for folder in self.statuses.launches if folder.launch().study == study)
        return any(job.kind == SEARCH for folder in launches for job in self.statuses.jobs(folder))

    def holders(self, stage: str) -> list[tuple[Folder, JobRecord]]:
        """The jobs that hold a stage, the newest first."""
        return self._holders.get(stage, [])

    def _experiment(self, study: str, point: Mapping[str, Any]) -> Experiment:
        stages = tuple(point["stages"])
        missing = tuple(stage for stage in stages if stage not in self.stored)
        state, stage, job, error = self._trial(study, point, missing) or self._state(missing)
        return Experiment(study, point["name"], tuple(point["overrides"]), stages, state, missing, stage, job, error)

    def _state(self, missing: Sequence[str]) -> tuple[str, str, Submitted | None, str]:
        """(state, the stage that decides it, its job, error)."""
        states = {stage: self.state(stage) for stage in missing}
        state = next((s for s in _DECIDING if s in states.values()), DONE)
        here = [s for s in missing if states[s] == state]
        # Evaluations run beside what the experiment waits for.
        stage = next((s for s in here if split_id(s)[0] != "evaluate"), next(iter(here), ""))
        job = self.submitted(stage) if stage else None
        return state, stage, job, job.status.error if job and state in (FAILED, CANCELLED) else ""

    def _trial(
        self, study: str, point: Mapping[str, Any], missing: Sequence[str]
    ) -> tuple[str, str, Submitted | None, str] | None:
        """The same of a trial that the search has stopped, or that a worker has; None for any other experiment."""
        before = next((s for s in reversed(point["stages"]) if s not in missing), "")
        after = next(iter(missing), "")
        if point.get("state") == PRUNED:
            return PRUNED, before, None, ""
        if point.get("state") == FAILED:
            return FAILED, after, None, str(point.get("error", ""))
        if "job" not in point:
            return None
        worker = next((w for w in self.workers(study) if w.id == point["job"]), None)
        if worker is None:
            others = bool(self.workers(study))
            return PREEMPTED if others else CANCELLED, after, None, "" if others else _NO_WORKER
        at = worker.status.last.stage if worker.status.last else ""
        return worker.status.state, at if at in point["stages"] else after, worker, ""

    @cached_property
    def _holders(self) -> dict[str, list[tuple[Folder, JobRecord]]]:
        holders: dict[str, list[tuple[Folder, JobRecord]]] = {}
        for folder in reversed(self.statuses.launches):
            for job in self.statuses.jobs(folder):
                for stage in job.stages:
                    holders.setdefault(stage, []).append((folder, job))
        return holders

    def _look(self, folder: Folder, job: JobRecord) -> Submitted:
        key = (folder.id, job.job)
        if key not in self._submitted:
            status = self._job_status(folder, job)
            missing = [stage for stage in job.stages if stage not in self.stored]
            last = status.last.stage if status.last else ""
            current = last if last in missing else next(iter(missing), "")
            self._submitted[key] = Submitted(folder, job, status, current)
        return self._submitted[key]

    def _job_status(self, folder: Folder, job: JobRecord) -> JobStatus:
        status = self.statuses.of(folder, job)
        if self.silence and job.slurm and not _ended(status):
            return JobStatus(UNKNOWN, last=status.last or folder.state(job.job))
        return JobStatus(BLOCKED, _NEVER_BEGAN) if status.state == BLOCKED else status

    def _squeue(self, users: Iterable[int]) -> Mapping[str, Queued]:
        try:
            return slurm_cli.squeue(users)
        except UserError as error:
            self.silence = str(error)
            return {}


def _ended(status: JobStatus) -> bool:
    """Whether the job itself has said so."""
    return status.last is not None and status.last.state in ENDED


def jobs_of(experiments: Sequence[Experiment], study_status: StudyStatus) -> list[Submitted]:
    """The distinct newest jobs of the experiments' missing stages."""
    found = (study_status.submitted(stage) for experiment in experiments for stage in experiment.missing)
    return list({submitted.id: submitted for submitted in found if submitted is not None}.values())
