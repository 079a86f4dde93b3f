"""python -m analysis report study=NAME

Writes one self-contained HTML page: tables, figures, missing results, cost,
provenance and the commands that reproduce every number.

    store=FOLDER      the store (default iris-store)
    baseline=METHOD   the method that others are compared with (default sft)
    out=FILE.html     where to write (default outputs/analysis/STUDY.html)
    --rebuild         read all manifests of the study again
"""

from pathlib import Path

from analysis.cli import options
from analysis.show.report import report
from iris.errors import UserError
from sweeps.cli.arguments import Arguments


def run(given: Arguments) -> int:
    """Run the command."""
    frames = options.frames(given)
    path = Path(given.settings.get("out", f"outputs/analysis/{frames.study}.html")).expanduser()
    if path.suffix != ".html":
        raise UserError(f"out={path}: give a file that ends in .html.")
    options.write(path, report(frames, given.settings.get("baseline")).encode())
    print(f"wrote {path}")
    return 0
