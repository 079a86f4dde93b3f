"""Which jobs `cancel` may end: those that no other experiment needs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from iris.errors import UserError
from sweeps.state.records import CANCELLED
from sweeps.state.study_status import Experiment, StudyStatus, Submitted, jobs_of


@dataclass
class Cancellation:
    """Live jobs of experiments: those to cancel, and those left to others with the names of some of these."""

    jobs: list[Submitted] = field(default_factory=list)
    left: list[tuple[Submitted, list[str]]] = field(default_factory=list)


def find(study_status: StudyStatus, chosen: Sequence[Experiment], study: str | None) -> Cancellation:
    """The live jobs that the chosen experiments need. Raises UserError for some trials of a search: workers run any.

    `study` is the one whose experiments were chosen; the workers of a search have none before its first trial.
    """
    names = {(e.study, e.name) for e in chosen}
    every = [e for study in study_status.records.studies() for e in study_status.experiments(study)]
    studies = {e.study for e in chosen} | ({study} if study is not None and not chosen else set())
    # What has been cancelled does not go on, so it needs nothing.
    others = [e for e in every if (e.study, e.name) not in names and e.state != CANCELLED]
    live = {job.id: job for job in study_status.live_jobs()}
    if study_status.silence:
        raise UserError(study_status.silence)
    found = {
        job.id: job
        for job in [*jobs_of(chosen, study_status), *_workers(study_status, studies, others)]
        if job.id in live
    }
    users = _users(found, others)
    doomed = found.keys() - users.keys()
    while needed := {n: job for job in live.values() if job.id not in doomed for n in _needs(job) if n in doomed}:
        doomed -= needed.keys()
        users |= {n: list(job.job.users) for n, job in needed.items()}
    return Cancellation([found[n] for n in found if n in doomed], [(found[n], users[n]) for n in found if n in users])


def _workers(study_status: StudyStatus, studies: Iterable[str], others: Sequence[Experiment]) -> list[Submitted]:
    """The workers of searches all of whose open trials are chosen."""
    found = []
    for study in studies:
        workers = study_status.workers(study)
        if workers and any(e.study == study for e in others):
            raise UserError(f"study={study}: a search ends as a whole: cancel study={study}, without a pattern.")
        found += workers
    return found


def _users(found: dict[str, Submitted], others: Sequence[Experiment]) -> dict[str, list[str]]:
    """The jobs that other experiments need, with the names of these."""
    holder = {stage: job.id for job in found.values() for stage in job.job.stages}
    users: dict[str, list[str]] = {}
    for experiment in others:
        for job in {holder[stage] for stage in experiment.missing if stage in holder}:
            users.setdefault(job, []).append(experiment.name)
    return users


def _needs(job: Submitted) -> list[str]:
    """The jobs (launch/n) that a job waits for."""
    return [*(f"{job.folder.id}/{n}" for n in job.job.needs), *job.job.after]
