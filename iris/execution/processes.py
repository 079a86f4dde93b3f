"""Run one command as several processes on this machine; the first one reports for all."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from iris.errors import UserError

Process = subprocess.Popen[bytes]
_GRACE = 5.0  # seconds for the others to end by themselves (mostly with the same error) after one has failed


def start(count: int, overrides: Sequence[str], folder: Path) -> None:
    """Run the command as `count` processes and wait for them; all but the first write to `folder/process-K.log`.

    Raises SystemExit with the first one's status if it fails with a message, UserError if another one fails.
    """
    processes: list[Process] = []
    port = _free_port()
    logs = [None, *(folder / f"process-{rank}.log" for rank in range(1, count))]
    try:
        with _ended(processes):
            for rank, log in enumerate(logs):
                processes.append(_open(rank, count, port, overrides, log))
            failed = _wait(processes)
    except KeyboardInterrupt as stop:
        raise SystemExit(max(processes[0].returncode, 128 + signal.SIGINT)) from stop  # the first one has reported it
    if failed is None:
        return
    first = processes[0].returncode
    if first == 2 or (first > 0 and failed == 0):
        raise SystemExit(first)
    log = logs[failed]
    last = log.read_text(errors="replace").strip().rpartition("\n")[2] if log else ""
    raise UserError(
        f"Process {failed} of {count} failed (exit status {processes[failed].returncode}). "
        f"{last or 'It wrote nothing.'}{f' Its log: {log}' if log else ''}"
    )


def _open(rank: int, count: int, port: int, overrides: Sequence[str], log: Path | None) -> Process:
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count))}
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environment = threads | os.environ | {name: str(value) for name, value in place.items()} | meeting
    with log.open("wb") if log else contextlib.nullcontext() as output:
        return subprocess.Popen(
            [sys.executable, "-m", "iris.run", *overrides], env=environment, stdout=output, stderr=output
        )


def _wait(processes: Sequence[Process]) -> int | None:
    """Wait for all to finish. Returns the rank of a failed process, after the others had time to report as well."""
    while None in [p.poll() for p in processes]:  # poll all: it records each exit status
        if (failed := _failed(processes)) is not None:
            deadline = time.monotonic() + _GRACE
            while None in [p.poll() for p in processes] and time.monotonic() < deadline:
                time.sleep(0.05)
            return failed
        time.sleep(0.05)
    return _failed(processes)


def _failed(processes: Sequence[Process]) -> int | None:
    return next((rank for rank, p in enumerate(processes) if p.returncode), None)


@contextlib.contextmanager
def _ended(processes: Sequence[Process]) -> Iterator[None]:
    """Leave no process behind, whatever ends the block."""
    try:
        yield
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
        for process in processes:
            try:
                process.wait(_GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
