"""The progress of a study's experiments at one moment, from the store, the records and one call of squeue."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from iris.plan import VERSIONS
from iris.store import MANIFEST, Store, split_id
from sweeps.state.exit_reason import ExitReasons
from sweeps.state.job_status import BLOCKED, PREEMPTED, STALLED, UNKNOWN, JobStatuses, Submitted
from sweeps.state.records import CANCELLED, DONE, FAILED, QUEUED, RUNNING

PLANNED, PRUNED = "planned", "pruned"
# An experiment is in the first of these states that one of its missing stages is in.
_DECIDING = (FAILED, CANCELLED, STALLED, UNKNOWN, RUNNING, PREEMPTED, QUEUED, PLANNED)
SEARCH = "search"  # the kind of jobs that run trials
_NO_WORKER = "its worker has ended; rerun the same search command to continue it"


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
    error: str = ""  # the last line

    @property
    def evaluation(self) -> str | None:
        """The last evaluation (kind/key) of the experiment."""
        return next((stage for stage in reversed(self.stages) if split_id(stage)[0] == "evaluate"), None)

    @property
    def where(self) -> str:
        """The stage and iteration: `train t=2/3`, counted from 1; before the first iteration `sft`."""
        if not self.stage:
            return ""
        kinds = [split_id(stage)[0] for stage in self.stages]
        here = self.stages.index(self.stage)
        iteration = kinds[:here].count("train") + (kinds[here] in ("generate", "score", "train"))
        return f"{kinds[here]} t={iteration}/{kinds.count('train')}" if iteration else kinds[here]


class StudyStatus:
    """The studies of a store at one moment."""

    def __init__(self, store: Store, exit_reasons: ExitReasons | None = None) -> None:
        self.store = store
        self.statuses = JobStatuses(store, exit_reasons, tolerant=True)
        self.records = self.statuses.records
        self.stored = store.finished(VERSIONS)
        self._workers: dict[str, list[Submitted]] = {}

    def experiments(self, study: str | None = None) -> list[Experiment]:
        """Return the experiments of a study as it was last launched, in its order, or those of all studies."""
        if study is None:
            return [experiment for name in self.records.studies() for experiment in self.experiments(name)]
        points = (self.records.study(study) or {"points": []})["points"]
        return [self._experiment(study, point) for point in points]

    def jobs_of(self, experiments: Sequence[Experiment]) -> list[Submitted]:
        """Return the distinct newest jobs of the experiments' missing stages."""
        found = (self.statuses.newest(stage) for experiment in experiments for stage in experiment.missing)
        return list({submitted.id: submitted for submitted in found if submitted is not None}.values())

    def live_jobs(self) -> list[Submitted]:
        """Return every live job of the store with a missing stage."""
        jobs = self.statuses.jobs.values()
        found = (self.statuses.of(f, job) for f, job in jobs if not self.stored.issuperset(job.stages))
        return [submitted for submitted in found if submitted.status.live]

    def workers(self, study: str) -> list[Submitted]:
        """Return the live workers of a search; none for any other study."""
        if study not in self._workers:
            found = [self.statuses.of(*job) for job in self.statuses.launched_for(study) if job[1].kind == SEARCH]
            self._workers[study] = [worker for worker in found if worker.status.live]
        return self._workers[study]

    def is_search(self, study: str) -> bool:
        """Return whether the study's experiments are trials of a search."""
        return any(job.kind == SEARCH for _, job in self.statuses.launched_for(study))

    def _experiment(self, study: str, point: Mapping[str, Any]) -> Experiment:
        stages = tuple(point["stages"])
        missing = tuple(stage for stage in stages if stage not in self.stored)
        state, stage, job, error = self._trial(study, point, missing) or self._state(missing)
        return Experiment(study, point["name"], tuple(point["overrides"]), stages, state, missing, stage, job, error)

    def _state(self, missing: Sequence[str]) -> tuple[str, str, Submitted | None, str]:
        """Return (state, the stage that decides it, its job, error)."""
        states = {stage: self._stage_state(stage) for stage in missing}
        state = next((s for s in _DECIDING if s in states.values()), DONE)
        here = [s for s in missing if states[s] == state]
        # Evaluations run beside the stages that the experiment waits for.
        stage = next((s for s in here if split_id(s)[0] != "evaluate"), next(iter(here), ""))
        job = self.statuses.newest(stage) if stage else None
        return state, stage, job, job.status.error if job and state in (FAILED, CANCELLED) else ""

    def _stage_state(self, stage: str) -> str:
        """Return the state of a missing stage; one that was never submitted, or has been removed since, is planned."""
        submitted = self.statuses.newest(stage)
        if submitted is None:
            return PLANNED
        state = submitted.status.state
        if state == DONE:  # just now, or removed since
            return DONE if (self.store.root / stage / MANIFEST).is_file() else PLANNED
        if state == BLOCKED:
            return CANCELLED
        if state in (QUEUED, CANCELLED) or stage == self._current(submitted):
            return state
        return CANCELLED if state == FAILED else QUEUED  # after the current one in the same job

    def _current(self, submitted: Submitted) -> str:
        """Return the stage that a job works on, or would work on next."""
        missing = [stage for stage in submitted.record.stages if stage not in self.stored]
        last = submitted.status.last.stage if submitted.status.last else ""
        return last if last in missing else next(iter(missing), "")

    def _trial(
        self, study: str, point: Mapping[str, Any], missing: Sequence[str]
    ) -> tuple[str, str, Submitted | None, str] | None:
        """Return the same for a trial that was stopped or that a worker runs; None for other experiments."""
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
