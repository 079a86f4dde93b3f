"""Cached stages that other code has computed: which these are, how the code differs, and moving them out of the way."""

import functools
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from iris.plan import VERSIONS
from iris.source import combined, computed_by, differences
from iris.store import Damaged, Store, split_id, storage_errors

_SHOWN = 3
Reasons = Mapping[str, tuple[str, ...]]  # by the id of a stage, one phrase per module or library


@dataclass(frozen=True)
class Origin:
    """The code that computed an artifact, as one digest, and the ids of the shards and answers that it is made of."""

    code: str
    shards: list[str]
    reused: list[str]

    @property
    def parts(self) -> list[str]:
        """All that was computed before the artifact itself, perhaps by other code."""
        return self.shards + self.reused


def origin(stage: str, manifest: Mapping[str, Any]) -> Origin:
    """Return what a stage's manifest says of its origin."""
    kind = split_id(stage)[0]
    parts = manifest["inputs"].get("shards", ()), manifest["provenance"].get("reused", ())
    return Origin(combined(manifest.get("computed_by", {})), *([f"{kind}/{key}" for key in keys] for keys in parts))


def find(stages: Iterable[str], store: Store, read: Callable[[str], Origin | None] | None = None) -> Reasons:
    """Return those finished stages that other code has computed, wholly or in parts.

    `read` returns the origin of a stage by its id, None if it is not finished; by default from its manifest.
    """
    get = functools.cache(read or functools.partial(_read, store))
    phrases: dict[tuple[str, str], list[str]] = {}
    found = {}
    for stage in stages:
        own = get(stage)
        reasons: dict[str, None] = {}
        for part in (stage, *own.parts) if own else ():
            if there := get(part):
                group = split_id(part)[0], there.code
                if group not in phrases:
                    phrases[group] = _phrases(store, part, there)
                reasons |= dict.fromkeys(phrases[group])
        if reasons:
            found[stage] = tuple(reasons)
    return found


def sentence(found: Reasons, remedy: str) -> str:
    """Return one sentence on the stages that `find` has found, or the empty string; `remedy` names the flags."""
    if not found:
        return ""
    reasons = list(dict.fromkeys(reason for reasons in found.values() for reason in reasons))
    more = f"; and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
    verb = "cached stage was" if len(found) == 1 else "cached stages were"
    return f"{len(found)} {verb} computed by other code: {'; '.join(reasons[:_SHOWN])}{more}. {remedy}"


def details(found: Reasons, store: Store) -> Iterator[str]:
    """Yield lines that name the stages found, in groups with equal reasons, and the command that shows a change."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for stage, reasons in found.items():
        groups.setdefault(reasons, []).append(stage)
    for reasons, stages in groups.items():
        yield from stages
        yield from (f"  {reason}" for reason in reasons)
        files = [reason.partition(":")[0] for reason in reasons if reason.endswith("changed since")]
        commit = (_manifest(store, stages[0]) or {}).get("provenance", {}).get("code", {}).get("commit")
        if files and commit:
            yield f"  git diff {commit[:12]} -- {' '.join(files)}"


def set_aside(store: Store, found: Iterable[str]) -> int:
    """Move stages, what they are assembled from and all that was made from them to <store>/.replaced; return how many.

    Nothing is deleted. Evaluations of a share of the documents go with the whole ones, which would reuse their answers.
    """
    manifests = {s: m for s in sorted(store.finished(VERSIONS)) if (m := _manifest(store, s))}
    gone = {part for stage in found if stage in manifests for part in (stage, *origin(stage, manifests[stage]).parts)}
    policies = {manifests[stage]["inputs"]["policy"] for stage in gone if stage.startswith("evaluate/")}
    gone |= {s for s, m in manifests.items() if "share" in m["identity"] and m["inputs"]["policy"] in policies}
    keys = {split_id(stage)[1] for stage in gone}
    while new := {s for s, m in manifests.items() if s not in gone and not keys.isdisjoint(_inputs(m))}:
        gone |= new
        keys |= {split_id(stage)[1] for stage in new}
    with storage_errors(store.root):
        for stage in sorted(gone & manifests.keys()):
            aside = store.root / ".replaced" / f"{stage.replace('/', '-')}-{uuid.uuid4().hex[:8]}"
            aside.parent.mkdir(exist_ok=True)
            (store.root / stage).rename(aside)
    return len(gone)


def _inputs(manifest: Mapping[str, Any]) -> Iterator[str]:
    for value in manifest["inputs"].values():
        yield from value if isinstance(value, list) else [value]


def _read(store: Store, stage: str) -> Origin | None:
    manifest = _manifest(store, stage)
    return origin(stage, manifest) if manifest else None


def _manifest(store: Store, stage: str) -> dict[str, Any] | None:
    try:
        return store.manifest(*split_id(stage))
    except Damaged:  # the store reports it when the stage is read
        return None


def _phrases(store: Store, stage: str, there: Origin) -> list[str]:
    kind = split_id(stage)[0]
    if there.code == combined(computed_by(kind)):
        return []
    return differences(kind, (_manifest(store, stage) or {}).get("computed_by", {}))
