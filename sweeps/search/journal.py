"""Optuna's journal of a search: its lock, and the repair of damaged records."""

import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend, JournalStorage
from optuna.storages.journal._file import BaseJournalFileLock
from optuna.storages.journal._storage import JournalOperation

from iris.errors import UserError
from iris.execution.progress import Progress
from iris.files import write_atomic
from sweeps.state import records

NAME = "journal.log"
DAMAGED = "journal.damaged"  # records that repairs left out


class _Lock(BaseJournalFileLock):
    """A lock that the kernel frees when its holder dies; the record that such a holder left unfinished is removed."""

    def __init__(self, journal: Path) -> None:
        self.journal, self.lock = journal, FileLock(f"{journal}.lock", thread_local=False)

    def acquire(self) -> bool:
        """Wait for the lock."""
        self.lock.acquire()
        _cut_unfinished(self.journal)
        return True

    def release(self) -> None:
        """Let the next process write."""
        self.lock.release()


def _cut_unfinished(journal: Path) -> None:
    with journal.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        start = max(0, size - (1 << 20))
        file.seek(start)
        tail = file.read()
        if tail and not tail.endswith(b"\n"):
            file.truncate(start + tail.rfind(b"\n") + 1)
            Progress().say(f"{journal}: removed an unfinished record at its end.")


class _Reader(BaseJournalBackend):
    """The records of a journal, for a storage that is only read."""

    def __init__(self, found: list[dict[str, Any]]) -> None:
        self.found = found

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        yield from self.found[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        raise RuntimeError("This journal was opened for reading only.")


def read_journal(folder: Path) -> JournalStorage:
    """Read the journal in a folder as far as it can be read, without changing it."""
    return JournalStorage(_Reader([json.loads(line) for line in scan(folder).kept]))


def open_journal(folder: Path) -> JournalStorage:
    """Open the journal in a folder for writing; create or repair it. Raises UserError while workers prevent that."""
    folder.mkdir(parents=True, exist_ok=True)
    journal, lock = folder / NAME, _Lock(folder / NAME)
    journal.touch()
    lock.acquire()
    try:
        _repair(folder, scan(folder))
    finally:
        lock.release()
    return JournalStorage(JournalFileBackend(str(journal), lock))


def _repair(folder: Path, found: "Scan") -> None:
    if not found.damage:
        return
    # Optuna numbers trials by their place in the journal, also in the memory of workers.
    if live := sum(records.held(path) for path in (folder / "trials").glob("*.lock")):
        raise UserError(f"{found.damage}. {live} workers use it, so it is not repaired: cancel the search, then rerun.")
    with (folder / DAMAGED).open("ab") as file:
        file.writelines(found.lost)
    write_atomic(folder / NAME, b"".join(found.kept))
    Progress().say(f"{found.damage}. Repaired; records that are left out are in {DAMAGED}.")


class Scan(NamedTuple):
    """The lines of a journal that can be used, those that cannot, and a description of the damage, or ""."""

    kept: list[bytes]
    lost: list[bytes]
    damage: str


def scan(folder: Path) -> Scan:
    """Read the journal in a folder up to the first line that is no record, without blank lines and repeated records."""
    journal, damage = folder / NAME, []
    lines = journal.read_bytes().splitlines(keepends=True) if journal.exists() else []
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
        if not records.held(Path(f"{journal}.lock")):  # else it is being written
            damage.append("an unfinished record at its end")
    filled = [line for line in lines if line.strip()]
    readable = list(itertools.takewhile(_is_record, filled))
    kept, lost = _without_repeated(readable), filled[len(readable) :]
    counts = {"blank lines": len(lines) - len(filled), "repeated records": len(readable) - len(kept)}
    damage += [f"{count} {what}" for what, count in counts.items() if count]
    if lost:
        damage.append(f"record {len(readable) + 1} cannot be read, so {len(lost)} records are left out")
    return Scan(kept, lost, f"{journal}: {', '.join(damage)}" if damage else "")


def _is_record(line: bytes) -> bool:
    try:
        record = json.loads(line)
        return isinstance(record["worker_id"], str) and record["op_code"] in list(JournalOperation)
    except (ValueError, TypeError, KeyError):
        return False


def _without_repeated(lines: Sequence[bytes]) -> list[bytes]:
    """Remove repeated creations of a trial, unless later records count them.

    Other repeated records set what is set already: workers write them too.
    """
    creations: set[bytes] = set()
    kept = []
    for line in lines:
        if line not in creations:
            kept.append(line)
        if json.loads(line)["op_code"] == JournalOperation.CREATE_TRIAL:
            creations.add(line)
    return kept if len(kept) == len(lines) or _numbers_agree(kept) else list(lines)


def _numbers_agree(lines: Sequence[bytes]) -> bool:
    """Whether each worker's next record after it created a trial has the number of that trial."""
    numbers: dict[str, int] = {}
    count = 0
    for record in map(json.loads, lines):
        if record["op_code"] == JournalOperation.CREATE_TRIAL:
            numbers[record["worker_id"]] = count
            count += 1
        elif "trial_id" in record and record["trial_id"] != numbers.pop(record["worker_id"], record["trial_id"]):
            return False
    return True
