"""Why a stage will run: the most similar finished artifact, and every value in which the two differ."""

import re
from collections.abc import Iterator, Mapping
from itertools import takewhile
from operator import eq
from typing import Any

from iris import outdated, validate
from iris.errors import UserError, nearest
from iris.plan import Stage
from iris.store import Artifact, Store
from sweeps.study.plan import Plan, seedless

_READ = 24  # manifests compared
_WIDTH = 60  # characters of a value
_SHARD = re.compile(r"-\d{4}-[0-9a-f]{12}$")


def why(plan: Plan, store: Store, key: str) -> str:
    """Explain in lines of text why the stage with a key will run. Raises UserError for an unknown key."""
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


_VERSION = "  nothing but the stage's version, which is raised where its code changes results"


def _find(plan: Plan, key: str) -> Stage:
    for stage in plan.stages.values():
        if key in (stage.id, stage.key):
            return stage
    kind, _, rest = key.rpartition("/")
    similar = [stage.key for stage in plan.stages.values() if not kind or stage.kind == kind]
    similar.sort(key=lambda other: -_common(other, rest))
    raise UserError(f"--why {key}: the study has no such stage.{nearest(rest, similar[:200])}")


def _nearest(stage: Stage, store: Store) -> Artifact | None:
    """Return the artifact with the fewest differences among those with the most similar names."""

    def order(key: str) -> tuple[bool, bool, int, str]:
        name = key.rsplit("-", 1)[0]
        return name != stage.name, seedless(name) != seedless(stage.name), -_common(name, stage.name), key

    keys = sorted((k for k in store.keys(stage.kind) if not _SHARD.search(k)), key=order)[:_READ]
    artifacts = [artifact for key in keys if (artifact := store.find(stage.kind, key))]
    return min(artifacts, key=lambda a: len(_own(stage, a)) + len(_inputs(stage, a)), default=None)


def _common(one: str, other: str) -> int:
    return len(list(takewhile(bool, map(eq, one, other))))


def _differences(stage: Stage, artifact: Artifact, store: Store, indent: str, seen: set[str]) -> list[str]:
    """Return one line per value; the lines of an input follow the one that names it, indented."""
    lines = [f"{indent}{key}: {_short(old)} there, {_short(new)} here" for key, old, new in _own(stage, artifact)]
    for role, key, source in _inputs(stage, artifact):
        old = store.find(source.kind, key) if key else None
        lines.append(f"{indent}{role}: {source.kind}/{key or 'none'} there, {source.id} here")
        if old is not None and source.key not in seen:
            seen.add(source.key)
            lines += _differences(source, old, store, f"{indent}  ", seen) or [f"{indent}{_VERSION}"]
    return lines


def _own(stage: Stage, artifact: Artifact) -> list[tuple[str, str, str]]:
    """Return key, value there and value here of each difference in name and identity."""
    old = dict(_leaves(validate.plain({"name": artifact.manifest["name"], **artifact.manifest["identity"]})))
    new = dict(_leaves(validate.plain({"name": stage.name, **stage.identity})))
    values = [(key, old.get(key, "nothing"), new.get(key, "nothing")) for key in {**new, **old}]
    return [(key, there, here) for key, there, here in values if there != here]


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, repr(list(value) if isinstance(value, tuple) else value)


def _short(text: str) -> str:
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 3]}…"


def _inputs(stage: Stage, artifact: Artifact) -> list[tuple[str, str, Stage]]:
    """Return role, key there ("" for none) and stage here of each input that differs."""
    differing = []
    for role, value in stage.inputs.items():
        here = value if isinstance(value, tuple) else (value,)
        there = artifact.manifest["inputs"].get(role, [])
        there = there if isinstance(there, list) else [there]
        for n, source in enumerate(here, 1):
            key = there[n - 1] if n <= len(there) else ""
            if key != source.key:
                differing.append((role if len(here) == 1 else f"{role} {n}", key, source))
    return differing
