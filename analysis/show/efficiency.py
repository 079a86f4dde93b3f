"""Tables of data efficiency."""

import numpy as np

from analysis.compare import statistics
from analysis.compare.efficiency import Claim, Efficiency
from analysis.show.differences import COLUMNS, compared, number
from analysis.show.table import NONE, Cell, Table, head, size_cell


def claims(efficiency: Efficiency, baseline: str, chosen: Claim | None = None) -> Table:
    """Return one claim, by default every method with fewer annotations against the baseline with the most."""
    wanted = [chosen] if chosen else efficiency.claims(baseline)
    found = [efficiency.compare(claim) for claim in wanted]
    adjusted = statistics.holm([c.p for c in found])
    rows = [
        [*_names(claim), *compared(c, p), number(c.probability, f"{c.probability:.2f}")]
        for claim, c, p in zip(wanted, found, adjusted, strict=True)
    ]
    columns = ["method", "annotations", "against", "with", *COLUMNS, "P(better)"]
    warnings = dict.fromkeys(statistics.warning(c.n) for c in found)
    return Table("Fewer annotations against more", columns, rows, [note for note in warnings if note])


def _names(claim: Claim) -> list[Cell]:
    return [head(claim.method), size_cell(claim.size), head(claim.other), size_cell(claim.other_size)]


def savings(efficiency: Efficiency, baseline: str) -> Table:
    """Return the annotations with which each method matches the baseline with the most, and what that saves."""
    last = efficiency.last(baseline)
    score = last.interval.mean
    methods = [method for method in efficiency.results.trained if efficiency.curve(method)]
    title = f"Annotations to match {baseline} with {last.size:,.0f} annotations ({100 * score:.1f} %)"
    note = (
        "Linear in log(annotations) between sizes. Intervals: bootstrap over seeds; ∞: beyond the sizes that were run."
    )
    rows = [_saved(efficiency, method, score, last.size) for method in methods]
    return Table(title, ["method", "annotations needed", "95 % interval", "saved"], rows, [note])


def _saved(efficiency: Efficiency, method: str, score: float, most: float) -> list[Cell]:
    need, least = efficiency.need(method, score), efficiency.curve(method)[0].size
    high = "∞" if np.isinf(need.high) else f"{need.high:,.0f}"
    interval = Cell(f"{need.low:,.0f} … {high}", need.low, ends=(need.low, need.high))
    known = [Cell("not reached", kind="missing"), NONE]
    if not np.isnan(need.annotations):
        text = f"{'≤ ' if need.annotations <= least else ''}{need.annotations:,.0f}"
        known = [Cell(text, need.annotations), Cell(f"{most - need.annotations:,.0f}", most - need.annotations)]
    return [head(method), known[0], interval if np.isfinite(need.low) else NONE, known[1]]
