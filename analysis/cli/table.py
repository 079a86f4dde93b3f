"""python -m analysis table|differences|efficiency study=NAME [store=FOLDER] [out=FILE] [--rebuild]

  table by=task|iteration|size|cost|state|trial [published=true]
  differences [baseline=METHOD]
  efficiency [baseline=METHOD] [task=TASK] [claim=METHOD@ANNOTATIONS:METHOD@ANNOTATIONS]

The default baseline is the method `sft`. --rebuild reads all manifests of the study again.
"""

from collections.abc import Sequence

from analysis.cli import options
from analysis.collect.index import AVERAGE
from analysis.compare.efficiency import Efficiency, read_claim
from analysis.compare.methods import Results, results
from analysis.compare.trials import trials
from analysis.show import efficiency, published, tables
from analysis.show.differences import differences
from analysis.show.table import Table
from sweeps.cli.arguments import Arguments

_SETTINGS = {
    "table": ("by", "published", "out"),
    "differences": ("baseline", "out"),
    "efficiency": ("baseline", "task", "claim", "out"),
}


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    command, *words = arguments
    if any(word in ("--help", "-h") for word in words):
        print(__doc__)
        return 0
    given = options.read(words, _SETTINGS[command])
    options.check_out(given)
    options.choice(given, "by", list(tables.TABLES))
    options.show(given, _MAKERS[command](results(options.frames(given)), given))
    return 0


def _table(found: Results, given: Arguments) -> list[Table]:
    default = "task" if trials(found.frames) is None else "trial"
    made = [tables.TABLES[given.settings.get("by", default)](found)]
    return [*made, published.table()] if options.choice(given, "published", ("false", "true")) == "true" else made


def _differences(found: Results, given: Arguments) -> list[Table]:
    return [differences(found, found.baseline(given.settings.get("baseline")))]


def _efficiency(found: Results, given: Arguments) -> list[Table]:
    task = options.choice(given, "task", [AVERAGE, *found.frames.tasks])
    curves, baseline = Efficiency(found, task), found.baseline(given.settings.get("baseline"))
    claim = read_claim(given.settings["claim"]) if given.settings.get("claim") else None
    return [
        tables.sizes(found, task),
        efficiency.claims(curves, baseline, claim),
        efficiency.savings(curves, baseline),
    ]


_MAKERS = {"table": _table, "differences": _differences, "efficiency": _efficiency}
