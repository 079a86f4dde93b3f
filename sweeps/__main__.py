"""python -m sweeps COMMAND [key=value …]

  plan study=NAME               stages of a study: finished, missing, their cost
  launch study=NAME launcher=…  start the missing stages and return
                                (launcher: inline, local, slurm)
  status [study=NAME]           done, running, queued and failed experiments
  logs, cancel, retry, rm NAME  experiments by name or pattern
  search search=NAME …          search a space of experiments

python -m sweeps COMMAND --help says more.
"""

import sys
from collections.abc import Sequence

from sweeps.cli import command_line
from sweeps.cli.arguments import Command

_SEARCH = ("search", "launcher", "workers", "storage")
COMMANDS = {
    "plan": Command(
        "sweeps.cli.plan:run",
        ("study", "launcher", "budget_gpu_hours"),
        {"--why": "KEY", "--recompute-changed": ""},
        "overrides",
    ),
    "launch": Command(
        "sweeps.cli.launch:run",
        ("study", "launcher", "budget_gpu_hours"),
        {"--retry": "", "--cancel-orphans": "", "--recompute-changed": ""},
        "overrides",
    ),
    "status": Command("sweeps.cli.status:run", ("study", "store"), {"--all": "", "--watch": ""}, "names"),
    "logs": Command("sweeps.cli.manage:show_logs", ("study", "store", "stage"), {"--follow": ""}, "patterns"),
    "cancel": Command("sweeps.cli.manage:cancel", ("study", "store"), rest="patterns"),
    "retry": Command("sweeps.cli.manage:retry", ("study", "store", "launcher"), rest="patterns"),
    "rm": Command("sweeps.cli.manage:remove", ("study", "store"), {"--yes": ""}, "patterns"),
    "search": Command("sweeps.cli.search:run", _SEARCH, {"--report": ""}, "overrides"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    return command_line.main(__doc__ or "", COMMANDS, arguments)


if __name__ == "__main__":
    sys.exit(main())
