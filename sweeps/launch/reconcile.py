"""What of a plan is still to be submitted, given everything that was submitted on this store before."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from sweeps.state.job_status import JobStatus, JobStatuses
from sweeps.state.records import FAILED, Folder, JobRecord
from sweeps.study.plan import Plan


@dataclass
class Reconciled:
    """The missing stages of a plan by what is to happen with them, as kind/key."""

    submit: set[str] = field(default_factory=set)
    live: dict[str, tuple[Folder, JobRecord]] = field(default_factory=dict)  # and the job that is to compute each
    failed: dict[str, JobStatus] = field(default_factory=dict)  # left alone: somebody must want them again
    behind: set[str] = field(default_factory=set)  # left alone: they need a failed one
    elsewhere: set[str] = field(default_factory=set)  # left alone: they need a live one that nobody can wait for


def reconcile(
    plan: Plan, statuses: JobStatuses, *, retry: bool, can_await: Callable[[JobRecord], bool] = lambda _: True
) -> Reconciled:
    """Sort the missing stages of a plan. What was cancelled, or never began, counts as never submitted.

    `can_await` says of a live job whether new ones can be made to wait for it.
    """
    found = Reconciled()
    missing = {stage.id: stage for stage in plan.missing}
    jobs = _jobs_by_stage(statuses, missing)
    for name, stage in missing.items():
        status, inputs = _job_status(name, jobs.get(name, []), statuses, found), [s.id for s in stage.parents]
        if name in found.live:
            continue
        if status is not None and status.state == FAILED and not retry:
            found.failed[name] = status
        elif any(i in found.failed or i in found.behind for i in inputs):
            found.behind.add(name)
        elif any(i in found.elsewhere or (i in found.live and not can_await(found.live[i][1])) for i in inputs):
            found.elsewhere.add(name)
        else:
            found.submit.add(name)
    return found


def orphans(study: str, statuses: JobStatuses) -> list[tuple[Folder, JobRecord]]:
    """Live jobs that were submitted for a study and whose stages no study needs any more, as last launched."""
    records = statuses.records
    needed: set[str] = set()
    for name in records.studies():
        needed.update(stage for point in (records.study(name) or {})["points"] for stage in point["stages"])
    found = []
    for folder in statuses.launches:
        if folder.launch().study == study:
            found += [(folder, job) for job in statuses.jobs(folder) if needed.isdisjoint(job.stages)]
    return [(folder, job) for folder, job in found if statuses.of(folder, job).live]


def _job_status(
    name: str, jobs: list[tuple[Folder, JobRecord]], statuses: JobStatuses, found: Reconciled
) -> JobStatus | None:
    """How the newest job that holds a stage stands; a live one is put among the live."""
    newest: JobStatus | None = None
    for folder, job in jobs:
        status = statuses.of(folder, job)
        newest = newest or status
        if status.live:
            found.live[name] = (folder, job)
            break
    return newest


def _jobs_by_stage(statuses: JobStatuses, wanted: Iterable[str]) -> dict[str, list[tuple[Folder, JobRecord]]]:
    """The jobs that hold each stage, the newest first."""
    jobs: dict[str, list[tuple[Folder, JobRecord]]] = {name: [] for name in wanted}
    for folder in reversed(statuses.launches):
        for job in statuses.jobs(folder):
            for stage in job.stages:
                if stage in jobs:
                    jobs[stage].append((folder, job))
    return jobs
