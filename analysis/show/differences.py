"""Tables of differences: every method against a baseline, and two studies against each other."""

import math
from collections.abc import Sequence
from string import ascii_lowercase

from analysis.compare import statistics, studies
from analysis.compare.methods import ALPHA, Results
from analysis.compare.statistics import Comparison
from analysis.compare.studies import Side
from analysis.show.table import NONE, Cell, Table, count_cell, head, signed, size_cell

COLUMNS = ["difference", "95 % interval", "p", "p (Holm)", "effect", "seeds"]
_COLUMNS = ["method", "annotations", "task", *COLUMNS]


def differences(results: Results, baseline: str) -> Table:
    """Return methods minus a baseline at the same number of annotations, over seeds and over documents."""
    found = list(results.differences(baseline))
    parts = dict.fromkeys(part for *_, c in found for part in _parts(c.note))
    letters = (a + b for a in ("", *ascii_lowercase) for b in ascii_lowercase)
    marks = dict(zip(parts, letters, strict=False))
    rows = [
        [*row, count_cell(c.documents) if c.documents else NONE, Cell(" ".join(marks[part] for part in _parts(c.note)))]
        for row, (*_, c) in zip(_rows(found), found, strict=True)
    ]
    notes = [
        f"Percentage points, minus '{baseline}'. p (Holm) is adjusted for all {len(found)} comparisons.",
        "Over seeds: compares methods (paired t test). Over documents: compares these trained models (sign flips).",
        *(f"{mark}: {part}." for part, mark in marks.items()),
    ]
    return Table(f"Differences from {baseline}", [*_COLUMNS, "documents", "note"], rows, notes)


def _parts(note: str) -> list[str]:
    return note.split("; ") if note else []


def _rows(found: Sequence[tuple[str, float, str, Comparison]]) -> list[list[Cell]]:
    adjusted = statistics.holm([c.p for *_, c in found])
    return [
        [head(method), size_cell(size), head(task), *compared(c, p)]
        for (method, size, task, c), p in zip(found, adjusted, strict=True)
    ]


def compared(found: Comparison, adjusted: float) -> list[Cell]:
    """Return the cells of COLUMNS; bold where the adjusted p is below 5 %."""
    difference, low, high = (100 * value for value in (found.difference, found.low, found.high))
    return [
        number(difference, signed(difference, 2), bold=bool(adjusted < ALPHA)),
        number(low, f"{signed(low, 1)} … {signed(high, 1)}", ends=(low, high)),
        *(number(p, f"{p:.3f}" if p >= 0.001 else "< 0.001") for p in (found.p, adjusted)),
        number(found.effect, f"{found.effect:+.2f}"),
        count_cell(found.n),
    ]


def number(value: float, text: str, *, bold: bool = False, ends: tuple[float, float] | None = None) -> Cell:
    """Return a cell for a number; – for NaN."""
    return NONE if math.isnan(value) else Cell(text, value, bold, ends=ends)


def between(a: Side, b: Side) -> list[Table]:
    """Return how the provenance of two studies differs, and the scores of B minus those of A.

    Raises UserError if they have nothing in common.
    """
    return [_provenance(a, b), _scores(a, b)]


def _scores(a: Side, b: Side) -> Table:
    found, alone = studies.differences(a, b)
    notes = [
        "Percentage points. p (Holm) is adjusted for all comparisons.",
        *(["All scores are equal."] if all(c.difference == 0 for *_, c in found) else []),
        *([f"Left out, because one side alone has them: {alone} scores."] if alone else []),
    ]
    return Table(f"{b.name} minus {a.name}", _COLUMNS, _rows(found), notes)


def _provenance(a: Side, b: Side) -> Table:
    rows = [
        [head(part), *(Cell(value) if value else NONE for value in both)]
        for part, both in studies.changed(a, b).items()
    ]
    notes = [] if rows else ["Both were computed by the same code, packages and devices."]
    other = b.name if b.name != a.name else f"{b.name}, again"
    return Table("Differences in provenance", ["part", a.name, other], rows, notes)
