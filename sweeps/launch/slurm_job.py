"""What Slurm runs: one process per GPU, which checkpoints, requeues and goes on at a time limit or a preemption."""

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from submitit.core.utils import DelayedSubmission
from submitit.helpers import TorchDistributedEnvironment

from iris.execution import interruption
from iris.execution.interruption import Interrupted
from iris.store import split_id
from sweeps.launch.worker import Work, log_to_stderr
from sweeps.state.heartbeat import Heartbeat
from sweeps.state.records import FAILED, INTERRUPTED

_TRIES = 5  # of asking Slurm to requeue …
_PAUSE = 10.0  # … seconds apart: its controller may be restarting
_STARTING = 60.0  # seconds in which a run may set up the folder for its checkpoints
_MEETING = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_FRUITLESS = 2  # runs in a row that finish nothing before their time limit


class SlurmJob:
    """A job's work as submitit submits it.

    Slurm announces the end with SIGUSR2, `notice` seconds ahead. Training and stages in shards then stop where they can
    go on; what does not stop by itself in three quarters of that time is left and begins again in the next run.
    """

    def __init__(self, work: Work, minutes: int, notice: int, fruitless: int = 0) -> None:
        self.work, self.minutes, self.notice, self.fruitless = work, minutes, notice, fruitless

    def checkpoint(self) -> DelayedSubmission:
        """What the next run begins with."""
        return DelayedSubmission(SlurmJob(self.work, self.minutes, self.notice, self.fruitless))

    def __call__(self) -> None:
        log_to_stderr()
        attempt = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        _rendezvous(f"{self.work.launch}/{self.work.number}/{attempt}")
        heartbeat = self.work.heartbeat(attempt)
        requeue = Requeue(self, heartbeat)
        try:
            with heartbeat:
                self.work.run(heartbeat)
        except Interrupted:
            requeue.now()
        finally:
            requeue.forget()


class Requeue:
    """Listens to Slurm's signals and requeues the job, once."""

    def __init__(self, job: SlurmJob, heartbeat: Heartbeat) -> None:
        self.job, self.heartbeat, self.started = job, heartbeat, time.time()
        self.announced = False
        self._once = threading.Lock()
        self._timer = threading.Timer(0.75 * job.notice, self._late)
        self._timer.daemon = True
        handler = signal.getsignal(signal.SIGUSR2)  # submitit's: it keeps `checkpoint()`, requeues and exits
        assert callable(handler)
        self._requeue: Callable[[int, Any], None] = handler
        signal.signal(signal.SIGUSR2, self.announce)
        self._ending = threading.Event()
        signal.signal(signal.SIGTERM, self._end)

    def announce(self, *_: Any) -> None:
        """Take note of the signal: stages are asked to stop, and not waited for too long."""
        interruption.request()
        if not self.announced and self.heartbeat.main:
            self._timer.start()
        self.announced = True

    def _end(self, *_: Any) -> None:
        """Preemption without notice, or scancel: Slurm knows whether there is another run."""
        interruption.request()
        self._ending.set()

    def now(self) -> None:
        """Requeue after Interrupted, unless nobody asked or Slurm has begun another run already."""
        if not self.announced or self.heartbeat.superseded:
            raise SystemExit(128 + signal.SIGTERM)
        if self.heartbeat.main and self._once.acquire(blocking=False):
            self.job.fruitless = 0
            self._try()

    def forget(self) -> None:
        """The job has ended by itself."""
        self._timer.cancel()

    def _late(self) -> None:
        """The stage has not stopped by itself in time."""
        if not self._once.acquire(blocking=False):
            return
        lasted = time.time() - self.started > 30 * self.job.minutes  # half its limit: no early preemption
        if lasted:
            self.job.fruitless = 0 if self._kept_something() else self.job.fruitless + 1
        if self.job.fruitless >= _FRUITLESS:
            stage = self.heartbeat.stage
            knob = f"launcher.stages.{split_id(stage)[0]}.minutes"
            limit = f"the time limit of {self.job.minutes} minutes"
            self.heartbeat.end(FAILED, f"{stage} does not get on: it keeps nothing within {limit}. Raise {knob}.")
            os._exit(1)
        self.heartbeat.end(INTERRUPTED)
        try:
            self._try()
        except SystemExit:  # it would end this thread alone
            os._exit(1)

    def _kept_something(self) -> bool:
        """Whether this run has finished a stage or a shard, or left a checkpoint."""
        kind, key = split_id(self.heartbeat.stage)
        work = Path(self.job.work.store) / kind / f".work-{key}"
        return self.heartbeat.kept > 0 or (work.exists() and work.stat().st_mtime > self.started + _STARTING)

    def _try(self) -> None:
        """Requeue; at the latest when Slurm itself ends the job, as where it has requeued it before, leave without."""
        for left in range(_TRIES - 1, -1, -1):
            try:
                return self._requeue(signal.SIGUSR2, None)
            except (subprocess.SubprocessError, OSError):
                if not left:
                    raise
                if self._ending.wait(_PAUSE):
                    raise SystemExit(128 + signal.SIGTERM) from None


def _rendezvous(run: str) -> None:
    """Where the processes of a run meet: variables that accelerate and torch read. One process has nobody to meet."""
    for name in _MEETING:  # perhaps of the shell that launched
        os.environ.pop(name, None)
    if int(os.environ.get("SLURM_NTASKS", "1")) == 1:
        return
    # Not the port of another run on the node, such as an earlier one of this job that is still there.
    os.environ["MASTER_PORT"] = str(random.Random(run).randrange(10_000, 32_000))
    TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    # The address at which the first node has been reached; its name need not resolve everywhere.
    if address := os.environ.get("SLURM_LAUNCH_NODE_IPADDR"):
        os.environ["MASTER_ADDR"] = address
