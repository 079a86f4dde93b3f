"""Which evaluation tasks exist and where: names are looked up in YAML files, without importing lm-eval.

lm-eval's own index parses 14,000 files in half a minute; finding the few lines that give names takes a second.
"""

import functools
import importlib.util
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from iris.errors import UserError, nearest
from iris.evaluation import requirements

PACKAGED = Path(__file__).parent / "tasks"
# A top-level key that names something, its value, and the list items below it.
_NAMING = re.compile(
    rb"""^["']?(task|group|tag)["']?[ \t]*:[ \t]*(.*?)[ \t]*$((?:\r?\n[ \t]*-[^\n]*)*)""", re.MULTILINE
)


@dataclass(frozen=True)
class Definition:
    """A task or a group of tasks: its YAML file with what that includes merged in."""

    name: str
    path: Path
    config: Mapping[str, Any]


@dataclass
class Selection:
    """The folders whose YAML files define the selected tasks: lm-eval needs to index no others."""

    harness: set[Path] = field(default_factory=set)  # those of lm-eval itself
    tasks: list[Definition] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)


class _Loader(yaml.CSafeLoader):
    """Reads lm-eval's YAML; `!function module.name` stays a text."""


_Loader.add_constructor("!function", lambda _, node: f"!function {node.value}")


def known_tasks(include: Sequence[Path] = ()) -> list[str]:
    """Every name that `select` finds: tasks, groups and tags."""
    return sorted({*_definitions([PACKAGED, *include]), *_harness_names()})


def check_tasks(names: Sequence[str], include: Sequence[Path] = ()) -> None:
    """Raise UserError unless every task is defined, its local data are there and what it needs is installed."""
    select(names, include)


def select(names: Sequence[str], include: Sequence[Path] = ()) -> Selection:
    """Find tasks, groups and tags by name, and all that they lead to. Raises UserError as `check_tasks` says."""
    if not names:
        raise UserError("No evaluation task is named: list at least one, such as gsm8k, or a group such as papers.")
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
    if name in local:
        for definition in local[name]:
            _follow(selection, definition, local)
    elif name in _harness_names():
        for path in {path: None for _, path in _harness_names()[name]}:
            selection.harness.add(path.parent)
            config = read(path)
            _follow(selection, Definition(config.get("group") or config.get("task") or name, path, config), local)
    else:
        known = {*local, *_harness_names()}
        raise UserError(
            f"There is no evaluation task '{name}'{origin}.{nearest(name, known)} Name a task of lm-eval, one of this "
            f"package ({', '.join(sorted(_definitions([PACKAGED])))}) or one of a folder in evaluate.include."
        )


def _follow(selection: Selection, definition: Definition, local: Mapping[str, list[Definition]]) -> None:
    if "group" not in definition.config:
        selection.tasks.append(definition)
        return
    origin = f", which the group '{definition.name}' in {definition.path} names"
    for member in _members(definition.config):
        _add(selection, member, local, origin)


def _members(group: Mapping[str, Any]) -> Iterable[str]:
    """The names a group leads to; a task or a group defined in place leads to what is in it."""
    tasks = group.get("task") or []
    for item in [tasks] if isinstance(tasks, str) else tasks:
        if isinstance(item, str):
            yield item
        elif isinstance(item.get("task"), list):
            yield from _members(item)
        elif "dataset_path" not in item:
            yield item.get("group") or item["task"]


@functools.cache
def _harness_folder() -> Path:
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None and spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "tasks"


@functools.cache
def _harness_names() -> dict[str, list[tuple[str, Path]]]:
    """Every name that lm-eval's own files define, with (task | group | tag, file)."""
    names = defaultdict(list)
    for folder, _, files in os.walk(_harness_folder()):
        for file in files:
            if file.endswith(".yaml") or "." not in file:  # included templates have no suffix
                for kind, name in _named(Path(folder, file).read_bytes()):
                    names[name].append((kind, Path(folder, file)))
    return dict(names)


def _named(text: bytes) -> Iterable[tuple[str, str]]:
    for kind, value, items in _NAMING.findall(text):
        values = [value.strip(b"[]")] if value else items.strip().splitlines() if kind == b"tag" else []
        for part in b",".join(values).split(b","):
            name = re.split(rb"\s+#", part.strip().removeprefix(b"-").strip())[0].strip(b"\"' ").decode()
            if name:
                yield kind.decode(), name


def _definitions(folders: Iterable[Path]) -> dict[str, list[Definition]]:
    """Tasks, groups and tags of all YAML files below some folders. Raises UserError for one that cannot be read."""
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
    """A YAML file with the files it includes merged in, its own keys first. Raises UserError if it cannot be read."""
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
    """The data files a task names, each relative path taken from `folder`; addresses stay as they are."""
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
                f"{where}, which lies outside the folders of evaluate.include: scores would not be worked out again "
                "when it changes. Put it there, or add its folder."
            )
