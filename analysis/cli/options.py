"""Settings and output of the commands."""

import io
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console

from analysis.collect.frames import Frames, load
from analysis.show import table
from analysis.show.table import Table
from iris.errors import UserError, nearest
from iris.files import write_atomic
from sweeps.cli.arguments import Arguments

_TEXTS = {".md": table.to_markdown, ".tex": table.to_latex, ".csv": table.to_csv, ".html": table.to_html}
FORMATS = (*_TEXTS, ".parquet")


def frames(given: Arguments) -> Frames:
    """Load the named study. Raises UserError."""
    study = given.get("study", "study=NAME, as it was launched.")
    return load(study, given.settings.get("store"), rebuild="--rebuild" in given.flags)


def choice(given: Arguments, key: str, choices: Sequence[str]) -> str:
    """Return a setting, by default the first choice. Raises UserError for any other value."""
    value = given.settings.get(key, choices[0])
    if value not in choices:
        raise UserError(f"{key}={value}: choose one of {', '.join(choices)}.{nearest(value, choices)}")
    return value


def check_out(given: Arguments) -> None:
    """Raise UserError for an unknown file format."""
    out = given.settings.get("out")
    if out and Path(out).suffix not in FORMATS:
        raise UserError(f"out={out}: give a file that ends in {', '.join(FORMATS)}.")


def show(given: Arguments, tables: Sequence[Table]) -> None:
    """Print tables, or write them to the file `out`."""
    out = given.settings.get("out")
    if out is None:
        console = Console(highlight=False)
        for number, each in enumerate(tables):
            console.print(*([""] if number else []), table.to_rich(each, console.width), sep="\n")
        return
    path = Path(out).expanduser()
    if path.suffix == ".parquet":
        content = io.BytesIO()
        pd.concat(map(table.to_frame, tables)).to_parquet(content, index=False)
        write(path, content.getvalue())
    else:
        write(path, "\n".join(str(_TEXTS[path.suffix](each)) for each in tables).encode())
    print(f"wrote {path}")


def write(path: Path, content: bytes) -> None:
    """Write a file atomically. Raises UserError where that is not possible."""
    try:
        write_atomic(path, content)
    except OSError as error:
        raise UserError(f"out={path}: {error.strerror}.") from error
