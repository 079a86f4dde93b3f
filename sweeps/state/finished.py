"""Scores and costs of finished stages, cached from their manifests.

<store>/.sweeps/finished.json   by kind/key; a manifest that is newer than its entry is read again. May be deleted.
"""

import contextlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

from iris import outdated
from iris.cost import cost
from iris.files import write_atomic
from iris.outdated import Origin, Reasons
from iris.store import MANIFEST, Store, split_id


@dataclass(frozen=True)
class Entry:
    """The score and standard error (in [0, 1]) and costs (in seconds) of a finished stage."""

    at: int  # when the manifest was written, ns
    gpu_seconds: float
    cpu_seconds: float
    code: str  # digest of the code that computed it
    shards: list[str]  # ids of artifacts that the stage is made of; they have costs of their own
    reused: list[str]  # ids of artifacts whose answers it holds
    score: float | None = None
    stderr: float | None = None


@dataclass(frozen=True)
class Cost:
    """The cost of finished stages."""

    gpu_hours: float
    cpu_hours: float

    def __str__(self) -> str:
        hours, unit = (self.gpu_hours, "GPU") if self.gpu_hours else (self.cpu_hours, "CPU")
        return f"{hours:.3g} {unit}-hours" if hours >= 0.1 else f"{3600 * hours:.0f} {unit}-seconds"


class Finished:
    """A cache of the entries of a store's stages."""

    def __init__(self, store: Store) -> None:
        self.store, self._path = store, store.root / ".sweeps" / "finished.json"
        self._entries = self._load()
        self._changed = False

    def entry(self, stage: str) -> Entry | None:
        """Return the entry of kind/key, None if it is not finished or its manifest cannot be read."""
        path = self.store.root / stage / MANIFEST
        known = self._entries.get(stage)
        try:
            at = path.stat().st_mtime_ns
            if known is None or known.at != at:
                known = self._entries[stage] = _read(stage, path.read_text(), at)
                self._changed = True
        except (OSError, ValueError, KeyError):
            return None
        return known

    def cost(self, stages: Iterable[str]) -> Cost:
        """Return the cost of stages and their shards, each counted once; unfinished ones count nothing."""
        entries = [entry for stage in set(stages) if (entry := self.entry(stage))]
        shards = {shard: found for entry in entries for shard in entry.shards if (found := self.entry(shard))}
        every = [*entries, *shards.values()]
        return Cost(*(sum(getattr(entry, unit) for entry in every) / 3600 for unit in ("gpu_seconds", "cpu_seconds")))

    def outdated(self, stages: Iterable[str]) -> Reasons:
        """Return those of some stages that other code has computed, and how the code differs."""

        def origin(stage: str) -> Origin | None:
            entry = self.entry(stage)
            return Origin(entry.code, entry.shards, entry.reused) if entry else None

        return outdated.find(stages, self.store, origin)

    def save(self) -> None:
        """Write the cache; a read-only store is no error."""
        if self._changed:
            with contextlib.suppress(OSError):
                write_atomic(self._path, json.dumps({stage: vars(entry) for stage, entry in self._entries.items()}))

    def _load(self) -> dict[str, Entry]:
        try:
            return {stage: Entry(**values) for stage, values in json.loads(self._path.read_text()).items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}


def _read(stage: str, text: str, at: int) -> Entry:
    manifest = json.loads(text)
    spent, origin, results = cost(manifest), outdated.origin(stage, manifest), manifest["results"]
    scores = (results["average"], results["stderr"]) if split_id(stage)[0] == "evaluate" else (None, None)
    return Entry(at, spent.gpu_seconds, spent.cpu_seconds, origin.code, origin.shards, origin.reused, *scores)
