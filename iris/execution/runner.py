"""Run the stages of a chain that are missing: each once, whoever else runs the same, and sealed in the store."""

import contextlib
import errno
import importlib
import json
import logging
import os
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from iris.config import Execution
from iris.errors import UserError
from iris.execution import provenance
from iris.execution.progress import Progress
from iris.execution.world import World
from iris.files import write_atomic
from iris.plan import Chain, Stage
from iris.source import computed_by
from iris.store import Artifact, Claim, Store, storage_errors

Cost = dict[str, float]

log = logging.getLogger("iris")
_MEMORY = re.compile("out of memory|can(no|')t allocate memory", re.IGNORECASE)
_HIDING = (RuntimeError, OSError)  # what says in its text alone that memory ran out
_WAIT = 1.0  # seconds between two looks at a stage that another run has
_MEMORY_KNOBS = {
    "generate": "execution.slots",
    "evaluate": "execution.slots and execution.micro_batch_tokens",
    "score": "execution.micro_batch_tokens",
    "sft": "execution.micro_batch_tokens (or set execution.gradient_checkpointing=true)",
    "train": "execution.micro_batch_tokens (or set execution.gradient_checkpointing=true)",
}


@dataclass
class Context:
    """What a stage runs with: the store, the execution half of the configuration, progress and its fellow processes."""

    store: Store
    execution: Execution
    progress: Progress = field(default_factory=Progress)
    world: World = field(default_factory=World)
    folder: Path = Path("outputs")  # the run's own folder: logs, tracker files
    _checked: dict[str, Artifact] = field(default_factory=dict)

    def artifact(self, stage: Stage) -> Artifact:
        """Return the artifact of a finished stage, its checksums compared once per process."""
        return self.load(stage.kind, stage.key)

    def load(self, kind: str, key: str) -> Artifact:
        """Return the artifact of a key, its checksums compared once per process (by the main process)."""
        if key not in self._checked:
            self._checked[key] = self.store.get(kind, key, check=self.world.main)
        return self._checked[key]


def run_chain(chain: Chain, context: Context) -> None:
    """Run every missing stage, in order."""
    for stage in chain.stages:
        ensure(stage, context)


def missing(chain: Chain, store: Store) -> list[Stage]:
    """Return the stages that have no artifact yet."""
    return [stage for stage in chain.stages if not store.has(stage.id)]


def ensure(stage: Stage, context: Context) -> None:
    """Run a stage unless its artifact exists; with several processes all take part and the main one seals."""
    world = context.world
    if world.broadcast(world.main and context.store.has(stage.id)):
        return
    run = importlib.import_module(f"iris.stages.{stage.kind}").run
    with _claimed(stage.kind, stage.key, context) as claim:
        if claim is None:
            return
        log.info("start %s %s", stage.kind, stage.key)
        with _explained(stage, context):
            compute(stage, context, claim, lambda: run(stage, context, claim))


def compute(stage: Stage, context: Context, claim: Claim, run: Callable[[], dict[str, Any]]) -> Cost:
    """Run a stage's function under a claim and seal what it leaves, with its cost and provenance.

    Returns this process's cost. What the function reports as `spent` is in other manifests and left out of this one's
    cost, which says beside it what its `shards` have cost.
    """
    started, clock, cpu = datetime.now(UTC), time.perf_counter(), time.process_time()
    code = _code(stage.kind, claim)
    _reset_memory()
    results = run()
    own = _cost(clock, cpu, results.pop("tokens", 0), results.pop("spent", {}))
    cost = context.world.gather(own)
    shards = {"shards": results.pop("shards")} if "shards" in results else {}
    context.world.barrier()
    if context.world.main:
        manifest = {
            "kind": stage.kind,
            "key": stage.key,
            "name": stage.name,
            "identity": dict(stage.identity),
            "inputs": stage.input_keys | results.pop("inputs", {}),
            "results": results,
            "cost": _sum(cost) | shards,
            "computed_by": code,
            "bits_from": provenance.bits_from(stage, context.execution, context.world.size),
            "provenance": provenance.collect(context.store.root, started) | results.pop("provenance", {}),
        }
        with storage_errors(context.store.root):
            context.store.commit(stage.kind, stage.key, claim, manifest)
        log.info("done %s %s in %.1f s: %s", stage.kind, stage.key, time.perf_counter() - clock, results)
    context.world.barrier()
    return own


