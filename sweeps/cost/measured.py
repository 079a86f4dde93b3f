"""Measured costs of finished stages similar to a plan's."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

from iris.cost import cost
from iris.plan import VERSIONS, Stage
from iris.store import Artifact, Store
from sweeps.study.plan import Plan, seedless

_STAGES = 4  # artifacts read per kind
_SHARDS = 2  # shards read per artifact


@dataclass(frozen=True)
class Sample:
    """A finished stage: its artifact, seconds of device time, whether on GPUs, and bytes in the store."""

    stage: Stage
    artifact: Artifact
    seconds: float
    gpu: bool
    stored: float


def samples(plan: Plan, store: Store) -> list[Sample]:
    """Read a few finished stages per kind: of the plan, then others of the same name but for the seed."""
    return [
        _sample(stage, artifact, store)
        for kind in VERSIONS
        for stage, artifact in islice(_similar(kind, plan, store), _STAGES)
    ]


def _similar(kind: str, plan: Plan, store: Store) -> Iterator[tuple[Stage, Artifact]]:
    keys = sorted(store.keys(kind))
    mine = [key for key in keys if f"{kind}/{key}" in plan.stages]
    others = [key for key in keys if f"{kind}/{key}" not in plan.stages]
    by_name = {seedless(s.name): s for s in plan.stages.values() if s.kind == kind} if others else {}
    for key in mine[:: max(1, len(mine) // _STAGES)]:
        if artifact := store.find(kind, key):
            yield plan.stages[f"{kind}/{key}"], artifact
    for key in others:
        stage = by_name.get(seedless(key.rsplit("-", 1)[0]))
        if stage and (artifact := store.find(kind, key)):
            yield replace(stage, identity=artifact.manifest["identity"]), artifact


def _sample(stage: Stage, artifact: Artifact, store: Store) -> Sample:
    spent = cost(artifact.manifest)
    shards = [shard for key in spent.shards[:_SHARDS] if (shard := store.find(stage.kind, key))]
    scale = len(spent.shards) / max(1, len(shards))
    seconds = spent.device_seconds + scale * sum(cost(shard.manifest).device_seconds for shard in shards)
    stored = _stored(artifact) + scale * sum(map(_stored, shards))
    return Sample(stage, artifact, seconds, spent.gpu_seconds > 0, stored)


def _stored(artifact: Artifact) -> float:
    return float(sum((artifact.folder / name).stat().st_size for name in artifact.manifest["files"]))
