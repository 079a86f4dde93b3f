"""The table of results: medians, ratios within each round, and bars."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from cases import CEILING, Case, Group
from driver import Lines

WIDTHS = (28, 9, 8, 8, 7, 7, 7, 6)  # 80 columns
HEAD = ("", "rate", "ours ×", "bar", "GB", "ours ÷", "bar", "max")
NOTE = """\
rate: median of the windows. ours ×: how many times faster the first line is,
median of the ratios within each round. GB: peak memory of the process; ours ÷:
that of the first line relative to it. max: the operations that the work needs
at least, relative to those of the largest matrix products in as much time."""


@dataclass(frozen=True)
class Row:
    """A line of the table; None where a number does not apply."""

    label: str
    rate: float
    speedup: float | None
    memory: float  # bytes
    saving: float | None  # our memory, relative to this
    share: float | None  # of the ceiling


def row(group: Group, case: Case, lines: Mapping[str, Lines]) -> Row | None:
    """Return the numbers of a case; None if it did not fit into memory."""
    own, first, ceiling = (_windows(lines.get(label, [])) for label in (case.label, group.cases[0].label, CEILING))
    if not own:
        return None
    unit = "flops" if group.per_flop else "units"
    compared = case not in (group.cases[0],) and first and case.label != CEILING
    shares = [_rate(a, "flops") / _rate(b, "flops") for a, b in zip(own, ceiling, strict=False)]
    memory = max(line["memory"] for line in lines[case.label])
    return Row(
        case.label,
        median(_rate(line, "units") for line in own),
        median(_rate(a, unit) / _rate(b, unit) for a, b in zip(first, own, strict=False)) if compared else None,
        memory,
        max(line["memory"] for line in lines[group.cases[0].label]) / memory if compared else None,
        median(shares) if shares and own[0]["flops"] else None,
    )


def _windows(lines: Lines) -> Lines:
    return [line for line in lines if line["warm"]]


def _rate(line: Mapping[str, float], unit: str) -> float:
    return line[unit] / line["seconds"]


def table(groups: Sequence[Group], results: Mapping[str, Mapping[str, Lines]], clock: str) -> list[str]:
    """Return the lines of the table, at most 80 characters wide."""
    lines = [_format(HEAD)]
    for group in groups:
        lines += ["", f"{group.title}: {group.unit} per {clock}"]
        lines += [_line(group, case, results[group.name]) for case in group.cases]
    return lines


def _line(group: Group, case: Case, lines: Mapping[str, Lines]) -> str:
    found = row(group, case, lines)
    if found is None:
        return _format((case.label, "out of", "memory", "", "", "", "", ""))
    scaling = group.name.startswith("scaling")
    speedup, saving = (None, None) if scaling else (found.speedup, found.saving)
    return _format(
        (
            case.label,
            f"{found.rate / 1e9:.0f}G"
            if case.label == CEILING
            else f"{found.rate:.3g}"
            if found.rate < 100
            else f"{found.rate:.0f}",
            "" if speedup is None else f"{speedup:.2f}",
            _bar(speedup, case.rate, case.most),
            "" if case.label == CEILING else f"{found.memory / 1e9:.2f}",
            "" if saving is None else f"{saving:.2f}",
            _bar(saving, None, case.memory),
            _share(found.share, case.share) if case.label != CEILING else "",
        )
    )


def _share(value: float | None, least: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0%}" + ("" if least is None else "✓" if value >= least else "✗")


def _bar(value: float | None, least: float | None, most: float | None) -> str:
    if value is None or (least is None and most is None):
        return ""
    if least is not None:
        return f"≥{least:.1f} {'✓' if value >= least else '✗'}"
    assert most is not None
    return f"≤{most:.2g} {'✓' if value <= most else '✗'}"


def _format(cells: Sequence[str]) -> str:
    label, *numbers = cells
    text = f"{label:<{WIDTHS[0]}}" + "".join(f"{cell:>{w}}" for cell, w in zip(numbers, WIDTHS[1:], strict=True))
    return text.rstrip()


def disagreement(group: Group, lines: Mapping[str, Lines]) -> float | None:
    """Return the largest difference between our loss and those of peers on the same batches; None without peers."""
    ours = lines[group.cases[0].label]
    peers = [lines[case.label] for case in group.cases if case.same_loss]
    return max((abs(a["loss"] - b["loss"]) for peer in peers for a, b in zip(ours, peer, strict=False)), default=None)


def growth(group: Group, lines: Mapping[str, Lines]) -> tuple[float, float]:
    """Return the memory from the smallest to the largest vocabulary: bytes, and bytes per added weight."""
    from workload import SHAPES

    hidden = SHAPES[group.arguments[1]].hidden
    points = {int(case.arguments[3]): case.label for case in group.cases if case.arguments[1:6:4] == ("512", "8")}
    small, large = min(points), max(points)
    peaks = [max(line["memory"] for line in lines[points[v]]) for v in (small, large)]
    return peaks[1] - peaks[0], (peaks[1] - peaks[0]) / ((large - small) * hidden)


def misses(groups: Sequence[Group], results: Mapping[str, Mapping[str, Lines]]) -> Iterator[str]:
    """Return the cases that miss a bar."""
    for group in groups:
        for case in group.cases:
            if "✗" in (text := _line(group, case, results[group.name])):
                yield f"{group.title}: {' '.join(text.split())}"
