"""Inject every fault of a cluster, one after the other, while a study runs on it.

python -m tests.slurm.storm STUDY FOLDER [key=value …]    on a cluster and a store of its own below FOLDER

Called again, it continues with that store on a new cluster.

Between faults it launches again with --retry, as a user would, lets requeued jobs start at once, and checks that no
dead job is shown as running.
"""

import contextlib
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from iris.store import Store
from sweeps.state.job_status import JobStatuses, Submitted
from sweeps.state.records import RUNNING, JobRecord, Records, State

from .cluster import Cluster
from .daemon import alive, wait_for

ROOT = Path(__file__).parents[2]
QUICK = ("MessageTimeout=5", "SlurmdTimeout=15")  # of the cluster: a lost node is noticed soon
_NOTICE = 300.0  # seconds after which Slurm has noticed a death, and the next run has recorded that it runs
_SOON = 10.0  # seconds that a requeued job may take to start
_PATIENCE = 600.0  # seconds without any news after which something hangs
_DONE = re.compile(r"INFO iris: done (\S+ \S+) in")


class Storm:
    """A study (arguments of `launch`) on a cluster, and the faults injected into it."""

    def __init__(self, cluster: Cluster, store: Store, arguments: Sequence[str], seed: int = 0) -> None:
        self.cluster, self.store, self.arguments = cluster, store, list(arguments)
        self.dice = random.Random(seed)
        self.records = Records(store)
        self.suspects: dict[int, float] = {}  # dead processes shown as running, since when
        self.restarted: dict[str, float] = {}  # when each requeued job was started
        self.log: list[str] = []

    def faults(self) -> list[Callable[[], None]]:
        """Return all of them in an order that the seed decides."""
        every = [
            self.kill_a_task,
            self.tell_a_job_to_stop,
            self.preempt,
            self.crash_a_node,
            self.lose_a_slurmd,
            self.take_a_node_down,
            self.drain_a_node,
            self.kill_the_controller,
            self.cancel_a_job,
            self.fill_the_store,
            self.kill_a_launcher,
            self.launch_twice_at_once,
        ]
        self.dice.shuffle(every)
        return every

    def run(self, rounds: int = 1) -> None:
        """Launch, inject every fault in each round, and continue until nothing is missing."""
        assert self.launch().returncode == 0
        news = None
        for fault in [fault for _ in range(rounds) for fault in self.faults()]:
            self.until(lambda n=news: self.in_a_stage() and self.news() != n, f"something to run for: {fault.__name__}")
            news = self.news()
            self.say(fault.__name__.replace("_", " "))
            fault()
        self.until(lambda: not self.live() and self.nothing_left(), "the end")
        wait_for(lambda: not self.cluster.run("squeue", "-h"), "the last processes to leave")

    def say(self, text: str) -> None:
        """Log an event, for the message of a failed run."""
        self.log.append(f"{time.strftime('%H:%M:%S')} {text}")
        print(self.log[-1], flush=True)

    # --- what a user and time do

    def launch(self, *flags: str) -> subprocess.CompletedProcess[str]:
        """Run the command to its end."""
        process = self.launching(*flags)
        out, err = process.communicate(timeout=600)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def launching(self, *flags: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "sweeps", "launch", *self.arguments, "launcher=slurm", *flags]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=ROOT, env=self.cluster.environment)

    def nothing_left(self) -> bool:
        """Launch, with --retry; return whether there was nothing to do."""
        done = self.launch("--retry")
        assert done.returncode == 0, done.stderr
        return "nothing to do" in done.stdout

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait for a condition, and launch again whenever no live job could make it true."""
        deadline, news = time.monotonic() + _PATIENCE, self.news()
        while True:
            self.administer()
            if condition():
                return
            self.check_no_dead_job_runs()
            if not self.live() and not condition() and not self.nothing_left():
                continue
            if self.news() != news:
                deadline, news = time.monotonic() + _PATIENCE, self.news()
            assert time.monotonic() < deadline, f"no news while waiting for {what}: {self.log}"
            time.sleep(0.5)

    def news(self) -> tuple[object, ...]:
        """Return a value that changes with any progress."""
        states = [state for f in self.records.launches() for job in f.jobs() if (state := f.state(job.job))]
        return len(list(self.store.root.glob("[!.]*/*"))), tuple((s.state, s.done, s.attempt) for s in states)

    def administer(self) -> None:
        """Start requeued jobs at once, and release jobs that Slurm holds after trouble with a node."""
        if not self.cluster.controller.running():  # Slurm 22.05 has been seen to, when a node returned to service
            self.say("the controller has crashed by itself")
            self.cluster.start_controller()
        for job in self.cluster.jobs().values():
            with contextlib.suppress(subprocess.CalledProcessError):  # it has just started, or was cancelled
                if job.state == "PENDING" and job.reason == "BeginTime":
                    if time.monotonic() - self.restarted.get(job.id, 0.0) > _SOON:
                        self.restarted[job.id] = time.monotonic()
                        self.cluster.start_now(job.id)
                elif "held" in job.reason and job.reason != "JobHeldUser":
                    self.resume_nodes()
                    self.cluster.run("scontrol", "release", job.id)

    def resume_nodes(self) -> None:
        """Resume drained nodes."""
        for node, state in enumerate(self.cluster.states(), 1):
            if state.startswith("drain"):
                self.cluster.resume(node)

    def check_no_dead_job_runs(self) -> None:
        """Assert that every job shown as running has a living process, or had one minutes ago."""
        dead = {last.pid for _, last in self.running() if not alive(last.pid)}
        self.suspects = {pid: self.suspects.get(pid, time.monotonic()) for pid in dead}
        assert all(time.monotonic() - since < _NOTICE for since in self.suspects.values()), (
            "a dead job is shown as running"
        )

    # --- what there is

    def jobs(self) -> list[Submitted]:
        return JobStatuses(self.store).all()

    def live(self) -> list[Submitted]:
        return [job for job in self.jobs() if job.status.live]

    def running(self) -> list[tuple[JobRecord, State]]:
        """Return the jobs that have recorded that they run."""
        found = [(job.record, job.status.last) for job in self.jobs() if job.status.state == RUNNING]
        return [(job, last) for job, last in found if last and last.state == RUNNING]

    def in_a_stage(self) -> bool:
        """Return whether some job is in the middle of a stage."""
        return any(last.stage for _, last in self.running())

    def some(self) -> tuple[JobRecord, State]:
        """Return a running job."""
        found: list[tuple[JobRecord, State]] = []
        self.until(lambda: found.extend(f for f in self.running() if alive(f[1].pid)) or found, "a running job")
        return self.dice.choice(found)

    def node(self) -> int:
        """Return a node that runs a job."""
        node = 0
        while not node:
            node = self.cluster.at(str(self.some()[0].slurm))
        return node

    # --- faults

    def kill_a_task(self) -> None:
        os.kill(self.some()[1].pid, signal.SIGKILL)

    def tell_a_job_to_stop(self) -> None:
        """Send the signal that precedes a time limit."""
        self.cluster.run("scancel", "--signal=USR2", str(self.some()[0].slurm))

    def preempt(self) -> None:
        other = self.cluster.submit(":", f"--nodelist=node{self.node()}", "--partition=high", "--exclusive")
        self.cluster.wait(other, "COMPLETED", seconds=90)

    def crash_a_node(self) -> None:
        node = self.node()
        self.cluster.kill_node(node)
        wait_for(lambda: self.cluster.states()[node - 1].startswith("down"), "Slurm to notice the crash")
        self.cluster.start_node(node)

    def lose_a_slurmd(self) -> None:
        """Kill and restart the daemon alone: the node's jobs continue."""
        node = self.node()
        self.cluster.kill_node(node, crash=False)
        self.cluster.start_node(node)

    def take_a_node_down(self) -> None:
        """Take it down until its jobs have left: Slurm holds a job that starts again while its first run is there."""
        node = self.node()
        self.cluster.down(node)
        self.cluster.empty(node)
        self.cluster.resume(node)

    def drain_a_node(self) -> None:
        node = self.node()
        self.cluster.drain(node)
        time.sleep(3)
        self.cluster.resume(node)

    def kill_the_controller(self) -> None:
        self.cluster.save()
        self.cluster.kill_controller()
        failed = self.launch()
        assert failed.returncode == 2 and failed.stderr.count("\n") == 1, failed.stderr
        self.cluster.start_controller()
        self.cluster.run("scancel", "--name=wrap")  # what `save` had submitted, and the controller has forgotten

    def cancel_a_job(self) -> None:
        self.cluster.run("scancel", str(self.some()[0].slurm))

    def fill_the_store(self) -> None:
        """Limit the file size of one process, a stand-in for a full disk."""
        try:
            resource.prlimit(self.some()[1].pid, resource.RLIMIT_FSIZE, (2000, 2000))
        except ProcessLookupError:
            self.fill_the_store()

    def kill_a_launcher(self) -> None:
        """Kill it at a random moment, after a task, so that there is something to launch."""
        self.kill_a_task()
        process = self.launching("--retry")
        time.sleep(self.dice.uniform(1, 5))
        process.kill()
        process.communicate()

    def launch_twice_at_once(self) -> None:
        self.kill_a_task()
        both = [self.launching("--retry") for _ in range(2)]
        output = [process.communicate(timeout=600) for process in both]
        assert [process.returncode for process in both] == [0, 0], output

    # --- what must hold in the end

    def completions(self) -> Counter[str]:
        """Count the completions of each stage in the logs of all jobs."""
        logs = (path for f in self.records.launches() for path in f.logs.glob("*_log.err"))
        return Counter(name for path in logs for name in _DONE.findall(path.read_text(errors="replace")))


def main() -> None:
    """Run one storm by hand."""
    study, folder, *arguments = sys.argv[1:]
    store = Store(Path(folder) / "store")
    given = [f"study={study}", f"store={store.root}", f"output={Path(folder).absolute() / 'outputs'}", *arguments]
    first = 1 + max(
        (int(str(j.slurm).partition("_")[0]) for f in Records(store).launches() for j in f.jobs()), default=0
    )
    with Cluster.start(Path(folder) / f"c{first}", extra=(*QUICK, f"FirstJobId={first + 10_000}")) as cluster:
        os.environ.update(cluster.variables)
        storm = Storm(cluster, store, given)
        storm.run(rounds=2)
        counts = storm.completions()
        print(f"{len(counts)} stages completed, none twice: {set(counts.values()) == {1}}")
        print(Counter(job.status.state for job in storm.jobs()))


if __name__ == "__main__":
    main()
