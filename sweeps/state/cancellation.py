"""Find the jobs that `cancel` may end: those that no other experiment needs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from iris.errors import UserError
from sweeps.state.job_status import Submitted
from sweeps.state.records import CANCELLED
from sweeps.state.study_status import Experiment, StudyStatus


@dataclass
class Cancellation:
    """Live jobs of experiments: `jobs` to cancel, and `shared` ones with other experiments that need them."""

    jobs: list[Submitted] = field(default_factory=list)
    shared: list[tuple[Submitted, list[str]]] = field(default_factory=list)


def find(study_status: StudyStatus, chosen: Sequence[Experiment], study: str | None) -> Cancellation:
    """Return the live jobs that the chosen experiments need.

    `study` is theirs; a search has none before its first trial. Raises UserError for a part of a search's trials, since
    its workers run any, and if squeue fails.
    """
    names = {(e.study, e.name) for e in chosen}
    studies = {e.study for e in chosen} | ({study} if study is not None and not chosen else set())
    # A cancelled experiment needs nothing.
    others = [e for e in study_status.experiments() if (e.study, e.name) not in names and e.state != CANCELLED]
    live = {job.id: job for job in study_status.live_jobs()}
    if study_status.statuses.squeue_error:
        raise UserError(study_status.statuses.squeue_error)
    wanted = [*study_status.jobs_of(chosen), *_workers(study_status, studies, others)]
    found = {job.id: job for job in wanted if job.id in live}
    users = _users(found, others)
    ending = found.keys() - users.keys()
    while needed := {n: job for job in live.values() if job.id not in ending for n in _needs(job) if n in ending}:
        ending -= needed.keys()
        users |= {n: list(job.record.users) for n, job in needed.items()}
    return Cancellation([found[n] for n in found if n in ending], [(found[n], users[n]) for n in found if n in users])


def _workers(study_status: StudyStatus, studies: Iterable[str], others: Sequence[Experiment]) -> list[Submitted]:
    """Return the workers of searches all of whose unfinished trials are chosen."""
    found = []
    for study in studies:
        workers = study_status.workers(study)
        if workers and any(e.study == study for e in others):
            raise UserError(f"study={study}: a search ends as a whole: cancel study={study}, without a pattern.")
        found += workers
    return found


def _users(found: dict[str, Submitted], others: Sequence[Experiment]) -> dict[str, list[str]]:
    """Return the names of other experiments that need each job."""
    holder = {stage: job.id for job in found.values() for stage in job.record.stages}
    users: dict[str, list[str]] = {}
    for experiment in others:
        for job in {holder[stage] for stage in experiment.missing if stage in holder}:
            users.setdefault(job, []).append(experiment.name)
    return users


def _needs(job: Submitted) -> list[str]:
    return [*(f"{job.folder.id}/{n}" for n in job.record.needs), *job.record.after]
