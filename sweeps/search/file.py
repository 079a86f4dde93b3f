"""The declaration of a search: conf/search/*.yaml or another file, with changes from the command line."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from iris import compose
from iris.config import Experiment
from iris.errors import UserError, nearest
from iris.plan import SHARE
from iris.store import Store
from sweeps.search.space import Parameter, read_space
from sweeps.study import presets
from sweeps.study.settings import of_text, of_value

COSTS = ("gpu_hours", "cpu_hours")
DECLARATION = "search.json"  # in the folder of a search that was started
_HOW = ("name", "sampler", "pruner", "trials", "retries")  # may change between two starts of one search


@dataclass(frozen=True)
class Search:
    """A space of experiments, the objective, and how Optuna searches."""

    name: str
    base: tuple[str, ...]  # overrides of every trial
    space: tuple[Parameter, ...]
    objective: str = "average"  # or a task, or task:metric,filter
    direction: str = "maximize"  # maximize | minimize
    cost: str | None = None  # gpu_hours | cpu_hours: a second objective, minimized
    sampler: Mapping[str, Any] = field(default_factory=lambda: {"name": "tpe"})
    pruner: Mapping[str, Any] = field(default_factory=lambda: {"name": "asha"})
    rungs: tuple[tuple[str, ...], ...] = ()  # overrides of the experiment at each rung; none: after each iteration
    share: float = SHARE  # of the evaluation's documents that rungs are scored on
    trials: int = 30  # complete or pruned ones with different parameters
    retries: int = 2  # of a trial whose worker died

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


DECLARED = tuple(f.name for f in fields(Search) if f.name != "name")


def folder_of(store: Store, search: str) -> Path:
    """Return the folder of a search."""
    return store.root / ".sweeps" / "searches" / search


def read(folder: Path) -> Search:
    """Read the declaration in the folder of a search."""
    return from_json(json.loads((folder / DECLARATION).read_text())["search"])


def from_json(content: Mapping[str, Any]) -> Search:
    """Return the search whose `to_json` was written to a file."""
    space = tuple(
        Parameter(**p | {"choices": tuple(p["choices"]), "when": {k: tuple(v) for k, v in p["when"].items()}})
        for p in content["space"]
    )
    rungs = tuple(tuple(rung) for rung in content["rungs"])
    return Search(**{**content, "base": tuple(content["base"]), "space": space, "rungs": rungs})


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
    return _checked(_search(name, content, overrides, where), where)


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
    values = {key: value for key, value in content.items() if key not in ("base", "space", "rungs")}
    values |= {key: _named(values[key], f"{where}: {key}") for key in ("sampler", "pruner") if key in values}
    rungs = content.get("rungs") or []
    if not isinstance(rungs, list):
        raise UserError(f"{where}: rungs: expected a list with the overrides of each rung.")
    base = [*_overrides(content.get("base"), f"{where}: base"), *overrides]
    return Search(
        name,
        tuple({of_text(o).key: compose.absolute(o) for o in base}.values()),  # the last of each key
        read_space(content.get("space"), f"{where}: space"),
        rungs=tuple(tuple(_overrides(rung, f"{where}: rungs")) for rung in rungs),
        **values,
    )


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


def _checked(search: Search, where: str) -> Search:
    s = search
    if not s.name or s.name.startswith(".") or "/" in s.name:
        raise UserError(f"name={s.name}: expected a name that can be a folder's.")
    if s.direction not in ("maximize", "minimize"):
        raise UserError(f"{where}: direction: {s.direction}: choose maximize or minimize.")
    if s.cost is not None and s.cost not in COSTS:
        raise UserError(
            f"{where}: cost: {s.cost}: choose one of {', '.join(COSTS)}, or null.{nearest(str(s.cost), COSTS)}"
        )
    if s.cost is not None and s.pruner.get("name") != "none":
        raise UserError(f"{where}: cost: with a second objective no trial can be pruned: set pruner=none.")
    for key, least in (("trials", 1), ("retries", 0)):
        value = getattr(s, key)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UserError(f"{where}: {key}: {value}: expected a whole number of at least {least}.")
    if isinstance(s.share, bool) or not isinstance(s.share, int | float) or not 0 < s.share <= 1:
        raise UserError(f"{where}: share: {s.share}: expected a share above 0 and at most 1, such as 0.15.")
    if not isinstance(s.objective, str):
        raise UserError(f"{where}: objective: {s.objective}: expected average, a task or task:metric,filter.")
    fixed = {of_text(override).key for override in s.base} & {parameter.key for parameter in s.space}
    if fixed:
        key = sorted(fixed)[0]
        raise UserError(
            f"{where}: {key} is in the space and set for every trial: remove one, as with space.{key}=null."
        )
    return replace(s, share=float(s.share))


def changed(old: Search, new: Search) -> list[str]:
    """Return the keys that make two searches look at different experiments or objectives."""
    before, after = _looked_at(old), _looked_at(new)
    return [name for name in before if before[name] != after[name]]


def _looked_at(search: Search) -> dict[str, Any]:
    """Return what makes trials comparable: neither how Optuna samples nor how experiments are executed."""
    content = {key: value for key, value in asdict(search).items() if key not in _HOW}
    identity = {f.name for f in fields(Experiment)}
    return content | {"base": sorted(o for o in search.base if of_text(o).key.split(".")[0] in identity)}
