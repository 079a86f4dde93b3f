"""The client programs of users and administrators of a Slurm cluster."""

import os
import subprocess
import uuid
from dataclasses import dataclass
from pathlib import Path

from .daemon import wait_for


@dataclass(frozen=True)
class Job:
    """A line of squeue: `id` is `7` or `7_3` (array task), `node` is empty while it waits."""

    id: str
    state: str
    reason: str
    node: str
    partition: str
    name: str


class Commands:
    """The clients of the cluster configured in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
        self.variables = {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": path}
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
        self.environment = kept | self.variables
        self._last = 0  # of the jobs that are forgotten

    def run(self, *command: str, seconds: float = 120, text: str = "") -> str:
        """Return the output of a command that reads `text`. Raises CalledProcessError with its error output."""
        done = subprocess.run(
            command, env=self.environment, input=text, timeout=seconds, capture_output=True, text=True
        )
        try:
            done.check_returncode()
        except subprocess.CalledProcessError as error:
            error.add_note(done.stderr)
            raise
        return done.stdout

    def submit(self, script: str, *options: str) -> str:
        """Submit a job that runs the shell command `script`, see `output`; return its id."""
        common = ("sbatch", "--parsable", f"--output={self.folder}/log/%j.out")
        return self.run(*common, *options, f"--wrap={script}").strip()

    def output(self, job: str) -> str:
        """Return the output of a submitted job, empty before it starts."""
        file = self.folder / "log" / f"{job}.out"
        return file.read_text() if file.exists() else ""

    def jobs(self) -> dict[str, Job]:
        """Return the jobs in squeue by id, also those that ended up to an hour ago; each array task apart."""
        lines = self.run("squeue", "-h", "-r", "-t", "all", "-o", "%i|%T|%r|%N|%P|%j").splitlines()
        return {job.id: job for job in (Job(*line.split("|", 5)) for line in lines) if _number(job) > self._last}

    def forget(self) -> None:
        """Hide all jobs so far from `jobs`, for the next user of the cluster."""
        self._last = max(map(_number, self.jobs().values()), default=self._last)

    def wait(self, job: str, *states: str, seconds: float = 300) -> Job:
        """Return the job once its state is one of `states`. Raises TimeoutError."""
        wait_for(lambda: self.jobs()[job].state in states, f"job {job}: {' or '.join(states)}", seconds)
        return self.jobs()[job]

    def start_now(self, job: str) -> None:
        """Start a requeued job after two seconds, not two minutes.

        For a second, a node refuses the credential of a job that has just ended there, and the job would fail.
        """
        self.run("scontrol", "update", f"JobId={job}", "StartTime=now+2")

    def again(self, job: str) -> None:
        """Wait until a job is requeued, and start it then."""
        self.wait(job, "PENDING")
        self.start_now(job)

    def states(self) -> list[str]:
        """Return the states of the nodes in sinfo: idle, mix, alloc, drain, drng, down, down*, unk …"""
        lines = self.run("sinfo", "-h", "-N", "-p", "low", "-o", "%N %t").splitlines()
        return [state for _, state in sorted((line.split() for line in lines), key=lambda pair: int(pair[0][4:]))]

    def drain(self, i: int) -> None:
        """Drain a node: no new jobs start, running ones end normally."""
        self._update(i, "State=DRAIN", "Reason=test")

    def down(self, i: int) -> None:
        """Mark a node as down: its jobs end as NODE_FAIL and are requeued at once."""
        self._update(i, "State=DOWN", "Reason=test")

    def at(self, job: str) -> int:
        """Return the node that a job runs on, 0 if it has none."""
        found = self.jobs().get(job)
        return int(found.node[4:]) if found and found.node else 0

    def resume(self, i: int) -> None:
        """End `drain` or `down`."""
        self._update(i, "State=RESUME")

    def _update(self, i: int, *settings: str) -> None:
        self.run("scontrol", "update", f"NodeName=node{i}", *settings)

    def save(self) -> None:
        """Wait until slurmctld has saved its state; killed before, it may forget jobs.

        It saves at a change of a job if the last save is 5 s old, and hardly ever otherwise.
        """
        held, mark = self.submit(":", "--hold"), uuid.uuid4().hex
        state = self.folder / "state" / "job_state"

        def saved() -> bool:
            self.run("scontrol", "update", f"JobId={held}", f"Comment={mark}")
            return state.exists() and mark.encode() in state.read_bytes()

        wait_for(saved, "the saved state of slurmctld")
        self.run("scancel", held)


def _number(job: Job) -> int:
    """Numbers rise; the tasks of an array share one."""
    return int(job.id.partition("_")[0])
