"""A table of texts and numbers, written as HTML, LaTeX, Markdown, CSV, a frame or terminal output."""

import json
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import rich.table
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from rich.cells import cell_len
from rich.console import Group
from rich.text import Text

_LONG = 32  # characters; longer texts are wrapped where there are many columns
_GAP = 2  # between two columns of a terminal


@dataclass(frozen=True)
class Cell:
    """An entry, sorted by `sort`, or else by `text`. `kind` is '', 'missing' or 'head' (it names its row).

    `ends` are those of the interval that the text shows.
    """

    text: str
    sort: float | str | None = None
    bold: bool = False
    kind: str = ""
    ends: tuple[float, float] | None = None

    @property
    def missing(self) -> bool:
        """Whether the cell has no value: it is marked missing or NaN."""
        return self.kind == "missing" or (isinstance(self.sort, float) and math.isnan(self.sort))

    @property
    def number(self) -> float | None:
        """The number behind the text; None for texts and missing cells."""
        return None if self.missing or isinstance(self.sort, str) else self.sort


NONE = Cell("–", kind="missing")


@dataclass(frozen=True)
class Table:
    """A titled table with notes. Raises ValueError if a row is not as long as `columns`."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"a row of {self.title!r} does not have {len(self.columns)} cells")

    @property
    def numeric(self) -> list[bool]:
        """For each column, whether it has numbers only: such columns are right-aligned."""
        columns = list(zip(*self.rows, strict=True)) or [()] * len(self.columns)
        return [bool(c) and all(cell.missing or cell.number is not None for cell in c) for c in columns]


# Styler.to_html cannot give cells the data attributes by which the report sorts.
_HTML = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined).from_string(
    """\
