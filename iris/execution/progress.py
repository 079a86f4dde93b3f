"""One progress line a stage: a live bar in a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.progress import Task as BarTask
from rich.text import Text

_PLAIN_SECONDS = 15.0


class _Rate(ProgressColumn):
    def render(self, task: BarTask) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.1f} {task.fields['unit']}/s" if speed else "", style="cyan")


class Line:
    """The progress of one running stage, counted in `unit`s."""

    def __init__(self, console: Console, label: str, total: int, unit: str) -> None:
        self.console, self.label, self.total, self.unit = console, label, total, unit
        self.done, self.note = 0, ""
        self.start = self.printed = time.monotonic()
        self.printed_count = -1
        self.resumed = 0
        self.bars: Bars | None = None
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(bar_width=16), MofNCompleteColumn(), _Rate())
            self.bars = Bars(*columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=console)
            self.task = self.bars.add_task(label, total=total, unit=unit, note="")

    def resume(self, done: int) -> None:
        """Say that `done` units were there before this process began."""
        self.done = self.resumed = done
        if self.bars:
            self.bars.update(self.task, completed=done)

    def advance(self, units: int = 1, note: str = "") -> None:
        """Count finished units; `note` is a short text such as the loss."""
        self.done, self.note = self.done + units, note or self.note
        if self.bars:
            self.bars.update(self.task, advance=units, note=self.note)
        elif time.monotonic() - self.printed > _PLAIN_SECONDS:
            self.printed = time.monotonic()
            self._print()

    def _print(self) -> None:
        self.printed_count = self.done
        elapsed = time.monotonic() - self.start
        rate = (self.done - self.resumed) / elapsed if elapsed else 0.0
        left = (
            f"{(self.total - self.done) / rate:.0f} s left" if rate and self.done < self.total else f"{elapsed:.0f} s"
        )
        self.console.print(
            f"{self.label}: {self.done}/{self.total} {self.unit}, {rate:,.1f}/s, {left} {self.note}".rstrip(),
            highlight=False,
            soft_wrap=True,
        )

    def __enter__(self) -> "Line":
        if self.bars:
            self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bars:
            self.bars.stop()
        elif kind is None and self.printed_count != self.done:
            self._print()


class Progress:
    """Makes progress lines on one console; silent on processes other than the main one."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(file=sys.stderr, quiet=quiet)

    def say(self, text: str) -> None:
        """Print one line."""
        self.console.print(text, highlight=False, soft_wrap=True)

    @contextmanager
    def line(self, label: str, total: int, unit: str) -> Iterator[Line]:
        """Yield a progress line that ends with the block."""
        with Line(self.console, label, total, unit) as line:
            yield line
