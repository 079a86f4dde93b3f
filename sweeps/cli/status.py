"""python -m sweeps status              the studies of a store
python -m sweeps status study=NAME   the experiments of one (also: status NAME)

    store=FOLDER   the store (default iris-store)
    --all          one line per experiment, in large studies too
    --watch        refresh every five seconds until no job waits or runs
"""

import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from iris import outdated
from iris.errors import UserError
from iris.store import Store
from sweeps.cli import status_table
from sweeps.cli.amounts import duration
from sweeps.cli.arguments import Arguments
from sweeps.state.exit_reason import ExitReasons
from sweeps.state.finished import Finished
from sweeps.state.job_status import PREEMPTED, STALLED, UNKNOWN, Submitted
from sweeps.state.records import FAILED, QUEUED, RUNNING
from sweeps.state.selection import check_study, open_store, study_name
from sweeps.state.study_status import Experiment, StudyStatus

_SECONDS = 5.0  # between two looks of --watch
_PIPED = 160  # columns where the output is no terminal and COLUMNS does not say


def run(given: Arguments) -> int:
    """Show a study or the list of studies; return 0 whatever their state."""
    names = [study_name(name) for name in (*given.rest, given.settings.get("study")) if name]
    if len(names) > 1:
        raise UserError(f"{' '.join(names)}: status shows one study, or with none a list of all.")
    store = open_store(given.settings.get("store"))
    if names:
        check_study(names[0], store)
    view = View(store, names[0] if names else None, "--all" in given.flags)
    view.watch() if "--watch" in given.flags else view.show()
    return 0


class View:
    """The terminal's view of a store: one study, or a list of all."""

    def __init__(self, store: Store, study: str | None, everything: bool) -> None:
        self.store, self.study, self.everything = store, study, everything
        self.console = _console()
        self.finished, self.exit_reasons = Finished(store), ExitReasons()
        self.live = False  # whether jobs waited or ran at the last look
        self.line = Text()  # the last look in one line …
        self.shown: RenderableType = ""  # … and in full

    def show(self) -> None:
        """Print the current state."""
        self.console.print(self.look())

    def watch(self) -> None:
        """Refresh until no job waits or runs, or until Ctrl-C; then print the last state."""
        with contextlib.suppress(KeyboardInterrupt):
            self.shown = self.look()
            self._watch_screen() if self.console.is_terminal else self._watch_lines()
        self.console.print(self.shown)

    def _watch_screen(self) -> None:
        with Live(self.shown, console=self.console, auto_refresh=False, transient=True) as screen:
            while self.live:
                time.sleep(_SECONDS)
                self.shown = self.look()
                screen.update(self.shown, refresh=True)

    def _watch_lines(self) -> None:
        last = ""
        while True:
            if self.line.plain != last:
                last = self.line.plain
                print(f"{datetime.now():%H:%M:%S}  {last}", flush=True)
            if not self.live:
                return
            time.sleep(_SECONDS)
            self.shown = self.look()

    def look(self) -> RenderableType:
        """Render the current state."""
        study_status = StudyStatus(self.store, self.exit_reasons)
        content = list(self._study(study_status, self.study) if self.study else self._studies(study_status))
        self.finished.save()
        error = study_status.statuses.squeue_error
        return Group(*content, *([Text(error, "yellow")] if error else []))

    def _note(self, experiments: Sequence[Experiment], jobs: Sequence[Submitted]) -> None:
        self.live, self.line = any(j.status.live for j in jobs), status_table.counts(experiments)

    def _studies(self, study_status: StudyStatus) -> Iterator[RenderableType]:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("study", overflow="fold")
        table.add_column("experiments", justify="right", no_wrap=True)
        table.add_column("")
        table.add_column("last launch", no_wrap=True)
        every: list[Experiment] = []
        jobs: list[Submitted] = []
        for study in study_status.records.studies():
            experiments = study_status.experiments(study)
            every += experiments
            jobs += _jobs(study, experiments, study_status)
            table.add_row(
                study, str(len(experiments)), status_table.counts(experiments), _launched(study_status, study)
            )
        self._note(every, jobs)
        yield table
        yield Text(f"store {self.store.root}", "dim")

    def _study(self, study_status: StudyStatus, study: str) -> Iterator[RenderableType]:
        experiments = study_status.experiments(study)
        jobs = _jobs(study, experiments, study_status)
        self._note(experiments, jobs)
        total = f"  {len(experiments)} experiment{'s' if len(experiments) != 1 else ''}  "
        yield Text.assemble((study, "bold"), total, self.line)
        yield Text(f"launched {_launched(study_status, study)}{_counted(jobs)}", "dim")
        rows = status_table.rows(experiments, self.finished, self.everything)
        if rows:
            yield Text()
            yield from status_table.render(rows, self.console.width)
        yield Text()
        hidden = len(experiments) - sum(len(row.experiments) for row in rows)
        if hidden:
            yield Text(f"{hidden} more are done or waiting: --all shows them", "dim")
        if any(e.state == FAILED for e in experiments):
            yield Text("failed: `logs PATTERN` shows why, `retry PATTERN` runs them again", "dim")
        stages = {stage for e in experiments for stage in e.stages}
        done = stages & study_status.stored
        yield Text(f"{len(done)} of {len(stages)} stages done, cost so far {self.finished.cost(done)}", "dim")
        if found := self.finished.outdated(sorted(done)):
            remedy = "`plan study=… --why KEY` shows how, `launch … --recompute-changed` computes them again."
            yield Text(outdated.sentence(found, remedy), "yellow")
        yield Text(f"store {self.store.root}", "dim")


def _console() -> Console:
    console = Console(highlight=False)
    if console.is_terminal or "COLUMNS" in os.environ:
        return console
    return Console(highlight=False, width=_PIPED)


def _launched(study_status: StudyStatus, study: str) -> str:
    """`12 min ago (slurm)`."""
    launch = (study_status.records.study(study) or {}).get("launch")
    if not launch:
        return "never: all stages were cached"
    try:
        found = study_status.records.folder(launch).launch
    except FileNotFoundError:
        return "unknown: its records were removed"
    return f"{duration(time.time() - found.created)} ago ({found.launcher})"


def _jobs(study: str, experiments: Sequence[Experiment], study_status: StudyStatus) -> list[Submitted]:
    """Return the jobs of a study, or the workers of a search."""
    return study_status.workers(study) or study_status.jobs_of(experiments)


def _counted(jobs: Sequence[Submitted]) -> str:
    """`, jobs: 3 running, 12 waiting`."""
    found = Counter(job.status.state for job in jobs)
    waiting = found[QUEUED] + found[PREEMPTED]
    parts = [f"{found[state]} {state}" for state in (RUNNING, STALLED, UNKNOWN) if found[state]]
    parts += [f"{waiting} waiting"] if waiting else []
    return f", jobs: {', '.join(parts)}" if parts else ""
