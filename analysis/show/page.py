"""A report as one self-contained HTML file; its only script sorts tables."""

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, count

from jinja2 import Environment, PackageLoader, StrictUndefined

from analysis.show.table import Table, to_html


@dataclass(frozen=True)
class Picture:
    """An SVG document as text, embedded as data so that the ids of several do not clash."""

    title: str
    svg: str
    caption: str


@dataclass(frozen=True)
class Section:
    """A section of the report: paragraphs, tables, pictures and commands, in this order."""

    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    commands: Sequence[str] = ()


def page(title: str, question: str, warnings: Sequence[str], sections: Sequence[Section], footer: str) -> str:
    """Return the HTML document. All texts are escaped."""
    anchors = _anchors([section.title for section in sections])
    parts = list(zip(anchors, sections, strict=True))
    template = _environment().get_template("report.html.j2")
    return template.render(title=title, question=question, warnings=warnings, sections=parts, footer=footer)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("analysis.show"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"table": to_html, "base64": _base64, "digest": _digest}
    return environment


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _digest(text: str) -> str:
    """Return the Content-Security-Policy source that allows one inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _anchors(titles: Sequence[str]) -> list[str]:
    """Return a unique id for each title."""
    taken: list[str] = []
    for title in titles:
        name = re.sub(r"\W+", "-", title.lower()).strip("-") or "section"
        names = chain([name], (f"{name}-{n}" for n in count(2)))
        taken.append(next(n for n in names if n not in taken))
    return taken
