"""Slurm's command-line programs, each called with a time limit; a failure is one line."""

import os
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from iris.errors import UserError
from sweeps.state.records import Records

_SECONDS = 60  # without a controller they give up after MessageTimeout, 10 s by default; a busy one may take long
_BATCH = 500  # job ids in one command line


@dataclass(frozen=True)
class Queued:
    """A line of squeue: `id` is `7` or `7_3` (array task); `node` is empty while the job is pending."""

    id: str
    state: str
    reason: str
    comment: str
    node: str
    name: str


def call(*command: str, seconds: float = _SECONDS) -> str:
    """Return a program's standard output. Raises UserError when it is missing, fails or does not answer in time."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise missing(command[0]) from error
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{command[0]} did not answer within {seconds:g} s. Try again when Slurm is up.") from error
    if done.returncode != 0:
        message = done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}"
        raise UserError(f"{command[0]} failed: {' / '.join(message.splitlines()[-2:])}")
    return done.stdout


def missing(program: str) -> UserError:
    return UserError(
        f"{program}: no such program here. Run this on a machine of a Slurm cluster, or use launcher=local."
    )


def squeue(users: Iterable[int] = ()) -> dict[str, Queued]:
    """Return the pending and running jobs of users (uids), by default of this one, by id."""
    names = ",".join(str(user) for user in sorted(set(users)) or [os.getuid()])
    lines = call("squeue", "-h", "-r", f"--user={names}", "-o", "%i|%T|%r|%k|%N|%j").splitlines()
    return {job.id: job for job in (Queued(*line.split("|", 5)) for line in lines)}


def scancel(ids: Sequence[str]) -> None:
    """Cancel jobs; those that have ended meanwhile are no error."""
    for start in range(0, len(ids), _BATCH):
        call("scancel", "--quiet", *ids[start : start + _BATCH])


def cancel_strays(records: Records) -> None:
    """Cancel jobs that a launch had submitted, but not recorded when it was killed."""
    launches = {folder.id: folder for folder in records.launches()}
    queued = [job for job in squeue().values() if job.comment in launches]
    known = {job.slurm for name in {job.comment for job in queued} for job in launches[name].jobs()}
    scancel([job.id for job in queued if job.id not in known])


def max_array_size() -> int:
    """Return the cluster's limit on the tasks of a job array."""
    lines = call("scontrol", "show", "config").splitlines()
    settings = {name.strip(): value.strip() for name, _, value in (line.partition("=") for line in lines)}
    return max(1, int(settings.get("MaxArraySize", "1001")))
