"""A table as text, and that table for a page, a paper, a README, a spreadsheet and a terminal."""

import csv
import io
import json
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from rich.cells import cell_len
from rich.console import Group
from rich.table import Table
from rich.text import Text

_LONG = 32  # characters; longer texts are wrapped where there are many columns
_GAP = 2  # between two columns of a terminal


@dataclass(frozen=True)
class Cell:
    """An entry. Rows are put in order by `sort`, or else by `text`; `kind` is '', 'missing' or 'head' (of its row).

    `ends` are those of an interval that the text tells of.
    """

    text: str
    sort: float | str | None = None
    bold: bool = False
    kind: str = ""
    ends: tuple[float, float] | None = None

    @property
    def missing(self) -> bool:
        """Whether there is nothing to compare: marked so, or not a number."""
        return self.kind == "missing" or (isinstance(self.sort, float) and math.isnan(self.sort))

    @property
    def number(self) -> float | None:
        """The number it counts as."""
        return None if self.missing or isinstance(self.sort, str) else self.sort


NONE = Cell("–", kind="missing")


@dataclass(frozen=True)
class Sheet:
    """A table. Raises ValueError where a row is not as long as `columns`."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"a row of {self.title!r} has not {len(self.columns)} cells")

    @property
    def numeric(self) -> list[bool]:
        """For each column, whether all that is there are numbers: such columns are set flush right."""
        columns = list(zip(*self.rows, strict=True)) or [()] * len(self.columns)
        return [bool(c) and all(cell.missing or cell.number is not None for cell in c) for c in columns]


_HTML = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined).from_string(
    """\
<table>
<caption><span>{{ sheet.title }}</span></caption>
<thead>
<tr>
{% for name in sheet.columns %}
<th scope="col" class="{{ 'number' if numeric[loop.index0] else 'text' }}">{{ name }}</th>
{% endfor %}
</tr>
</thead>
<tbody>
{% for row in sheet.rows %}
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


def to_html(sheet: Sheet) -> Markup:
    """A `<table>` without its notes; what to sort a cell by is in its `data-number`, `data-text` or `data-missing`."""
    return Markup(_HTML.render(sheet=sheet, numeric=sheet.numeric, long=_LONG, json=_json))


def _json(number: float) -> str:
    return json.dumps(float(number))  # what JavaScript reads, infinities included


def to_csv(sheet: Sheet) -> str:
    """Numbers in full where a cell has one, else its text, but for –. Title and notes are left out."""
    columns = _columns(sheet, said=True)
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    table.writerow(columns)
    table.writerows(zip(*columns.values(), strict=True))
    return file.getvalue()


def to_frame(sheet: Sheet) -> pd.DataFrame:
    """The same as a frame, with the title as the column `table`: nothing where cells are missing."""
    frame = pd.DataFrame(_columns(sheet, said=False), dtype=object)
    for name, values in frame.items():
        texts = any(isinstance(value, str) for value in values)
        frame[name] = values.astype("str" if texts else "float64")
    return frame.assign(table=sheet.title)


def _columns(sheet: Sheet, said: bool) -> dict[str, list[Any]]:
    """What cells count as (missing ones: what is `said` of them); the ends of intervals in columns of their own."""
    columns: dict[str, list[Any]] = {}
    for n, name in enumerate(sheet.columns):
        cells = [row[n] for row in sheet.rows]
        columns[name] = [_value(cell, said) for cell in cells]
        if any(cell.ends for cell in cells):
            low, high = ([cell.ends[end] if cell.ends else None for cell in cells] for end in (0, 1))
            if columns[name] == low:  # an interval and nothing else
                del columns[name]
            columns |= {f"{name} low": low, f"{name} high": high}
    return columns


def _value(cell: Cell, said: bool) -> float | str | None:
    if cell.missing:
        return cell.text if said and cell.text != NONE.text else None
    return cell.text if cell.number is None else cell.number


def to_markdown(sheet: Sheet) -> str:
    """A heading, a table of GitHub's Markdown and the notes, a paragraph each."""
    rules = ["---:" if right else ":---" for right in sheet.numeric]
    rows = [[_markdown(name) for name in sheet.columns], rules, *_texts(sheet, _markdown, "**{}**")]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return "\n".join([f"## {_markdown(sheet.title)}\n", table, *(f"{_markdown(note)}\n" for note in sheet.notes)])


