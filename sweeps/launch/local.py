"""Run jobs on this machine: in this process, or several at once in the background.

python -m sweeps.launch.local FOLDER     the scheduler of one launch, started by `launch`
"""

import multiprocessing
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from iris.errors import UserError
from iris.execution import interruption
from iris.execution.interruption import Interrupted
from iris.execution.progress import Progress
from iris.files import write_atomic
from iris.store import Store
from sweeps.launch import snapshot
from sweeps.launch.launchers import Local
from sweeps.launch.ready import ReadyJobs, Task
from sweeps.launch.worker import Work, log_to_stderr
from sweeps.state.records import CANCELLED, DONE, FAILED, INTERRUPTED, Folder, JobRecord

_START_SECONDS = 30.0
_POLL_SECONDS = 2.0
_GRACE_SECONDS = 10.0
_LOCK_SECONDS = 10.0  # other processes only hold the lock for moments, to test it


@dataclass(frozen=True)
class Schedule:
    """The jobs of one launch, the number that may run at once, and their GPUs."""

    tasks: Sequence[Task]
    workers: int
    gpus: Sequence[str]


def run_inline(folder: Folder, tasks: Sequence[Task], store: Store) -> int:
    """Run jobs in this process, except those that need a failed one; return how many failed.

    The caller holds the launch's lock "scheduler".
    """
    jobs, progress = ReadyJobs(folder, tasks, store), Progress()
    while jobs.open():
        if ready := jobs.ready():
            _run_here(folder, tasks[ready[0]].work, progress)
            jobs.end(ready[0])
        elif jobs.open():
            progress.say("waiting for jobs of another launch")
            time.sleep(_POLL_SECONDS)
    states = [folder.state(n) for n in range(len(tasks))]
    return sum(state is not None and state.state == FAILED for state in states)


def _run_here(folder: Folder, work: Work, progress: Progress) -> None:
    try:
        with folder.lock(str(work.number)).acquire(timeout=_LOCK_SECONDS), work.heartbeat() as heartbeat:
            work.run(heartbeat)
    except Exception:
        last = folder.state(work.number)
        progress.say(f"failed: {last.stage if last else work.number}: {last.error if last else ''}")


def start(folder: Folder, jobs: Iterable[JobRecord], schedule: Schedule) -> None:
    """Record the jobs of a launch and start their scheduler as a process that outlives this one."""
    write_atomic(folder.path / "schedule.pkl", pickle.dumps(schedule))
    with folder.lock("launcher").acquire():  # until the scheduler holds its own
        folder.add_jobs(jobs)
        _start(folder)


