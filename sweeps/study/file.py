"""Read a study file and change it by overrides of the command line; every mistake is one line."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hydra.errors import HydraException

from iris import compose
from iris.errors import UserError
from sweeps.study import presets
from sweeps.study.declare import Rule, Study, axes, check_conditions
from sweeps.study.settings import Setting, of_text, of_value

_SECTIONS = ("base", "grid", "zip", "seeds", "when", "union")
_SAME = "same"  # a key of `seeds` that takes the seed's value


def load_study(name_or_path: str, changes: Sequence[str] = ()) -> Study:
    """Load a shipped study by name, or a YAML file, and change it by overrides of the command line.

    An override applies to every point; where its key varies in the study it replaces that axis, with several values if
    it is a sweep such as method=spin,iris. Raises UserError with one message.
    """
    path = presets.find("study", name_or_path)
    study = _study(path.stem, presets.read(path) or None, f"study={name_or_path}")
    check_conditions(study)
    given = [_values(change) for change in changes]
    _check_given(given)
    changed = _changed(study, given)
    return replace(changed, base=[of_text(compose.absolute(s.text)) for s in changed.base])


# --- sections


def _study(name: str, content: Any, where: str) -> Study:
    content = _mapping(content, where, f"a mapping with some of {', '.join(_SECTIONS)}")
    presets.check_keys(f"{where}: ", content, _SECTIONS)
    seeds, with_seed = _seeds(content.get("seeds"), f"{where}: seeds")
    study = Study(
        name,
        _settings(content.get("base"), f"{where}: base"),
        _grid(content.get("grid"), f"{where}: grid"),
        _zips(content.get("zip"), f"{where}: zip"),
        seeds,
        with_seed,
        [_rule(r, f"{where}: when {n}") for n, r in enumerate(_list(content, "when", where), 1)],
        [_study(name, s, f"{where}: union {n}") for n, s in enumerate(_list(content, "union", where), 1)],
    )
    _check_once(study, where)
    return study


def _settings(content: Any, where: str) -> list[Setting]:
    if content is None:
        return []
    if isinstance(content, list):
        for item in content:
            if not isinstance(item, str):
                raise UserError(f"{where}: {item}: expected a text key=value.")
        return [setting for item in content for setting in _single(item, where)]
    return [of_value(str(k), v) for k, v in _mapping(content, where, "a mapping or a list of key=value").items()]


def _single(text: str, where: str) -> list[Setting]:
    values = _values(text)
    if len(values) > 1:
        raise UserError(f"{where}: {text}: several values make an axis: write it under grid.")
    return values


def _grid(content: Any, where: str) -> dict[str, list[Setting]]:
    content = _mapping({} if content is None else content, where, "a mapping of keys to lists of values")
    return {str(k).lstrip("+~"): _axis(str(k), values, where) for k, values in content.items()}


def _axis(key: str, values: Any, where: str) -> list[Setting]:
    if not isinstance(values, list):
        raise UserError(f"{where}: {key}: expected a list of values, not {values!r}. One value for all goes to base.")
    if not values:
        raise UserError(f"{where}: {key}: the list is empty.")
    settings = [of_value(key, value) for value in values]
    for n, setting in enumerate(settings):
        if any(setting.same(other) for other in settings[:n]):
            raise UserError(f"{where}: {key}: {setting.value} is there twice.")
    return settings


def _zips(content: Any, where: str) -> list[dict[str, list[Setting]]]:
    groups = content if isinstance(content, list) else [content] if content is not None else []
    return [_zip(group, where) for group in groups]


def _zip(content: Any, where: str) -> dict[str, list[Setting]]:
    columns = {}
    for key, values in _mapping(content, where, "a mapping of keys to lists of values, or a list of such").items():
        if not isinstance(values, list) or not values:
            raise UserError(f"{where}: {key}: expected a list of at least one value, not {values!r}.")
        columns[str(key).lstrip("+~")] = [of_value(str(key), value) for value in values]
    lengths = {key: len(values) for key, values in columns.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{key} has {n}" for key, n in lengths.items())
        raise UserError(f"{where}: paired keys need equally many values: {counts}.")
    if not columns:
        raise UserError(f"{where}: no key is named.")
    return columns


def _seeds(content: Any, where: str) -> tuple[list[Setting], tuple[str, ...]]:
    """Read the values of `seed`, and the keys that take the same value."""
    if not isinstance(content, dict):
        return ([] if content is None else _axis("seed", content, where)), ()
    if "seed" not in content:
        raise UserError(f"{where}: 'seed' is missing, which tells replicates apart: {{seed: [0, 1, 2], KEY: same}}.")
    with_seed = {str(key).lstrip("+~"): value for key, value in content.items() if key != "seed"}
    for key, value in with_seed.items():
        if value != _SAME:
            raise UserError(f"{where}: {key}: expected '{_SAME}' (the value of seed), not {value!r}.")
    return _axis("seed", content["seed"], where), tuple(with_seed)


def _rule(content: Any, where: str) -> Rule:
    content = _mapping(content, where, "{if: {key: value}, set: {key: value}} or {if: {key: value}, skip: true}")
    presets.check_keys(f"{where}: ", content, ("if", "set", "skip"))
    condition = _mapping(content.get("if"), f"{where}: if", "a mapping of keys to a value or a list of values")
    skip = content.get("skip", False)
    if not condition or not isinstance(skip, bool) or skip == bool(content.get("set")):
        raise UserError(f"{where}: expected 'if' and either 'set' or 'skip: true'.")
    values = {
        str(k): tuple(of_value(str(k), x) for x in (v if isinstance(v, list) else [v])) for k, v in condition.items()
    }
    return Rule(values, tuple(_settings(content.get("set"), f"{where}: set")), skip)


def _check_once(study: Study, where: str) -> None:
    """Refuse a key with two places in a study; sub-studies may name it again."""
    places = [("base", s.key) for s in study.base] + [("grid", key) for key in study.grid]
    places += [("zip", key) for columns in study.zip for key in columns]
    places += [("seeds", key) for key in ("seed", *study.with_seed)] if study.seeds else []
    seen: dict[str, str] = {}
    for section, key in places:
        if key in seen:
            raise UserError(f"{where}: {key} is declared twice, under {seen[key]} and under {section}.")
        seen[key] = section


def _mapping(content: Any, where: str, expected: str) -> dict[Any, Any]:
    if not isinstance(content, dict):
        raise UserError(f"{where}: expected {expected}, not {'nothing' if content is None else repr(content)}.")
    return content


def _list(content: dict[Any, Any], section: str, where: str) -> list[Any]:
    items = content.get(section, [])
    if not isinstance(items, list) or (section == "union" and section in content and not items):
        raise UserError(f"{where}: {section}: expected a list of entries, not {items!r}.")
    return items


# --- the command line


def _values(change: str) -> list[Setting]:
    """Return the settings of an override: one, or several where it is a sweep or gives seeds."""
    override = compose.parse(change)
    is_seeds = override.key_or_group == "seeds"
    if override.is_delete() or not (override.is_sweep_override() or is_seeds):
        return [of_text(change)]
    try:
        values = list(override.sweep_iterator()) if override.is_sweep_override() else override.value()
    except HydraException as error:
        raise UserError(f"{change}: expected values with commas between them: {str(error).splitlines()[0]}") from error
    if isinstance(values, dict):
        raise UserError(f"{change}: expected a list such as [0,1]. Declare what varies with the seed in a study file.")
    if is_seeds:
        return _axis("seed", values if isinstance(values, list) else [values], "seeds")
    key = change.partition("=")[0]
    return [of_text(f"{key}={value}") for value in override.sweep_string_iterator()]


def _check_given(given: Sequence[list[Setting]]) -> None:
    keys = [values[0].key for values in given]
    for n, key in enumerate(keys):
        if key in keys[:n]:
            raise UserError(f"{key} is given twice on the command line.")


def _changed(study: Study, changes: Sequence[list[Setting]]) -> Study:
    given = {values[0].key: values for values in changes}
    vary = axes(study)
    axis = {key: values for key, values in given.items() if key in vary or len(values) > 1}
    base = [values[0] for key, values in given.items() if key not in axis]
    changed = _without(study, set(given))
    seeds = axis.pop("seed", changed.seeds)
    grid = {key: axis.get(key, values) for key, values in study.grid.items() if key in axis or key not in given} | axis
    return replace(changed, base=[*changed.base, *base], grid=grid, seeds=seeds, pinned=frozenset(given))


def _without(study: Study, keys: set[str]) -> Study:
    """Return the study without its settings of some keys; what varies with the seed also does so with new seeds."""
    zips = [{key: values for key, values in columns.items() if key not in keys} for columns in study.zip]
    return replace(
        study,
        base=[s for s in study.base if s.key not in keys],
        grid={key: values for key, values in study.grid.items() if key not in keys},
        zip=[columns for columns in zips if columns],
        seeds=[] if "seed" in keys else study.seeds,
        with_seed=tuple(key for key in study.with_seed if key not in keys),
        union=[_without(member, keys) for member in study.union],
    )
