"""Starting the workers of a search: in this process, on this machine in the background, or on Slurm."""

import platform
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from iris.config import Config, Execution
from iris.errors import UserError
from iris.execution import provenance
from iris.plan import Stage
from iris.store import Store, storage_errors
from sweeps.launch import local, snapshot
from sweeps.launch.launchers import Inline, Launcher, Local, Slurm
from sweeps.launch.ready import Task
from sweeps.launch.worker import Work
from sweeps.search import records as search_records
from sweeps.search.session import Session
from sweeps.search.worker import SearchWork
from sweeps.state import slurm_cli
from sweeps.state.job_status import JobStatuses
from sweeps.state.records import Folder, JobRecord, Launch, Records, new_id
from sweeps.state.selection import follow

_SPARES = 3  # workers that wait to stand in for each one of this machine, should it die


@dataclass(frozen=True)
class Workers:
    """What somebody asks for: so many workers of a launcher."""

    launcher: Launcher
    count: int
    config: Config  # says how experiments are executed
    common: Sequence[Stage]  # what all trials begin with
    command: Sequence[str]


@dataclass(frozen=True)
class WorkerLaunch:
    """The jobs of one launch: on Slurm what all trials begin with, if it is missing, and the workers that wait for it.

    Without that first job all workers but one would hold their machines while they wait for the first. If it dies, the
    workers do its work.
    """

    begun: Session
    workers: Workers
    folder: Folder
    wanted: int
    common: tuple[Stage, ...]

    @property
    def first(self) -> int:
        """The number of the first worker."""
        return 1 if self.common else 0

    def setup(self) -> Work:
        """What the first job runs."""
        return Work(*self._place(0), self.common, *self._way())

    def worker(self, n: int) -> SearchWork:
        """What worker n (from 0) runs."""
        place = self._place(self.first + n)
        return SearchWork(*place, (), *self._way(), self.begun.search.name, self.first, self.wanted)

    def records(self, workers: int) -> list[JobRecord]:
        """What is written down of the jobs."""
        found = []
        if self.common:
            last = self.common[-1]
            found.append(JobRecord(0, last.name, last.kind, [s.id for s in self.common], [], [], []))
        # A worker's own stage is in no store, so that a killed worker is not taken for one that is done.
        stages = [f"search/{self.begun.search.name}"]
        numbers = range(self.first, self.first + workers)
        return [*found, *(JobRecord(n, f"worker-{n - self.first}", "search", stages, [], [], []) for n in numbers)]

    def _place(self, n: int) -> tuple[str, str, int]:
        return str(self.begun.store.root), self.folder.id, n

    def _way(self) -> tuple[Execution, str]:
        config = self.workers.config
        return config.execution, str(Path(config.output).expanduser().absolute())


def start(begun: Session, workers: Workers) -> int:
    """Start as many workers as are wanted and do not live yet. Exit status 1: the one in this process has failed."""
    with storage_errors(begun.store.root):
        with Records(begun.store).lock():
            crew = _hire(begun, workers)
        if crew is None:
            print(f"nothing to do: search {begun.search.name} has the workers it needs")
            return 0
        if isinstance(workers.launcher, Inline):
            with crew.folder.lock("scheduler").acquire():
                failed = local.run_inline(crew.folder, [Task(crew.worker(0), (), {}, 0)], begun.store)
            print("\n".join(begun.report()))
            return 1 if failed else 0
    print(f"{crew.wanted} {workers.launcher.kind} workers of search {begun.search.name} for {begun.left()} trials")
    print(f"logs: {crew.folder.logs}")
    print(follow(search_records.study_name(begun.search), begun.store))
    print("what it has found so far: the same command with --report")
    return 0


def _hire(begun: Session, workers: Workers) -> WorkerLaunch | None:
    """Write down the workers that are missing and hand them over, unless they are to run in this process."""
    store, records, launcher = begun.store, Records(begun.store), workers.launcher
    if isinstance(launcher, Slurm):
        slurm_cli.cancel_strays(records)
    wanted = min(workers.count, begun.left()) - _living(store, search_records.study_name(begun.search))
    if wanted <= 0:
        return None
    gpus = _gpus(launcher, wanted) if isinstance(launcher, Local) else []
    missing = [stage for stage in workers.common if not store.has(stage.id)]
    common = tuple(missing) if isinstance(launcher, Slurm) else ()
    crew = WorkerLaunch(begun, workers, records.create(_launch(begun, workers, wanted)), wanted, common)
    search_records.write_study(records, crew.folder.id, begun.search, begun.study(), begun.folder)
    if isinstance(launcher, Slurm):
        _to_slurm(crew, launcher)
    elif isinstance(launcher, Local):
        _in_background(crew, launcher, gpus)
    else:
        crew.folder.add_jobs(crew.records(1))
    return crew


def _living(store: Store, study: str) -> int:
    """Return how many workers of a search are live, without spares."""
    statuses, live = JobStatuses(store), Counter[Folder]()
    for folder, job in statuses.launched_for(study):
        live[folder] += job.kind == "search" and statuses.of(folder, job).status.live
    return sum(min(count, int(folder.launch.settings["workers"])) for folder, count in live.items())


def _launch(begun: Session, workers: Workers, wanted: int) -> Launch:
    study, store = search_records.study_name(begun.search), begun.store
    return Launch(
        new_id(study),
        study,
        workers.launcher.kind,
        list(workers.command),
        list(begun.search.base),
        provenance.code(store.root)["commit"],
        str(snapshot.take(store)),
        time.time(),
        platform.node(),
        asdict(workers.launcher) | {"workers": wanted},
    )


def _gpus(launcher: Local, wanted: int) -> list[str]:
    """The GPUs to share among the workers; none where the machine has none."""
    gpus = local.gpus(launcher)
    each = launcher.of("train").gpus
    if gpus and wanted * each > len(gpus):
        raise UserError(f"workers={wanted} need {wanted * each} GPUs, {each} each, and there are {len(gpus)} here.")
    return gpus


def _in_background(crew: WorkerLaunch, launcher: Local, gpus: Sequence[str]) -> None:
    each, count = launcher.of("train").gpus if gpus else 0, crew.wanted * (1 + _SPARES)
    tasks = [Task(crew.worker(n), (), {}, each) for n in range(count)]
    schedule = local.Schedule(tasks, crew.wanted, gpus)
    local.start(crew.folder, crew.records(count), schedule, Path(crew.folder.launch.code))


def _to_slurm(crew: WorkerLaunch, launcher: Slurm) -> None:
    from sweeps.launch import slurm
    from sweeps.launch.slurm_job import SlurmJob

    submission = slurm.Submission(launcher, crew.folder, Path(crew.folder.launch.code))
    name, notice = search_records.study_name(crew.begun.search), launcher.signal_seconds
    setup, workers = launcher.of("sft"), launcher.of("train")
    ids: list[str] = []
    if crew.common:
        ids = submission.submit([SlurmJob(crew.setup(), setup.minutes, notice)], setup, name)
    after = f"afterany:{ids[0]}" if ids else None
    calls = [SlurmJob(crew.worker(n), workers.minutes, notice) for n in range(crew.wanted)]
    ids += submission.submit(calls, workers, name, after)
    records = zip(crew.records(crew.wanted), ids, strict=True)
    crew.folder.add_jobs(replace(record, slurm=id) for record, id in records)
