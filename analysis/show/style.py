"""The look of figures: labels, a fixed style per method, grids of panels, legends and files.

Colours are Okabe and Ito's, safe for the colour-blind; markers and dashes repeat the distinction for grey prints.
"""

import io
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.collect.frames import Frames
from analysis.compare.methods import method_names
from iris.files import write_atomic
from iris.method.registry import METHODS

Draw = Callable[[Frames], Figure | None]

SINGLE, DOUBLE = 3.4, 6.9  # inches: one column of print, and two
GREY = "0.35"
_SMALL = 7  # points: the smallest text
_COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#0072B2", "#D55E00")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES: tuple[Any, ...] = (":", "--", "-.", (0, (6, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1, 3, 1)), "-")
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
_METADATA: dict[str, dict[str, None]] = {  # None leaves an entry out: equal figures give equal files
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
        """Return keywords for matplotlib; a white rim separates overlapping markers."""
        size = _SIZE * (1.4 if self.marker in "PX" else 1)  # crosses cover less
        return vars(self) | {"markersize": size, "markeredgecolor": "white", "markeredgewidth": 0.4}


@dataclass(frozen=True)
class Labels:
    """The curves and panels of a study.

    `styles` has the curves (a method and its varying settings) in order, `panels` the varying models, data and sizes,
    `groups` the same without sizes. `of` has curve, panel, group and amount (of annotations) by experiment.
    """

    styles: dict[str, Style]
    panels: list[str]
    groups: list[str]
    of: pd.DataFrame

    @property
    def width(self) -> float:
        """The width in inches of a figure with all curves; 0: as narrow as its panels."""
        return DOUBLE if len(self.styles) > len(_COLOURS) else 0


def label(frames: Frames) -> Labels:
    """Label the experiments by what varies among them, except seeds."""
    table = frames.experiments.set_index("experiment")
    # Panels show models and data, so names of curves do not.
    curve = method_names(replace(frames, experiments=frames.experiments.assign(model="", data="")))
    methods = [*METHODS, *(name for name in table["method"].unique() if name not in METHODS)]
    place = table["method"].map(methods.index)
    curve = _short(curve)
    names = list(curve[place.sort_values(kind="stable").index].unique())
    alone = len(names) == table["method"].nunique()  # otherwise colours distinguish settings, not methods
    styles = {name: _style(place[curve == name].iloc[0] if alone else n) for n, name in enumerate(names)}
    amount = table["annotations"].fillna(table["size"])
    size = table["size"].fillna(amount)
    ordered = table.assign(size=size).sort_values(["model", "data", "size"]).index
    of = pd.DataFrame({"curve": curve, "amount": amount, **_places(table, size)})
    return Labels(styles, list(of["panel"][ordered].unique()), list(of["group"][ordered].unique()), of)


def _style(index: int) -> Style:
    """Return a style by number; after seven, colours repeat with other markers and dashes."""
    shifted = index + index // len(_COLOURS)
    return Style(_COLOURS[index % len(_COLOURS)], _MARKERS[shifted % len(_MARKERS)], _DASHES[shifted % len(_DASHES)])


def _short(names: pd.Series) -> pd.Series:
    """Shorten train.learning_rate=… to learning_rate=…, unless two names become equal."""
    short = names.str.replace(r"[\w.]+\.(?=\w+=)", "", regex=True)
    return short if short.nunique() == names.nunique() else names


def _places(table: pd.DataFrame, size: pd.Series) -> dict[str, list[str]]:
    several = [name for name in ("model", "data") if table[name].nunique() > 1]
    group = [", ".join(names) for names in table[several].astype(str).itertuples(index=False)]
    sizes = [f"{count(n)} annotations" if size.nunique(dropna=False) > 1 else "" for n in size]
    return {"group": group, "panel": [", ".join(filter(None, both)) for both in zip(group, sizes, strict=True)]}


def count(number: float) -> str:
    """Write 14000 as 14k and NaN, an unknown size, as 'all'."""
    return "all" if pd.isna(number) else f"{number / 1000:g}k" if number >= 1000 else f"{number:g}"


styled = matplotlib.rc_context(_RC)  # a decorator of functions that draw


def grid(
    panels: Sequence[str], rows: Mapping[str, str], xlabel: str, height: float, across: int = 3, width: float = 0
) -> tuple[Figure, dict[tuple[str, str], Axes]]:
    """Return a figure and its axes by (panel, row), with `across` panels side by side.

    `rows` maps names to y labels; each panel has all of them, on shared scales. `height` (of a row) and `width` are
    inches; without width, one panel takes one column of print and several take two.
    """
    columns = min(len(panels), across)
    lines = -(-len(panels) // columns) * len(rows)
    size = (width or (SINGLE if columns == 1 else DOUBLE), lines * height + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    every = figure.subplots(lines, columns, squeeze=False)
    axes: dict[tuple[str, str], Axes] = {}
    for place, panel in enumerate(panels):
        for line, (row, ylabel) in enumerate(rows.items()):
            one = axes[panel, row] = every[place // columns * len(rows) + line, place % columns]
            left, bottom = place % columns == 0, line == len(rows) - 1 and place + columns >= len(panels)
            if place or line:
                one.sharex(next(iter(axes.values())))
            if place:
                one.sharey(axes[panels[0], row])
            one.tick_params(labelleft=left, labelbottom=bottom)
            one.set(ylabel=ylabel if left else "", xlabel=xlabel if bottom else "", title="" if line else panel)
    for empty in set(every.flat) - set(axes.values()):
        empty.remove()
    figure.align_ylabels()
    return figure, axes


def legend(figure: Figure, handles: Mapping[str, Line2D]) -> None:
    """Add one legend above all panels; the figure grows by its lines."""
    lines = -(-len(handles) // max(1, int(figure.get_figwidth() / (0.45 + letters(handles)))))
    figure.set_figheight(figure.get_figheight() + 0.16 * lines)
    columns = -(-len(handles) // lines)
    figure.legend(list(handles.values()), list(handles), loc="outside upper center", ncols=columns, **_LEGEND)


def letters(names: Iterable[str]) -> float:
    """Estimate the width of the longest name as small text, in inches."""
    return 0.056 * max(map(len, names))


def key(style: Style) -> Line2D:
    """Return a legend's line for a curve."""
    return Line2D([], [], **style.keywords())


def note(figure: Figure, sentences: Iterable[str]) -> None:
    """Add notes below the panels."""
    text = textwrap.fill("; ".join(filter(None, sentences)), int(figure.get_figwidth() * 20))
    figure.supxlabel(text, x=0.01, ha="left", fontsize=_SMALL, color=GREY)


def save(figure: Figure, stem: Path, formats: Sequence[str] = ("png", "svg", "pdf")) -> list[Path]:
    """Write stem.png … and return the files; equal figures give equal bytes."""
    paths = [stem.with_name(f"{stem.name}.{name}") for name in formats]
    for path, name in zip(paths, formats, strict=True):
        write_atomic(path, content(figure, name))
    return paths


@styled
def content(figure: Figure, form: str) -> bytes:
    """Return the figure as the content of a PNG, SVG or PDF file."""
    file = io.BytesIO()
    figure.savefig(file, format=form, dpi=200, metadata=_METADATA[form])
    return file.getvalue()
