"""Compose, check and plan the points of a study: thousands in seconds.

Hydra composes each distinct choice of groups once. Every other value is converted once and put into copies of the
configuration. Copies share all other sections as the same objects, which are planned once.
"""

import contextlib
import copy
import functools
import gc
import re
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar, cast

from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf

from iris import compose, plan, validate
from iris.config import Config, identity, parse_size
from iris.errors import UserError
from iris.method import registry
from iris.plan import Chain
from sweeps.study.declare import Point

T = TypeVar("T")
_SHOWN = 20
_SEED = re.compile(r"seed=(0|[1-9]\d*)")
# Sections that no other group's files write into, so that Hydra need not compose every combination with them.
_ALONE = ("method", "schedule")


@dataclass(frozen=True, slots=True)
class Planned:
    """One experiment of a study: its point, its configuration and its stages."""

    point: Point
    config: Config
    chain: Chain

    @property
    def name(self) -> str:
        """Its name in the study."""
        return self.point.name


def facts(config: Config) -> dict[str, Any]:
    """Return what a study's record keeps of a configuration, by which tables are arranged."""
    method = registry.find(config.method.name, config.method.function, config.method.needs)
    return {
        "method": config.method.name,
        "model": config.model.name,
        "data": config.data.name,
        "size": parse_size(config.data.size),
        "schedule": config.schedule.name if method.needs.alpha else None,
        "seed": config.seed,
        "iterations": config.iterations,
        "tasks": list(config.evaluate.tasks),
    }


def policy_row(label: str, policy: str, evaluation: str, stages: Sequence[str], part: bool = False) -> list[Any]:
    """Return [label, first, last, evaluation, part] for the record of a study.

    Numbers are positions in `stages` (kind/key): first … last made the policy from the one before. `part` says whether
    a share of the documents was evaluated.
    """
    first = last = stages.index(policy)
    if policy.startswith("train/"):
        while stages[first - 1].startswith(("generate/", "score/")):
            first -= 1
    return [label, first, last, stages.index(evaluation), part]


def compose_all(points: Sequence[Point], overrides: Sequence[str] = ()) -> list[Planned]:
    """Compose, check and plan every point, changed by `overrides`. Raises one UserError that lists all bad points."""
    composer, known, planned = Composer(), plan.Known(), []
    errors: list[tuple[str, str]] = []
    with uncollected():
        for point in points:
            try:
                config = composer.config((*point.overrides, *overrides))
                planned.append(Planned(point, config, plan.chain(identity(config), known)))
            except UserError as error:
                errors.append((point.name, str(error)))
    if errors:
        raise UserError(_error_text(errors, len(points)))
    return planned


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Switch the garbage collector off: it would take as long as the work and find nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.freeze()
            gc.unfreeze()  # all objects are old now, so that young collections do not traverse them
            gc.enable()


def _error_text(errors: Sequence[tuple[str, str]], total: int) -> str:
    name, message = errors[0]
    if len({message for _, message in errors}) == 1:
        return message if len(errors) == total else f"{message} ({len(errors)} of {total} experiments, first {name})"
    lines = [f"  {name}: {message}" for name, message in errors[:_SHOWN]]
    more = [f"  … and {len(errors) - _SHOWN} more"] if len(errors) > _SHOWN else []
    return "\n".join([f"{len(errors)} of {total} experiments cannot run:", *lines, *more])


@dataclass(frozen=True)
class _Piece:
    """Composed overrides: the keys, the sections as dataclasses, and their mistakes."""

    keys: frozenset[str]
    sections: dict[str, Any]
    mistakes: list[str]
    interpolates: bool


