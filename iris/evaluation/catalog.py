"""Find evaluation tasks by name, without importing lm-eval.

lm-eval's own index parses 14,000 files in half a minute. Here the lines that give names are found once per version of
lm-eval and kept in the user's cache folder.
"""

import contextlib
import functools
import importlib.util
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from iris import fingerprint
from iris.errors import UserError, nearest
from iris.evaluation import requirements
from iris.files import write_atomic

PACKAGED = Path(__file__).parent / "tasks"
# A top-level key that names a task, a group or a tag, its value, and the list items below it.
_NAMING = re.compile(
    rb"""^["']?(task|group|tag)["']?[ \t]*:[ \t]*(.*?)[ \t]*$((?:\r?\n[ \t]*-[^\n]*)*)""", re.MULTILINE
)


@dataclass(frozen=True)
class Definition:
    """A task or a group of tasks: its YAML file with the files it includes merged in."""

    name: str
    path: Path
    config: Mapping[str, Any]


@dataclass
class Selection:
    """The selected tasks, and the folders of lm-eval that define them: it needs to index no others."""

    harness: set[Path] = field(default_factory=set)
    tasks: list[Definition] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)


class _Loader(yaml.CSafeLoader):
    """Loader of lm-eval's YAML that leaves `!function module.name` as text."""


_Loader.add_constructor("!function", lambda _, node: f"!function {node.value}")


def select(names: Sequence[str], include: Sequence[Path] = ()) -> Selection:
    """Find tasks, groups and tags by name, with all their members.

    Raises UserError unless every task is defined, its local data exist and what it needs is installed.
    """
    if not names:
        raise UserError(
            "evaluate.tasks is empty: name tasks or groups of lm-eval that suit your data, such as "
            "evaluate.tasks=[gsm8k], your own YAML tasks with evaluate.include=[FOLDER], or the papers' ten tasks with "
            "evaluate=papers."
        )
    selection, local = Selection(), _definitions([PACKAGED, *include])
    for name in names:
        _add(selection, name, local, "")
    for folder in sorted(selection.harness):
        requirements.check_modules(folder.relative_to(_harness_folder()).as_posix())
    for definition in selection.tasks:
        _check_data(definition, [PACKAGED, *include])
        requirements.check_task(definition.name, definition.config)
    return selection


def _add(selection: Selection, name: str, local: Mapping[str, list[Definition]], origin: str) -> None:
    if name in selection.seen:
        return
    selection.seen.add(name)
    found = local.get(name) or [_harness_definition(name, file) for file in _harness_names().get(name, ())]
    if not found:
        raise UserError(
            f"There is no evaluation task '{name}'{origin}.{nearest(name, {*local, *_harness_names()})} Name a task of "
            f"lm-eval, one of this package ({', '.join(sorted(_definitions([PACKAGED])))}) or one of a folder in "
            "evaluate.include."
        )
    for definition in found:
        if name not in local:
            selection.harness.add(definition.path.parent)
        if "group" not in definition.config:
            selection.tasks.append(definition)
        for member in _members(definition.config) if "group" in definition.config else ():
            _add(selection, member, local, f", which the group '{definition.name}' in {definition.path} names")


def _members(group: Mapping[str, Any]) -> Iterable[str]:
    """Yield the names that a group leads to, those inside tasks and groups defined in place included."""
    tasks = group.get("task") or []
    for item in [tasks] if isinstance(tasks, str) else tasks:
        if isinstance(item, str):
            yield item
        elif isinstance(item.get("task"), list):
            yield from _members(item)
        elif "dataset_path" not in item:
            yield item.get("group") or item["task"]


# --- lm-eval's own tasks


@functools.cache
def _harness_folder() -> Path:
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None and spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "tasks"


def _harness_definition(name: str, file: str) -> Definition:
    path = _harness_folder() / file
    config = read(path)
    return Definition(config.get("group") or config.get("task") or name, path, config)


