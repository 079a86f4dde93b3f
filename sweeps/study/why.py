"""Why a stage will run: the finished artifact that comes closest, and every value in which the two differ."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from iris import outdated
from iris.errors import UserError, nearest
from iris.plan import Stage
from iris.store import Artifact, Store
from sweeps.study.plan import Plan, seedless

_READ = 24  # manifests looked at for the nearest
_SHARD = re.compile(r"-\d{4}-[0-9a-f]{12}$")


def why(plan: Plan, store: Store, key: str) -> str:
    """The answer for a stage of a plan, given by its key, as lines of text. Raises UserError for an unknown key."""
    stage = _find(plan, key)
    if stage.id in plan.cached:
        lines = [f"{stage.id} is finished and will not run: {store.folder(stage.kind, stage.key)}"]
        found = outdated.find([stage.id], store)
        return "\n".join([*lines, *(["Other code has computed it:"] if found else []), *outdated.details(found, store)])
    lines = [f"{stage.id} has not run yet."]
    work = store.root / stage.kind / f".work-{stage.key}"
    if any(work.glob("[!.]*")):
        lines.append("It was interrupted: it continues from its checkpoint.")
    near = _nearest(stage, store)
    if near is None:
        return "\n".join([*lines, f"No {stage.kind} stage has finished in {store.root}."])
    lines.append(f"The nearest finished one is {stage.kind}/{near.key}. It differs in")
    return "\n".join([*lines, *(_differences(stage, near, store, "  ", set()) or [_VERSION])])


_VERSION = "  nothing but the stage's own version: the code that computes it has changed its meaning since"


def _find(plan: Plan, key: str) -> Stage:
    found = [stage for name, stage in plan.stages.items() if key in (name, stage.key)]
    if not found:
        kind, _, rest = key.rpartition("/")
        alike = [s.key for s in plan.stages.values() if s.kind == kind or not kind]
        alike = sorted(alike, key=lambda k: -_agreement(k, rest))[:200]
        raise UserError(f"--why {key}: the study has no such stage.{nearest(rest, alike)}")
    return found[0]


def _nearest(stage: Stage, store: Store) -> Artifact | None:
    """Among the finished artifacts whose names agree most, the one with the fewest differences."""

    def order(key: str) -> tuple[bool, bool, int, str]:
        name = key.rsplit("-", 1)[0]
        same, alike = name == stage.name, seedless(name) == seedless(stage.name)
        return not same, not alike, -_agreement(name, stage.name), key

    keys = sorted((k for k in store.keys(stage.kind) if not _SHARD.search(k)), key=order)[:_READ]
    artifacts = [artifact for key in keys if (artifact := store.find(stage.kind, key))]
    return min(artifacts, key=lambda a: len(_own(stage, a)) + len(_inputs(stage, a)), default=None)


def _agreement(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _differences(stage: Stage, artifact: Artifact, store: Store, indent: str, seen: set[str]) -> list[str]:
    """One line per value, those of differing inputs below the line that names them."""
    lines = [f"{indent}{key}: {old} there, {new} here" for key, old, new in _own(stage, artifact)]
    for role, key, source in _inputs(stage, artifact):
        old = store.find(source.kind, key) if key else None
        lines.append(f"{indent}{role}: {source.kind}/{key or 'none'} there, {source.id} here")
        if old is not None and source.key not in seen:
            seen.add(source.key)
            lines += _differences(source, old, store, f"{indent}  ", seen) or [f"{indent}{_VERSION}"]
    return lines


def _own(stage: Stage, artifact: Artifact) -> list[tuple[str, str, str]]:
    """(key, value there, value here) of what differs in name and identity."""
    old, new = ({"name": name} | dict(_leaves(identity)) for name, identity in _sides(stage, artifact))
    keys = dict.fromkeys([*new, *old])
    return [(k, _shown(old, k), _shown(new, k)) for k in keys if old.get(k, _NOTHING) != new.get(k, _NOTHING)]


_NOTHING = object()


def _sides(stage: Stage, artifact: Artifact) -> tuple[tuple[str, Any], tuple[str, Any]]:
    manifest = artifact.manifest
    return (manifest["name"], manifest["identity"]), (stage.name, stage.identity)


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, list(value) if isinstance(value, tuple) else value


def _shown(side: Mapping[str, Any], key: str) -> str:
    text = repr(side[key]) if key in side else "nothing"
    return text if len(text) <= 60 else f"{text[:57]}…"


def _inputs(stage: Stage, artifact: Artifact) -> list[tuple[str, str, Stage]]:
    """(role, key there or nothing, stage here) of each input that differs."""
    differing = []
    for role, value in stage.inputs.items():
        now = value if isinstance(value, tuple) else (value,)
        then = artifact.manifest["inputs"].get(role, [])
        then = then if isinstance(then, list) else [then]
        for n, source in enumerate(now):
            key = then[n] if n < len(then) else ""
            if key != source.key:
                differing.append((role if len(now) == 1 else f"{role} {n + 1}", key, source))
    return differing
