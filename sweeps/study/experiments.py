"""From the points of a study to checked experiments with their stages: thousands of them in seconds.

Hydra composes each distinct choice of groups once. A plain value is converted and checked once and then put into copies
of the configuration that share everything else, so that what experiments share is the same object and planned once.
"""

import contextlib
import copy
import functools
import gc
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar, cast

from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf

from iris import compose, plan
from iris.config import Config, identity, parse_size
from iris.errors import UserError
from iris.method.registry import needs
from iris.plan import Chain
from sweeps.study.declare import Point

T = TypeVar("T")
_SHOWN = 20
_SEED = re.compile(r"seed=(0|[1-9]\d*)")
# Sections that no other group's files write into: their options need not be composed with those of all other groups.
_ALONE = ("method", "schedule")


@dataclass(frozen=True, slots=True)
class Planned:
    """One experiment of a study: its point's name, its configuration and its stages."""

    name: str
    config: Config
    chain: Chain


def facts(config: Config) -> dict[str, Any]:
    """What the record of a study says of an experiment beside its overrides, for tables to be arranged by."""
    return {
        "method": config.method.name,
        "model": config.model.name,
        "data": config.data.name,
        "size": parse_size(config.data.size),
        "schedule": config.schedule.name if needs(config.method.name).alpha else None,
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
    """Compose and check every point, changed by `overrides`. Raises one UserError that lists all bad points."""
    composer, known, planned = Composer(), plan.Known(), []
    errors: list[tuple[str, str]] = []
    with uncollected():
        for point in points:
            try:
                config = composer.config((*point.overrides, *overrides))
                planned.append(Planned(point.name, config, plan.chain(identity(config), known)))
            except UserError as error:
                errors.append((point.name, str(error)))
    if errors:
        raise UserError(_listed(errors, len(points)))
    return planned


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Without garbage collection: nothing is dropped here, and looking for it would cost as much as the work itself."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.freeze()
            gc.unfreeze()  # what is there now counts as old: the next look at what is young need not go through it
            gc.enable()


def _listed(errors: Sequence[tuple[str, str]], total: int) -> str:
    name, message = errors[0]
    if len({message for _, message in errors}) == 1:
        return message if len(errors) == total else f"{message} ({len(errors)} of {total} experiments, first {name})"
    lines = [f"  {name}: {message}" for name, message in errors[:_SHOWN]]
    more = [f"  … and {len(errors) - _SHOWN} more"] if len(errors) > _SHOWN else []
    return "\n".join([f"{len(errors)} of {total} experiments cannot run:", *lines, *more])


@dataclass(frozen=True)
class _Piece:
    """What some overrides compose: nodes that convert further values, their keys, and the sections as dataclasses."""

    nodes: DictConfig
    keys: frozenset[str]
    sections: dict[str, Any]
    interpolates: bool


class Composer:
    """What `compose.load` does for one experiment, for many: each part of it once."""

    def __init__(self) -> None:
        self._groups = compose.groups()
        self._parse = _once(compose.parse)
        self._piece = _once(self._compose_piece)
        self._section = _once(self._changed_section)
        self._value = _once(self._convert)
        self._rest = _once(self._sections)
        self._seen: set[Hashable] = set()

    def config(self, overrides: Sequence[str]) -> Config:
        """The checked configuration of a list of overrides. Raises UserError."""
        overrides = compose.normalize(overrides)
        seeds = [o for o in overrides if _SEED.fullmatch(o)]  # mostly all that is new in a point
        sections = self._rest(tuple(o for o in overrides if o not in seeds))
        if sections is None:
            return compose.load(overrides)
        last = [("seed", int(o.removeprefix("seed="))) for o in seeds[-1:]]
        return self._check(Config(**sections | dict(last)))

    def _sections(self, overrides: Sequence[str]) -> dict[str, Any] | None:
        """The sections of a configuration without its seed; None where only Hydra can tell what the overrides mean."""
        if any(_key(o) == "seed" for o in overrides):  # another way of writing it, such as ++seed=1
            return None
        structural = self._structural([self._parse(o) for o in overrides])
        sections: dict[str, Any] = {}
        for name in ("", *_ALONE):
            mine = [o for o in overrides if _owner(o) == name]
            shape = tuple(o for o in mine if o in structural)
            piece = self._piece(name, shape)
            if piece.interpolates or "${" in "".join(overrides):
                return None
            values: dict[str, list[str]] = {}
            for override in mine:
                if override not in structural:
                    values.setdefault(_key(override).split(".")[0], []).append(override)
            sections |= piece.sections | {s: self._section(name, shape, s, tuple(v)) for s, v in values.items()}
        return sections

    def _structural(self, parsed: Sequence[Override]) -> set[str]:
        """What Hydra itself must compose: group options, what adds, deletes or merges keys, and values of such keys."""
        shaping = [o for o in parsed if not _is_plain(o)]
        keys = [o.key_or_group for o in shaping]
        values = [o for o in parsed if any(_related(o.key_or_group, key) for key in keys)]
        chosen = [o for o in parsed if o.key_or_group in self._groups or o.key_or_group == "method.name"]
        return {str(o.input_line) for o in [*shaping, *values, *chosen]}

    def _check(self, config: Config) -> Config:
        """`compose.check`, skipped where nothing but the seed is new and both were seen before."""
        values = [getattr(config, f.name) for f in fields(Config) if f.name != "seed"]
        looked = {config.seed, tuple(v if isinstance(v, int | str) else id(v) for v in values)}
        if not looked <= self._seen:
            compose.check(config)
            self._seen |= looked
        return config

    def _compose_piece(self, name: str, shape: tuple[str, ...]) -> _Piece:
        composed = self._option(name, shape) or compose.compose_named(shape)
        if name == "method":
            compose.check_method_named(composed)
        with compose.explained():
            nodes = compose.typed(composed)
            names = [name] if name else [f.name for f in fields(Config) if f.name not in _ALONE]
            sections = {n: OmegaConf.to_object(nodes[n]) if OmegaConf.is_config(nodes[n]) else nodes[n] for n in names}
        return _Piece(nodes, frozenset(compose.keys(nodes)), sections, "${" in str(composed))

    def _option(self, name: str, shape: tuple[str, ...]) -> DictConfig | None:
        """What an option's file says of the section it stands for, where that is all it does: Hydra takes 0.2 s."""
        group, _, option = shape[0].lstrip("+").partition("=") if len(shape) == 1 else ("", "", "")
        if not name or group != name or option not in self._groups[name]:
            return None
        file = compose.conf_dir() / name / f"{option}.yaml"
        content = OmegaConf.load(file)
        return None if "@package" in file.read_text() or "defaults" in content else OmegaConf.create({name: content})

    def _changed_section(self, name: str, shape: tuple[str, ...], section: str, values: tuple[str, ...]) -> Any:
        changed = self._piece(name, shape).sections.get(section)
        for override in values:
            changed = _with(changed, _key(override).split(".")[1:], self._value(name, shape, override))
        return changed

    def _convert(self, name: str, shape: tuple[str, ...], override: str) -> Any:
        piece, parsed = self._piece(name, shape), self._parse(override)
        compose.check_keys([parsed], piece.keys, self._groups)
        with compose.explained():
            OmegaConf.update(piece.nodes, parsed.key_or_group, parsed.value(), merge=True)
            node = OmegaConf.select(piece.nodes, parsed.key_or_group)
            return OmegaConf.to_object(node) if OmegaConf.is_config(node) else node


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
    """A copy of a section with one value put in; what the path does not touch is shared."""
    if not path:
        return value
    if isinstance(section, dict):
        return section | {path[0]: _with(section[path[0]], path[1:], value)}
    changed = copy.copy(section)
    setattr(changed, path[0], _with(getattr(section, path[0]), path[1:], value))
    return changed


def _once(function: Callable[..., T]) -> Callable[..., T]:
    """Like functools.cache, errors of the user included."""

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