class Composer:
    """`compose.load` for many experiments: each part is composed, converted and checked once."""

    def __init__(self) -> None:
        self._parse = _once(compose.parse)
        self._piece = _once(self._compose_piece)
        self._section = _once(self._changed_section)
        self._value = _once(self._convert)
        self._rest = _once(self._sections)
        self._seen: set[Hashable] = set()

    def config(self, overrides: Sequence[str]) -> Config:
        """Return the checked configuration of a list of overrides. Raises one UserError for all mistakes."""
        overrides = compose.normalize(overrides)
        seeds = [o for o in overrides if _SEED.fullmatch(o)]  # often the only difference to the last point
        found = self._rest(tuple(o for o in overrides if o not in seeds))
        if found is None:
            return compose.load(overrides)
        sections, mistakes = found
        last = [("seed", int(o.removeprefix("seed="))) for o in seeds[-1:]]
        return self._check(Config(**sections | dict(last)), mistakes)

    def _sections(self, overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]] | None:
        """Return the sections of a configuration without its seed, and mistakes; None where Hydra must compose all.

        Hydra must where overrides refer to others, set the seed in another way (++seed=1) or change Hydra itself.
        """
        search = tuple(o for o in overrides if _key(o) == "hydra.searchpath")
        if any(_key(o) == "seed" or (_key(o).startswith("hydra") and o not in search) for o in overrides):
            return None
        structural = self._structural([self._parse(o) for o in overrides], compose.groups(compose.search_path(search)))
        sections: dict[str, Any] = {}
        mistakes: list[str] = []
        for name in ("", *_ALONE):
            mine = [o for o in overrides if _owner(o) == name and o not in search]
            shape = tuple(o for o in mine if o in structural)
            piece = self._piece(name, shape, search)
            if piece.interpolates or "${" in "".join(overrides):
                return None
            values: dict[str, list[str]] = {}
            for override in mine:
                if override not in structural:
                    values.setdefault(_key(override).split(".")[0], []).append(override)
            sections |= piece.sections
            replaced = tuple(_key(o) for given in values.values() for o in given)
            mistakes += [m for m in piece.mistakes if not m.startswith(replaced)]
            for section, given in values.items():
                changed, found = self._section(name, shape, search, section, tuple(given))
                mistakes += found
                if section in piece.sections:
                    sections[section] = changed
        return sections, mistakes

    def _structural(self, parsed: Sequence[Override], groups: Collection[str]) -> set[str]:
        """Return the overrides that Hydra must compose: options of groups, changes of keys, and values of such keys."""
        shaping = [o for o in parsed if not _is_plain(o)]
        keys = [o.key_or_group for o in shaping]
        values = [o for o in parsed if any(_related(o.key_or_group, key) for key in keys)]
        chosen = [o for o in parsed if o.key_or_group in (*groups, "method.name", "method.function")]
        return {str(o.input_line) for o in [*shaping, *values, *chosen]}

    def _check(self, config: Config, mistakes: Sequence[str]) -> Config:
        """Run `compose.check`, except where nothing but the seed is new and both were seen before."""
        values = [getattr(config, f.name) for f in fields(Config) if f.name != "seed"]
        looked = {config.seed, tuple(v if isinstance(v, int | str) else id(v) for v in values)}
        if mistakes or not looked <= self._seen:
            _, of_seed = validate.read_at(Config, "seed", config.seed)
            compose.check(config, [*mistakes, *of_seed])
            self._seen |= looked
        return config

    def _compose_piece(self, name: str, shape: tuple[str, ...], search: tuple[str, ...]) -> _Piece:
        composed, wrong_keys = self._option(name, shape, search), list[str]()
        if composed is None:
            composed, wrong_keys = compose.compose_named([*search, *shape])
        with compose.explained():
            content: Any = OmegaConf.to_container(OmegaConf.merge(compose.defaults(), composed), resolve=True)
        if name == "method":
            compose.name_method(content["method"])
        config, mistakes = validate.read(Config, content)
        names = [name] if name else [f.name for f in fields(Config) if f.name not in _ALONE]
        mistakes = [m for m in mistakes if re.split(r"[ .=:]", m)[0] in names]
        sections = {n: getattr(config, n) for n in names}
        keys = frozenset(compose.nested_keys(content))
        return _Piece(keys, sections, [*wrong_keys, *mistakes], "${" in str(composed))

    def _option(self, name: str, shape: tuple[str, ...], search: tuple[str, ...]) -> DictConfig | None:
        """Return an option's file as the section it stands for, where it is no more than that: Hydra takes 0.2 s."""
        group, _, option = shape[0].lstrip("+").partition("=") if len(shape) == 1 else ("", "", "")
        options = compose.options(name, compose.search_path(search)) if name and group == name else {}
        if option not in options:
            return None
        text = options[option].read_text()
        content = OmegaConf.create(text)
        return None if "@package" in text or "defaults" in content else OmegaConf.create({name: content})

    def _changed_section(
        self, name: str, shape: tuple[str, ...], search: tuple[str, ...], section: str, values: tuple[str, ...]
    ) -> tuple[Any, list[str]]:
        changed, mistakes = self._piece(name, shape, search).sections.get(section), list[str]()
        for override in values:
            value, wrong = self._value(name, shape, search, override)
            mistakes += wrong
            if not wrong:
                changed = _with(changed, _key(override).split(".")[1:], value)
        return changed, mistakes

    def _convert(
        self, name: str, shape: tuple[str, ...], search: tuple[str, ...], override: str
    ) -> tuple[Any, list[str]]:
        piece, parsed = self._piece(name, shape, search), self._parse(override)
        groups = compose.groups(compose.search_path(search))
        if not compose.is_known(parsed, piece.keys, groups):
            return None, [compose.no_such_key(parsed.key_or_group, piece.keys, groups)]
        return validate.read_at(Config, parsed.key_or_group, parsed.value())


def _is_plain(override: Override) -> bool:
    change = override.type == OverrideType.CHANGE and not override.is_sweep_override()
    return change and not isinstance(override.value(), dict)


def _owner(override: str) -> str:
    section = _key(override).split(".")[0]
    return section if section in _ALONE else ""


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _related(one: str, other: str) -> bool:
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _with(section: Any, path: Sequence[str], value: Any) -> Any:
    """Return a copy of a section with one value replaced; the rest is shared."""
    if not path:
        return value
    if isinstance(section, dict):
        return section | {path[0]: _with(section[path[0]], path[1:], value)}
    changed = copy.copy(section)
    setattr(changed, path[0], _with(getattr(section, path[0]), path[1:], value))
    return changed


def _once(function: Callable[..., T]) -> Callable[..., T]:
    """Cache a function's results and UserErrors."""

    @functools.cache
    def outcome(*arguments: Any) -> tuple[T | None, str]:
        try:
            return function(*arguments), ""
        except UserError as error:
            return None, str(error)

    def call(*arguments: Any) -> T:
        value, error = outcome(*arguments)
        if error:
            raise UserError(error)
        return cast(T, value)

    return call
