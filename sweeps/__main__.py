"""python -m sweeps COMMAND [key=value …]

  plan study=NAME               what a study would compute, what is there, what the rest costs
  launch study=NAME launcher=…  start what is missing and return (launcher: inline, local, slurm)
  status [study=NAME]           what is done, running, queued, failed
  logs, cancel, retry, rm NAME  of experiments, by name or pattern
  search search=NAME …          search a space of experiments

python -m sweeps COMMAND --help says more.
"""

import sys
from collections.abc import Sequence

from sweeps.cli import command_line

_MODULES = {
    "plan": "sweeps.cli.plan",
    "launch": "sweeps.cli.launch",
    "status": "sweeps.cli.status",
    "logs": "sweeps.cli.manage",
    "cancel": "sweeps.cli.manage",
    "retry": "sweeps.cli.manage",
    "rm": "sweeps.cli.manage",
    "search": "sweeps.cli.search",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    return command_line.main(__doc__ or "", _MODULES, arguments)


if __name__ == "__main__":
    sys.exit(main())