<table>
<caption><span>{{ table.title }}</span></caption>
<thead>
<tr>
{% for name in table.columns %}
<th scope="col" class="{{ 'number' if numeric[loop.index0] else 'text' }}">{{ name }}</th>
{% endfor %}
</tr>
</thead>
<tbody>
{% for row in table.rows %}
<tr>
{% for cell in row %}
{% set tag = "th" if cell.kind == "head" else "td" %}
<{{ tag }}{{ ' scope="row"'|safe if tag == "th" }} class="
{{- 'number' if numeric[loop.index0] else 'prose' if cell.text|length > long else 'text' }}"
{%- if cell.missing %} data-missing{% elif cell.number is not none %} data-number="{{ json(cell.number) }}"
{%- elif cell.sort is not none %} data-text="{{ cell.sort }}"{% endif %}>
{{- "<strong>"|safe if cell.bold }}{{ cell.text }}{{ "</strong>"|safe if cell.bold }}</{{ tag }}>
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table>
"""
)


def to_html(table: Table) -> Markup:
    """Return a `<table>` without notes; sort keys are in `data-number`, `data-text` and `data-missing`."""
    return Markup(_HTML.render(table=table, numeric=table.numeric, long=_LONG, json=_json))


def _json(number: float) -> str:
    return json.dumps(float(number))  # JavaScript reads this, infinities included


def to_csv(table: Table) -> str:
    """Return full numbers, texts, and empty fields for –; without title and notes."""
    return pd.DataFrame(_columns(table, texts=True), dtype=object).to_csv(index=False)


def to_frame(table: Table) -> pd.DataFrame:
    """Return the same as a frame with the title as the column `table`; missing cells are empty."""
    frame = pd.DataFrame(_columns(table, texts=False), dtype=object)
    for name, values in frame.items():
        has_text = any(isinstance(value, str) for value in values)
        frame[name] = values.astype("str" if has_text else "float64")
    return frame.assign(table=table.title)


def _columns(table: Table, texts: bool) -> dict[str, list[Any]]:
    """Return values by column, and the ends of intervals in columns of their own; missing cells as `texts` or None."""
    columns: dict[str, list[Any]] = {}
    for n, name in enumerate(table.columns):
        cells = [row[n] for row in table.rows]
        columns[name] = [_value(cell, texts) for cell in cells]
        if any(cell.ends for cell in cells):
            low, high = ([cell.ends[end] if cell.ends else None for cell in cells] for end in (0, 1))
            if columns[name] == low:  # the column shows nothing but the interval
                del columns[name]
            columns |= {f"{name} low": low, f"{name} high": high}
    return columns


def _value(cell: Cell, texts: bool) -> float | str | None:
    if cell.missing:
        return cell.text if texts and cell.text != NONE.text else None
    return cell.text if cell.number is None else cell.number


def to_markdown(table: Table) -> str:
    """Return a heading, a GitHub table and the notes, a paragraph each."""
    rules = ["---:" if right else ":---" for right in table.numeric]
    rows = [[_markdown(name) for name in table.columns], rules, *_texts(table, _markdown, "**{}**")]
    lines = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return "\n".join([f"## {_markdown(table.title)}\n", lines, *(f"{_markdown(note)}\n" for note in table.notes)])


def to_latex(table: Table) -> str:
    r"""Return a `table` environment for `\input`; it needs `\usepackage{booktabs}`."""
    frame = pd.DataFrame(_texts(table, _latex, "\\textbf{{{}}}"), columns=[*map(_latex, table.columns)], dtype=object)
    text = frame.style.hide(axis="index").to_latex(
        column_format="".join("r" if right else "l" for right in table.numeric),
        caption=_latex(table.title),
        position_float="centering",
        hrules=True,
    )
    notes = "".join(f"\\par\\smallskip\\footnotesize {_latex(note)}\n" for note in table.notes)
    return text.replace("\\end{table}", f"{notes}\\end{{table}}")


def to_rich(table: Table, width: int) -> Group:
    """Return output for a terminal of `width` columns; columns that do not fit follow below, with the row names."""
    tables = [_rich(table, columns) for columns in _blocks(table, width)]
    between = [part for each in tables for part in (each, Text())]
    return Group(Text(table.title, "bold"), *between, *(Text(note, "dim") for note in table.notes))


def _rich(table: Table, columns: Sequence[int]) -> rich.table.Table:
    shown = rich.table.Table(box=None, padding=(0, _GAP, 0, 0), header_style="bold")
    for n in columns:
        right = table.numeric[n]
        shown.add_column(Text(table.columns[n]), justify="right" if right else "left", no_wrap=right, overflow="fold")
    for row in table.rows:
        shown.add_row(*(Text(row[n].text, "bold" if row[n].bold else "dim" if row[n].missing else "") for n in columns))
    return shown


def _blocks(table: Table, width: int) -> list[list[int]]:
    """Split the columns into blocks that fit; the columns that name rows are in every block."""
    every = range(len(table.columns))
    names = [n for n in every if any(row[n].kind == "head" for row in table.rows)] or [0]
    widths = [_GAP + max(map(cell_len, [table.columns[n], *(row[n].text for row in table.rows)])) for n in every]
    widths = [w if right else min(w, _LONG) for w, right in zip(widths, table.numeric, strict=True)]
    blocks = [[*names]]
    for n in [n for n in every if n not in names]:
        if len(blocks[-1]) > len(names) and sum(widths[c] for c in [*blocks[-1], n]) > width:
            blocks.append([*names])
        blocks[-1].append(n)
    return blocks


def _texts(table: Table, escape: Callable[[str], str], bold: str) -> list[list[str]]:
    return [[bold.format(escape(cell.text)) if cell.bold else escape(cell.text) for cell in row] for row in table.rows]


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>&|#~$])", r"\\\1", " ".join(text.split()))


def _latex(text: str) -> str:
    return " ".join(text.split()).translate(_LATEX).replace("--", "-{}-")


def _greek(letter: str) -> str:
    name = unicodedata.name(letter).split()[-1].replace("LAMDA", "LAMBDA")
    return name.lower() if letter.islower() else name.capitalize()


_GREEK = {c: _greek(c) for c in "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩ"}
_SIGNS = {"±": "pm", "×": "times", "·": "cdot", "≤": "leq", "≥": "geq", "≈": "approx", "≠": "neq", "∞": "infty"}
# LaTeX reads a bracket or a star after the end of a row as an argument.
_LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {c: f"{{{c}}}" for c in "[]*"}
    | {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"}
    | {"<": "\\textless{}", ">": "\\textgreater{}", "|": "\\textbar{}", "−": "\\ensuremath{-}"}
    | {c: f"\\textsubscript{{{n}}}" for n, c in enumerate("₀₁₂₃₄₅₆₇₈₉")}
    | {c: f"\\textsuperscript{{{n}}}" for n, c in zip("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹", strict=True)}
    | {c: f"\\ensuremath{{\\{name}}}" for c, name in (_GREEK | _SIGNS).items()}
)


# --- cells


def head(text: str) -> Cell:
    """Return a cell that names its row."""
    return Cell(text, kind="head")


def size_cell(size: float) -> Cell:
    """Return a number of annotations."""
    return NONE if math.isnan(size) else Cell(f"{size:,.0f}", size, kind="head")


def count_cell(value: int) -> Cell:
    """Return a count."""
    return Cell(f"{value:,}", value)


def signed(number: float, digits: int) -> str:
    """Return a difference with its sign; zero after rounding is +0."""
    return f"{round(number, digits) + 0.0:+.{digits}f}"
