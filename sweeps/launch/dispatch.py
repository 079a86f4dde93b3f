"""Handing the jobs of a launch to what runs them: Slurm, processes of this machine, or this process."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from iris.store import Store
from sweeps.launch.jobs import Job
from sweeps.launch.launchers import Launcher, Local, Slurm
from sweeps.launch.ready import Task
from sweeps.launch.worker import Work
from sweeps.state import slurm_cli
from sweeps.state.records import CANCELLED, Folder, JobRecord
from sweeps.study.plan import Plan


@dataclass(frozen=True)
class Batch:
    """The jobs of one launch; `live` are the stages that others compute, with their jobs."""

    folder: Folder
    plan: Plan
    jobs: Sequence[Job]
    live: Mapping[str, tuple[Folder, JobRecord]]
    store: Store

    @property
    def works(self) -> list[Work]:
        """What each job runs."""
        return [self._work(n, job) for n, job in enumerate(self.jobs)]

    def _work(self, n: int, job: Job) -> Work:
        chain = self.plan.experiments[job.users[0]].chain
        output = Path(job.config.output).expanduser().absolute() / chain.name
        return Work(str(self.store.root), self.folder.id, n, job.stages, job.config.execution, str(output))

    def record(self, n: int, slurm: str | None = None) -> JobRecord:
        """What is written down of job n."""
        job = self.jobs[n]
        after = [self.outside(stage) for stage in job.awaited]
        users = [self.plan.experiments[user].name for user in job.users]
        stages = [stage.id for stage in job.stages]
        return JobRecord(n, job.main.name, job.main.kind, stages, list(job.needs), after, users, slurm)

    def outside(self, stage: str) -> str:
        """The job that computes a stage for somebody else, as `launch/n`."""
        folder, job = self.live[stage]
        return f"{folder.id}/{job.job}"


def submit(batch: Batch, launcher: Launcher) -> None:
    """Hand the jobs over and write them down. Those of an inline launcher are only written down, for `run`."""
    if isinstance(launcher, Slurm):
        _to_slurm(batch, launcher)
        return
    records = [batch.record(n) for n in range(len(batch.jobs))]
    if isinstance(launcher, Local):
        from sweeps.launch import local

        gpus = local.gpus(launcher)
        schedule = local.Schedule(_tasks(batch, bool(gpus)), launcher.workers, gpus)
        local.start(batch.folder, records, schedule, Path(batch.folder.launch().code))
    else:
        batch.folder.add_jobs(records)


def run(batch: Batch) -> int:
    """Run the jobs in this process; returns how many failed."""
    from sweeps.launch import local

    return local.run_inline(batch.folder, _tasks(batch, False), batch.store)


def cancel(jobs: Sequence[tuple[Folder, JobRecord]]) -> None:
    """Cancel live jobs: what waits does not begin, what runs stops. Launching again submits them anew."""
    for folder, job in jobs:
        folder.mark(job.job, CANCELLED, "cancelled")  # a running job sees it and stops at its next checkpoint
    slurm_cli.scancel([job.slurm for _, job in jobs if job.slurm])


def _to_slurm(batch: Batch, launcher: Slurm) -> None:
    from sweeps.launch import slurm
    from sweeps.launch.slurm_job import SlurmJob

    notice, minutes = launcher.signal_seconds, [job.resources.minutes for job in batch.jobs]
    calls = [SlurmJob(work, limit, notice) for work, limit in zip(batch.works, minutes, strict=True)]
    outside = {stage: job.slurm for stage, (_, job) in batch.live.items() if job.slurm}
    submission = slurm.Submission(launcher, batch.folder, Path(batch.folder.launch().code))
    for ids in slurm.submit_jobs(submission, batch.plan.study, batch.jobs, calls, outside):
        batch.folder.add_jobs(batch.record(n, id) for n, id in ids.items())


def _tasks(batch: Batch, with_gpus: bool) -> list[Task]:
    return [
        Task(work, job.needs, {s: batch.outside(s) for s in job.awaited}, job.resources.gpus if with_gpus else 0)
        for work, job in zip(batch.works, batch.jobs, strict=True)
    ]
