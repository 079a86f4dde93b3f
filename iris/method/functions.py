"""Functions named by module and name: where they are defined, what they take, and the source that defines them.

Modules are parsed, not imported: a plan must not wait for torch.
"""

import ast
import functools
import importlib
import importlib.util
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iris import source
from iris.errors import UserError, first_line, nearest

_Found = dict[tuple[str, str], Any]  # (module, name) → the normalised statements that bind the name


@dataclass(frozen=True)
class Signature:
    """What a function takes: positional arguments, parameters with whether they have no default, and the defaults."""

    positional: tuple[str, ...]
    parameters: dict[str, bool]
    defaults: dict[str, float]


def imported(reference: str, key: str) -> Any:
    """Import the function of `package.module:name`; `key` is the setting that names it. Raises UserError."""
    module, name = _parts(reference, key)
    try:
        found = getattr(importlib.import_module(module), name, None)
    except UserError:
        raise
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
        hint = "Its folder must be installed or on PYTHONPATH." if missing else f"See {_place(error)}."
        raise UserError(
            f"{key}={reference}: {module} cannot be imported: {type(error).__name__}: {first_line(error)}. {hint}"
        ) from error
    if not callable(found):
        raise UserError(f"{key}={reference}: {module} has no function '{name}'.{nearest(name, _statements(module))}")
    return found


def _place(error: Exception) -> str:
    """Return the file and line that an import failed at."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<frozen")]
    return f"{frames[-1].filename}:{frames[-1].lineno}"


def signature(reference: str, key: str) -> Signature:
    """Return what a function takes. Raises UserError unless its module defines it by `def`, without *args, **kwargs."""
    module, name = _parts(reference, key)
    found = [s for s in _statements(module).get(name, []) if isinstance(s, ast.FunctionDef)]
    if not found:
        raise UserError(f"{key}={reference}: {module} has no 'def {name}'. Name the module that defines it.")
    arguments = found[-1].args
    if arguments.vararg or arguments.kwarg:
        raise UserError(f"{key}={reference}: '{name}' takes *args or **kwargs. Write its parameters out after a '*'.")
    positional = tuple(a.arg for a in [*arguments.posonlyargs, *arguments.args])
    named = {a.arg: default for a, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)}
    constants = {name: default.value for name, default in named.items() if isinstance(default, ast.Constant)}
    numbers = {name: float(value) for name, value in constants.items() if type(value) is int or type(value) is float}
    return Signature(positional, {name: default is None for name, default in named.items()}, numbers)


def digest(*references: str) -> str:
    """Return the hash of the source of functions and of all that they use from modules of their own package.

    Comments, docstrings and formatting do not count.
    """
    found: _Found = {}
    for reference in references:
        module, _, name = reference.partition(":")
        _collect(module, name, found)
    return source.digest(list(found.values()))


def _parts(reference: str, key: str) -> tuple[str, str]:
    module, colon, name = reference.partition(":")
    if not colon or not all(part.isidentifier() for part in [*module.split("."), name]):
        raise UserError(f"{key}={reference}: expected package.module:function.")
    return module, name


def _collect(module: str, name: str, found: _Found) -> None:
    """Add the statements that bind a name in a module, and those of the names that they use."""
    statements = _statements(module)
    if (module, name) in found or name not in statements:
        return
    found[module, name] = source.normalized(statements[name])
    for statement in statements[name]:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            _collect_imported(module, name, statement, found)
            continue
        for used in sorted({node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}):
            _collect(module, used, found)


def _collect_imported(module: str, name: str, statement: ast.Import | ast.ImportFrom, found: _Found) -> None:
    alias = next(a for a in statement.names if name in (a.asname, a.name, a.name.split(".")[0]))
    if isinstance(statement, ast.Import):
        origin, attribute = alias.name, ""
    else:
        anchor = module if _is_package(module) else module.rpartition(".")[0]
        relative = "." * statement.level + (statement.module or "")
        origin = importlib.util.resolve_name(relative, anchor) if statement.level else relative
        attribute = alias.name
    if not _is_own(origin, module):
        return
    if attribute and attribute not in _statements(origin):
        origin, attribute = f"{origin}.{attribute}", ""
    for used in [attribute] if attribute else list(_statements(origin)):
        _collect(origin, used, found)


def _is_own(origin: str, module: str) -> bool:
    """Return whether a module is of the same package as another, beside it in a folder, or one of ours."""
    package = origin.split(".")[0]
    if package in (module.split(".")[0], "iris"):
        return True
    file, own = _file(package), _file(module)  # not of `origin`, whose packages would be imported
    return "." not in module and file is not None and own is not None and own.parent in file.parents


def _is_package(module: str) -> bool:
    file = _file(module)
    return file is not None and file.name == "__init__.py"


def _file(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def _statements(module: str) -> dict[str, list[ast.stmt]]:
    """Return a module's top-level statements, without docstrings, by the names that they bind."""
    file = _file(module)
    return _parsed(file, file.stat().st_mtime_ns) if file else {}


@functools.cache
def _parsed(file: Path, changed: int) -> dict[str, list[ast.stmt]]:
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):  # what an objective needs enters a key by itself
            node.decorator_list = [d for d in node.decorator_list if "needs(" not in ast.unparse(d)]
    found: dict[str, list[ast.stmt]] = {}
    for statement in tree.body:
        for name in set(_bound(statement)):
            found.setdefault(name, []).append(statement)
    return found


def _bound(statement: ast.stmt) -> Iterator[str]:
    """Yield the names that a top-level statement binds."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield statement.name
        return
    for node in ast.walk(statement):
        if isinstance(node, ast.alias):
            yield (node.asname or node.name).split(".")[0]
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