def _code(kind: str, claim: Claim) -> Mapping[str, str]:
    """Return the code that began the stage: a resumed one counts as computed by what wrote its first checkpoint."""
    first = claim.work / ".computed_by.json"
    if not first.is_file():
        write_atomic(first, json.dumps(computed_by(kind)))
    code: dict[str, str] = json.loads(first.read_text())
    return code


@contextlib.contextmanager
def _claimed(kind: str, key: str, context: Context) -> Iterator[Claim | None]:
    world = context.world

    def waiting() -> None:
        context.progress.say(f"{kind} {key}: another run has it, waiting")

    # Processes that waited for the main one inside of a collective would meet its time limit.
    told = False
    while world.size > 1 and world.broadcast(world.main and context.store.busy(kind, key)):
        if not told:
            waiting()
        told = True
        time.sleep(_WAIT)
    if not world.main:
        yield world.broadcast(None)
        return
    with context.store.claim(kind, key, waiting) as claim:
        yield world.broadcast(claim)


@contextlib.contextmanager
def _explained(stage: Stage, context: Context) -> Iterator[None]:
    """Turn what users meet most (memory, disk) into a message that names the knob."""
    with storage_errors(context.store.root):
        try:
            yield
        except Exception as error:
            if number := _disk_error(error):
                raise OSError(number, f"{os.strerror(number)}: {error}") from error
            if isinstance(error, MemoryError) or (isinstance(error, _HIDING) and _MEMORY.search(str(error))):
                raise _out_of_memory(stage) from error
            raise


def _disk_error(error: Exception) -> int | None:
    """Return the operating system's error number behind a library's error that hides it."""
    if match := re.search(r"\(os error (\d+)\)", str(error)):  # safetensors
        return int(match[1])
    if isinstance(error, RuntimeError) and re.search("inline_container|PytorchStreamWriter|iostream", str(error)):
        return errno.ENOSPC  # torch.save: it says where it stopped, not why
    return None


def _out_of_memory(stage: Stage) -> UserError:
    knob = _MEMORY_KNOBS.get(stage.kind, "the batch size")
    return UserError(
        f"Stage {stage.kind} ({stage.name}) ran out of memory: lower {knob}. This changes no result and no key; "
        "finished stages are kept and the same command continues."
    )


def _cost(clock: float, cpu: float, tokens: int, spent: Cost) -> Cost:
    seconds = time.perf_counter() - clock - spent.get("seconds", 0.0)
    cpu_seconds = time.process_time() - cpu - spent.get("cpu_seconds", 0.0)
    cost = {"seconds": seconds, "cpu_seconds": cpu_seconds, "gpu_seconds": 0.0, "tokens": tokens}
    cost["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        cost |= {"gpu_seconds": seconds, "peak_gpu_memory_bytes": torch.cuda.max_memory_allocated()}
    return cost


def _sum(costs: list[Cost]) -> Cost:
    """Work adds up over processes; wall time and peak memory are the largest."""
    largest = {"seconds", "peak_memory_bytes", "peak_gpu_memory_bytes"}
    return {name: (max if name in largest else sum)(c[name] for c in costs) for name in costs[0]} | {
        "processes": len(costs)
    }


def _reset_memory() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def configure_threads(execution: Execution) -> None:
    """Limit CPU threads before torch starts its pools."""
    if execution.threads:
        os.environ["OMP_NUM_THREADS"] = str(execution.threads)
