"""Find the logs of experiments' jobs, and print or follow them."""

import time
from collections.abc import Sequence
from pathlib import Path

from iris.errors import UserError, nearest
from iris.plan import VERSIONS
from iris.store import Store, split_id
from sweeps.state.exit_reason import log_files, tail
from sweeps.state.job_status import JobStatuses, Submitted
from sweeps.state.records import Folder, JobRecord
from sweeps.state.study_status import Experiment, StudyStatus

_POLL = 0.5  # seconds between two reads of the files
_ASK = 5.0  # … and between two looks at the job's status
_LINES = 20  # of each log of several

Job = tuple[Folder, JobRecord]


def check_kind(name: str | None) -> None:
    """Raise UserError for an unknown kind of stage."""
    if name is not None and name not in VERSIONS:
        raise UserError(f"stage={name}: choose one of {', '.join(VERSIONS)}.{nearest(name, VERSIONS)}")


def job_of(experiment: Experiment, study_status: StudyStatus, stage: str | None) -> Job | None:
    """Return the newest job of an experiment's current stage, or of its last one of a kind; None if there was none."""
    if stage is None and experiment.job is not None:
        return experiment.job.folder, experiment.job.record
    stages = [name for name in reversed(experiment.stages) if stage is None or split_id(name)[0] == stage]
    jobs = [holders[0] for name in stages if (holders := study_status.statuses.holders(name))]
    return next((job for job in jobs if log_files(*job)), next(iter(jobs), None))


def print_logs(jobs: Sequence[Job], store: Store) -> None:
    """Print one log, or the last lines of each of several, after the path of each file."""
    for folder, job in jobs:
        files = [path for path in log_files(folder, job) if path.stat().st_size]
        if not files:
            print(_no_log(JobStatuses(store).of(folder, job)))
        for path in files:
            print(f"==> {path} <==")
            text = path.read_text(errors="replace") if len(jobs) == 1 else _last_lines(path)
            print(text, end="" if text.endswith("\n") else "\n")


def follow(folder: Folder, job: JobRecord, store: Store) -> None:
    """Print a job's log as it grows, until the job has ended."""
    shown: dict[Path, int] = {}
    current: Path | None = None
    asked, live = 0.0, True
    while True:
        for path in log_files(folder, job):
            if new := _from(path, shown.get(path, 0)):
                shown[path] = shown.get(path, 0) + len(new)
                header = "" if path == current else f"==> {path} <==\n"
                print(header, new.decode(errors="replace"), sep="", end="", flush=True)
                current = path
        if not live:
            return
        if time.monotonic() - asked > _ASK:
            asked, found = time.monotonic(), JobStatuses(store).of(folder, job)
            live = found.status.live
            if not live:
                error = f": {found.status.error}" if found.status.error else ""
                print(f"the job is {found.status.state}{error}", flush=True)
            elif not shown:
                print(_no_log(found), flush=True)
        time.sleep(_POLL)


def _no_log(found: Submitted) -> str:
    folder, job, status = found.folder, found.record, found.status
    if folder.launch.launcher == "inline":
        return f"job {job.job} of {folder.id} wrote to the terminal of its launch; it is {status.state}"
    reason = f" ({status.reason})" if status.reason else ""
    return f"{folder.logs}: no log of job {job.slurm or job.job} yet, it is {status.state}{reason}"


def _last_lines(path: Path) -> str:
    return "\n".join(tail(path).splitlines()[-_LINES:])


def _from(path: Path, start: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read()
