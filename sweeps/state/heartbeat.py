"""The state file of a running job, renewed every few seconds by a thread."""

import contextlib
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from iris.errors import UserError
from iris.execution import interruption
from iris.execution.interruption import Interrupted
from iris.execution.progress import Line, Progress
from sweeps.state.records import CANCELLED, DONE, ENDED, FAILED, INTERRUPTED, RUNNING, Folder, State

_SECONDS = 5.0


class Heartbeat:
    """Context manager that records the state of a job: RUNNING inside the block, its end state after it.

    `attempt` grows with every requeue. After the loss of a node an earlier attempt may still run: it stops, and writes
    nothing more, once a later one has written. Processes other than the main one only record failures.
    """

    def __init__(self, folder: Folder, job: int, *, attempt: int = 0, main: bool = True) -> None:
        self.folder, self.job, self.attempt, self.main = folder, job, attempt, main
        self.stage = ""
        self.superseded = False
        self.kept = 0  # stages and shards that this run has finished
        self._line: Line | None = None
        self._advanced: tuple[float, float] = (0.0, time.time())  # the count, and when it was reached
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def __enter__(self) -> Self:
        self._beat()
        if self.main:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.end(DONE)
        elif isinstance(error, Interrupted):
            self.end(INTERRUPTED)
        elif isinstance(error, KeyboardInterrupt):
            self.end(CANCELLED, "stopped")
        else:
            self.end(FAILED, last_line(error))

    def end(self, state: str, error: str = "") -> None:
        """Record the end state; later calls have no effect."""
        with self._lock:
            if self._ended.is_set():
                return
            self._ended.set()
        if self.main or state == FAILED:
            self._write(state, error)

    def begin(self, stage: str) -> None:
        """Record the stage (kind/key) that starts now."""
        self.stage, self._line = stage, None
        self._beat()

    def follow(self, line: Line) -> None:
        """Record the progress of this line from now on."""
        self._line, self._advanced = line, (line.done, time.time())

    def _renew(self) -> None:
        while not self._ended.wait(_SECONDS):
            self._beat()

    def _beat(self) -> None:
        with self._lock:
            if self.main and not self._ended.is_set():
                self._write(RUNNING)

    def _write(self, state: str, error: str = "") -> None:
        """Write the state unless a later attempt has, or another process of this one has recorded the end."""
        with contextlib.suppress(OSError):  # such as a full disk, which the job itself meets too
            last = self.folder.state(self.job)
            self.superseded = last is not None and last.attempt > self.attempt
            closed = last is not None and last.attempt == self.attempt and last.state in ENDED
            if self.superseded or closed:
                interruption.request()
            else:
                self.folder.write_state(self.job, self._state(state, error))

    def _state(self, state: str, error: str) -> State:
        now, line = time.time(), self._line
        done, total, unit, rate = 0.0, 0.0, "", 0.0
        if line is not None:
            done, total, unit = line.done, line.total, line.unit
            elapsed = time.monotonic() - line.start
            rate = (done - line.resumed) / elapsed if elapsed > 0 else 0.0
            if done != self._advanced[0]:
                self._advanced = (done, now)
        host, pid = platform.node(), os.getpid()
        return State(state, now, self.stage, done, total, unit, rate, self._advanced[1], error, host, pid, self.attempt)


class FollowedProgress(Progress):
    """Progress lines whose counts the heartbeat records."""

    def __init__(self, heartbeat: Heartbeat) -> None:
        super().__init__(quiet=not heartbeat.main)
        self.heartbeat = heartbeat

    @contextmanager
    def line(self, label: str, total: int, unit: str) -> Iterator[Line]:
        with super().line(label, total, unit) as line:
            self.heartbeat.follow(line)
            yield line


def last_line(error: BaseException) -> str:
    """Return a UserError's message, or the type and last line of any other error."""
    text = " ".join(str(error).split()) if isinstance(error, UserError) else str(error).strip().rpartition("\n")[2]
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
