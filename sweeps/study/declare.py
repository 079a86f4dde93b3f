"""A study: a set of experiments declared by the values that vary.

A study file (conf/study/*.yaml) holds any of

    base:   overrides of all points: a mapping, or a list of key=value
    grid:   key → values; every combination is a point
    zip:    key → values of equal length, taken together; several such mappings in a list are multiplied
    seeds:  the values of `seed`; {seed: values, KEY: same} gives KEY the seed's value too, in the same replicate
    when:   [{if: {key: value or values}, set: {key: value}}, {if: {key: value}, skip: true}]
    union:  sub-studies, which inherit all of the above and may replace it

Later ones win: base, axes, `when`, the command line.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from iris.errors import UserError, nearest
from sweeps.study.settings import Setting

Axis = list[tuple[Setting, ...]]  # the values of one axis; several settings each where keys are paired
Settings = dict[str, Setting]  # by key


@dataclass(frozen=True)
class Rule:
    """One entry of `when`: settings, or skip, for points in which each key has one of the values of the condition."""

    condition: dict[str, tuple[Setting, ...]]
    settings: tuple[Setting, ...] = ()
    skip: bool = False

    def applies(self, point: Settings) -> bool:
        """Return whether a point meets the condition; a key that it does not set never matches."""
        return all(
            key in point and any(point[key].same(value) for value in values) for key, values in self.condition.items()
        )


@dataclass
class Study:
    """The content of a study file, changed by the command line.

    `with_seed` are keys that take the value of the seed; `pinned` are keys of the command line, which `when` keeps.
    """

    name: str
    base: list[Setting] = field(default_factory=list)
    grid: dict[str, list[Setting]] = field(default_factory=dict)
    zip: list[dict[str, list[Setting]]] = field(default_factory=list)
    seeds: list[Setting] = field(default_factory=list)
    with_seed: tuple[str, ...] = ()
    when: list[Rule] = field(default_factory=list)
    union: list["Study"] = field(default_factory=list)
    pinned: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Point:
    """One experiment of a study: its overrides, a name of those that vary, and the keys that vary with its seed."""

    name: str
    overrides: tuple[str, ...]
    with_seed: tuple[str, ...] = ()


def points(study: Study) -> list[Point]:
    """Return the distinct points in the order of the file. Raises UserError where `when` skips all."""
    variants = list(_variants(study, _Variant([], [], [], (), [])))
    found: dict[frozenset[str], tuple[Settings, tuple[str, ...]]] = {}
    for variant in variants:
        for settings in variant.points(study.pinned):
            found.setdefault(frozenset(s.text for s in settings.values()), (settings, variant.with_seed))
    if not found:
        raise UserError(f"study={study.name}: 'when' skips every point.")
    names = _names([settings for settings, _ in found.values()], _naming_keys(variants), study.name)
    return [
        Point(name, tuple(s.text for s in settings.values()), with_seed)
        for name, (settings, with_seed) in zip(names, found.values(), strict=True)
    ]


def axes(study: Study) -> set[str]:
    """Return the keys that vary in a study or in one of its sub-studies."""
    own = {*study.grid, *(key for columns in study.zip for key in columns)}
    own |= {"seed", *study.with_seed} if study.seeds else set()
    return own.union(*(axes(member) for member in study.union))


@dataclass
class _Variant:
    """A study without sub-studies, or a sub-study with all that it inherits."""

    base: list[Setting]
    axes: list[Axis]
    seeds: list[Setting]
    with_seed: tuple[str, ...]
    when: list[Rule]

    def replicates(self) -> Axis:
        return [(s, *(Setting(key, f"{key}={s.value}") for key in self.with_seed)) for s in self.seeds]

    def points(self, pinned: frozenset[str]) -> Iterator[Settings]:
        for values in itertools.product(*self.axes, self.replicates() or [()]):
            point = _merged([*self.base, *itertools.chain(*values)])
            rules = [rule for rule in self.when if rule.applies(point)]
            if not any(rule.skip for rule in rules):
                yield _merged([*point.values(), *(s for r in rules for s in r.settings if s.key not in pinned)])

    def without(self, keys: set[str]) -> "_Variant":
        axes = [[tuple(s for s in value if s.key not in keys) for value in axis] for axis in self.axes]
        return _Variant(
            [s for s in self.base if s.key not in keys],
            [axis for axis in axes if axis[0]],
            [] if "seed" in keys else self.seeds,
            () if "seed" in keys else tuple(key for key in self.with_seed if key not in keys),
            self.when,
        )


def _variants(study: Study, inherited: _Variant) -> Iterator[_Variant]:
    axes: list[Axis] = [[(s,) for s in values] for values in study.grid.values()]
    axes += [list(zip(*columns.values(), strict=True)) for columns in study.zip]
    replaced = {s.key for s in [*study.base, *study.seeds, *(s for axis in axes for s in axis[0])]}
    kept = inherited.without(replaced | set(study.with_seed))
    own = _Variant(
        [*kept.base, *study.base],
        [*kept.axes, *axes],
        study.seeds or kept.seeds,
        study.with_seed or kept.with_seed,
        [*inherited.when, *study.when],
    )
    if not study.union:
        yield own
    for member in study.union:
        yield from _variants(member, own)


def _merged(settings: Iterable[Setting]) -> Settings:
    """Index by key; the last setting of a key wins and keeps its place, as Hydra applies overrides in order."""
    merged: Settings = {}
    for setting in settings:
        merged.pop(setting.key, None)
        merged[setting.key] = setting
    return merged


def check_conditions(study: Study) -> None:
    """Raise UserError for a condition that no point of the study as declared can meet."""
    values: dict[str, list[Setting]] = {}
    for variant in _variants(study, _Variant([], [], [], (), [])):
        varying = [s for axis in [*variant.axes, variant.replicates()] for value in axis for s in value]
        for setting in [*variant.base, *varying]:
            values.setdefault(setting.key, []).append(setting)
    for key, value in [(k, v) for rule in _rules(study) for k, expected in rule.condition.items() for v in expected]:
        if key not in values:
            raise UserError(
                f"study={study.name}: when: if: {key}: base, grid, zip and seeds do not set this key."
                f"{nearest(key, values)} They set: {', '.join(values)}."
            )
        if not any(value.same(v) for v in values[key]):
            known = list(dict.fromkeys(v.value for v in values[key]))
            raise UserError(
                f"study={study.name}: when: if: {key}: {value.value}: no point has this value."
                f"{nearest(value.value, known)} Values of {key}: {', '.join(known)}."
            )


def _rules(study: Study) -> list[Rule]:
    return [*study.when, *(rule for member in study.union for rule in _rules(member))]


# --- names


def _naming_keys(variants: Sequence[_Variant]) -> list[str]:
    """Return what sub-studies set differently, then the axes, then the seed."""
    bases = [{s.key: s.text for s in variant.base} for variant in variants]
    differ = [key for base in bases for key in base if len({b.get(key) for b in bases}) > 1]
    axes = [s.key for variant in variants for axis in variant.axes for s in axis[0]]
    keys = dict.fromkeys(key for key in [*differ, *axes] if key != "seed")
    return [*keys, *(["seed"] if any(v.seeds for v in variants) or "seed" in [*differ, *axes] else [])]


def _names(found: Sequence[Settings], keys: Sequence[str], study: str) -> list[str]:
    names = [_name(point, keys) or study for point in found]
    if len(set(names)) == len(names):
        return names
    every = dict.fromkeys(key for point in found for key in point)  # some differ only by a condition
    vary = [key for key in every if len({p[key].text if key in p else None for p in found}) > 1]
    return [_name(point, list(dict.fromkeys([*keys, *vary]))) for point in found]


def _name(point: Settings, keys: Sequence[str]) -> str:
    return ",".join(f"{key}={point[key].value}" for key in keys if key in point)
