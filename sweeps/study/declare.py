"""A study: a set of experiments declared by the values that vary, and the points it spells out.

A study file (conf/study/*.yaml) holds any of

    base:   overrides that all points share: a mapping, or a list of key=value
    grid:   key → values; every combination is a point
    zip:    key → values of equal length, taken together; a list of such mappings is multiplied
    seeds:  the values of `seed`
    when:   [{if: {key: value or values}, set: {key: value}}, {if: {key: value}, skip: true}]
    union:  sub-studies, which inherit all of the above and replace what they name again

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
    """One entry of `when`: what to set, or that to skip, where every key has one of the values given for it."""

    condition: dict[str, tuple[Setting, ...]]
    settings: tuple[Setting, ...] = ()
    skip: bool = False

    def applies(self, point: Settings) -> bool:
        """Whether a point meets the condition; a key that the point does not set has no value."""
        return all(
            key in point and any(point[key].same(value) for value in values) for key, values in self.condition.items()
        )


@dataclass
class Study:
    """What a study file declares. `pinned` are the keys that the command line sets: `when` leaves them alone."""

    name: str
    base: list[Setting] = field(default_factory=list)
    grid: dict[str, list[Setting]] = field(default_factory=dict)
    zip: list[dict[str, list[Setting]]] = field(default_factory=list)
    seeds: list[Setting] = field(default_factory=list)
    when: list[Rule] = field(default_factory=list)
    union: list["Study"] = field(default_factory=list)
    pinned: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Point:
    """One experiment of a study: its overrides, and a name made of those that vary."""

    name: str
    overrides: tuple[str, ...]


def points(study: Study) -> list[Point]:
    """The distinct points in the order of the file. Raises UserError where `when` skips all."""
    members = list(_members(study, _Member([], [], [], [])))
    found: dict[frozenset[str], Settings] = {}
    for member in members:
        for point in member.points(study.pinned):
            found.setdefault(frozenset(s.text for s in point.values()), point)
    if not found:
        raise UserError(f"study={study.name}: 'when' skips every point.")
    names = _names(list(found.values()), _naming_keys(members), study.name)
    return [Point(n, tuple(s.text for s in p.values())) for n, p in zip(names, found.values(), strict=True)]


def axes(study: Study) -> set[str]:
    """The keys that vary in a study or in one of its sub-studies."""
    own = {*study.grid, *(key for columns in study.zip for key in columns), *(["seed"] if study.seeds else [])}
    return own.union(*(axes(member) for member in study.union))


@dataclass
class _Member:
    """A study without sub-studies, or a sub-study with what it inherits."""

    base: list[Setting]
    axes: list[Axis]
    seeds: list[Setting]
    when: list[Rule]

    def points(self, pinned: frozenset[str]) -> Iterator[Settings]:
        seeds: Axis = [(s,) for s in self.seeds] or [()]
        for values in itertools.product(*self.axes, seeds):
            point = _merged([*self.base, *itertools.chain(*values)])
            rules = [rule for rule in self.when if rule.applies(point)]
            if not any(rule.skip for rule in rules):
                yield _merged([*point.values(), *(s for r in rules for s in r.settings if s.key not in pinned)])

    def without(self, keys: set[str]) -> "_Member":
        axes = [[tuple(s for s in value if s.key not in keys) for value in axis] for axis in self.axes]
        base = [s for s in self.base if s.key not in keys]
        return _Member(base, [a for a in axes if a[0]], [] if "seed" in keys else self.seeds, self.when)


def _members(study: Study, inherited: _Member) -> Iterator[_Member]:
    axes: list[Axis] = [[(s,) for s in values] for values in study.grid.values()]
    axes += [list(zip(*columns.values(), strict=True)) for columns in study.zip]
    kept = inherited.without({s.key for s in [*study.base, *study.seeds, *(s for axis in axes for s in axis[0])]})
    seeds, when = study.seeds or kept.seeds, [*inherited.when, *study.when]
    own = _Member([*kept.base, *study.base], [*kept.axes, *axes], seeds, when)
    if not study.union:
        yield own
    for member in study.union:
        yield from _members(member, own)


def _merged(settings: Iterable[Setting]) -> Settings:
    """By key, the last one at its own place: Hydra applies overrides in order."""
    merged: Settings = {}
    for setting in settings:
        merged.pop(setting.key, None)
        merged[setting.key] = setting
    return merged


def check_conditions(study: Study) -> None:
    """Refuse a condition that no point of the study as declared can meet: it is a typing error."""
    values: dict[str, list[Setting]] = {}
    for member in _members(study, _Member([], [], [], [])):
        for setting in [*member.base, *(s for axis in member.axes for value in axis for s in value), *member.seeds]:
            values.setdefault(setting.key, []).append(setting)
    for rule in _rules(study):
        for key, expected in rule.condition.items():
            if key not in values:
                raise UserError(
                    f"study={study.name}: when: if: {key}: base, grid, zip and seeds do not set this key."
                    f"{nearest(key, values)} They set: {', '.join(values)}."
                )
            for value in expected:
                if not any(value.same(v) for v in values[key]):
                    known = list(dict.fromkeys(v.value for v in values[key]))
                    raise UserError(
                        f"study={study.name}: when: if: {key}: {value.value}: no point has this value."
                        f"{nearest(value.value, known)} Values of {key}: {', '.join(known)}."
                    )


def _rules(study: Study) -> list[Rule]:
    return [*study.when, *(rule for member in study.union for rule in _rules(member))]


# --- names


def _naming_keys(members: Sequence[_Member]) -> list[str]:
    """What sub-studies set differently, then the axes; the seed comes last."""
    bases = [{s.key: s.text for s in member.base} for member in members]
    differ = [key for base in bases for key in base if len({b.get(key) for b in bases}) > 1]
    axes = [s.key for member in members for axis in member.axes for s in axis[0]]
    keys = dict.fromkeys(key for key in [*differ, *axes] if key != "seed")
    return [*keys, *(["seed"] if any(m.seeds for m in members) or "seed" in [*differ, *axes] else [])]


def _names(found: Sequence[Settings], keys: Sequence[str], study: str) -> list[str]:
    names = [_name(point, keys) or study for point in found]
    if len(set(names)) == len(names):
        return names
    every = dict.fromkeys(key for point in found for key in point)  # conditions alone tell some of them apart
    vary = [key for key in every if len({p[key].text if key in p else None for p in found}) > 1]
    return [_name(point, list(dict.fromkeys([*keys, *vary]))) for point in found]


def _name(point: Settings, keys: Sequence[str]) -> str:
    return ",".join(f"{key}={point[key].value}" for key in keys if key in point)