def to_latex(sheet: Sheet) -> str:
    r"""A `table` with the rules of booktabs, to be read with `\input` between `\usepackage{booktabs}` and the end."""
    layout = "".join("r" if right else "l" for right in sheet.numeric)
    head, *rows = (
        f"{' & '.join(row)} \\\\\n" for row in [[*map(_latex, sheet.columns)], *_texts(sheet, _latex, "\\textbf{{{}}}")]
    )
    notes = "".join(f"\\par\\smallskip\\footnotesize {_latex(note)}\n" for note in sheet.notes)
    return (
        f"\\begin{{table}}\n\\centering\n\\caption{{{_latex(sheet.title)}}}\n\\begin{{tabular}}{{{layout}}}\n"
        f"\\toprule\n{head}\\midrule\n{''.join(rows)}\\bottomrule\n\\end{{tabular}}\n{notes}\\end{{table}}\n"
    )


def to_rich(sheet: Sheet, width: int) -> Group:
    """For a terminal of `width` columns. No number is cut: what is too wide goes on below, the rows' names repeated."""
    tables = [_rich(sheet, columns) for columns in _blocks(sheet, width)]
    between = [part for table in tables for part in (table, Text())]
    return Group(Text(sheet.title, "bold"), *between, *(Text(note, "dim") for note in sheet.notes))


def _rich(sheet: Sheet, columns: Sequence[int]) -> Table:
    table = Table(box=None, padding=(0, _GAP, 0, 0), header_style="bold")
    for n in columns:
        right = sheet.numeric[n]
        table.add_column(Text(sheet.columns[n]), justify="right" if right else "left", no_wrap=right, overflow="fold")
    for row in sheet.rows:
        table.add_row(*(Text(row[n].text, "bold" if row[n].bold else "dim" if row[n].missing else "") for n in columns))
    return table


def _blocks(sheet: Sheet, width: int) -> list[list[int]]:
    """Which columns stand beside each other; those that name the rows are in every block."""
    every = range(len(sheet.columns))
    names = [n for n in every if any(row[n].kind == "head" for row in sheet.rows)] or [0]
    widths = [_GAP + max(map(cell_len, [sheet.columns[n], *(row[n].text for row in sheet.rows)])) for n in every]
    widths = [w if right else min(w, _LONG) for w, right in zip(widths, sheet.numeric, strict=True)]
    blocks = [[*names]]
    for n in [n for n in every if n not in names]:
        if len(blocks[-1]) > len(names) and sum(widths[c] for c in [*blocks[-1], n]) > width:
            blocks.append([*names])
        blocks[-1].append(n)
    return blocks


def _texts(sheet: Sheet, escape: Callable[[str], str], bold: str) -> list[list[str]]:
    return [[bold.format(escape(cell.text)) if cell.bold else escape(cell.text) for cell in row] for row in sheet.rows]


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>&|#~$])", r"\\\1", " ".join(text.split()))


def _latex(text: str) -> str:
    return " ".join(text.split()).translate(_LATEX).replace("--", "-{}-")


def _greek(letter: str) -> str:
    name = unicodedata.name(letter).split()[-1].replace("LAMDA", "LAMBDA")
    return name.lower() if letter.islower() else name.capitalize()


_GREEK = {c: _greek(c) for c in "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩ"}
_SIGNS = {"±": "pm", "×": "times", "·": "cdot", "≤": "leq", "≥": "geq", "≈": "approx", "≠": "neq", "∞": "infty"}
# A bracket or a star after the end of a row would be read as an argument of it.
_LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {c: f"{{{c}}}" for c in "[]*"}
    | {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"}
    | {"<": "\\textless{}", ">": "\\textgreater{}", "|": "\\textbar{}", "−": "\\ensuremath{-}"}
    | {c: f"\\textsubscript{{{n}}}" for n, c in enumerate("₀₁₂₃₄₅₆₇₈₉")}
    | {c: f"\\textsuperscript{{{n}}}" for n, c in zip("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹", strict=True)}
    | {c: f"\\ensuremath{{\\{name}}}" for c, name in (_GREEK | _SIGNS).items()}
)


def signed(number: float, digits: int) -> str:
    """A difference with its sign; what rounds to nothing is +0."""
    return f"{round(number, digits) + 0.0:+.{digits}f}"
