"""One table in five notations: each says the same, and no text is taken for notation."""

import csv
import io
import math
import re

import pandas as pd
import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from analysis.show.table import NONE, Cell, Table, to_csv, to_frame, to_html, to_latex, to_markdown, to_rich

NASTY = r"a|b <i>x</i> *y* __z__ `c` [d](e) \n & &amp; ~~f~~ $g$ #h {i} ^j % --k [bold]l[/]"


def made(*rows: list[Cell], columns: tuple[str, ...] = ("method", "score")) -> Table:
    return Table("Scores", columns, rows)


def wide(tasks: int = 12) -> Table:
    """More numbers than fit beside each other."""
    rows = [
        [Cell(f"method {m}", kind="head"), *(Cell(f"{m + n / 10:.1f} ± 1.25", m + n / 10) for n in range(tasks))]
        for m in range(3)
    ]
    return Table("All tasks", ("method", *(f"task_{n}" for n in range(tasks))), rows, ("mean ± one standard error",))


def printed(table: Table, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    with console.capture() as capture:
        console.print(to_rich(table, width))
    return [line.rstrip() for line in capture.get().splitlines()]


def test_rows_are_as_long_as_the_head() -> None:
    with pytest.raises(ValueError, match="'Scores' does not have 2 cells"):
        made([Cell("iris")])


@pytest.mark.parametrize(
    ("cells", "right"),
    [
        ([Cell("1", 1), Cell("–", kind="missing")], True),
        ([Cell("1", 1), Cell("?", math.nan)], True),
        ([Cell("1", 1), Cell("many")], False),
        ([Cell("1", 1), Cell("many", "9")], False),
        ([], False),
    ],
)
def test_a_column_of_numbers_is_set_flush_right(cells: list[Cell], right: bool) -> None:
    table = Table("", ["a"], [[cell] for cell in cells])
    assert table.numeric == [right]
    assert (r"\begin{tabular}{r}" in to_latex(table)) == ("| ---: |" in to_markdown(table)) == right
    assert ('<th scope="col" class="number">' in to_html(table)) == right
    assert (printed(Table("", ["wide name"], table.rows), 80)[1] == "wide name") and (
        not cells or printed(Table("", ["wide name"], table.rows), 80)[2].startswith(" ") == right
    )


def test_a_spreadsheet_gets_numbers_in_full_and_text_where_there_is_none() -> None:
    table = made([Cell('a "b", c'), Cell("12.3 ± 0.1", 0.1 + 0.2)], [Cell("d"), Cell("failed", kind="missing")])
    rows = list(csv.DictReader(io.StringIO(to_csv(table))))
    assert [row["method"] for row in rows] == ['a "b", c', "d"]
    assert float(rows[0]["score"]) == 0.1 + 0.2
    assert rows[1]["score"] == "failed"


def test_a_spreadsheet_gets_the_ends_of_intervals_in_columns_of_their_own() -> None:
    scores = [Cell("5.0 ± 1.0", 5.0, ends=(4.0, 6.0)), Cell("7.0", 7.0), NONE]
    ranges = [Cell("1 … 3", 1.0, ends=(1.0, 3.0)), NONE, NONE]
    table = Table("scores", ["score", "range"], list(zip(scores, ranges, strict=True)))
    assert to_csv(table).splitlines() == [
        "score,score low,score high,range low,range high", "5.0,4.0,6.0,1.0,3.0", "7.0,,,,", ",,,,",
    ]  # fmt: skip
    frame = to_frame(table)
    assert frame["score high"].tolist()[0] == 6.0 and frame.drop(columns="table").dtypes.eq("float64").all()


def test_tables_that_have_little_in_common_make_one_frame() -> None:
    texts = Table("a", ["name", "x"], [[Cell("n", kind="head"), Cell("not reached", kind="missing")]])
    numbers = Table("b", ["name", "y"], [[Cell("1", 1, kind="head"), Cell("many")]])
    frame = pd.concat([to_frame(texts), to_frame(numbers)])
    assert frame["table"].tolist() == ["a", "b"] and frame["x"].isna().all() and frame["y"].tolist()[1] == "many"


def test_what_a_reader_of_markdown_sees_is_the_text() -> None:
    rows = [[Cell(NASTY), Cell("1", 1, bold=True)], [Cell("two\nlines"), Cell("2", 2)]]
    text = to_markdown(Table(NASTY, (NASTY, "score"), rows, (NASTY,)))
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    inline = [token for token in tokens if token.type == "inline"]
    shown = ["".join(part.content for part in token.children or []) for token in inline]
    assert shown == [NASTY, NASTY, "score", NASTY, "1", "two lines", "2", NASTY]
    bold = [token.content for token in inline if any(part.type == "strong_open" for part in token.children or [])]
    assert bold == ["**1**"]
    assert [t.tag for t in tokens if t.type.endswith("_open")].count("td") == 4


def test_markup_of_html_is_text() -> None:
    text = to_html(Table(NASTY, [NASTY], [[Cell(NASTY, '"><script>')]]))
    assert "<i>" not in text and "<script>" not in text
    assert text.count("&lt;i&gt;x&lt;/i&gt;") == 3


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        (r"50 % & #1_a {b} $c", r"50 \% \& \#1\_a \{b\} \$c"),
        (
            "~ ^ \\ | < >",
            r"\textasciitilde{} \textasciicircum{} \textbackslash{} \textbar{} \textless{} \textgreater{}",
        ),
        ("[0.1, 0.2]*", "{[}0.1, 0.2{]}{*}"),
        ("--seed", "-{}-seed"),
        ("π₁ ± −1", r"\ensuremath{\pi}\textsubscript{1} \ensuremath{\pm} \ensuremath{-}1"),
        ("λΔ 10⁻³", r"\ensuremath{\lambda}\ensuremath{\Delta} 10\textsuperscript{-}\textsuperscript{3}"),
        ("a\n\nb", "a b"),
    ],
)
def test_text_is_escaped_for_latex_wherever_it_stands(text: str, latex: str) -> None:
    lines = to_latex(Table(text, (text, "n"), [[Cell(text, bold=True), Cell("1", 1)]], (text,))).splitlines()
    assert rf"\caption{{{latex}}}" in lines
    assert rf"{latex} & n \\" in lines
    assert rf"\textbf{{{latex}}} & 1 \\" in lines
    assert rf"\par\smallskip\footnotesize {latex}" in lines


