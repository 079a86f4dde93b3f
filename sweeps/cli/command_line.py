"""The skeleton of `python -m sweeps` and `python -m analysis`: commands by name, help, signals, errors in one line."""

import importlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from iris.errors import UserError, nearest
from sweeps.cli.arguments import Command, parse

_HELP = ("--help", "-h")


def main(doc: str, commands: Mapping[str, Command], arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0 done, 2 an error of the user, 130 interrupted.

    SIGTERM ends a command as Ctrl-C does. The help of a command is its module's docstring with EPILOG.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        status = _run(doc, commands, list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return status


def _run(doc: str, commands: Mapping[str, Command], arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in (*_HELP, "help"):
        print(doc)
        return 0
    name, *rest = arguments
    if name not in commands:
        raise UserError(f"'{name}' is no command. Choose from {', '.join(commands)}.{nearest(name, commands)}")
    module, _, function = commands[name].function.partition(":")
    loaded = importlib.import_module(module)
    if any(argument in _HELP for argument in rest):
        print(f"{loaded.__doc__}{getattr(loaded, 'EPILOG', '')}")
        return 0
    status: int = getattr(loaded, function)(parse(rest, commands[name]))
    return status


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
