"""The report in a real browser: what it asks for, what it shows, how its tables sort."""

import base64
import itertools
import json
import math
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from analysis.show.page import Picture, Section, page
from analysis.show.table import Cell, Table
from tests.analysis.browser import NAMES, Tab, browser, find

NASTY = (
    "</script></style></title>\"'><script>document.title = 'owned'</script><img src=x onerror=alert(1)>&amp;{{ 7*7 }}"
)
SVG = (
    '<?xml version="1.0" encoding="utf-8"?>\n'
    '<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://www.w3.org/Graphics/SVG/1.1/DTD/svg11.dtd">\n'
    '<svg xmlns="http://www.w3.org/2000/svg" width="300" height="200"><style>#s {{ stroke-width: 0 }}</style>'
    '<linearGradient id="g"><stop stop-color="{0}"/></linearGradient>'
    '<rect id="s" width="300" height="200" fill="url(#g)"/></svg>'
)
NUMBERS = [
    Cell("9 points", 9),
    Cell("failed", kind="missing"),
    Cell("10 points", 10.0),
    Cell("–", math.nan),
    Cell("no end", math.inf),
    Cell("−3", -3),
]
WORDS = [Cell("beta"), Cell("Alpha"), Cell("10"), Cell("–", kind="missing"), Cell("9"), Cell("first", "aaa")]
MIXED = [Cell("word"), Cell("2", 2), Cell("–", kind="missing"), Cell("11", 11), Cell("a word"), Cell("", math.nan)]
RISING = {
    "number": ["−3", "9 points", "10 points", "no end", "failed", "–"],
    "word": ["10", "9", "first", "Alpha", "beta", "–"],
    "mixed": ["2", "11", "a word", "word", "–", ""],
}
FALLING = {
    "number": ["no end", "10 points", "9 points", "−3", "failed", "–"],
    "word": ["beta", "Alpha", "first", "9", "10", "–"],
    "mixed": ["word", "a word", "11", "2", "–", ""],
}


def report() -> str:
    """Return a page with one of everything, and with content that is hard to lay out."""
    rows = [[Cell(f"row {n}", kind="head"), *cells] for n, cells in enumerate(zip(NUMBERS, WORDS, MIXED, strict=True))]
    small = Table("Small", ["row", "number", "word", "mixed"], rows, ["a note"])
    tasks = [f"task_{n}" for n in range(30)]
    numbers = [Cell(f"{n}.25 ± 1.50", n + 0.25, bold=n == 7) for n in range(30)]
    wide = Table("Wide", ["method", *tasks], [[Cell("iris-" + "x" * 90, kind="head"), *numbers]] * 3)
    pictures = [Picture(f"In {colour}", SVG.format(colour), "What it shows.") for colour in ("red", "blue")]
    sections = [
        Section("Results", ["A paragraph.", "w" * 300], [small, wide]),
        Section("Results", [], [], pictures),
        Section("?", [], [], [], ["python -m analysis report study=embedded " + "x" * 300]),
    ]
    return page("Report", "Which is best?", ["Two seeds only."], sections, "made\nby hand")


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("browser")) as tab:
        yield tab


@pytest.fixture
def tab(started: Tab, tmp_path: Path) -> Tab:
    """Return the browser with the report newly opened."""
    return show(started, tmp_path, report())


def show(tab: Tab, folder: Path, text: str) -> Tab:
    path = folder / "page.html"
    path.write_text(text)
    tab.show(1280)
    tab.open(path)
    return tab


def column(tab: Tab, name: str) -> list[str]:
    """Return the texts of a column of the small table from top to bottom."""
    n = ["row", "number", "word", "mixed"].index(name)
    found: list[str] = tab.run(f"[...document.querySelector('tbody').rows].map(row => row.cells[{n}].textContent)")
    return found


def states(tab: Tab) -> list[str | None]:
    found: list[str | None] = tab.run(
        "[...document.querySelector('thead').rows[0].cells].map(head => head.getAttribute('aria-sort'))"
    )
    return found


def test_nothing_but_the_file_is_asked_for(tab: Tab) -> None:
    images = "Promise.all([...document.images].map(i => i.decode().then(() => [i.naturalWidth, i.naturalHeight])))"
    assert tab.run(images) == [[300, 200]] * 2
    tab.click("thead th")
    assert tab.requests() == [tab.run("location.href")]
    assert tab.complaints() == []


def test_what_would_get_in_is_neither_fetched_nor_run(tab: Tab, tmp_path: Path) -> None:
    """The same intruders come through where the policy is taken out, so that they would be seen."""
    free, policies = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", report())
    assert policies == 1
    seen = []
    with serving() as (address, asked):
        intruders = (
            f'<img src="{address}/a"><link rel="stylesheet" href="{address}/b"><script src="{address}/c"></script>'
            f'<iframe src="{address}/d"></iframe><script>document.title = "owned"</script>'
            "<style>h1 { color: red !important }</style>"
        )
        for text in (free, report()):
            asked.clear()
            show(tab, tmp_path, text.replace("</main>", f"{intruders}</main>"))
            colour = tab.run("getComputedStyle(document.querySelector('h1')).color")
            seen.append((sorted(asked), tab.run("document.title"), colour == "rgb(255, 0, 0)"))
    assert seen == [(["/a", "/b", "/c", "/d"], "owned", True), ([], "Report", False)]


