"""python -m sweeps logs PATTERN      what the job of an experiment writes
    stage=train    the newest job of a kind of stage, not of where it is now
    --follow       as it grows, until the job ends
python -m sweeps cancel PATTERN    end what waits or runs for experiments, but
                                   for what another one needs as well
python -m sweeps retry PATTERN     start again what has failed
    launcher=…     not with the launcher of the last launch
python -m sweeps rm PATTERN        remove the artifacts that no other experiment
    --yes          of a known study needs, without asking

PATTERN is an experiment's name, or one with *, ? and []: 'method=iris,*'. With
study=NAME it is one of that study, and may be left out to mean all of them.
store=FOLDER is the store (iris-store).
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from iris.errors import UserError
from iris.store import Store, storage_errors
from sweeps.cli.amounts import size
from sweeps.cli.arguments import Arguments, parse
from sweeps.state import cancellation, logs, removal
from sweeps.state.records import FAILED, Records
from sweeps.state.removal import Removal
from sweeps.state.selection import open_store, select, study_name
from sweeps.state.study_status import Experiment, StudyStatus

_SHOWN = 30  # lines of a listing
_FLAGS = {"logs": "--follow", "rm": "--yes"}
_SETTINGS = {"logs": "stage", "retry": "launcher"}


@dataclass(frozen=True)
class Asked:
    """What somebody asks for: the experiments, and the other words of the command line."""

    store: Store
    patterns: Sequence[str]
    study: str | None
    words: Arguments

    def look(self) -> tuple[StudyStatus, list[Experiment]]:
        """The store as it is now, and the experiments. Raises UserError if there are none."""
        study_status = StudyStatus(self.store)
        return study_status, select(study_status, self.patterns, self.study)

    def called(self, experiments: Sequence[Experiment]) -> str:
        """What to call them."""
        return _list([e.name for e in experiments]) if experiments else f"study={self.study}"


def main(arguments: Sequence[str]) -> int:
    """The command that the first word names. Exit status 1: a job that `retry` ran in this process failed."""
    command, *words = arguments
    flags = {flag: "" for flag in (_FLAGS.get(command), "--help") if flag}
    own = [_SETTINGS[command]] if command in _SETTINGS else []
    parsed = parse(words, settings=("study", "store", *own), flags=flags, names=True)
    if "--help" in parsed.flags:
        print(__doc__)
        return 0
    patterns = [*parsed.names, *parsed.overrides]  # a name has equals signs in it, so it looks like an override
    study = study_name(parsed.settings["study"]) if "study" in parsed.settings else None
    if not patterns and study is None:
        raise UserError(f"Which experiments? Give a name, a pattern or a study: {command} study=NAME 'method=iris,*'.")
    run: dict[str, Callable[[Asked], int]] = {"logs": _logs, "cancel": _cancel, "retry": _retry, "rm": _rm}
    store = open_store(parsed.settings.get("store"))
    with storage_errors(store.root):
        return run[command](Asked(store, patterns, study, parsed))


def _logs(asked: Asked) -> int:
    kind = asked.words.settings.get("stage")
    logs.check_kind(kind)
    study_status, chosen = asked.look()
    found = [job for job in (logs.job_of(e, study_status, kind) for e in chosen) if job is not None]
    jobs = list({(folder.id, job.job): (folder, job) for folder, job in found}.values())
    if not jobs:
        print(f"no log: no job was for {kind or 'any stage'} of {asked.called(chosen)}")
    elif "--follow" not in asked.words.flags:
        logs.print_logs(jobs, asked.store)
    elif len(jobs) > 1:
        raise UserError(f"--follow: {asked.called(chosen)} have {len(jobs)} jobs. Name one experiment.")
    else:
        logs.follow(*jobs[0], asked.store)
    return 0


def _cancel(asked: Asked) -> int:
    from sweeps.launch import dispatch

    with Records(asked.store).lock():  # nobody submits meanwhile
        study_status, chosen = asked.look()
        found = cancellation.find(study_status, chosen, asked.study)
        dispatch.cancel(found.jobs)
    if not found.jobs and not found.shared:
        print(f"nothing to cancel: nothing waits or runs for {asked.called(chosen)}")
    if found.jobs:
        print(f"cancelled {_many(len(found.jobs), 'job')} of {asked.called(chosen)}")
    for job, users in found.shared[:_SHOWN]:
        print(f"left: {job.record.kind} {job.record.name}, which is also for {_list(users)}")
    return 0


def _retry(asked: Asked) -> int:
    from sweeps.launch.retry import retry

    study_status, chosen = asked.look()
    failed = sorted((e for e in chosen if e.state == FAILED), key=lambda e: e.study)
    if not failed:
        print(f"nothing to retry: nothing has failed of {asked.called(chosen)}")
    status = 0
    for study, group in groupby(failed, key=lambda e: e.study):
        members = list(group)
        launcher, changes = asked.words.settings.get("launcher"), asked.words.under("launcher")
        report = retry(study_status, study, members, launcher, changes)
        logged = f", logs: {report.folder.logs}" if report.folder else ""
        print(f"{_many(len(report.jobs), 'job')} for {asked.called(members)}{logged}")
        status = max(status, 1 if report.failures else 0)
    return status


def _rm(asked: Asked) -> int:
    study_status, chosen = asked.look()
    found = removal.find(study_status, chosen)
    if found.kept:
        print(f"{_many(len(found.kept), 'artifact')} stay, since what is in no study was made from them")
    if not found.sizes:
        print(f"nothing to remove: {asked.called(chosen)} have nothing that others do not need")
        return 0
    _list_folders(found)
    if "--yes" not in asked.words.flags and not _confirmed():
        print("nothing was removed")
        return 0
    with Records(asked.store).lock():  # nobody submits meanwhile
        if removal.find(*asked.look()).sizes.keys() != found.sizes.keys():
            raise UserError("The store has changed meanwhile, and nothing was removed. Run the same command again.")
        removal.remove(asked.store, found)
    print(f"removed {_many(len(found.sizes), 'folder')}, {size(found.total)}")
    return 0


def _list_folders(found: Removal) -> None:
    largest = sorted(found.sizes.items(), key=lambda item: -item[1])
    for name, count in largest[:_SHOWN]:
        print(f"{size(count):>10}  {name}")
    if rest := largest[_SHOWN:]:
        print(f"{size(sum(count for _, count in rest)):>10}  in {len(rest)} more")


def _confirmed() -> bool:
    if not sys.stdin.isatty():
        raise UserError("Nothing was removed: nobody is here to confirm it. Add --yes to remove these.")
    return input("Remove all of it? [y/N] ").strip().lower() in ("y", "yes")


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
