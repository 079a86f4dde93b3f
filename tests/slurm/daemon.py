"""One daemon of a cluster, under a keeper that ends it and everything it started."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from . import keeper


def wait_for(condition: Callable[[], object], what: str, seconds: float = 300.0) -> None:
    """Return when `condition()` holds; TimeoutError naming `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        time.sleep(0.05)


def alive(process: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def called(process: int) -> str:
    """Return the name of a process, empty if it has ended."""
    try:
        return Path(f"/proc/{process}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


class Daemon:
    """`command` in `folder`; `log` gets what it writes. `start` and `kill` may alternate."""

    def __init__(self, command: list[str], folder: Path, log: Path, environment: Mapping[str, str]) -> None:
        self.command, self.folder, self.log, self.environment = command, folder, log, environment
        self._keeper: subprocess.Popen[str] | None = None
        self.process = 0

    def start(self) -> None:
        """Start it, beside what an earlier one left running if that was killed alone."""
        if self._keeper is None:
            self._keeper = self._keep()
        assert self._keeper.stdin and self._keeper.stdout
        self._keeper.stdin.write("start\n")
        self._keeper.stdin.flush()
        answer = self._keeper.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.command[0]} did not start: {self.log.read_text()}")
        self.process = int(answer)

    def _keep(self) -> subprocess.Popen[str]:
        # Isolated and without site-packages: it starts in a tenth of the time. A session of its own: no Ctrl-C.
        command = [sys.executable, "-I", "-S", keeper.__file__, *self.command]
        with self.log.open("a") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=self.folder,
                env=dict(self.environment),
                start_new_session=True,
                text=True,
            )

    def running(self) -> bool:
        """Whether the daemon itself lives."""
        return self.process != 0 and alive(self.process)

    def kill(self) -> None:
        """Kill the daemon alone: the job steps it started continue."""
        if self.running():
            os.kill(self.process, signal.SIGKILL)
            wait_for(lambda: not self.running(), f"the end of {self.command[0]}")

    def crash(self) -> None:
        """Kill the daemon and its descendants; return when all have ended."""
        self.release()
        self.join()

    def release(self) -> None:
        """Let the keeper end everything; `join` waits for it."""
        if self._keeper:
            self._keeper.terminate()

    def join(self) -> None:
        if self._keeper:
            self._keeper.communicate(timeout=60)
            self._keeper = None

    def processes(self) -> set[int]:
        """Return the living daemon and its descendants."""
        return keeper.descendants(self._keeper.pid) if self._keeper else set()