@contextmanager
def serving() -> Iterator[tuple[str, list[str]]]:
    """Start a server that finds nothing; yield its address and the requests."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()


def test_all_that_is_passed_is_shown_as_text(tab: Tab, tmp_path: Path) -> None:
    table = Table(NASTY, [NASTY], [[Cell(NASTY, NASTY, kind="head")], [Cell(NASTY, kind="missing")]], [NASTY])
    section = Section(NASTY, [NASTY], [table], [Picture(NASTY, SVG.format("red"), NASTY)], [NASTY])
    show(tab, tmp_path, page(NASTY, NASTY, [NASTY], [section], NASTY))
    assert tab.run("[document.scripts.length, document.images.length, document.styleSheets.length]") == [1, 1, 1]
    assert tab.run("[document.title, document.images[0].alt]") == [NASTY, NASTY]
    assert tab.run("document.documentElement.textContent").count(NASTY) == 16
    assert tab.complaints() == []


@pytest.mark.parametrize("name", ["number", "word", "mixed"])
def test_a_click_on_a_head_sorts_by_it_and_another_one_turns_it_round(tab: Tab, name: str) -> None:
    n = ["row", "number", "word", "mixed"].index(name)
    head = f"thead th:nth-child({n + 1})"
    tab.click(head)
    assert column(tab, name) == RISING[name]
    assert states(tab) == [("ascending" if k == n else None) for k in range(4)]
    tab.click(head)
    assert column(tab, name) == FALLING[name]
    assert states(tab) == [("descending" if k == n else None) for k in range(4)]
    tab.click(head)
    assert column(tab, name) == RISING[name]
    rows = [
        f"row {[c.text for c in {'number': NUMBERS, 'word': WORDS, 'mixed': MIXED}[name]].index(t)}"
        for t in RISING[name]
    ]
    assert column(tab, "row") == rows


def test_keys_sort_as_the_mouse_does(tab: Tab) -> None:
    tab.run("document.querySelector('.scroll').focus()")
    for _ in range(2):
        tab.press("Tab", "")
    assert tab.run("document.activeElement.textContent") == "number"
    tab.press("Enter", "\r")
    assert column(tab, "number") == RISING["number"]
    tab.press(" ", " ")
    assert column(tab, "number") == FALLING["number"]
    tab.press("Tab", "")
    tab.press("Enter", "\r")
    assert states(tab) == [None, None, "ascending", None]


def test_rows_that_are_equal_stay_in_the_order_they_had(tab: Tab, tmp_path: Path) -> None:
    rows = [[Cell(a), Cell(b, float(b))] for a, b in itertools.product("zyx", "21")]
    show(tab, tmp_path, page("t", "", [], [Section("s", tables=[Table("t", ["a", "b"], rows)])], ""))
    tab.click("thead th:nth-child(2)")
    assert tab.run("document.querySelector('tbody').innerText.replace(/\\s+/g, '')") == "z1y1x1z2y2x2"


def test_without_javascript_all_is_there_and_nothing_pretends_to_work(tab: Tab, tmp_path: Path) -> None:
    count = "['table', 'img', 'nav a', 'pre', 'button'].map(s => document.querySelectorAll(s).length)"
    assert tab.run(count) == [2, 2, 3, 1, 4 + 31]
    with_script = tab.run("document.body.innerText")
    tab.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        show(tab, tmp_path, report())
        assert tab.run(count) == [2, 2, 3, 1, 0]
        assert tab.run("document.body.innerText") == with_script
    finally:
        tab.call("Emulation.setScriptExecutionDisabled", value=False)


def test_the_contents_lead_to_the_sections(tab: Tab) -> None:
    assert tab.run("[...document.querySelectorAll('nav a')].map(a => a.hash)") == ["#results", "#results-2", "#section"]
    ids = tab.run("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    tab.click("nav li:last-child a")
    assert tab.run("[location.hash, document.querySelector(':target h2').innerText]") == ["#section", "?"]
    assert 0 <= tab.run("document.querySelector(':target').getBoundingClientRect().top") < 900


def test_every_part_says_what_it_is(tab: Tab) -> None:
    assert tab.run("[document.documentElement.lang, document.characterSet, document.compatMode]") == [
        "en",
        "UTF-8",
        "CSS1Compat",
    ]
    nodes = tab.call("Accessibility.getFullAXTree")["nodes"]
    named = [(n["role"]["value"], n["name"]["value"]) for n in nodes if not n["ignored"] and "name" in n]
    roles = {
        ("heading", "Report"),
        ("navigation", "Contents"),
        ("region", "Results"),
        ("table", "Small"),
        ("rowheader", "row 0"),
        ("columnheader", "number"),
        ("image", "In red"),
    }
    assert roles <= set(named)
    assert sum(role == "columnheader" for role, _ in named) == 4 + 31
    assert tab.run("[...document.querySelectorAll('thead th')].every(head => head.scope === 'col')")
    assert tab.run("[...document.querySelectorAll('tbody th')].map(head => head.scope)") == ["row"] * (6 + 3)


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_wide_tables_and_long_lines_scroll_within_themselves(tab: Tab, width: int) -> None:
    tab.show(width)
    assert tab.run("document.documentElement.scrollWidth") <= width
    assert tab.run("(e => e.scrollWidth > e.clientWidth)(document.querySelectorAll('.scroll')[1])")
    assert tab.run("(e => e.scrollWidth > e.clientWidth)(document.querySelector('pre'))") is False
    # The name of a row stays in sight, and leaves room for the numbers.
    tab.run("document.querySelectorAll('.scroll')[1].scrollLeft = 500")
    names = "[...document.querySelectorAll('.scroll')[1].querySelectorAll('th:first-child')]"
    boxes = tab.run(f"{names}.map(name => name.getBoundingClientRect().toJSON())")
    assert len(boxes) == 1 + 3
    assert all(0 <= box["left"] < width / 4 and box["width"] < width / 2 for box in boxes)


def test_light_and_dark_can_both_be_read(tab: Tab) -> None:
    parts = ["body", ".question", "a", ".warnings li", "tbody td", ".notes", "pre", "footer", "td[data-missing]"]
    grounds = {}
    for scheme in ("light", "dark"):
        tab.show(1280, scheme=scheme)
        grounds[scheme] = luminance(tab.run("getComputedStyle(document.body).backgroundColor"))
        for part in parts:
            ink, ground = tab.run(f"""(e => {{
                const ink = getComputedStyle(e).color;
                while (getComputedStyle(e).backgroundColor === "rgba(0, 0, 0, 0)") e = e.parentElement;
                return [ink, getComputedStyle(e).backgroundColor];
            }})(document.querySelector({json.dumps(part)}))""")
            low, high = sorted([luminance(ink), luminance(ground)])
            assert (high + 0.05) / (low + 0.05) >= 4.5, (scheme, part, ink, ground)
    assert grounds["dark"] < 0.05 < 0.95 < grounds["light"]


def luminance(colour: str) -> float:
    """Relative luminance of `rgb(r, g, b)`, as the Web Content Accessibility Guidelines define it."""
    shares = [int(n) / 255 for n in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_paper_is_white_and_shows_all_of_a_table(tab: Tab, tmp_path: Path) -> None:
    tasks = [f"a_long_name_{n}" for n in range(10)]
    rows = [[Cell("iris", kind="head"), Cell("200", 200), *(Cell("61.25 ± 1.50 (n = 3)", 61.25) for _ in tasks)]]
    table = Table("Tasks", ["method", "annotations", *tasks], rows)
    show(tab, tmp_path, page("t", "", [], [Section("s", tables=[table])], ""))
    tab.show(1032, scheme="dark", media="print")  # A4 paper on its side, between its margins
    assert luminance(tab.run("getComputedStyle(document.body).backgroundColor")) == 1
    assert tab.run("document.documentElement.scrollWidth") <= 1032
    assert tab.run("getComputedStyle(document.querySelector('.scroll')).overflowX") == "visible"
    styles = "button => [getComputedStyle(button).display, getComputedStyle(button, '::after').content]"
    head = tab.run(f"({styles})(document.querySelector('thead button'))")
    assert head == ["contents", "none"]


def test_a_wide_table_lies_across_its_sheet_of_paper(tab: Tab) -> None:
    paper = base64.b64decode(tab.call("Page.printToPDF")["data"])
    sizes = [(float(x), float(y)) for x, y in re.findall(rb"/MediaBox \[0 0 (\S+) (\S+)\]", paper)]
    assert {width > height for width, height in sizes} == {False, True}
    assert sizes[0][0] < sizes[0][1]


def test_ids_of_two_pictures_do_not_clash(tab: Tab) -> None:
    colours = tab.run("""Promise.all([...document.images].map(async image => {
        await image.decode();
        const canvas = new OffscreenCanvas(1, 1).getContext("2d");
        canvas.drawImage(image, 0, 0);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    }))""")
    assert colours == [[255, 0, 0, 255], [0, 0, 255, 255]]


@pytest.mark.parametrize("name", NAMES)
def test_the_browser_is_found_under_its_names(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AssertionError, match="apt-get install --no-install-recommends chromium"):
        find()
    (tmp_path / name).touch(mode=0o755)
    assert find() == str(tmp_path / name)
