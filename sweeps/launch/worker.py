"""The work of a job on any launcher: its stages in order, on the store that all jobs share."""

import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iris.config import Execution
from iris.execution import interruption, runner
from iris.execution.interruption import Interrupted
from iris.execution.runner import Context
from iris.execution.world import World
from iris.plan import Stage
from iris.store import Artifact, Claim, Store
from sweeps.state.heartbeat import FollowedProgress, Heartbeat
from sweeps.state.records import Folder, Records


@dataclass(frozen=True)
class Work:
    """The stages of job `number` of a launch, and how they are executed."""

    store: str
    launch: str
    number: int
    stages: tuple[Stage, ...]
    execution: Execution
    output: str  # the folder for what trackers write

    @property
    def folder(self) -> Folder:
        return Records(Store(self.store)).folder(self.launch)

    @property
    def kinds(self) -> set[str]:
        """Return the kinds of stages that it may run."""
        return {stage.kind for stage in self.stages}

    def heartbeat(self, attempt: int = 0) -> Heartbeat:
        """Return the writer of the job's state; enter it before slow imports."""
        return Heartbeat(self.folder, self.number, attempt=attempt, main=os.environ.get("RANK", "0") == "0")

    def run(self, heartbeat: Heartbeat) -> None:
        """Run the missing stages together with the other processes of the job. Raises Interrupted."""
        runner.configure_threads(self.execution)
        world = World.join(self.execution.device)
        store = CountingStore(self.store, heartbeat)
        context = Context(store, self.execution, FollowedProgress(heartbeat), world, Path(self.output))
        if world.main:
            context.store.prepare()
        for stage in self.stages:
            if world.broadcast(interruption.requested()):
                raise Interrupted(f"stopped before {stage.id}")
            heartbeat.begin(stage.id)
            _check_precision(stage, self.execution)
            runner.ensure(stage, context)


class CountingStore(Store):
    """A store whose commits the heartbeat counts."""

    def __init__(self, root: str, heartbeat: Heartbeat) -> None:
        super().__init__(root)
        self.heartbeat = heartbeat

    def commit(self, kind: str, key: str, claim: Claim, manifest: dict[str, Any]) -> Artifact:
        self.heartbeat.kept += 1
        return super().commit(kind, key, claim, manifest)


def _check_precision(stage: Stage, execution: Execution) -> None:
    if "precision" in stage.identity:
        from iris.execution.device import check_precision, find_device

        check_precision(stage.identity["precision"], find_device(execution.device))


def log_to_stderr() -> None:
    """Log the starts and ends of stages to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("iris")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