@functools.cache
def _harness_names() -> dict[str, list[str]]:
    """Return the files (relative to lm-eval's tasks) that define each name, cached per version of lm-eval."""
    cached = fingerprint.cache_folder() / f"lm-eval-{version('lm-eval')}.json"
    with contextlib.suppress(OSError, ValueError):
        known: dict[str, list[str]] = json.loads(cached.read_text())
        return known
    names = _scan(_harness_folder())
    with contextlib.suppress(OSError):  # without the cache the next process scans again
        write_atomic(cached, json.dumps(names))
    return names


def _scan(root: Path) -> dict[str, list[str]]:
    names: dict[str, dict[str, None]] = defaultdict(dict)
    for folder, _, files in os.walk(root):
        for file in sorted(files):
            if file.endswith(".yaml") or "." not in file:  # included templates have no suffix
                path = Path(folder, file)
                for name in _named(path.read_bytes()):
                    names[name][path.relative_to(root).as_posix()] = None
    return {name: list(paths) for name, paths in names.items()}


def _named(text: bytes) -> Iterable[str]:
    for kind, value, items in _NAMING.findall(text):
        values = [value.strip(b"[]")] if value else items.strip().splitlines() if kind == b"tag" else []
        for part in b",".join(values).split(b","):
            name = re.split(rb"\s+#", part.strip().removeprefix(b"-").strip())[0].strip(b"\"' ").decode()
            if name:
                yield name


# --- YAML files of this package and of evaluate.include


def _definitions(folders: Iterable[Path]) -> dict[str, list[Definition]]:
    """Return tasks, groups and tags of all YAML files below some folders. Raises UserError for unreadable ones."""
    found: dict[str, list[Definition]] = {}
    tags: dict[str, list[Definition]] = defaultdict(list)
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"evaluate.include: {folder} is no folder.")
        for path in sorted(folder.rglob("*.yaml")):
            config = read(path)
            name = config.get("group") or config.get("task")
            if not isinstance(name, str):
                continue  # a template that others include
            if name in found:
                raise UserError(
                    f"The evaluation task '{name}' is defined twice: in {found[name][0].path} and in {path}."
                )
            found[name] = [Definition(name, path, config)]
            for tag in _listed(config.get("tag")):
                tags[tag].append(found[name][0])
    return {**tags, **found}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def read(path: Path) -> dict[str, Any]:
    """Return a YAML file with the files it includes merged in, its own keys first. Raises UserError if unreadable."""
    try:
        with path.open("rb") as file:
            config = yaml.load(file, _Loader)
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"The evaluation task file {path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"The evaluation task file {path} holds no keys and values.")
    merged: dict[str, Any] = {}
    for included in _listed(config.pop("include", None)):
        merged |= read(path.parent / included)
    return merged | config


def data_files(config: Mapping[str, Any], folder: Path) -> Any:
    """Return the data files that a task names, relative paths taken from `folder`; addresses stay as they are."""
    return _located((config.get("dataset_kwargs") or {}).get("data_files"), folder)


def _located(files: Any, folder: Path) -> Any:
    if isinstance(files, dict):
        return {split: _located(value, folder) for split, value in files.items()}
    if isinstance(files, list):
        return [_located(value, folder) for value in files]
    return files if files is None or "://" in files else str(folder.absolute() / Path(files).expanduser())


def _check_data(definition: Definition, folders: Sequence[Path]) -> None:
    files = data_files(definition.config, definition.path.parent)
    splits = files.values() if isinstance(files, dict) else [files]
    for file in (str(file) for split in splits for file in _listed(split) if "://" not in file):
        where = f"The evaluation task '{definition.name}' ({definition.path}) reads {file}"
        if not re.search(r"[*?\[]", file) and not Path(file).exists():
            raise UserError(f"{where}, which does not exist. Relative data_files are taken from the task's folder.")
        if not any(Path(os.path.normpath(file)).is_relative_to(folder.absolute()) for folder in folders):
            raise UserError(
                f"{where}, which is outside the folders of evaluate.include: a change of it would not be noticed. Move "
                "it there, or add its folder."
            )
