"""Fingerprints of our own code: equal for sources that differ in comments, docstrings and formatting alone."""

import ast
import functools
import hashlib
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# What computes results. The rest of the package decides what runs (the key tells) or how (no result may tell), and
# the source of an objective and of a schedule is part of the key.
_FOLDERS = {"data", "evaluation", "model", "sampling", "stages", "training"}
_ROOT = Path(__file__).parent
# … and of this module these functions, which every schedule that follows the gap goes through, and no key tells.
_HELPERS = {"method/schedules.py": {"gap", "smooth"}}
_DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_LIBRARIES = ("torch", "transformers")


def source_digest(text: str) -> str:
    """Return 16 hexadecimal digits for a Python source, the same for every version of Python that can read it."""
    return digest(normalized(ast.parse(text)))


def digest(content: Any) -> str:
    return hashlib.sha256(repr(content).encode()).hexdigest()[:16]


def normalized(node: Any) -> Any:
    """Nested tuples of a syntax tree without docstrings, positions, and fields that are empty or new in some Python."""
    if isinstance(node, list):
        return tuple(map(normalized, node))
    if not isinstance(node, ast.AST):
        return node
    fields = {name: getattr(node, name, None) for name in node._fields if name != "ctx"}
    if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
        fields["body"] = node.body[1:]
    return type(node).__name__, *((k, normalized(v)) for k, v in fields.items() if v is not None and v != [])


@functools.cache
def computed_by(kind: str) -> Mapping[str, str]:
    """Return what a stage's result depends on beside its key: digests of our modules, and versions of libraries."""
    libraries = (*_LIBRARIES, "lm-eval") if kind == "evaluate" else _LIBRARIES
    modules = {_name(path): _module(path)[0] for path in _closure(_ROOT / "stages" / f"{kind}.py")}
    return dict(sorted(modules.items())) | {name: _version(name) for name in libraries}


def combined(code: Mapping[str, str]) -> str:
    """Return one digest for what `computed_by` returns, to compare many stages by."""
    return digest(sorted(code.items()))


def differences(kind: str, then: Mapping[str, str]) -> list[str]:
    """Return a phrase for each module and library in which the code of a finished stage differs from ours."""
    if not then:
        return ["code that its manifest does not name"]
    return [_difference(name, then.get(name), now) for name, now in computed_by(kind).items() if then.get(name) != now]


def _difference(name: str, then: str | None, now: str) -> str:
    if not name.endswith(".py"):
        return f"{name} {then or '(none)'}, now {now}"
    return f"{name}: {'changed' if then else 'new'} since"


def _closure(start: Path) -> list[Path]:
    found = dict.fromkeys([start])
    left = [start]
    while left:
        new = [path for path in _module(left.pop())[1] if path not in found]
        found |= dict.fromkeys(new)
        left += new
    return list(found)


@functools.cache
def _module(path: Path) -> tuple[str, tuple[Path, ...]]:
    """Return the digest of a module's source, and the modules of ours that it imports anywhere."""
    tree = ast.parse(path.read_text())
    if helpers := _HELPERS.get(path.relative_to(_ROOT).as_posix()):
        tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in helpers]
    paths = map(_find, dict.fromkeys(_imports(tree)))
    return digest(normalized(tree)), tuple(filter(None, paths))


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))


def _find(name: str) -> Path | None:
    package, *parts = name.split(".")
    if package != "iris" or not parts or not (parts[0] in _FOLDERS or f"{'/'.join(parts)}.py" in _HELPERS):
        return None
    path = _ROOT.joinpath(*parts).with_suffix(".py")
    return path if path.is_file() else None


def _name(path: Path) -> str:
    return f"iris/{path.relative_to(_ROOT).as_posix()}"


@functools.cache
def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "(none)"
