"""A store with artifacts, launches and studies written by hand, as a command finds it in the middle of a study."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iris.source import computed_by
from iris.store import Store, split_id
from sweeps.state.records import Folder, JobRecord, Launch, Records, State

COST = {"seconds": 3600.0, "cpu_seconds": 3600.0, "gpu_seconds": 1800.0, "tokens": 0, "processes": 1}


class ByHand:
    """Experiments are called by their names and have the stages given; jobs are those of one launch of this machine."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder / "store")
        self.store.prepare()
        self.records = Records(self.store)

    @property
    def store_setting(self) -> str:
        """The store as an argument of a command."""
        return f"store={self.store.root}"

    def finish(self, *stages: str, results: Mapping[str, Any] | None = None, **inputs: Any) -> None:
        """Leave the artifacts of stages (kind/key)."""
        for stage in stages:
            kind, key = split_id(stage)
            scores = {"average": 0.432, "stderr": 0.008} if kind == "evaluate" else {}
            with self.store.claim(kind, key) as claim:
                assert claim is not None
                (claim.new / "content").write_bytes(b"x" * 1000)
                identity = {"shard": 10} if "shard" not in key else {}
                manifest = {"kind": kind, "key": key, "identity": identity, "inputs": inputs, "cost": COST}
                manifest |= {"provenance": {}, "computed_by": dict(computed_by(kind))}
                self.store.commit(kind, key, claim, manifest | {"results": scores | dict(results or {})})

    def launch(self, study: str, jobs: Sequence[Mapping[str, Any]], launcher: str = "local") -> Folder:
        """Record a launch with jobs; each has `stages` and may have `needs`, `users` and `slurm`."""
        created = time.time() - 600
        launch_id = f"{len(self.records.launches()):02d}-{study}"
        folder = self.records.create(
            Launch(launch_id, study, launcher, ["launch"], [], None, "code", created, "here", {"kind": launcher})
        )
        folder.add_jobs(
            JobRecord(
                n,
                f"job{n}",
                split_id(job["stages"][-1])[0],
                list(job["stages"]),
                list(job.get("needs", [])),
                list(job.get("after", [])),
                list(job.get("users", [])),
                job.get("slurm"),
            )
            for n, job in enumerate(jobs)
        )
        return folder

    def study(self, study: str, experiments: Mapping[str, Sequence[str]], folder: Folder | None = None) -> None:
        """Record a study as it was last launched."""
        points = [{"name": n, "overrides": n.split(","), "stages": list(s)} for n, s in experiments.items()]
        self.records.write_study(study, folder.id if folder else "", points)


def running(stage: str, seconds_ago: float = 1, advanced: float = 1) -> State:
    """Return the state that a job wrote `seconds_ago`, with its last progress `advanced` seconds ago."""
    now = time.time()
    return State("running", now - seconds_ago, stage, 120, 400, "steps", 2.0, now - advanced, host="node1")


def failed(stage: str, error: str = "ValueError: no such thing") -> State:
    """Return the state of a failed job."""
    return State("failed", time.time(), stage, error=error)
