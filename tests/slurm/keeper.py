"""Starts a daemon for every line on standard input, and ends all that came of them when standard input closes.

The owner holds the other end of the pipe, so its death, by whatever signal, closes it. Whatever a daemon leaves
behind (a job step in a session of its own, a task that outlived its step) has the keeper for a parent and is found.

    python keeper.py PROGRAM ARGUMENTS...
"""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36


def reap(*_: object) -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def spawn(command: list[str]) -> int:
    """Start a daemon that writes to the keeper's standard error; return its process id."""
    files = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0), (os.POSIX_SPAWN_DUP2, 2, 1)]
    return os.posix_spawnp(command[0], command, os.environ, file_actions=files, setsid=True)


def parents() -> Iterator[tuple[int, int]]:
    """Every process and its parent."""
    for entry in os.listdir("/proc"):  # noqa: PTH208
        if entry.isdigit():
            try:
                parent = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1]
            except OSError:  # it ended meanwhile
                continue
            yield int(entry), int(parent)


def descendants(root: int) -> set[int]:
    """Return the descendants of the process `root`."""
    children: dict[int, list[int]] = {}
    for process, parent in parents():
        children.setdefault(parent, []).append(process)
    found: set[int] = set()
    waiting = [root]
    while waiting:
        new = children.get(waiting.pop(), [])
        found.update(new)
        waiting += new
    return found


def signal_all(number: signal.Signals, processes: set[int]) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, number)


def kill_all() -> None:
    """Like a power cut: stop all before the first is killed, or a job step would still report how its task ended."""
    stopped: set[int] = set()
    while new := descendants(os.getpid()) - stopped:
        signal_all(signal.SIGSTOP, new)
        stopped |= new
    while processes := descendants(os.getpid()):
        signal_all(signal.SIGKILL, processes)
        time.sleep(0.01)


def main() -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    signal.signal(signal.SIGCHLD, reap)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        for _ in sys.stdin:
            print(spawn(sys.argv[1:]), flush=True)
    finally:
        kill_all()


if __name__ == "__main__":
    main()
