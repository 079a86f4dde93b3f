"""Hand the jobs of a launch to Slurm, to processes of this machine, or to this process."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from iris.store import Store
from sweeps.launch.jobs import Job
from sweeps.launch.launchers import Launcher, Local, Slurm
from sweeps.launch.ready import Task
from sweeps.launch.worker import Work
from sweeps.state import slurm_cli
from sweeps.state.job_status import Submitted
from sweeps.state.records import CANCELLED, Folder, JobRecord
from sweeps.study.plan import Plan


@dataclass(frozen=True)
class Batch:
    """The jobs of one launch; `live` are the stages that jobs of other launches compute."""

    folder: Folder
    plan: Plan
    jobs: Sequence[Job]
    live: Mapping[str, Submitted]
    store: Store

    def work(self, n: int) -> Work:
        return self.jobs[n].work(str(self.store.root), self.folder.id, n)

    def record(self, n: int, slurm: str | None = None) -> JobRecord:
        job = self.jobs[n]
        after = [self.live[stage].id for stage in job.awaited]
        users = [self.plan.experiments[user].name for user in job.users]
        return JobRecord(n, job.name, job.kind, job.stage_names, list(job.needs), after, users, slurm)

    def tasks(self, with_gpus: bool) -> list[Task]:
        """Return the jobs for a scheduler of this machine."""
        return [
            Task(self.work(n), job.needs, {s: self.live[s].id for s in job.awaited}, with_gpus * job.resources.gpus)
            for n, job in enumerate(self.jobs)
        ]


def submit(batch: Batch, launcher: Launcher) -> None:
    """Record the jobs and hand them over; jobs of an inline launcher are only recorded, for `run`."""
    if isinstance(launcher, Slurm):
        _to_slurm(batch, launcher)
        return
    records = [batch.record(n) for n in range(len(batch.jobs))]
    if isinstance(launcher, Local):
        from sweeps.launch import local

        gpus = local.gpus(launcher)
        schedule = local.Schedule(batch.tasks(bool(gpus)), launcher.workers, gpus)
        local.start(batch.folder, records, schedule)
    else:
        batch.folder.add_jobs(records)


def run(batch: Batch) -> int:
    """Run the jobs in this process; return how many failed."""
    from sweeps.launch import local

    return local.run_inline(batch.folder, batch.tasks(False), batch.store)


def cancel(jobs: Sequence[Submitted]) -> None:
    """Cancel live jobs: pending ones do not start, running ones stop. A later launch submits them anew."""
    for job in jobs:
        job.folder.mark(job.record.job, CANCELLED, "cancelled")  # a running job stops at its next heartbeat
    slurm_cli.scancel([job.record.slurm for job in jobs if job.record.slurm])


def _to_slurm(batch: Batch, launcher: Slurm) -> None:
    from sweeps.launch import slurm
    from sweeps.launch.slurm_job import SlurmJob

    notice, jobs = launcher.signal_seconds, batch.jobs
    calls = [SlurmJob(batch.work(n), job.resources.minutes, notice) for n, job in enumerate(jobs)]
    outside = {stage: job.record.slurm for stage, job in batch.live.items() if job.record.slurm}
    for ids in slurm.submit_jobs(launcher, batch.folder, jobs, calls, outside):
        batch.folder.add_jobs(batch.record(n, id) for n, id in ids.items())
