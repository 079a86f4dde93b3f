"""python -m analysis report study=NAME [store=FOLDER] [baseline=METHOD] [out=FILE.html] [--rebuild]

Writes one self-contained HTML page: tables, figures, missing results, cost, provenance and the commands that reproduce
every number. Default: outputs/analysis/STUDY.html.
"""

from collections.abc import Sequence
from pathlib import Path

from analysis.cli import options
from analysis.show.report import report
from iris.errors import UserError


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    if any(word in ("--help", "-h") for word in arguments):
        print(__doc__)
        return 0
    given = options.read(arguments, ("baseline", "out"))
    frames = options.frames(given)
    path = Path(given.settings.get("out", f"outputs/analysis/{frames.study}.html")).expanduser()
    if path.suffix != ".html":
        raise UserError(f"out={path}: give a file that ends in .html.")
    options.write(path, report(frames, given.settings.get("baseline")).encode())
    print(f"wrote {path}")
    return 0
