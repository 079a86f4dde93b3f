"""Exit reasons of jobs that did not record one: from Slurm's accounting, if there is any, and the end of the log."""

import re
import time
from datetime import datetime
from pathlib import Path

from iris.errors import UserError
from sweeps.state import slurm_cli
from sweeps.state.records import CANCELLED, FAILED, Folder, JobRecord, State

_SECONDS = 20
_AGAIN = 4.0  # seconds between two calls of sacct for the jobs of one launch
_TAIL = 8192  # bytes of a log
_BY_SLURM = re.compile(
    r"\*\*\* (?P<what>JOB|STEP) \S+ ON \S+ CANCELLED AT (?P<at>\S+)(?: DUE TO (?P<cause>[^*]+?))? \*\*\*"
)
_DEATH = re.compile(r"^srun: error: \S+: tasks? \S+: ")
_PREFIX = re.compile(r"^(srun|slurmstepd\S*): (error: )?")
_NOISE = (
    "*** STEP",
    "Force Terminated",
    "Job step aborted",
    "got SIG",
    "forcing job termination",
    "Bypassing signal",
    "_step_signal",
)
_CAUSES = {
    "TIMEOUT": "killed at its time limit",
    "OUT_OF_MEMORY": "killed: out of memory; raise launcher.resources.memory",
    "NODE_FAIL": "its node failed",
    "BOOT_FAIL": "its node failed",
    "PREEMPTED": "preempted and not requeued",
    "DEADLINE": "killed at its deadline",
}
_OPEN = ("RUNNING", "PENDING", "REQUEUED", "RESIZING", "SUSPENDED", "COMPLETING")
_STEPD = {"TIME LIMIT": "TIMEOUT", "NODE FAILURE": "NODE_FAIL", "PREEMPTION": "PREEMPTED"}
_GRACE = 40.0  # seconds for which a job may write after Slurm has signalled its end


class ExitReasons:
    """Exit reasons of a store's jobs. Calls sacct once per launch, and again after seconds if it lags behind."""

    def __init__(self) -> None:
        self._accounts: dict[str, dict[str, str]] = {}
        self._asked: dict[str, float] = {}
        self._works = True

    def of(self, folder: Folder, job: JobRecord, last: State | None, otherwise: str) -> tuple[str, str]:
        """Return (FAILED or CANCELLED, error) of a job that has left the queue; `otherwise` if no cause is known.

        `last` is its last recorded state.
        """
        state, line = log_end(folder, job, last)
        if job.slurm:
            state = self._account(folder, job.slurm) or state
            if not state and last is None and not log_files(folder, job):
                return CANCELLED, "it left Slurm's queue before it started"
        if state == "CANCELLED":
            return CANCELLED, "cancelled in Slurm"
        cause = _CAUSES.get(state, otherwise)
        return FAILED, f"{cause} ({line})" if line else cause

    def _account(self, folder: Folder, job: str) -> str:
        """Return the job's state in the accounting, empty if it has none."""
        known = self._accounts.setdefault(folder.id, {})
        lately = time.monotonic() - self._asked.get(folder.id, -_AGAIN) < _AGAIN
        if self._works and job not in known and not lately:
            self._asked[folder.id] = time.monotonic()
            known |= self._ask(folder)
        return known.get(job, "")

    def _ask(self, folder: Folder) -> dict[str, str]:
        """Return the final states of a launch's jobs, none without accounting."""
        ids = sorted({job.slurm.partition("_")[0] for job in folder.jobs() if job.slurm})
        query = ("sacct", "-n", "-X", "-P", "-o", "JobID,State", "-j", ",".join(ids))
        try:
            lines = slurm_cli.call(*query, seconds=_SECONDS)
        except UserError:
            self._works = False
            return {}
        found = (line.partition("|") for line in lines.splitlines())
        return {job: state.split()[0] for job, _, state in found if state and not state.startswith(_OPEN)}


def log_files(folder: Folder, job: JobRecord) -> list[Path]:
    """Return the logs of a job's processes: the main one's first, standard error (.err) before output (.out)."""
    found = folder.logs.glob(f"{job.slurm or job.job}_*_log.*")
    return sorted((p for p in found if p.suffix in (".err", ".out")), key=lambda p: (_rank(p), p.suffix))


def log_end(folder: Folder, job: JobRecord, last: State | None) -> tuple[str, str]:
    """Return (Slurm's state of the job, its last informative line) from the log, each empty if it is not there."""
    files = [path for path in log_files(folder, job) if path.suffix == ".err"]
    lines = [line.strip() for line in tail(files[0]).splitlines()] if files else []
    match = _by_slurm(lines)
    if match and (last is None or datetime.fromisoformat(match["at"]).timestamp() > last.time - _GRACE):
        return _STEPD.get(match["cause"], "") if match["cause"] else "CANCELLED", ""
    return "", _PREFIX.sub("", _informative(lines))


def _by_slurm(lines: list[str]) -> re.Match[str] | None:
    """Match the last line with which Slurm ends a job, or a step whose processes had not died before."""
    for n, line in reversed(list(enumerate(lines))):
        match = _BY_SLURM.search(line)
        if match and (match["what"] == "JOB" or not _DEATH.match(_informative(lines[:n]))):
            return match
    return None


def _informative(lines: list[str]) -> str:
    return next((line for line in reversed(lines) if line and not any(noise in line for noise in _NOISE)), "")


def tail(path: Path) -> str:
    """Return the last kilobytes of a log."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        return file.read().decode(errors="replace")


def _rank(path: Path) -> int:
    return int(path.name.rsplit("_", 2)[1])
