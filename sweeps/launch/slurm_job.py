"""A job's process on Slurm: at a time limit or preemption it checkpoints, requeues and continues in the next run."""

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
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

_TRIES = 5  # to requeue …
_PAUSE = 10.0  # … seconds apart: its controller may be restarting
_STARTING = 60.0  # seconds in which a run may set up the folder for its checkpoints
_RENDEZVOUS = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_FRUITLESS = 2  # such runs, after which a job fails


@dataclass
class SlurmJob:
    """A job's work as a callable for submitit.

    Slurm sends SIGUSR2 `notice` seconds before the end. Training and sharded stages then stop at a checkpoint or shard;
    a stage that has not stopped after three quarters of that time starts again in the next run.
    """

    work: Work
    minutes: int  # the time limit of a run
    notice: int
    fruitless: int = 0  # runs in a row until now that finished nothing before their time limit

    def checkpoint(self) -> DelayedSubmission:
        """Return the callable of the next run."""
        return DelayedSubmission(self)

    def __call__(self) -> None:
        log_to_stderr()
        attempt = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        _set_rendezvous(f"{self.work.launch}/{self.work.number}/{attempt}")
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
    """Handler of Slurm's signals that requeues the job, once."""

    def __init__(self, job: SlurmJob, heartbeat: Heartbeat) -> None:
        self.job, self.heartbeat, self.started = job, heartbeat, time.time()
        self.announced = False
        self._once = threading.Lock()
        self._timer = threading.Timer(0.75 * job.notice, self._late)
        self._timer.daemon = True
        handler = signal.getsignal(signal.SIGUSR2)  # submitit's: it stores `checkpoint()`, requeues and exits
        assert callable(handler)
        self._requeue: Callable[[int, Any], None] = handler
        signal.signal(signal.SIGUSR2, self.announce)
        self._ending = threading.Event()
        signal.signal(signal.SIGTERM, self._end)

    def announce(self, *_: Any) -> None:
        """Ask stages to stop, and requeue anyway if they take too long."""
        interruption.request()
        if not self.announced and self.heartbeat.main:
            self._timer.start()
        self.announced = True

    def _end(self, *_: Any) -> None:
        """Ask stages to stop on SIGTERM: preemption without notice, or scancel; Slurm itself requeues or not."""
        interruption.request()
        self._ending.set()

    def now(self) -> None:
        """Requeue after Interrupted, unless there was no notice or Slurm has started another run already."""
        if not self.announced or self.heartbeat.superseded:
            raise SystemExit(128 + signal.SIGTERM)
        if self.heartbeat.main and self._once.acquire(blocking=False):
            self.job.fruitless = 0
            self._try()

    def forget(self) -> None:
        """Stop waiting for stages: the job has ended."""
        self._timer.cancel()

    def _late(self) -> None:
        """Requeue although the stage has not stopped, or fail after too many fruitless runs."""
        if not self._once.acquire(blocking=False):
            return
        lasted = time.time() - self.started > 30 * self.job.minutes  # half its limit: no early preemption
        if lasted:
            self.job.fruitless = 0 if self._kept_something() else self.job.fruitless + 1
        if self.job.fruitless >= _FRUITLESS:
            stage = self.heartbeat.stage
            knob = f"launcher.stages.{split_id(stage)[0]}.minutes"
            limit = f"the time limit of {self.job.minutes} minutes"
            self.heartbeat.end(FAILED, f"{stage} makes no progress: it finishes nothing within {limit}. Raise {knob}.")
            os._exit(1)
        self.heartbeat.end(INTERRUPTED)
        try:
            self._try()
        except SystemExit:  # it would only end this thread
            os._exit(1)

    def _kept_something(self) -> bool:
        """Return whether this run has finished a stage or a shard, or written a checkpoint."""
        kind, key = split_id(self.heartbeat.stage)
        work = Path(self.job.work.store) / kind / f".work-{key}"
        return self.heartbeat.kept > 0 or (work.exists() and work.stat().st_mtime > self.started + _STARTING)

    def _try(self) -> None:
        """Requeue, with retries; exit if Slurm ends the job meanwhile, as after a requeue of its own."""
        for left in range(_TRIES - 1, -1, -1):
            try:
                return self._requeue(signal.SIGUSR2, None)
            except (subprocess.SubprocessError, OSError):
                if not left:
                    raise
                if self._ending.wait(_PAUSE):
                    raise SystemExit(128 + signal.SIGTERM) from None


def _set_rendezvous(run: str) -> None:
    """Set torch.distributed's rendezvous variables, none for a single process."""
    for name in _RENDEZVOUS:  # inherited from the shell that launched
        os.environ.pop(name, None)
    if int(os.environ.get("SLURM_NTASKS", "1")) == 1:
        return
    # A port unlike that of another run on the node, such as an earlier one of this job.
    os.environ["MASTER_PORT"] = str(random.Random(run).randrange(10_000, 32_000))
    TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    # The first node's address: its name need not resolve everywhere.
    if address := os.environ.get("SLURM_LAUNCH_NODE_IPADDR"):
        os.environ["MASTER_ADDR"] = address
