"""python -m analysis compare A B

Each side is STUDY[@STORE][#COMMIT]: two studies, one study on two stores, or
the scores that two commits of the code computed. Shows differences in
provenance, and B minus A on the same seeds for every method, number of
annotations and task.

    store=FOLDER   the store of a side without @STORE (default iris-store)
    out=FILE       write a file (.md, .tex, .csv, .parquet, .html)
    --rebuild      read all manifests of the studies again
"""

from analysis.cli import options
from analysis.compare.studies import read_side
from analysis.show.differences import between
from iris.errors import UserError
from sweeps.cli.arguments import Arguments


def run(given: Arguments) -> int:
    """Run the command."""
    if len(given.rest) != 2:
        raise UserError(
            "compare takes two sides, such as embedded@here embedded@there, or alpha#1a2b3c4 alpha#5d6e7f8."
        )
    options.check_out(given)
    a, b = (read_side(name, given.settings.get("store"), rebuild="--rebuild" in given.flags) for name in given.rest)
    options.show(given, between(a, b))
    return 0