def _start(folder: Folder) -> None:
    environment = os.environ | snapshot.environment(folder.launch.code, os.environ.get("PYTHONPATH"))
    with (folder.logs / "scheduler.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "sweeps.launch.local", str(folder.path)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    deadline = time.monotonic() + _START_SECONDS
    while not folder.held("scheduler"):
        if process.poll() == 0:
            return  # all its jobs have ended already
        if process.poll() is not None or time.monotonic() > deadline:
            message = (folder.logs / "scheduler.log").read_text(errors="replace").strip().rpartition("\n")[2]
            raise UserError(f"The local scheduler did not start: {message}")
        time.sleep(0.05)


def gpus(launcher: Local) -> list[str]:
    """Return the GPUs to share among the jobs, as CUDA_VISIBLE_DEVICES names them; none: jobs run on the CPU."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if launcher.gpus is not None:
        return [str(n) for n in launcher.gpus]
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    return [str(n) for n, _ in enumerate(line for line in listed.stdout.splitlines() if line.startswith("GPU "))]


class Scheduler:
    """Runs the jobs of a schedule in processes of their own, as many at once as workers and GPUs allow."""

    def __init__(self, folder: Folder, schedule: Schedule, store: Store) -> None:
        self.folder, self.schedule = folder, schedule
        self.jobs = ReadyJobs(folder, schedule.tasks, store)
        self.free = list(schedule.gpus)
        self.running: dict[int, tuple[list[BaseProcess], list[str]]] = {}
        self.dying: dict[int, float] = {}  # when a process of each job failed while others still run
        self.server = multiprocessing.get_context("forkserver")
        self.server.set_forkserver_preload(_imports(schedule.tasks))

    def run(self) -> None:
        """Run until every job has ended or cannot start."""
        while self.jobs.open():
            self._start_ready()
            ends = [process.sentinel for processes, _ in self.running.values() for process in processes]
            wait(ends, timeout=_POLL_SECONDS) if ends else time.sleep(_POLL_SECONDS if self.jobs.open() else 0)
            for n in list(self.running):
                self._reap(n)

    def _start_ready(self) -> None:
        for n in self.jobs.ready(self.running):
            gpus = self.schedule.tasks[n].gpus
            if len(self.running) < self.schedule.workers and gpus <= len(self.free):
                taken, self.free = self.free[:gpus], self.free[gpus:]
                self.running[n] = (self._start(n, taken), taken)

    def _start(self, n: int, gpus: list[str]) -> list[BaseProcess]:
        size = max(1, len(gpus))
        shared = {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if self.schedule.gpus else {}
        if size > 1:
            shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "LOCAL_WORLD_SIZE": str(size)}
        processes: list[BaseProcess] = []
        for rank in range(size):
            variables = shared | {"RANK": str(rank), "WORLD_SIZE": str(size)}
            variables |= {"LOCAL_RANK": str(rank)} if size > 1 else {}
            log = str(self.folder.logs / f"{n}_{rank}_log")
            process = self.server.Process(target=_process, args=(self.schedule.tasks[n].work, variables, log))
            process.start()
            processes.append(process)
        return processes

    def _reap(self, n: int) -> None:
        """End a job's processes once one has failed; when all have ended, record an end that the job did not."""
        processes, gpus = self.running[n]
        codes = [process.exitcode for process in processes]
        if any(codes) and None in codes:
            since = self.dying.setdefault(n, time.monotonic())
            for process in processes:  # the others may wait for it forever
                process.kill() if time.monotonic() - since > _GRACE_SECONDS else process.terminate()
        if None in codes:
            return
        del self.running[n]
        self.free += gpus
        last = self.folder.state(n)
        if last is not None and last.state == INTERRUPTED:
            self.folder.mark(n, CANCELLED, "stopped")
        elif last is None or last.state not in (DONE, FAILED, CANCELLED):
            killed = next((-code for code in codes if code and code < 0), 0)
            self.folder.mark(n, FAILED, f"killed by {signal.Signals(killed).name}" if killed else "ended unexpectedly")
        self.jobs.end(n)


def _imports(tasks: Sequence[Task]) -> list[str]:
    """Return modules to import once before all jobs, which are then forks that start in a tenth of a second."""
    kinds = {kind for task in tasks for kind in task.work.kinds}
    works = sorted({type(task.work).__module__ for task in tasks})
    late = ["iris.evaluation.lm", "lm_eval.evaluator"] if "evaluate" in kinds else []
    return ["sweeps.launch.local", *works, *(f"iris.stages.{kind}" for kind in sorted(kinds)), *late]


def _process(work: Work, variables: dict[str, str], log: str) -> None:
    for name, stream in (("out", sys.stdout), ("err", sys.stderr)):
        os.dup2(os.open(f"{log}.{name}", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o666), stream.fileno())
    os.environ.update(variables)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is not for jobs in the background
    signal.signal(signal.SIGTERM, lambda *_: interruption.request())
    log_to_stderr()
    name = str(work.number) if variables["RANK"] == "0" else f"{work.number}-{variables['RANK']}"
    try:
        with work.folder.lock(name).acquire(timeout=_LOCK_SECONDS), work.heartbeat() as heartbeat:
            work.run(heartbeat)
    except Interrupted:
        sys.exit(128 + signal.SIGTERM)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main(path: str) -> None:
    """Run the scheduler of the launch in a folder."""
    folder = Folder(Path(path))
    schedule: Schedule = pickle.loads((folder.path / "schedule.pkl").read_bytes())
    store = Store(schedule.tasks[0].work.store)
    print(f"scheduler {os.getpid()}", flush=True)
    with folder.lock("scheduler").acquire(timeout=_LOCK_SECONDS):
        Scheduler(folder, schedule, store).run()


if __name__ == "__main__":
    from sweeps.launch.local import main as run  # pickled objects refer to the module by this name

    run(sys.argv[1])
