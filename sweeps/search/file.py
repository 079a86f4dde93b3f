"""The declaration of a search: conf/search/*.yaml or another file, with changes from the command line."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from iris import compose, validate
from iris.config import Experiment
from iris.errors import UserError, nearest
from iris.plan import SHARE
from iris.store import Store
from iris.validate import choice, ranged
from sweeps.search.space import Parameter, read_space
from sweeps.study import presets
from sweeps.study.settings import of_text, of_value

COSTS = ("gpu_hours", "cpu_hours")
DECLARATION = "search.json"  # in the folder of a search that was started
_HOW = ("name", "sampler", "pruner", "trials", "retries")  # may change between two starts of one search


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The objective of a search, and how Optuna searches."""

    objective: str = "average"  # or a task, or task:metric,filter
    direction: str = choice("maximize", "minimize")
    cost: str | None = field(default=None, metadata={"choices": COSTS})  # a second objective, minimized
    sampler: dict[str, Any] = field(default_factory=lambda: {"name": "tpe"})
    pruner: dict[str, Any] = field(default_factory=lambda: {"name": "asha"})
    share: float = ranged(SHARE, above=0, high=1)  # of the evaluation's documents that rungs are scored on
    trials: int = ranged(30, 1)  # complete or pruned ones with different parameters
    retries: int = ranged(2, 0)  # of a trial whose worker died


@dataclass(frozen=True)
class Search(Settings):
    """A space of experiments, with the settings of its search."""

    name: str
    base: list[str]  # overrides of every trial
    space: list[Parameter]
    rungs: list[list[str]] = field(default_factory=list)  # overrides at each rung; none: a rung after each iteration

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


DECLARED = tuple(f.name for f in fields(Search) if f.name != "name")


def folder_of(store: Store, search: str) -> Path:
    """Return the folder of a search."""
    return store.root / ".sweeps" / "searches" / search


def read(folder: Path) -> Search:
    """Read the declaration in the folder of a search. Raises UserError."""
    try:
        content = json.loads((folder / DECLARATION).read_text())["search"]
        return Search(**content | {"space": [Parameter(**parameter) for parameter in content["space"]]})
    except (ValueError, KeyError, TypeError) as error:  # damaged, or of another version
        raise UserError(
            f"{folder / DECLARATION} cannot be read: {error}. Start the search anew with name=…."
        ) from error


def load_search(name_or_path: str, words: Sequence[str] = ()) -> Search:
    """Load a shipped search by its name, or one from a YAML file. Raises UserError.

    Words such as trials=50, sampler=cmaes, pruner.reduction_factor=2, space.schedule.levels.step=null or name=again
    change the search itself; all others are overrides of its experiments.
    """
    path, where = presets.find("search", name_or_path), f"search={name_or_path}"
    content = presets.read(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping with some of {', '.join(DECLARED)}.")
    presets.check_keys(f"{where}: ", content, DECLARED)
    name, overrides = path.stem, []
    for word in words:
        key, sign, text = word.partition("=")
        if not sign:
            raise UserError(f"'{word}': expected key=value, for example trials=50.")
        if key == "name":
            name = text
        elif not _change(content, key, text):
            overrides.append(word)
    return _search(name, content, overrides, where)


def _change(content: dict[str, Any], key: str, text: str) -> bool:
    """Set a key of the search itself; return whether it is one."""
    head, _, rest = key.partition(".")
    if head not in DECLARED or head == "base":
        return False
    value = _value(key, text)
    if head == "space":
        _change_space(content.setdefault("space", {}), rest, value)
    elif not rest:
        content[head] = value
    elif head in ("sampler", "pruner"):
        content[head] = {**_named(content.get(head, {}), head), rest: value}
    else:
        raise UserError(f"{key}: no such key. Did you mean '{head}'?")
    return True


def _value(key: str, text: str) -> Any:
    try:
        content: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(f"{key}={text}: {' '.join(str(error).split())}") from error
    return content["value"]


def _change_space(space: dict[str, Any], key: str, value: Any) -> None:
    """Set a field of a parameter, or a whole parameter; null removes it."""
    parameter, _, name = key.rpartition(".")
    if parameter in space:
        own = space[parameter]
        space[parameter] = {**({"choices": own} if isinstance(own, list) else own), name: value}
    elif value is None and key in space:
        del space[key]
    elif key in space or isinstance(value, list | dict):
        space[key] = value
    else:
        hint = nearest(parameter or key, space)
        raise UserError(f"space.{key}: the space has no such parameter.{hint} It has: {', '.join(space) or 'none'}.")


def _search(name: str, content: Mapping[str, Any], overrides: Sequence[str], where: str) -> Search:
    if not name or name.startswith(".") or "/" in name:
        raise UserError(f"name={name}: expected a name that can be a folder's.")
    own = {key: content[key] for key in content if key not in ("base", "space", "rungs")}
    own |= {key: _named(own[key], f"{where}: {key}") for key in ("sampler", "pruner") if key in own}
    settings, mistakes = validate.read(Settings, own)
    validate.refuse([f"{where}: {mistake}" for mistake in mistakes])
    if settings.cost and settings.pruner.get("name") != "none":
        raise UserError(f"{where}: cost: with a second objective no trial can be pruned: set pruner=none.")
    rungs = content.get("rungs") or []
    if not isinstance(rungs, list):
        raise UserError(f"{where}: rungs: expected a list with the overrides of each rung.")
    rungs = [_overrides(rung, f"{where}: rungs") for rung in rungs]
    base = {
        of_text(o).key: compose.absolute(o) for o in (*_overrides(content.get("base"), f"{where}: base"), *overrides)
    }
    space = read_space(content.get("space"), f"{where}: space")
    for key in sorted(base.keys() & {parameter.key for parameter in space}):
        raise UserError(
            f"{where}: {key} is in the space and set for every trial: remove one, as with space.{key}=null."
        )
    return Search(name, list(base.values()), space, rungs, **vars(settings))


def _named(value: Any, where: str) -> dict[str, Any]:
    """Return a sampler or pruner as a mapping with its name and settings."""
    if isinstance(value, dict):
        return value
    if isinstance(value, str) or value is None:
        return {"name": value or "none"}
    raise UserError(f"{where}: expected a name, or a mapping with a name and settings.")


def _overrides(content: Any, where: str) -> list[str]:
    if isinstance(content, dict):
        return [of_value(str(key), value).text for key, value in content.items()]
    if content is None or (isinstance(content, list) and all(isinstance(o, str) and "=" in o for o in content)):
        return content or []
    raise UserError(f"{where}: expected a mapping, or a list of key=value.")


def changed(old: Search, new: Search) -> list[str]:
    """Return the keys that make two searches look at different experiments or objectives."""
    before, after = _looked_at(old), _looked_at(new)
    return [name for name in before if before[name] != after[name]]


def _looked_at(search: Search) -> dict[str, Any]:
    """Return what makes trials comparable: neither how Optuna samples nor how experiments are executed."""
    content = {key: value for key, value in asdict(search).items() if key not in _HOW}
    identity = {f.name for f in fields(Experiment)}
    return content | {"base": sorted(o for o in search.base if of_text(o).key.split(".")[0] in identity)}
