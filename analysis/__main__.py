"""python -m analysis COMMAND study=NAME [store=FOLDER] [key=value …]

  table study=NAME [by=task]   scores; by=task, iteration, size, cost, state or
                               (searches) trial; published=true adds the papers'
  differences study=NAME       every method against baseline=METHOD: intervals,
                               tests, effects
  efficiency study=NAME        scores by annotations; claim=iris@26k:sft@200k
                               compares two points
  figures study=NAME           all figures as PNG, SVG and PDF
  report study=NAME            one HTML page with everything
  compare A B                  two studies, STUDY[@STORE][#COMMIT] each, method
                               by method

Tables are printed, or written to out=FILE.md, .tex, .csv, .parquet or .html.
"""

import sys
from collections.abc import Sequence

from sweeps.cli import command_line
from sweeps.cli.arguments import Command


def _command(function: str, *settings: str) -> Command:
    return Command(f"analysis.cli.{function}", ("study", "store", *settings, "out"), {"--rebuild": ""})


COMMANDS = {
    "table": _command("table:show_table", "by", "published"),
    "differences": _command("table:show_differences", "baseline"),
    "efficiency": _command("table:show_efficiency", "baseline", "task", "claim"),
    "figures": _command("figures:run"),
    "report": _command("report:run", "baseline"),
    "compare": Command("analysis.cli.compare:run", ("store", "out"), {"--rebuild": ""}, "names"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    return command_line.main(__doc__ or "", COMMANDS, arguments)


if __name__ == "__main__":
    sys.exit(main())
