"""Every arm against a baseline: by how much it differs, how sure that is, and what the data cannot tell."""

from collections.abc import Iterator
from string import ascii_lowercase

import numpy as np

from analysis.collect.index import AVERAGE
from analysis.compare import statistics
from analysis.compare.methods import Table
from analysis.compare.statistics import Comparison
from analysis.show.table import NONE, Cell, Sheet, signed
from analysis.show.tables import ALPHA, head, number, size_cell

Result = tuple[str, float, str, Comparison]
COLUMNS = ["difference", "95 % interval", "p", "p (Holm)", "effect", "seeds", "documents", "note"]


def differences(found: Table, baseline: str) -> Sheet:
    """Arms minus a baseline at the same number of annotations: over seeds, and over documents of the same seeds.

    p values are adjusted for all comparisons of the sheet (Holm).
    """
    results = [result for result in _results(found, baseline) if result[3].n or result[3].documents]
    adjusted = statistics.holm([result[3].p for result in results])
    marks = _marks(results)
    rows = [
        [head(arm), size_cell(size), head(task), *compared(c, p), Cell(" ".join(marks[n] for n in _parts(c.note)))]
        for (arm, size, task, c), p in zip(results, adjusted, strict=True)
    ]
    first = f"Points of percent, minus '{baseline}'; p (Holm) holds for all {len(results)} comparisons together."
    second = (
        "Over seeds: a claim about methods (paired t test). Over documents: about these trained models (sign flips)."
    )
    notes = [first, second, *(f"{mark}: {note}." for note, mark in marks.items())]
    return Sheet(f"Differences from {baseline}", ["method", "annotations", "task", *COLUMNS], rows, notes)


def _results(found: Table, baseline: str) -> Iterator[Result]:
    tasks = found.frames.tasks
    untrained = [arm for arm in found.starts if arm.startswith("base")]
    for size in found.sizes:
        for arm in (a for a in found.arms if a != baseline and a not in untrained):
            for task in tasks if len(tasks) == 1 else [AVERAGE, *tasks]:
                yield arm, size, task, found.compare(arm, baseline, size, task)
                if task != AVERAGE:
                    yield arm, size, task, found.compare_documents(arm, baseline, size, task)


def _marks(results: list[Result]) -> dict[str, str]:
    """A letter for each part of a note; what is said often is said once."""
    notes = dict.fromkeys(part for *_, c in results for part in _parts(c.note))
    letters = (a + b for a in ("", *ascii_lowercase) for b in ascii_lowercase)
    return dict(zip(notes, letters, strict=False))


def _parts(note: str) -> list[str]:
    return note.split("; ") if note else []


def compared(found: Comparison, adjusted: float) -> list[Cell]:
    """The cells of a comparison, in the order of the columns; bold where the adjusted p is below 5 %."""
    low, high = 100 * found.low, 100 * found.high
    interval = NONE if np.isnan(low) else Cell(f"{signed(low, 1)} … {signed(high, 1)}", low, ends=(low, high))
    return [
        NONE
        if np.isnan(found.difference)
        else Cell(signed(100 * found.difference, 2), 100 * found.difference, bold=bool(adjusted < ALPHA)),
        interval,
        *(NONE if np.isnan(p) else Cell(f"{p:.3f}" if p >= 0.001 else "< 0.001", p) for p in (found.p, adjusted)),
        NONE if np.isnan(found.effect) else Cell(f"{found.effect:+.2f}", found.effect),
        number(found.n),
        Cell(f"{found.documents:,}", found.documents) if found.documents else NONE,
    ]
