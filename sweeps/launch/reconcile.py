"""Sort the missing stages of a plan by what earlier launches on the store have submitted."""

from dataclasses import dataclass, field

from sweeps.state.job_status import JobStatus, JobStatuses, Submitted
from sweeps.state.records import FAILED
from sweeps.study.plan import Plan


@dataclass
class Reconciled:
    """The missing stages of a plan, as kind/key, by what happens to them."""

    submit: set[str] = field(default_factory=set)
    live: dict[str, Submitted] = field(default_factory=dict)  # with the job that is to compute each
    failed: dict[str, JobStatus] = field(default_factory=dict)  # not submitted without --retry
    behind: set[str] = field(default_factory=set)  # not submitted: they need a failed one
    elsewhere: set[str] = field(default_factory=set)  # not submitted: they need a live one that Slurm cannot wait for


def reconcile(plan: Plan, statuses: JobStatuses, *, retry: bool, slurm: bool) -> Reconciled:
    """Sort the missing stages of a plan. Stages that were cancelled or never started count as never submitted.

    With `slurm`, jobs are submitted to Slurm, so they cannot depend on a live job of this machine.
    """
    found = Reconciled()
    live = found.live
    for stage in plan.missing:
        job, inputs = statuses.newest(stage.id), [parent.id for parent in stage.parents]
        if job is not None and job.status.live:
            live[stage.id] = job
        elif job is not None and job.status.state == FAILED and not retry:
            found.failed[stage.id] = job.status
        elif any(i in found.failed or i in found.behind for i in inputs):
            found.behind.add(stage.id)
        elif slurm and any(i in found.elsewhere or (i in live and not live[i].record.slurm) for i in inputs):
            found.elsewhere.add(stage.id)
        else:
            found.submit.add(stage.id)
    return found


def orphans(study: str, statuses: JobStatuses) -> list[Submitted]:
    """Return live jobs launched for a study whose stages no study, as last launched, needs any more."""
    studies = (statuses.records.study(name) or {"points": []} for name in statuses.records.studies())
    needed = {stage for content in studies for point in content["points"] for stage in point["stages"]}
    jobs = [statuses.of(f, job) for f, job in statuses.launched_for(study) if needed.isdisjoint(job.stages)]
    return [job for job in jobs if job.status.live]
