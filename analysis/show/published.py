"""Results that papers report, to be shown beside ours: the average over ten tasks, in percent."""

from analysis.show.table import NONE, Cell, Sheet

# Of Zephyr-7B on GSM8K, MATH, MuSR, MMLU, MMLU-Pro, GPQA, HellaSwag, WinoGrande, BBH and IFEval.
_MODEL = "zephyr-7b"
_RESULTS: tuple[tuple[str, int, tuple[float, ...]], ...] = (
    ("base", 0, (38.56,)),
    ("SFT", 200_000, (42.01,)),
    ("SPIN", 50_000, (40.07, 39.84, 41.14, 40.92, 40.62)),
    ("T-SPIN", 50_000, (39.75, 42.56, 42.79, 43.23, 43.47)),
    ("IRIS, best", 0, (44.57,)),
)


def sheet() -> Sheet:
    """The published averages by iteration; one number alone stands in the last column."""
    longest = max(len(values) for _, _, values in _RESULTS)
    head = ["method", "annotations", *(f"t={t}" for t in range(1, longest)), f"t={longest} or only"]
    rows = []
    for name, size, values in _RESULTS:
        blank = [NONE] * (longest - len(values))
        known = Cell(f"{size:,}", size, kind="head") if size else NONE
        rows.append([Cell(name, kind="head"), known, *blank, *(Cell(f"{v:.2f}", v) for v in values)])
    note = (
        f"As the papers on SPIN, T-SPIN and IRIS report it for {_MODEL}; another harness or prompt moves it by points."
    )
    return Sheet("Published: average of ten tasks, %", head, rows, [note])
