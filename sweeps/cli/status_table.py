"""The rows of `status`: one per experiment or group of similar ones, those that need attention first."""

import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from textwrap import TextWrapper

from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from sweeps.cli.amounts import duration
from sweeps.state.finished import Finished
from sweeps.state.job_status import PREEMPTED, STALLED, UNKNOWN, Submitted
from sweeps.state.records import CANCELLED, DONE, FAILED, QUEUED, RUNNING
from sweeps.state.study_status import PLANNED, PRUNED, Experiment

STATES = (FAILED, CANCELLED, STALLED, UNKNOWN, RUNNING, PREEMPTED, QUEUED, PLANNED, PRUNED, DONE)  # of lines
_COUNTED = (DONE, PRUNED, RUNNING, STALLED, UNKNOWN, PREEMPTED, QUEUED, PLANNED, CANCELLED, FAILED)
_STYLES = {
    **{DONE: "green", PRUNED: "green", RUNNING: "cyan", STALLED: "yellow", UNKNOWN: "yellow", PREEMPTED: "yellow"},
    **{QUEUED: "", FAILED: "bold red", CANCELLED: "magenta", PLANNED: "dim"},
}
_PLAIN = (DONE, PRUNED, QUEUED, PLANNED)  # not shown in large studies
_FEW = 40  # experiments shown one by one
_IDLE = 600.0  # seconds without progress before that is shown
_SILENT = 30.0  # seconds after which a heartbeat may be of a run that has ended
_WIDEST = 26  # characters of a detail for which names are wrapped
_NARROWEST = 24  # … but not below this width
_AFTER_COMMA = re.compile(r"([^,]+,)")  # where names are wrapped


@dataclass(frozen=True)
class Row:
    """Experiments in the same state: one, or several at the same stage or with the same error."""

    experiments: tuple[Experiment, ...]
    detail: str
    brief: str  # the detail where there is little room

    @property
    def first(self) -> Experiment:
        """The experiment that the row shows."""
        return self.experiments[0]

    @property
    def where(self) -> str:
        """The stage, where all experiments have the same."""
        found = {experiment.where for experiment in self.experiments}
        return found.pop() if len(found) == 1 else "several stages"

    @property
    def name(self) -> str:
        """The name of the first experiment, and how many more there are."""
        more = len(self.experiments) - 1
        return f"{self.first.name} and {more} more" if more else self.first.name


def rows(experiments: Sequence[Experiment], finished: Finished, everything: bool) -> list[Row]:
    """Group experiments into rows; of many, only those that are neither done nor waiting."""
    ordered = sorted(experiments, key=lambda e: STATES.index(e.state))
    if everything or len(ordered) <= _FEW:
        return [_row([e], finished) for e in ordered]
    similar: dict[tuple[str, str], list[Experiment]] = {}
    for experiment in ordered:
        if experiment.state not in _PLAIN:
            similar.setdefault((experiment.state, experiment.error or experiment.stage), []).append(experiment)
    return [_row(group, finished) for group in similar.values()]


def _row(group: Sequence[Experiment], finished: Finished) -> Row:
    first = group[0]
    if first.state == DONE:
        return Row(tuple(group), score(first, finished), score(first, finished))
    return Row(tuple(group), _detail(first), _detail(first, brief=True))


def _detail(experiment: Experiment, brief: bool = False) -> str:
    """Return an unfinished experiment's progress, or what it waits for."""
    job, state = experiment.job, experiment.state
    if job is None:
        return "waits for another worker" if state == PREEMPTED else ""
    last, reason = job.status.last, job.status.reason
    if state == RUNNING:
        return progress(experiment.stage, job, brief)
    if state == STALLED and last:
        return f"silent for {duration(time.time() - last.time)}" + ("" if brief else f" on {last.host}")
    if state in (QUEUED, PREEMPTED) and reason not in ("", "None"):
        return f"waits: {reason}"
    return "squeue does not answer" if state == UNKNOWN else ""


def score(experiment: Experiment, finished: Finished) -> str:
    """Return the score of a finished experiment's last evaluation in percent."""
    if not experiment.evaluation:
        return ""
    entry = finished.entry(experiment.evaluation)
    if entry is None or entry.score is None:
        return f"no score: the manifest of {experiment.evaluation} cannot be read"
    error = f" ± {100 * entry.stderr:.1f}" if entry.stderr is not None else ""
    return f"score {100 * entry.score:.1f}{error}"


def progress(stage: str, job: Submitted, brief: bool = False) -> str:
    """`120/400 steps, 3.1/s, 2 min left`, or `30 %, 2 min left`."""
    last = job.status.last
    if last is None or last.stage != stage or not last.total:
        return "no progress yet"
    if last.state != RUNNING:
        return "starts again"  # its last heartbeat is of the previous run
    if time.time() - last.time > _SILENT:
        return f"silent for {duration(time.time() - last.time)}"
    parts = [f"{100 * last.done / last.total:.0f} %" if brief else f"{last.done:g}/{last.total:g} {last.unit}"]
    if last.advanced and time.time() - last.advanced > _IDLE:
        parts.append(f"nothing new for {duration(time.time() - last.advanced)}")
    elif last.rate > 0:
        parts += [] if brief else [f"{last.rate:.3g}/s"]
        parts.append(f"{duration((last.total - last.done) / last.rate)} left")
    return ", ".join(parts)


def counts(experiments: Iterable[Experiment]) -> Text:
    """`12 done  3 running  1 failed`."""
    found = Counter(e.state for e in experiments)
    return Text("  ").join(Text(f"{found[state]} {state}", _STYLES[state]) for state in _COUNTED if found[state])


def render(shown: Sequence[Row], width: int) -> Iterator[RenderableType]:
    """Yield rows in columns of `width` characters; what does not fit follows on lines of its own."""
    columns = zip(*((row.first.state, row.where, row.name, row.detail) for row in shown), strict=True)
    state, where, longest, widest = (max(map(len, texts)) for texts in columns)
    brief = longest + state + where + 6 + widest > width
    details = [row.brief if brief else row.detail for row in shown]
    room = width - state - where - 6 - min(_WIDEST, max(map(len, details)))
    names = TextWrapper(longest if longest <= room else max(_NARROWEST, room), subsequent_indent="  ")
    names.wordsep_re = _AFTER_COMMA
    for row, detail in zip(shown, details, strict=True):
        fits = names.width + state + where + 6 + len(detail) <= width
        first, *others = names.wrap(row.name)
        line = Text(f"{first.ljust(names.width)}  ")
        line.append(row.first.state.ljust(state), _STYLES[row.first.state])
        line.append(f"  {row.where.ljust(where)}  {detail if fits else ''}").rstrip()
        yield line
        yield from map(Text, others)
        for text in ([] if fits else [detail]) + [row.first.error]:
            if text not in ("", row.first.state):
                yield Padding(Text(text, "red" if row.first.state == FAILED else ""), (0, 0, 0, 4), expand=False)
