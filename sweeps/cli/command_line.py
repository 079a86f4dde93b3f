"""What `python -m sweeps` and `python -m analysis` have in common: commands by name, errors as one line."""

import importlib
import os
import sys
from collections.abc import Mapping, Sequence

from iris.errors import UserError, nearest


def main(doc: str, modules: Mapping[str, str], arguments: Sequence[str] | None = None) -> int:
    """Run a command. Each command's module has main(arguments) -> exit status; one that several share gets its name.

    Exit status: 0 done, 2 an error that the user can mend (in one message), 130 interrupted.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = _run(doc, modules, words)
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return status


def _run(doc: str, modules: Mapping[str, str], words: Sequence[str]) -> int:
    if not words or words[0] in ("--help", "-h", "help"):
        print(doc)
        return 0
    command, *rest = words
    if command not in modules:
        raise UserError(f"'{command}' is no command. Choose from {', '.join(modules)}.{nearest(command, modules)}")
    module = importlib.import_module(modules[command])
    shared = list(modules.values()).count(modules[command]) > 1
    status: int = module.main([command, *rest] if shared else rest)
    return status
