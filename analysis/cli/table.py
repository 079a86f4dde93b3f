"""python -m analysis table|differences|efficiency study=NAME

  table by=task|iteration|size|cost|state|trial published=true
  differences baseline=METHOD
  efficiency baseline=METHOD task=TASK
      claim=METHOD@ANNOTATIONS:METHOD@ANNOTATIONS

The default baseline is the method `sft`.

    store=FOLDER   the store (default iris-store)
    out=FILE       write a file (.md, .tex, .csv, .parquet, .html)
    --rebuild      read all manifests of the study again
"""

from collections.abc import Callable

from analysis.cli import options
from analysis.collect.index import AVERAGE
from analysis.compare.efficiency import Efficiency, read_claim
from analysis.compare.methods import Results, results
from analysis.compare.trials import trials
from analysis.show import efficiency, published, tables
from analysis.show.differences import differences
from analysis.show.table import Table
from sweeps.cli.arguments import Arguments


def _printed(make: Callable[[Results, Arguments], list[Table]]) -> Callable[[Arguments], int]:
    def run(given: Arguments) -> int:
        options.check_out(given)
        options.choice(given, "by", list(tables.TABLES))
        options.show(given, make(results(options.frames(given)), given))
        return 0

    return run


@_printed
def show_table(found: Results, given: Arguments) -> list[Table]:
    """Show scores, costs or states."""
    default = "task" if trials(found.frames) is None else "trial"
    made = [tables.TABLES[given.settings.get("by", default)](found)]
    return [*made, published.table()] if options.choice(given, "published", ("false", "true")) == "true" else made


@_printed
def show_differences(found: Results, given: Arguments) -> list[Table]:
    """Compare every method with a baseline."""
    return [differences(found, found.baseline(given.settings.get("baseline")))]


@_printed
def show_efficiency(found: Results, given: Arguments) -> list[Table]:
    """Show what annotations gain, and a claim of two points."""
    task = options.choice(given, "task", [AVERAGE, *found.frames.tasks])
    curves, baseline = Efficiency(found, task), found.baseline(given.settings.get("baseline"))
    claim = read_claim(given.settings["claim"]) if given.settings.get("claim") else None
    return [
        tables.sizes(found, task),
        efficiency.claims(curves, baseline, claim),
        efficiency.savings(curves, baseline),
    ]
