"""python -m analysis table|differences|efficiency study=NAME [store=FOLDER] [out=FILE] [--rebuild]

  table by=task|iteration|size|cost|state|trial [published=true]
  differences [baseline=METHOD]
  efficiency [baseline=METHOD] [task=TASK] [claim=METHOD@ANNOTATIONS:METHOD@ANNOTATIONS]

The baseline is the method `sft` unless another is named. --rebuild reads all manifests of the study again.
"""

from collections.abc import Sequence

from analysis.cli import options
from analysis.collect.index import AVERAGE
from analysis.compare import methods
from analysis.compare.methods import Table
from analysis.show import efficiency, published, search, tables
from analysis.show.differences import differences
from analysis.show.table import Sheet
from iris.errors import UserError, nearest
from sweeps.cli.arguments import Arguments

_SETTINGS = {
    "table": ("by", "published", "out"),
    "differences": ("baseline", "out"),
    "efficiency": ("baseline", "task", "claim", "out"),
}


def main(arguments: Sequence[str]) -> int:
    """The command."""
    command, *words = arguments
    if any(word in ("--help", "-h") for word in words):
        print(__doc__)
        return 0
    given = options.read(words, _SETTINGS[command])
    options.check_out(given)
    options.choice(given, "by", list(tables.SHEETS))
    found = methods.table(options.frames(given))
    options.show(given, _MAKERS[command](found, given))
    return 0


def _table(found: Table, given: Arguments) -> list[Sheet]:
    default = "task" if search.trials(found.frames) is None else "trial"
    sheets = [tables.SHEETS[given.settings.get("by", default)](found)]
    return [*sheets, published.sheet()] if options.flag(given, "published") else sheets


def _differences(found: Table, given: Arguments) -> list[Sheet]:
    return [differences(found, methods.baseline(found, given.settings.get("baseline")))]


def _efficiency(found: Table, given: Arguments) -> list[Sheet]:
    task, known = given.settings.get("task", AVERAGE), [AVERAGE, *found.frames.tasks]
    if task not in known:
        raise UserError(f"task={task}: choose one of {', '.join(known)}.{nearest(task, known)}")
    curves = efficiency.curves(found, task)
    baseline = methods.baseline(found, given.settings.get("baseline"))
    claim = given.settings.get("claim")
    chosen = efficiency.read_claim(claim) if claim else None
    return [
        tables.sizes(found, task),
        efficiency.claims(curves, baseline, chosen),
        efficiency.savings(curves, baseline),
    ]


_MAKERS = {"table": _table, "differences": _differences, "efficiency": _efficiency}
