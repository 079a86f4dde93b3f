"""python -m sweeps logs PATTERN      print the logs of experiments' jobs
    stage=train    the newest job of a kind of stage, not of the current one
    --follow       print new lines until the job ends
python -m sweeps cancel PATTERN    cancel the jobs of experiments, except those
                                   that other experiments need
python -m sweeps retry PATTERN     run failed jobs again
    launcher=…     with another launcher than the last one
python -m sweeps rm PATTERN        remove the artifacts that no other experiment
    --yes          of a known study needs; --yes: without asking

PATTERN is an experiment's name, or one with *, ? and []: 'method=iris,*'. With
study=NAME it selects experiments of that study, all of them without a PATTERN.
store=FOLDER is the store (default iris-store).
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from iris.errors import UserError
from iris.store import Store, storage_errors
from sweeps.cli.amounts import size
from sweeps.cli.arguments import Arguments
from sweeps.state import cancellation, logs, removal
from sweeps.state.records import FAILED, Records
from sweeps.state.removal import Removal
from sweeps.state.selection import open_store, select, study_name
from sweeps.state.study_status import Experiment, StudyStatus

_SHOWN = 30  # lines of a listing


@dataclass(frozen=True)
class Selection:
    """The experiments of a store that a command line selects."""

    store: Store
    study: str | None
    given: Arguments

    def find(self) -> tuple[StudyStatus, list[Experiment]]:
        """Return the store's current state and the experiments. Raises UserError if there are none."""
        study_status = StudyStatus(self.store)
        return study_status, select(study_status, self.given.rest, self.study)

    def text(self, experiments: Sequence[Experiment]) -> str:
        """Return a short text that names the experiments."""
        return _list([e.name for e in experiments]) if experiments else f"study={self.study}"


def _on_selection(command: Callable[[Selection], int]) -> Callable[[Arguments], int]:
    def run(given: Arguments) -> int:
        study = study_name(given.settings["study"]) if "study" in given.settings else None
        if not given.rest and study is None:
            raise UserError("Which experiments? Give a name, a pattern or a study, such as study=NAME 'method=iris,*'.")
        store = open_store(given.settings.get("store"))
        with storage_errors(store.root):
            return command(Selection(store, study, given))

    return run


@_on_selection
def show_logs(selection: Selection) -> int:
    """Print or follow the logs of the jobs of experiments."""
    kind = selection.given.settings.get("stage")
    logs.check_kind(kind)
    study_status, chosen = selection.find()
    found = [job for job in (logs.job_of(e, study_status, kind) for e in chosen) if job is not None]
    jobs = list({(folder.id, job.job): (folder, job) for folder, job in found}.values())
    if not jobs:
        print(f"no log: no job was for {kind or 'any stage'} of {selection.text(chosen)}")
    elif "--follow" not in selection.given.flags:
        logs.print_logs(jobs, selection.store)
    elif len(jobs) > 1:
        raise UserError(f"--follow: {selection.text(chosen)} have {len(jobs)} jobs. Name one experiment.")
    else:
        logs.follow(*jobs[0], selection.store)
    return 0


@_on_selection
def cancel(selection: Selection) -> int:
    """Cancel the jobs that only the selected experiments need."""
    from sweeps.launch import dispatch

    with Records(selection.store).lock():  # no submission in between
        study_status, chosen = selection.find()
        found = cancellation.find(study_status, chosen, selection.study)
        dispatch.cancel(found.jobs)
    if not found.jobs and not found.shared:
        print(f"nothing to cancel: nothing waits or runs for {selection.text(chosen)}")
    if found.jobs:
        print(f"cancelled {_many(len(found.jobs), 'job')} of {selection.text(chosen)}")
    for job, users in found.shared[:_SHOWN]:
        print(f"left: {job.record.kind} {job.record.name}, which is also for {_list(users)}")
    return 0


@_on_selection
def retry(selection: Selection) -> int:
    """Run again what failed; return 1 where a job that ran in this process failed."""
    from sweeps.launch.retry import retry as retry_study

    study_status, chosen = selection.find()
    failed = sorted((e for e in chosen if e.state == FAILED), key=lambda e: e.study)
    if not failed:
        print(f"nothing to retry: nothing has failed of {selection.text(chosen)}")
    status = 0
    for study, group in groupby(failed, key=lambda e: e.study):
        members = list(group)
        launcher, changes = selection.given.settings.get("launcher"), selection.given.under("launcher")
        report = retry_study(study_status, study, members, launcher, changes)
        logged = f", logs: {report.folder.logs}" if report.folder else ""
        print(f"{_many(len(report.jobs), 'job')} for {selection.text(members)}{logged}")
        status = max(status, 1 if report.failures else 0)
    return status


@_on_selection
def remove(selection: Selection) -> int:
    """Remove artifacts that no other experiment needs."""
    study_status, chosen = selection.find()
    found = removal.find(study_status, chosen)
    if found.kept:
        print(f"{_many(len(found.kept), 'artifact')} kept: artifacts of no known study were made from them")
    if not found.sizes:
        print(f"nothing to remove: {selection.text(chosen)} have no artifacts that only they need")
        return 0
    _list_folders(found)
    if "--yes" not in selection.given.flags and not _confirmed():
        print("nothing was removed")
        return 0
    with Records(selection.store).lock():  # no submission in between
        if removal.find(*selection.find()).sizes.keys() != found.sizes.keys():
            raise UserError("The store has changed and nothing was removed. Run the same command again.")
        removal.remove(selection.store, found)
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
        raise UserError("Nothing was removed: there is no terminal to confirm on. Add --yes to remove these.")
    return input("Remove all of it? [y/N] ").strip().lower() in ("y", "yes")


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
