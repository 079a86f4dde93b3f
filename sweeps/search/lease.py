"""The right to run one trial: a lock that the kernel frees when its holder dies, and a file that shows a live holder.

The file serves file systems whose locks do not reach other hosts.
"""

import json
import os
import platform
import threading
import time
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout

from iris.files import write_atomic
from sweeps.state import records

BEAT = 10.0  # seconds between two touches of the file
SILENCE = 60.0  # seconds without one after which a holder on another host counts as dead


class Lease:
    """A trial's lock, held, and the thread that touches its file."""

    def __init__(self, lock: FileLock, file: Path) -> None:
        self.lock, self.file, self.ended = lock, file, threading.Event()
        write_atomic(file, json.dumps({"host": platform.node(), "pid": os.getpid()}))
        threading.Thread(target=self._beat, daemon=True).start()

    @classmethod
    def take(cls, folder: Path, number: int) -> Self | None:
        """Take a trial's lease; None if another worker holds it."""
        lock, file = FileLock(folder / f"{number}.lock", thread_local=False), folder / f"{number}.json"
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
        if _held_elsewhere(file):
            lock.release()
            return None
        return cls(lock, file)

    def release(self) -> None:
        """Let other workers take it."""
        self.ended.set()
        self.file.unlink(missing_ok=True)
        self.lock.release()

    def _beat(self) -> None:
        while not self.ended.wait(BEAT):
            try:
                os.utime(self.file)
            except FileNotFoundError:
                return


def held(folder: Path, number: int) -> bool:
    """Whether a live worker holds a trial of the search in `folder`."""
    lock = folder / "trials" / f"{number}.lock"
    return records.held(lock) or (lock.exists() and _held_elsewhere(lock.with_suffix(".json")))


def _held_elsewhere(file: Path) -> bool:
    """Whether the holder is on another host and live."""
    try:
        host = json.loads(file.read_text())["host"]
        return bool(host != platform.node()) and time.time() - file.stat().st_mtime < SILENCE
    except (FileNotFoundError, ValueError):
        return False
