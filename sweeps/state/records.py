"""Records of launches, jobs and studies on disk, which all commands read.

<store>/.sweeps/
    code/<digest>/                    a copy of the code that jobs run
    launches/<launch>/launch.json     the command, code, launcher and user
                      jobs.jsonl      one line per job, appended once it is submitted
                      state/<n>.json  the state of job n, written by the job
                      logs/           standard output and error of the jobs
    studies/<study>.json              each study as it was last launched
    launch.lock                       held while a launch reads the records and submits
"""

import dataclasses
import fcntl
import json
import os
import re
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock

from iris.files import write_atomic
from iris.store import Store

QUEUED, RUNNING, INTERRUPTED = "queued", "running", "interrupted"
DONE, FAILED, CANCELLED = "done", "failed", "cancelled"
ENDED = (DONE, FAILED, CANCELLED)


@dataclass(frozen=True)
class Launch:
    """One call of `launch` that submitted jobs."""

    id: str
    study: str
    launcher: str  # inline | local | slurm
    command: list[str]
    overrides: list[str]
    commit: str | None  # of the code; None outside a git tree
    code: str  # the folder of the snapshot
    created: float  # unix seconds
    host: str
    settings: dict[str, Any] = field(default_factory=dict)  # the launcher's
    user: int = field(default_factory=os.getuid)  # who owns the jobs


@dataclass(frozen=True)
class JobRecord:
    """A submitted job: `slurm` is its Slurm id (`12` or `12_3`), None on this machine."""

    job: int
    name: str
    kind: str  # of its main stage
    stages: list[str]  # kind/key, in the order they run
    needs: list[int]  # jobs of the same launch that must succeed first
    after: list[str]  # `launch/n` of earlier launches that must succeed first
    users: list[str]  # experiments
    slurm: str | None = None


@dataclass(frozen=True)
class State:
    """The last state that a job has recorded."""

    state: str  # running | interrupted (at a checkpoint, to be continued) | done | failed | cancelled
    time: float  # unix seconds of writing; a running job writes every few seconds
    stage: str = ""  # kind/key it works on
    done: float = 0  # of `total` units of that stage
    total: float = 0
    unit: str = ""
    rate: float = 0.0  # units a second
    advanced: float = 0.0  # unix seconds at which `done` last changed
    error: str = ""  # the last line
    host: str = ""
    pid: int = 0
    attempt: int = 0  # how often Slurm had requeued the job before this run


class Folder:
    """The folder of one launch."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def logs(self) -> Path:
        """The folder of `<Slurm id, or n>_<task>_log.out` and `.err`."""
        return self.path / "logs"

    @cached_property
    def launch(self) -> Launch:
        """The record of the launch, launch.json."""
        return Launch(**_known(Launch, json.loads((self.path / "launch.json").read_text())))

    def jobs(self) -> list[JobRecord]:
        """Return the submitted jobs by number; after a kill of `launch` some are missing, or the last line is torn."""
        try:
            lines = (self.path / "jobs.jsonl").read_text().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        found = [JobRecord(**_known(JobRecord, json.loads(line))) for line in lines if line.endswith("}\n")]
        return sorted(found, key=lambda record: record.job)

    def add_jobs(self, jobs: Iterable[JobRecord]) -> None:
        """Append jobs and sync the file."""
        with (self.path / "jobs.jsonl").open("a") as file:
            file.write("".join(json.dumps(asdict(job), ensure_ascii=False) + "\n" for job in jobs))
            file.flush()
            os.fsync(file.fileno())

    def state(self, job: int) -> State | None:
        """Return the last state of job n, None before it starts."""
        try:
            return State(**_known(State, json.loads((self.path / "state" / f"{job}.json").read_text())))
        except FileNotFoundError:
            return None

    def write_state(self, job: int, state: State) -> None:
        _write(self.path / "state" / f"{job}.json", asdict(state))

    def mark(self, job: int, state: str, error: str = "") -> None:
        """Record the end of a job from outside, keeping the rest of its last state."""
        before = self.state(job) or State(state, 0.0)
        self.write_state(job, dataclasses.replace(before, state=state, error=error, time=time.time()))

    def lock(self, name: str) -> FileLock:
        """Return the lock of a local process: a job's number, "scheduler" or "launcher". Its death frees it."""
        return FileLock(self.path / "state" / f"{name}.lock", thread_local=False)

    def held(self, name: str) -> bool:
        return held(self.path / "state" / f"{name}.lock")


class Records:
    """The records of one store, launches the oldest first."""

    def __init__(self, store: Store) -> None:
        self.root = store.root / ".sweeps"

    def launches(self) -> list[Folder]:
        found = (self.root / "launches").glob("*/launch.json")
        return [Folder(path.parent) for path in sorted(found)]

    def folder(self, launch: str) -> Folder:
        return Folder(self.root / "launches" / launch)

    def create(self, launch: Launch) -> Folder:
        folder = self.folder(launch.id)
        for path in (folder.path / "state", folder.logs):
            path.mkdir(parents=True)
        _write(folder.path / "launch.json", asdict(launch))
        return folder

    def write_study(self, study: str, launch: str, points: Iterable[Mapping[str, Any]]) -> None:
        """Replace the record of a study.

        `points` have `name`, `overrides`, `stages` (kind/key), `facts` and `rows` (see `policy_row`).
        """
        content = {"study": study, "launch": launch, "points": list(points)}
        _write(self.root / "studies" / f"{study}.json", content, indent=None)  # may hold 10,000 experiments

    def study(self, study: str) -> dict[str, Any] | None:
        """Return the study as it was last launched: `study`, `launch` and `points`; None if it never was."""
        try:
            content: dict[str, Any] = json.loads((self.root / "studies" / f"{study}.json").read_text())
        except FileNotFoundError:
            return None
        return content

    def studies(self) -> list[str]:
        return sorted(path.stem for path in (self.root / "studies").glob("*.json"))

    def lock(self) -> FileLock:
        """Return the lock to hold while reading the records and submitting."""
        self.root.mkdir(parents=True, exist_ok=True)
        return FileLock(self.root / "launch.lock", thread_local=False)


def held(lock: Path) -> bool:
    """Return whether a living process holds a lock, not counting others that call this."""
    try:
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def new_id(study: str) -> str:
    """Return a unique id for a launch; ids sort by time."""
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    return f"{now}-{re.sub(r'[^A-Za-z0-9_=-]+', '_', study)[:40]}-{uuid.uuid4().hex[:8]}"


def _known(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """Return the values a dataclass has fields for: a newer version may have written more."""
    names = {f.name for f in dataclasses.fields(kind)}
    return {name: value for name, value in values.items() if name in names}


def _write(path: Path, content: Mapping[str, Any], indent: int | None = 1) -> None:
    write_atomic(path, json.dumps(content, indent=indent, ensure_ascii=False) + "\n")
