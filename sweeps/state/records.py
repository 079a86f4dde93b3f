"""What launches leave on disk, so that any later command knows what was submitted, as what, and how far it is.

<store>/.sweeps/
    code/<digest>/                    the code that jobs run, as it was at the launch
    launches/<launch>/launch.json     who launched what
                      jobs.jsonl      one line a job, appended once the scheduler has it
                      state/<n>.json  written by job n itself
                      logs/           what its processes write
    studies/<study>.json              each study as it was last launched
    launch.lock                       held while a launch compares and submits
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
from pathlib import Path
from typing import Any

from filelock import FileLock

from iris.files import write_atomic
from iris.store import Store

QUEUED, RUNNING, INTERRUPTED, DONE, FAILED, CANCELLED = (
    "queued",
    "running",
    "interrupted",
    "done",
    "failed",
    "cancelled",
)
ENDED = (DONE, FAILED, CANCELLED)


@dataclass(frozen=True)
class Launch:
    """One call of `launch` that had something to submit."""

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
    user: int = field(default_factory=os.getuid)  # whose jobs Slurm holds them for


@dataclass(frozen=True)
class JobRecord:
    """A submitted job: `slurm` is its id there (`12` or `12_3`), None where this machine runs it itself."""

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
    """What a job last said of itself."""

    state: str  # running | interrupted (it has left a checkpoint and will go on) | done | failed | cancelled
    time: float  # unix seconds at which this was written; a running job writes every few seconds
    stage: str = ""  # kind/key it works on
    done: float = 0  # units of that stage
    total: float = 0
    unit: str = ""
    rate: float = 0.0  # units a second
    advanced: float = 0.0  # unix seconds at which `done` last changed
    error: str = ""  # its last line
    host: str = ""
    pid: int = 0
    attempt: int = 0  # how often Slurm had requeued the job when this run began


class Folder:
    """The folder of one launch."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def id(self) -> str:
        """The launch's id, the name of its folder."""
        return self.path.name

    @property
    def logs(self) -> Path:
        """Where processes write: `<slurm id, or n>_<task>_log.out` and `.err`."""
        return self.path / "logs"

    def launch(self) -> Launch:
        """What launch.json says."""
        return Launch(**_known(Launch, json.loads((self.path / "launch.json").read_text())))

    def jobs(self) -> list[JobRecord]:
        """The submitted jobs by number; some are missing, and a line is unfinished, where the launcher was killed."""
        try:
            lines = (self.path / "jobs.jsonl").read_text().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        found = [JobRecord(**_known(JobRecord, json.loads(line))) for line in lines if line.endswith("}\n")]
        return sorted(found, key=lambda record: record.job)

    def add_jobs(self, jobs: Iterable[JobRecord]) -> None:
        """Append jobs, and make sure that they are on disk."""
        with (self.path / "jobs.jsonl").open("a") as file:
            file.write("".join(json.dumps(asdict(job), ensure_ascii=False) + "\n" for job in jobs))
            file.flush()
            os.fsync(file.fileno())

    def state_file(self, job: int) -> Path:
        """Where job n writes how it is."""
        return self.path / "state" / f"{job}.json"

    def state(self, job: int) -> State | None:
        """What job n last said, None if it has not begun."""
        try:
            return State(**_known(State, json.loads(self.state_file(job).read_text())))
        except FileNotFoundError:
            return None

    def write_state(self, job: int, state: State) -> None:
        """Replace what is known of job n."""
        _write(self.state_file(job), asdict(state))

    def mark(self, job: int, state: str, error: str = "") -> None:
        """Say in a job's place how it ended (such as CANCELLED), keeping what it said before."""
        before = self.state(job) or State(state, 0.0)
        self.write_state(job, dataclasses.replace(before, state=state, error=error, time=time.time()))

    def lock(self, name: str) -> FileLock:
        """Held by the local process that is `name`: a job's number, "scheduler" or "launcher". Its death frees it."""
        return FileLock(self.path / "state" / f"{name}.lock", thread_local=False)

    def held(self, name: str) -> bool:
        """Whether some living process holds that lock."""
        return held(self.path / "state" / f"{name}.lock")


class Records:
    """The records of one store."""

    def __init__(self, store: Store) -> None:
        self.root = store.root / ".sweeps"

    def launches(self) -> list[Folder]:
        """All launches, the oldest first."""
        found = (self.root / "launches").glob("*/launch.json")
        return [Folder(path.parent) for path in sorted(found)]

    def folder(self, launch: str) -> Folder:
        """The folder of a launch."""
        return Folder(self.root / "launches" / launch)

    def create(self, launch: Launch) -> Folder:
        """Write down a new launch."""
        folder = self.folder(launch.id)
        for path in (folder.path / "state", folder.logs):
            path.mkdir(parents=True)
        _write(folder.path / "launch.json", asdict(launch))
        return folder

    def write_study(self, study: str, launch: str, points: Iterable[Mapping[str, Any]]) -> None:
        """Write down a study as it is now: `points` have `name`, `overrides`, `stages` (kind/key) and `facts`."""
        _write(self.root / "studies" / f"{study}.json", {"study": study, "launch": launch, "points": list(points)})

    def study(self, study: str) -> dict[str, Any] | None:
        """The study as it was last launched: `study`, `launch` and `points`."""
        try:
            content: dict[str, Any] = json.loads((self.root / "studies" / f"{study}.json").read_text())
        except FileNotFoundError:
            return None
        return content

    def studies(self) -> list[str]:
        """The names of all studies launched so far."""
        return sorted(path.stem for path in (self.root / "studies").glob("*.json"))

    def lock(self) -> FileLock:
        """Hold it to compare with what is queued and to submit: one launch at a time."""
        self.root.mkdir(parents=True, exist_ok=True)
        return FileLock(self.root / "launch.lock", thread_local=False)


def held(lock: Path) -> bool:
    """Whether some living process holds a lock, not counting others who only look."""
    try:
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def new_id(study: str) -> str:
    """A launch's id: it sorts by time and is unlike any other's."""
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    return f"{now}-{re.sub(r'[^A-Za-z0-9_=-]+', '_', study)[:40]}-{uuid.uuid4().hex[:8]}"


def _known(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """The values a dataclass has fields for: a newer version may have written more."""
    names = {f.name for f in dataclasses.fields(kind)}
    return {name: value for name, value in values.items() if name in names}


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file at once, whole or not at all."""
    write_atomic(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