def test_the_rules_of_booktabs_enclose_head_and_rows() -> None:
    lines = to_latex(made([Cell("iris"), Cell("1", 1)], [Cell("spin"), Cell("2", 2)])).splitlines()
    rules = [lines.index(rf"\{rule}") for rule in ("toprule", "midrule", "bottomrule")]
    assert [rules[1] - rules[0], rules[2] - rules[1]] == [2, 3]


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_shows_every_number_whole_and_no_line_too_long(width: int) -> None:
    lines = printed(wide(), width)
    assert max(map(len, lines)) <= width
    numbers = re.findall(r"\d\.\d ± 1\.25", "\n".join(lines))
    assert sorted(numbers) == sorted(cell.text for row in wide().rows for cell in row[1:])


@pytest.mark.parametrize(("width", "blocks"), [(80, 3), (120, 2), (300, 1)])
def test_each_part_of_a_wide_table_names_its_rows(width: int, blocks: int) -> None:
    lines = printed(wide(), width)
    assert [line.split()[0] for line in lines if "±" in line and "error" not in line] == ["method"] * 3 * blocks
    assert [line.count("method 2") for line in lines].count(1) == blocks


@pytest.mark.parametrize("width", [80, 120])
def test_long_words_are_wrapped_and_not_cut(width: int) -> None:
    name = "x" * 150
    lines = printed(made([Cell(name, kind="head"), Cell("61.25", 61.25)]), width)
    assert max(map(len, lines)) <= width
    assert sum(line.count("x") for line in lines) == 150
    assert any(line.endswith("61.25") for line in lines)


def test_a_terminal_shows_markup_as_text() -> None:
    assert any("[bold]l[/]" in line for line in printed(Table("[red]t", ["a"], [[Cell("[bold]l[/]")]]), 80))
