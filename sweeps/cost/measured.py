"""What finished stages have taken that are like those of a plan."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from iris.cost import cost
from iris.plan import VERSIONS, Stage
from iris.store import Artifact, Store
from sweeps.study.plan import Plan, seedless

_STAGES = 4  # read per kind
_SHARDS = 2  # read per stage


@dataclass(frozen=True)
class Measured:
    """A finished stage: its results, seconds of device time, whether on GPUs, and bytes in the store."""

    stage: Stage
    results: Mapping[str, Any]
    seconds: float
    gpu: bool
    stored: float


def samples(plan: Plan, store: Store) -> list[Measured]:
    """A few finished stages of each kind: of the plan itself, or else with the name of one of it but for the seed."""
    by_kind: dict[str, list[tuple[str, Stage]]] = {kind: [] for kind in VERSIONS}
    for name, stage in plan.stages.items():
        by_kind[stage.kind].append((name, stage))
    found = (like for kind, stages in by_kind.items() for like in islice(_like(kind, stages, plan, store), _STAGES))
    return [_sample(stage, artifact, store) for stage, artifact in found]


def _like(kind: str, stages: Sequence[tuple[str, Stage]], plan: Plan, store: Store) -> Iterator[tuple[Stage, Artifact]]:
    cached = [stage for name, stage in stages if name in plan.cached]
    for stage in cached[:: max(1, len(cached) // _STAGES)]:
        if artifact := store.find(kind, stage.key):
            yield stage, artifact
    others = sorted(key for key in store.keys(kind) if f"{kind}/{key}" not in plan.stages)
    wanted = {seedless(stage.name): stage for name, stage in stages if name not in plan.cached} if others else {}
    for key in others:
        like = wanted.get(seedless(key.rsplit("-", 1)[0]))
        if like and (artifact := store.find(kind, key)):
            yield replace(like, identity=artifact.manifest["identity"]), artifact


def _sample(stage: Stage, artifact: Artifact, store: Store) -> Measured:
    spent = cost(artifact.manifest)
    parts = [a for key in spent.shards[:_SHARDS] if (a := store.find(stage.kind, key))]
    scale = len(spent.shards) / max(1, len(parts))
    return Measured(
        stage,
        artifact.results,
        spent.device_seconds + scale * sum(cost(a.manifest).device_seconds for a in parts),
        bool(spent.gpu_seconds),
        _stored(artifact) + scale * sum(map(_stored, parts)),
    )


def _stored(artifact: Artifact) -> float:
    return float(sum((artifact.folder / name).stat().st_size for name in artifact.manifest["files"]))
