"""A throw-away Slurm cluster on this machine: munged, slurmctld, several slurmd, and slurmdbd on MariaDB.

Needs the programs of Debian's packages slurm-wlm, munge, slurmdbd and mariadb-server; root or any user will do.
Every daemon has a keeper (`keeper.py`), so nothing outlives the process that started the cluster.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
from pathlib import Path
from types import TracebackType
from typing import Self

from . import configuration
from .commands import Commands
from .configuration import Settings
from .daemon import Daemon, called, wait_for

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
DATABASE = ("slurmdbd", "mariadbd", "mariadb")
LONGEST = 65  # characters of the folder: the sockets in it may have 108


class Cluster(Commands):
    """Nodes are called by number, 1 … `nodes`; node i is `node<i>` to Slurm."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        super().__init__(folder)
        self.settings = settings
        self._check()
        for name in ("state", "run", "log", "spool", "database"):
            (self.folder / name).mkdir(parents=True)
        self._controller_port, self._database_port = configuration.write(self.folder, settings)
        self.munge = self._daemon("munged", *self._munge())
        self.database = self._daemon("mariadbd", f"--defaults-file={self.folder}/my.cnf")
        self.accounting = self._daemon("slurmdbd", "-D")
        self.controller = self._daemon("slurmctld", "-D")
        self.nodes = [self._daemon("slurmd", "-D", "-N", f"node{i}") for i in range(1, settings.nodes + 1)]

    @classmethod
    def start(
        cls,
        folder: Path,
        *,
        nodes: int = 4,
        gpus: int = 2,
        cpus: int = 8,
        memory: int = 8000,
        accounting: bool = True,
        grace: int = 0,
        max_array: int = 1001,
        extra: tuple[str, ...] = (),
    ) -> Self:
        """Start a cluster in an empty `folder`; return it with idle nodes. Raises RuntimeError without its programs."""
        cluster = cls(folder, Settings(nodes, gpus, cpus, memory, accounting, grace, max_array, extra))
        try:
            cluster._start()
        except BaseException:
            cluster.stop()
            raise
        return cluster

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _check(self) -> None:
        programs = PROGRAMS + (DATABASE if self.settings.accounting else ())
        if missing := [name for name in programs if not shutil.which(name, path=self.variables["PATH"])]:
            raise RuntimeError(f"{', '.join(missing)}: not installed; run `make programs`")
        if len(str(self.folder)) > LONGEST:
            raise RuntimeError(f"{self.folder}: more than {LONGEST} characters, too long a path for the sockets in it")

    def _daemon(self, program: str, *arguments: str) -> Daemon:
        name = arguments[-1] if program == "slurmd" else program
        folder = self.folder / "spool" / name
        folder.mkdir()
        needed = self.variables | {"MYSQL_UNIX_PORT": str(self.folder / "mariadb.sock")}
        return Daemon([program, *arguments], folder, self.folder / "log" / name, needed)

    def _munge(self) -> list[str]:
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(128))
        # --force: the folders above may be private or another user's. Slurm wants ten threads.
        files = {"key-file": "munge.key", "socket": "munge.sock", "pid-file": "run/munged.pid", "seed-file": "seed"}
        return ["--foreground", "--force", "--num-threads=10", *(f"--{k}={self.folder / v}" for k, v in files.items())]

    def _start(self) -> None:
        self.munge.start()
        if self.settings.accounting:
            self._start_accounting()
        wait_for((self.folder / "munge.sock").exists, "munged")
        self.start_controller()
        for node in self.nodes:
            node.start()
        wait_for(lambda: set(self.states()) == {"idle"}, f"idle nodes; see {self.folder}/log")

    def _start_accounting(self) -> None:
        socket_file = str(self.folder / "mariadb.sock")
        self.database.start()
        wait_for(lambda: listening(socket_file), "mariadbd")
        # What mariadb-install-db does, without the second that it spends on shutting its server down.
        self.run("mariadb", "--no-defaults", f"--socket={socket_file}", text=configuration.system_tables())
        self.accounting.start()
        wait_for(lambda: listening(("127.0.0.1", self._database_port)), "slurmdbd")

    def kill_node(self, i: int, *, crash: bool = True) -> None:
        """Kill slurmd, job steps and tasks, as a crash of the machine; with `crash=False` slurmd alone."""
        node = self.nodes[i - 1]
        node.crash() if crash else node.kill()

    def start_node(self, i: int) -> None:
        """Start the slurmd of a node that was killed."""
        self.nodes[i - 1].start()

    def empty(self, i: int) -> None:
        """Wait until no job is left on a node, such as one that is down."""
        processes = self.nodes[i - 1].processes
        wait_for(lambda: "slurmstepd" not in map(called, processes()), "the jobs to leave the node")

    def cancel_all(self) -> None:
        """Cancel every job, kill its processes and wait until the nodes are free."""

        def free() -> bool:
            for selection in (["--state=PENDING"], []):  # pending ones would start in the place of the others
                self.run("scancel", "--quiet", f"--user={os.getuid()}", *selection)
            for process in set[int]().union(*(node.processes() for node in self.nodes)):
                if called(process) not in ("slurmd", "slurmstepd", "srun"):  # Slurm waits 30 s for the others
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process, signal.SIGKILL)
            return not self.run("squeue", "-h")

        wait_for(free, "the cancelled jobs to leave")

    def kill_controller(self) -> None:
        """Kill slurmctld; clients then fail after some 4 s."""
        self.controller.crash()

    def rewind_controller(self, state: Path) -> None:
        """Kill slurmctld and restart it from a copy of its state."""
        self.kill_controller()
        shutil.rmtree(self.folder / "state")
        shutil.copytree(state, self.folder / "state")
        self.start_controller()

    def start_controller(self) -> None:
        """Start slurmctld from its saved state and wait until it answers."""
        self.controller.start()
        wait_for(lambda: listening(("127.0.0.1", self._controller_port)), "slurmctld")

    def processes(self) -> set[int]:
        """All living processes of the cluster, its jobs included."""
        return set[int]().union(*(daemon.processes() for daemon in self._daemons()))

    def _daemons(self) -> list[Daemon]:
        return [*self.nodes, self.controller, self.accounting, self.database, self.munge]

    def stop(self) -> None:
        """End every process; of the files, the logs and the configuration stay."""
        for daemon in self._daemons():
            daemon.release()
        for daemon in self._daemons():
            daemon.join()
        for name in ("database", "state", "spool"):
            shutil.rmtree(self.folder / name, ignore_errors=True)


def listening(address: str | tuple[str, int]) -> bool:
    """Whether something accepts connections at a socket's path or at a host and port."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as client:
        return client.connect_ex(address) == 0
