"""Slurm's own programs, each call with a time limit and one clear line when it fails."""

import os
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from iris.errors import UserError
from sweeps.state.records import Records

_SECONDS = 60  # a client without a controller gives up after MessageTimeout, 10 s by default; a busy one may take long
_BATCH = 500  # job ids in one command line


@dataclass(frozen=True)
class Queued:
    """A line of squeue: `id` is `7` or `7_3` (array task); `node` is empty while it waits."""

    id: str
    state: str
    reason: str
    comment: str
    node: str
    name: str


def call(*command: str, seconds: float = _SECONDS) -> str:
    """The standard output of a client. Raises UserError when it is missing, fails or does not answer in time."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise UserError(
            f"{command[0]}: no such program here. Run this on a machine of a Slurm cluster, or use launcher=local."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{command[0]} did not answer within {seconds:g} s. Try again when Slurm is up.") from error
    if done.returncode != 0:
        said = done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}"
        raise UserError(f"{command[0]} failed: {' / '.join(said.splitlines()[-2:])}")
    return done.stdout


def squeue(users: Iterable[int] = ()) -> dict[str, Queued]:
    """The jobs of users (numbers), or of this one, that wait or run, by id."""
    names = ",".join(str(user) for user in sorted(set(users)) or [os.getuid()])
    lines = call("squeue", "-h", "-r", f"--user={names}", "-o", "%i|%T|%r|%k|%N|%j").splitlines()
    return {job.id: job for job in (Queued(*line.split("|", 5)) for line in lines)}


def scancel(ids: Sequence[str]) -> None:
    """Cancel jobs; those that have ended meanwhile are none of its business."""
    for part in _batches(ids):
        call("scancel", "--quiet", *part)


def cancel_strays(records: Records) -> None:
    """Cancel what a launcher that was killed had handed to Slurm but not written down."""
    launches = {folder.id: folder for folder in records.launches()}
    queued = [job for job in squeue().values() if job.comment in launches]
    known = {job.slurm for name in {job.comment for job in queued} for job in launches[name].jobs()}
    scancel([job.id for job in queued if job.id not in known])


def configuration() -> dict[str, str]:
    """The cluster's settings."""
    lines = call("scontrol", "show", "config").splitlines()
    return {name.strip(): value.strip() for name, sign, value in (line.partition("=") for line in lines) if sign}


def _batches(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ids[start : start + _BATCH] for start in range(0, len(ids), _BATCH))
