"""python -m analysis compare A B [store=FOLDER] [out=FILE] [--rebuild]

Each side is STUDY[@STORE][#COMMIT]: two studies, one study on two stores, or the scores that two commits of the code
computed. Shows differences in provenance, and B minus A on the same seeds for every method, number of annotations and
task.
"""

from collections.abc import Sequence

from analysis.cli import options
from analysis.compare.studies import read_side
from analysis.show.differences import between
from iris.errors import UserError


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    if any(word in ("--help", "-h") for word in arguments):
        print(__doc__)
        return 0
    given = options.read(arguments, ("out",), names=True)
    if len(given.names) != 2:
        raise UserError(
            "compare takes two sides, such as embedded@here embedded@there, or alpha#1a2b3c4 alpha#5d6e7f8."
        )
    options.check_out(given)
    a, b = (read_side(name, given.settings.get("store"), rebuild="--rebuild" in given.flags) for name in given.names)
    options.show(given, between(a, b))
    return 0
