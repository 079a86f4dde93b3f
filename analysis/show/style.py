"""How figures look: what curves and panels are called, a fixed style per method, sheets of panels, and files.

Colours are Okabe and Ito's, which the colour-blind tell apart; markers and dashes say the same again for grey prints.
"""

import functools
import io
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.collect.frames import Frames
from analysis.compare import methods as arms
from iris.files import write_atomic
from iris.method.registry import METHODS

Draw = Callable[[Frames], Figure | None]

SINGLE, DOUBLE = 3.4, 6.9  # inches: one column of print, and two
GREY = "0.35"
_SMALL = 7  # points: the smallest text
_COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#0072B2", "#D55E00")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES: tuple[Any, ...] = (
    ":",
    "--",
    "-.",
    (0, (6, 1)),
    (0, (3, 1, 1, 1, 1, 1)),
    (0, (1, 1, 3, 1)),
    "-",
)
_SIZE = 4  # points: markers
_LEGEND: dict[str, Any] = {"handlelength": 2.8, "handletextpad": 0.6, "columnspacing": 1}
_RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": _SMALL,
    "axes.labelsize": _SMALL + 1,
    "axes.titlesize": _SMALL + 1,
    "xtick.labelsize": _SMALL,
    "ytick.labelsize": _SMALL,
    "legend.fontsize": _SMALL,
    "axes.linewidth": 0.6,
    "axes.formatter.useoffset": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "0.9",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "iris",
    "pdf.fonttype": 42,
}
_METADATA: dict[str, dict[str, None]] = {  # None: left out. Dates would make each file a new one
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


@dataclass(frozen=True)
class Style:
    """Colour, marker and dashes of one curve."""

    color: str
    marker: str
    linestyle: Any

    def keywords(self) -> dict[str, Any]:
        """As matplotlib takes them; markers have a white rim that parts those that overlap."""
        size = _SIZE * (1.4 if self.marker in "PX" else 1)  # crosses cover less
        return vars(self) | {"markersize": size, "markeredgecolor": "white", "markeredgewidth": 0.4}


@dataclass(frozen=True)
class Labels:
    """What the experiments of a study are called in figures.

    `styles` has the curves (a method, with the settings that vary within it) in their order, `panels` the pictures side
    by side (models, data and sizes that vary), `groups` the same without the size. `of` has the three by experiment.
    """

    styles: dict[str, Style]
    panels: list[str]
    groups: list[str]
    of: pd.DataFrame

    @property
    def width(self) -> float:
        """Of a figure with all curves in inches; 0 where it may be as narrow as its panels."""
        return DOUBLE if len(self.styles) > len(_COLOURS) else 0


def label(frames: Frames) -> Labels:
    """Call the experiments by what varies among them; seeds share everything."""
    table = frames.experiments.set_index("experiment")
    # Curves have the names of tables; models and data, which panels tell apart, are not repeated.
    curve = arms.labels(replace(frames, experiments=frames.experiments.assign(model="", data="")))
    methods = [*METHODS, *(name for name in table["method"].unique() if name not in METHODS)]
    place = table["method"].map(methods.index)
    curve = _short(curve)
    names = list(curve[place.sort_values(kind="stable").index].unique())
    alone = len(names) == table["method"].nunique()  # else colours tell the settings of methods apart
    styles = {name: _style(place[curve == name].iloc[0] if alone else n) for n, name in enumerate(names)}
    amount = table["annotations"].fillna(table["size"])
    size = table["size"].fillna(amount)
    ordered = table.assign(size=size).sort_values(["model", "data", "size"]).index
    of = pd.DataFrame({"curve": curve, "amount": amount, **_places(table, size)})
    return Labels(styles, list(of["panel"][ordered].unique()), list(of["group"][ordered].unique()), of)


def _style(index: int) -> Style:
    """Colours return after seven, with another marker and other dashes."""
    shifted = index + index // len(_COLOURS)
    return Style(_COLOURS[index % len(_COLOURS)], _MARKERS[shifted % len(_MARKERS)], _DASHES[shifted % len(_DASHES)])


def _short(names: pd.Series) -> pd.Series:
    """train.learning_rate=… as learning_rate=…, unless two names become the same."""
    short = names.str.replace(r"[\w.]+\.(?=\w+=)", "", regex=True)
    return short if short.nunique() == names.nunique() else names


def _places(table: pd.DataFrame, size: pd.Series) -> dict[str, list[str]]:
    several = [name for name in ("model", "data") if table[name].nunique() > 1]
    group = [", ".join(names) for names in table[several].astype(str).itertuples(index=False)]
    sizes = [f"{count(n)} annotations" if size.nunique(dropna=False) > 1 else "" for n in size]
    return {"group": group, "panel": [", ".join(filter(None, both)) for both in zip(group, sizes, strict=True)]}


def count(number: float) -> str:
    """14000 as 14k; NaN, a size that is not known yet, as 'all'."""
    return "all" if pd.isna(number) else f"{number / 1000:g}k" if number >= 1000 else f"{number:g}"


def styled(draw: Draw) -> Draw:
    """Draw with this module's fonts and lines, whatever matplotlib is set to."""

    @functools.wraps(draw)
    def drawn(frames: Frames) -> Figure | None:
        with matplotlib.rc_context(_RC):
            return draw(frames)

    return drawn


def sheet(
    panels: Sequence[str], rows: Mapping[str, str], xlabel: str, height: float, across: int = 3, width: float = 0
) -> tuple[Figure, dict[tuple[str, str], Axes]]:
    """A figure and its axes by (panel, row): `across` panels side by side, the others below.

    `rows` (name → label of y) are drawn in each panel, each on one scale throughout. `height` is that of a row and
    `width` that of the print, without which one panel takes a single column and several take two. Inches.
    """
    columns = min(len(panels), across)
    lines = -(-len(panels) // columns) * len(rows)
    size = (width or (SINGLE if columns == 1 else DOUBLE), lines * height + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    axes: dict[tuple[str, str], Axes] = {}
    for place, panel in enumerate(panels):
        for line, (row, ylabel) in enumerate(rows.items()):
            one = axes[panel, row] = grid[place // columns * len(rows) + line, place % columns]
            left, bottom = place % columns == 0, line == len(rows) - 1 and place + columns >= len(panels)
            if place or line:
                one.sharex(next(iter(axes.values())))
            if place:
                one.sharey(axes[panels[0], row])
            one.tick_params(labelleft=left, labelbottom=bottom)
            one.set(ylabel=ylabel if left else "", xlabel=xlabel if bottom else "", title="" if line else panel)
    for empty in set(grid.flat) - set(axes.values()):
        empty.remove()
    figure.align_ylabels()
    return figure, axes


def legend(figure: Figure, handles: Mapping[str, Line2D]) -> None:
    """One legend above all panels, in as few lines as the width allows; the figure grows by them."""
    names = list(handles)
    counts = [-(-len(names) // lines) for lines in range(1, len(names) + 1)]
    columns = next(n for n in counts if n == 1 or _width(names, n) < figure.get_figwidth())
    figure.set_figheight(figure.get_figheight() + 0.16 * -(-len(names) // columns))
    figure.legend(list(handles.values()), names, loc="outside upper center", ncols=columns, **_LEGEND)


def _width(names: list[str], columns: int) -> float:
    """About what a legend takes, in inches; matplotlib fills its columns like this."""
    return sum(0.45 + letters(part) for part in np.array_split(np.array(names), columns))


def letters(names: Iterable[str]) -> float:
    """About the width of the longest name as small text, in inches."""
    return 0.056 * max(map(len, names))


def key(style: Style) -> Line2D:
    """A curve's line for the legend."""
    return Line2D([], [], **style.keywords())


def note(figure: Figure, sentences: Iterable[str]) -> None:
    """What a reader must know of the numbers, below the panels."""
    text = textwrap.fill("; ".join(filter(None, sentences)), int(figure.get_figwidth() * 20))
    figure.supxlabel(text, x=0.01, ha="left", fontsize=_SMALL, color=GREY)


def save(figure: Figure, stem: Path, formats: Sequence[str] = ("png", "svg", "pdf")) -> list[Path]:
    """Write stem.png … and return the files. The same figure gives the same bytes: no dates, no random names."""
    made = []
    for name in formats:
        path = stem.with_name(f"{stem.name}.{name}")
        content = io.BytesIO()
        with matplotlib.rc_context(_RC):
            figure.savefig(content, format=name, dpi=200, metadata=_METADATA[name])
        write_atomic(path, content.getvalue())
        made.append(path)
    return made


def svg(figure: Figure) -> str:
    """The figure as an SVG document, the same text for the same figure."""
    file = io.StringIO()
    with matplotlib.rc_context(_RC):
        figure.savefig(file, format="svg", metadata=_METADATA["svg"])
    return file.getvalue()
