"""From command-line overrides to a checked configuration, and one clear message for whatever is wrong with them."""

import contextlib
import functools
import importlib.resources
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from iris import validate
from iris.config import Config
from iris.errors import UserError, nearest
from iris.method import registry, schedules

_SEARCH_PATH = "hydra.searchpath"
_FREE = ("method.loss.", "method.needs.", "schedule.params.", "model.architecture.", "data.generator.")


def conf_dir() -> Path:
    """Return the folder of the shipped configuration: inside the installed package, or beside it in a source tree."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "conf"


def search_path(overrides: Sequence[str]) -> tuple[str, ...]:
    """Return the folders that `hydra.searchpath=[…]` adds to the shipped configuration. Raises UserError."""
    given = [o.partition("=")[2] for o in overrides if o.lstrip("+").startswith(f"{_SEARCH_PATH}=")]
    if not given:
        return ()
    folders = parse(f"{_SEARCH_PATH}={given[-1]}").value()
    if not isinstance(folders, list) or not all(isinstance(folder, str) for folder in folders):
        raise UserError(f"{_SEARCH_PATH}={given[-1]}: expected a list of folders, such as [my_conf].")
    return tuple(folders)


def absolute(override: str) -> str:
    """Return an override with the folders of a search path as seen from everywhere; others as they are."""
    found = [
        folder if "://" in folder else str(Path(folder).expanduser().absolute()) for folder in search_path([override])
    ]
    return f"{_SEARCH_PATH}=[{','.join(map(repr, found))}]" if found else override


@functools.cache
def folders(search: tuple[str, ...] = ()) -> tuple[Any, ...]:
    """Return the shipped configuration's folder and those of a search path: folder, file://folder or pkg://module."""
    return (conf_dir(), *map(_folder, search))


def _folder(source: str) -> Any:
    scheme, _, name = source.rpartition("://")
    try:
        folder = importlib.resources.files(name.replace("/", ".")) if scheme == "pkg" else Path(name).expanduser()
    except ModuleNotFoundError as error:
        raise UserError(f"{_SEARCH_PATH}: {source}: {error}.") from error
    if scheme not in ("", "file", "pkg") or not folder.is_dir():
        raise UserError(f"{_SEARCH_PATH}: {source}: no such folder.")
    return folder


