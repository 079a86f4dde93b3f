"""Start the workers of a search: in this process, on this machine in the background, or on Slurm."""

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from iris.config import Config
from iris.errors import UserError
from iris.plan import Stage
from iris.store import storage_errors
from sweeps.launch import dispatch, local
from sweeps.launch.dispatch import Batch
from sweeps.launch.jobs import Job
from sweeps.launch.launchers import Inline, Launcher, Local, Slurm
from sweeps.launch.submit import check, new_launch
from sweeps.search import records as search_records
from sweeps.search.session import Session
from sweeps.search.worker import SearchWork
from sweeps.state import slurm_cli
from sweeps.state.job_status import JobStatuses
from sweeps.state.records import Folder, Records
from sweeps.state.selection import follow
from sweeps.study.plan import Plan

_SPARES = 3  # jobs on this machine that wait to replace each worker, should it die


@dataclass(frozen=True)
class WorkerJob(Job):
    """A job that runs trials of a search."""

    search: str = ""

    @property
    def stage_names(self) -> list[str]:
        """A stage that no store has, so that a killed worker does not count as done."""
        return [f"search/{self.search}"]

    def work(self, store: str, launch: str, number: int) -> SearchWork:
        return SearchWork(store, launch, number, (), self.config.execution, self.output, self.search)


@dataclass(frozen=True)
class Request:
    """The workers that a command asks for."""

    launcher: Launcher
    workers: int
    config: Config  # says how experiments are executed
    common: Sequence[Stage]  # what all trials begin with
    command: Sequence[str]


def start(session: Session, request: Request) -> int:
    """Start the workers that are asked for and not live; return 1 if the one in this process fails."""
    name, launcher = session.search.name, request.launcher
    with storage_errors(session.store.root), contextlib.ExitStack() as inline:
        with Records(session.store).lock():
            batch = submit(session, request)
            if batch and isinstance(launcher, Inline):
                inline.enter_context(batch.folder.lock("scheduler").acquire())  # before others may look
        if batch is None:
            print(f"nothing to do: search {name} has the workers it needs")
            return 0
        if isinstance(launcher, Inline):
            failed = dispatch.run(batch)
            print("\n".join(session.report()))
            return 1 if failed else 0
    workers = batch.folder.launch.settings.get("workers", sum(job.kind == "search" for job in batch.jobs))
    print(f"{workers} {launcher.kind} workers of search {name} for {session.left()} trials")
    print(f"logs: {batch.folder.logs}")
    print(follow(search_records.study_name(session.search), session.store))
    print("results so far: the same command with --report")
    return 0


def submit(session: Session, request: Request) -> Batch | None:
    """Submit the workers that are missing; None if there are enough. An inline worker is only recorded."""
    store, records, launcher = session.store, Records(session.store), request.launcher
    study = search_records.study_name(session.search)
    if isinstance(launcher, Slurm):
        slurm_cli.cancel_strays(records)
    workers = min(request.workers, session.left()) - _live_workers(JobStatuses(store), study)
    if workers <= 0:
        return None
    if isinstance(launcher, Local):
        _check_gpus(launcher, workers)
        launcher = replace(launcher, workers=workers)
    jobs = _jobs(session, replace(request, launcher=launcher, workers=workers))
    check(jobs, launcher)
    folder = records.create(new_launch(study, request.command, session.search.base, launcher, store))
    search_records.write_study(records, folder.id, session.search, session.study(), session.folder)
    batch = Batch(folder, Plan(study, []), jobs, {}, store)
    dispatch.submit(batch, launcher)
    return batch


def _jobs(session: Session, request: Request) -> list[Job]:
    """Return the workers; on Slurm, after a job for what all trials begin with, if that is missing.

    Without that job all workers but one would hold their machines while they wait for the first. If it fails, the
    workers do its work.
    """
    search, launcher, config, workers = session.search.name, request.launcher, request.config, request.workers
    output = str(Path(config.output).expanduser().absolute())
    missing = [stage for stage in request.common if not session.store.has(stage.id)]
    setup: list[Job] = []
    if missing and isinstance(launcher, Slurm):
        last = missing[-1]
        setup = [Job(last.name, last.kind, tuple(missing), (), (), launcher.of("sft"), (), config, output)]
    count = workers * (1 + _SPARES) if isinstance(launcher, Local) else workers
    shared = ("search", (), tuple(range(len(setup))), (), launcher.of("train"), (), config, output, "afterany", search)
    return [*setup, *(WorkerJob(f"worker-{n}", *shared) for n in range(count))]


def _live_workers(statuses: JobStatuses, study: str) -> int:
    """Return how many workers of a search are live, without spares."""
    live = Counter[Folder]()
    for folder, job in statuses.launched_for(study):
        live[folder] += job.kind == "search" and statuses.of(folder, job).status.live
    return sum(min(count, int(folder.launch.settings.get("workers", count))) for folder, count in live.items())


def _check_gpus(launcher: Local, workers: int) -> None:
    gpus, each = len(local.gpus(launcher)), launcher.of("train").gpus
    if gpus and workers * each > gpus:
        raise UserError(f"workers={workers} need {workers * each} GPUs, {each} each, and there are {gpus} here.")
