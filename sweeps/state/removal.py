"""Find and remove the artifacts that only certain experiments need, for `rm`."""

import contextlib
import json
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iris.cost import cost
from iris.errors import UserError
from iris.store import MANIFEST, Store, split_id
from sweeps.state.records import held
from sweeps.state.study_status import Experiment, StudyStatus

_SHARDED = ("generate", "score")


@dataclass
class Removal:
    """Folders to remove, and artifacts `kept` because something outside of all studies was made from them."""

    sizes: dict[str, int] = field(default_factory=dict)  # bytes, by kind/folder
    kept: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(self.sizes.values())


def find(study_status: StudyStatus, chosen: Sequence[Experiment]) -> Removal:
    """Return what only the chosen experiments need. Raises UserError while any of it is being computed."""
    root, names = study_status.store.root, {(e.study, e.name) for e in chosen}
    others = [e for e in study_status.experiments() if (e.study, e.name) not in names]
    own = {s for e in chosen for s in e.stages} - {s for e in others for s in e.stages}
    _check_idle(study_status, chosen, own)
    manifests = dict(_manifests(study_status))
    removed = own & manifests.keys()
    removed |= _shards(removed, manifests, others)
    kept = _ancestors(manifests.keys() - removed, manifests) & removed
    removed -= kept
    unfinished = [name for name in map(_work_folder, sorted(own)) if (root / name).is_dir()]
    return Removal({name: _size(root / name) for name in [*sorted(removed), *unfinished]}, sorted(kept))


def remove(store: Store, removal: Removal) -> None:
    """Remove the folders, each atomically: whatever is left at any moment is complete."""
    for name in removal.sizes:
        path = store.root / name
        aside = path.with_name(f".removed-{uuid.uuid4().hex}")
        with contextlib.suppress(FileNotFoundError):
            path.rename(aside)
            shutil.rmtree(aside)


def _check_idle(study_status: StudyStatus, chosen: Sequence[Experiment], own: set[str]) -> None:
    jobs = [job for job in study_status.live_jobs() if not own.isdisjoint(job.record.stages)]
    if study_status.statuses.squeue_error:
        raise UserError(f"Whether jobs still run is not known: {study_status.statuses.squeue_error}")
    jobs += [worker for study in {e.study for e in chosen} for worker in study_status.workers(study)]
    if jobs:
        raise UserError(
            f"{len(jobs)} jobs for these experiments wait or run (the first: {jobs[0].record.name}). Wait for them, or "
            "cancel them first."
        )
    for name in own:
        if held(study_status.store.root / ".locks" / f"{split_id(name)[1]}.lock"):
            raise UserError(f"{name} is being computed by another process. Wait for it, or stop it first.")


def _manifests(study_status: StudyStatus) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in study_status.stored:
        with contextlib.suppress(OSError, ValueError):  # removed meanwhile, or damaged, which the store reports
            yield name, json.loads((study_status.store.root / name / MANIFEST).read_text())


def _shards(removed: set[str], manifests: Mapping[str, Any], others: Sequence[Experiment]) -> set[str]:
    """Return shards that belong to none but removed artifacts, and that no other experiment is going to reuse."""
    used = {shard for name in manifests.keys() - removed for shard in _shards_of(name, manifests)}
    candidates = {shard for name in removed for shard in _shards_of(name, manifests)} - used
    policies = {split_id(name)[1] for name in removed}
    for name, manifest in manifests.items():  # of stages that were never finished
        sharded = split_id(name)[0] in _SHARDED and "shard" not in manifest["identity"]
        if sharded and manifest["inputs"]["policy"] in policies:
            candidates |= {name} - used
    ahead = {(split_id(stage)[1], split_id(m)[0]) for e in others for stage in e.stages for m in e.missing}
    return {s for s in candidates & manifests.keys() if (manifests[s]["inputs"]["policy"], split_id(s)[0]) not in ahead}


def _shards_of(name: str, manifests: Mapping[str, Any]) -> list[str]:
    return [f"{split_id(name)[0]}/{key}" for key in cost(manifests[name]).shards]


def _ancestors(names: Iterable[str], manifests: Mapping[str, Any]) -> set[str]:
    """Return the artifacts that others were made from, directly or not."""
    by_key = {split_id(name)[1]: name for name in manifests}
    found: set[str] = set()
    left = list(names)
    while left:
        inputs = manifests[left.pop()]["inputs"].values()
        keys = [key for value in inputs for key in (value if isinstance(value, list) else [value])]
        new = {by_key[key] for key in keys if key in by_key} - found
        found |= new
        left += new
    return found


def _work_folder(name: str) -> str:
    kind, key = split_id(name)
    return f"{kind}/.work-{key}"


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
