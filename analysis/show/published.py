"""Results reported in the papers: the average over ten tasks, in percent."""

from analysis.show.table import NONE, Cell, Table, head

# Zephyr-7B on GSM8K, MATH, MuSR, MMLU, MMLU-Pro, GPQA, HellaSwag, WinoGrande, BBH and IFEval.
_RESULTS: tuple[tuple[str, int, tuple[float, ...]], ...] = (
    ("base", 0, (38.56,)),
    ("SFT", 200_000, (42.01,)),
    ("SPIN", 50_000, (40.07, 39.84, 41.14, 40.92, 40.62)),
    ("T-SPIN", 50_000, (39.75, 42.56, 42.79, 43.23, 43.47)),
    ("IRIS, best", 0, (44.57,)),
)


def table() -> Table:
    """Return the published averages by iteration; a single result is in the last column."""
    longest = max(len(values) for _, _, values in _RESULTS)
    columns = ["method", "annotations", *(f"t={t}" for t in range(1, longest)), f"t={longest} or only"]
    rows = []
    for name, size, values in _RESULTS:
        blank = [NONE] * (longest - len(values))
        known = Cell(f"{size:,}", size, kind="head") if size else NONE
        rows.append([head(name), known, *blank, *(Cell(f"{v:.2f}", v) for v in values)])
    note = "From the papers on SPIN, T-SPIN and IRIS, for zephyr-7b. Another harness or prompt shifts scores by points."
    return Table("Published: average of ten tasks, %", columns, rows, [note])