def options(group: str, search: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the YAML files of a group by their options' names. Raises UserError where two have one name."""
    found: dict[str, Any] = {}
    for folder in folders(search):
        if (folder / group).is_dir():
            files = [file for file in (folder / group).iterdir() if file.name.endswith(".yaml")]
            for file in files:
                name = file.name.removesuffix(".yaml")
                if found.setdefault(name, file) != file:
                    raise UserError(f"{group}={name}: {found[name]} and {file} have one name. Rename the latter.")
    return dict(sorted(found.items()))


@functools.cache
def groups(search: tuple[str, ...] = ()) -> dict[str, list[str]]:
    """Return the groups of an experiment's configuration and their options."""
    named = {f.name: list(options(f.name, search)) for f in fields(Config)}
    return {name: found for name, found in sorted(named.items()) if found}


def defaults() -> dict[str, Any]:
    """Return the configuration without any file, in which Hydra merges the files and overrides."""
    return asdict(Config())


def register() -> None:
    """Register the defaults as the schema, whose keys overrides may name without a plus."""
    ConfigStore.instance().store(name="schema", node=defaults())


def normalize(overrides: Sequence[str]) -> list[str]:
    """Return overrides with the plus of `+method=iris`: the method has no default, which nobody has to know."""
    return [f"+{o}" if o.startswith("method=") else o for o in overrides]


def load(overrides: Sequence[str]) -> Config:
    """Return the checked configuration of one experiment. Raises one UserError for all mistakes."""
    return to_config(*compose_named(overrides))


def read(overrides: Sequence[str]) -> tuple[Config, list[str]]:
    """Return the configuration of one experiment, defaults in place of wrong values, and all mistakes."""
    return _read(*compose_named(overrides))


def compose_named(overrides: Sequence[str]) -> tuple[DictConfig, list[str]]:
    """Compose overrides and return what is wrong with their keys, which are left out. Raises UserError for options."""
    register()
    overrides = normalize(overrides)
    known = groups(search_path(overrides))
    parsed = [parse(o) for o in overrides]
    refuse_unknown_options(parsed, known)
    chosen = [o for o, p in zip(overrides, parsed, strict=True) if p.key_or_group in (*known, _SEARCH_PATH)]
    with explained(), initialize_config_dir(str(conf_dir()), version_base="1.3"):
        composed = compose("config", chosen)  # whose keys are those that other overrides may name
        known_keys = keys(composed)
        wrong = [p for p in parsed if not is_known(p, known_keys, known)]
        kept = [o for o, p in zip(overrides, parsed, strict=True) if p not in wrong]
        found = [no_such_key(p.key_or_group, known_keys, known) for p in wrong]
        return composed if chosen == kept else compose("config", kept), found


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn errors of Hydra and OmegaConf into one message."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_one_line(error)) from error


def to_config(composed: DictConfig, wrong_keys: Sequence[str] = ()) -> Config:
    """Return the dataclass of a composed configuration. Raises one UserError for `wrong_keys` and other mistakes."""
    config, mistakes = _read(composed, wrong_keys)
    validate.refuse(mistakes)
    return config


def _read(composed: DictConfig, wrong_keys: Sequence[str]) -> tuple[Config, list[str]]:
    with explained():
        content: Any = OmegaConf.to_container(composed, resolve=True)
    name_method(content["method"])
    config, mistakes = validate.read(Config, content)
    return config, all_mistakes(config, [*wrong_keys, *mistakes])


def name_method(section: dict[str, Any]) -> None:
    """Name a method after its function where nothing else does. Raises UserError where there is neither."""
    if section.get("name", validate.MISSING) == validate.MISSING:
        if not section.get("function"):
            raise UserError(f"No method given. Add one of: {' '.join(f'+method={m}' for m in registry.METHODS)}")
        section["name"] = str(section["function"]).rpartition(":")[2]


def check(config: Config, mistakes: Sequence[str] = ()) -> None:
    """Raise one UserError for `mistakes` and those in sections without any that no field can tell by itself."""
    validate.refuse(all_mistakes(config, mistakes))


def all_mistakes(config: Config, mistakes: Sequence[str]) -> list[str]:
    """Return `mistakes` and those in sections without any that no field can tell by itself."""
    wrong = {key.split(".")[0] for key in keys_of(mistakes)}
    found, method, schedule = list(mistakes), config.method, config.schedule
    if "method" not in wrong:
        try:
            objective = registry.find(method.name, method.function, method.needs)
        except UserError as error:
            found.append(str(error))
        else:
            found += registry.wrong_parameters(method.name, objective, method.loss)
            if objective.needs.alpha and "schedule" not in wrong:
                found += schedules.mistakes(schedule.name, schedule.params, schedule.levels, schedule.function)
    for section, source, group in (("model", "config", "pretrained"), ("data", "generated", "files")):
        made = getattr(config, section)
        if section not in wrong and made.path is not None and made.source == source:
            found.append(
                f"{section}.path={made.path}: {section}.source={source} reads no files; choose the {section}, "
                f"as in {section}={group}."
            )
    if "model" not in wrong and config.model.template != "chat" and "{prompt}" not in config.model.template:
        found.append("model.template: expected 'chat' or a text that contains {prompt}.")
    return found


def keys_of(mistakes: Sequence[str]) -> set[str]:
    """Return the keys that messages about the configuration begin with."""
    return {re.split("[=: ]", mistake)[0] for mistake in mistakes}


# --- messages in place of Hydra's, which take many lines


def parse(override: str) -> Override:
    """Parse one override in Hydra's grammar. Raises UserError."""
    try:
        return OverridesParser.create().parse_override(override)
    except (HydraException, OverrideParseException) as error:
        raise UserError(
            f"'{override}' is no override: write key=value, for example seed=1 (quote texts with special signs: "
            f"'key=\"a b\"')."
        ) from error


def refuse_unknown_options(parsed: Sequence[Override], known: dict[str, list[str]]) -> None:
    """Raise UserError for choices of groups that have no such option."""
    found = []
    own = f" Options of your own: {_SEARCH_PATH}=[FOLDER]." if known == groups() else ""
    for override in parsed:
        name = override.key_or_group
        if name not in known or override.is_delete():
            continue
        value = override.value()
        if value is None or (isinstance(value, list) and len(value) != 1):
            given = override.input_line.partition("=")[2] if override.input_line else value
            found.append(
                f"{name}={given}: one run takes one of {', '.join(known[name])}; several with --multirun: a,b."
            )
            continue
        for option in value if isinstance(value, list) else [value]:
            if isinstance(option, str) and option not in known[name]:
                hint = nearest(option, known[name])
                found.append(f"{name}={option}: choose one of {', '.join(known[name])}.{own}{hint}")
    validate.refuse(found)


def is_known(override: Override, keys: Collection[str], known: Collection[str]) -> bool:
    """Return whether an override's key is one of the configuration, a group or an addition to an open mapping."""
    key = override.key_or_group
    return key in known or key in keys or key.startswith("hydra") or (override.is_add() and key.startswith(_FREE))


def no_such_key(key: str, keys: Collection[str], known: Collection[str]) -> str:
    """Return the message for a key that neither the configuration nor a group has."""
    leaf = [k for k in keys if k.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    hint = f" Did you mean '{leaf[0]}'?" if leaf else nearest(key, [*keys, *known])
    parent = key.rpartition(".")[0]
    siblings = [k.removeprefix(f"{parent}.") for k in keys if k.startswith(f"{parent}.") or not parent]
    near = ", ".join(sorted({s.split(".")[0] for s in siblings})) or "none"
    where = f" Keys of '{parent}': {near}." if parent else f" Keys: {near}."
    return f"{key}: the configuration has no such key.{hint}{where}"


def keys(composed: DictConfig) -> list[str]:
    """Return the dotted keys of a composed configuration, sections included."""
    return nested_keys(OmegaConf.to_container(composed))


def nested_keys(container: Any, prefix: str = "") -> list[str]:
    """Return the dotted keys of nested mappings."""
    if not isinstance(container, dict):
        return []
    here = [f"{prefix}{key}" for key in container]
    return here + [k for key, value in container.items() for k in nested_keys(value, f"{prefix}{key}.")]


def _one_line(error: Exception) -> str:
    cause = error.__cause__ if isinstance(error, HydraException) and error.__cause__ else error
    lines = [line.strip() for line in str(cause).splitlines()]
    key = next((m[1] for m in (re.match(r"full_key: (.+)", line) for line in lines) if m), "")
    text = next((line for line in lines if line), type(error).__name__)
    if text.startswith("Ambiguous value"):
        text += ": one run takes one value. Add --multirun to run them all."
    return f"{key}: {text}" if key and key not in text else text
