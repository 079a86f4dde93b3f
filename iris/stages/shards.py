"""Work in shards: each is an artifact, shared by nested subsets, and a killed stage resumes after the last one."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from iris.cost import UNITS, cost
from iris.execution import interruption
from iris.execution.interruption import Interrupted
from iris.execution.runner import Context, Cost, compute
from iris.execution.world import World
from iris.plan import Stage
from iris.store import Artifact, Claim

T = TypeVar("T")
Advance = Callable[[int], None]
Work = Callable[[int, Claim, Advance], dict[str, Any]]


def run_shards(
    shards: Sequence[Stage], sizes: Sequence[int], work: Work, context: Context, label: str, unit: str
) -> tuple[list[Artifact], dict[str, Any]]:
    """Compute the missing shards, each process its share, with `work(n, claim, advance)` for shard n.

    Returns all shards, and the stage's results: its inputs, its own cost and the cost of all shards, cached or not.
    `sizes` counts the units of each shard for the progress line. A shard that another run holds is waited for.
    Raises Interrupted in all processes if one is asked to stop before its last shard.
    """
    alone = replace(context, world=World())
    found = [context.store.has(s.id) for s in shards]
    own = [n for n in range(context.world.rank, len(shards), context.world.size) if not found[n]]
    left, costs = len(own), list[Cost]()
    with contextlib.ExitStack() as stack:
        if own:
            line = stack.enter_context(context.progress.line(label, sum(sizes), unit))
            line.resume(sum(size for size, there in zip(sizes, found, strict=True) if there))
        for n in own:
            if interruption.requested():
                break
            left -= 1
            with alone.store.claim(shards[n].kind, shards[n].key) as claim:
                if claim is not None:
                    run = partial(work, n, claim, line.advance)
                    costs.append(compute(shards[n], alone, claim, run))
    if any(context.world.gather(left)):  # all processes wait here for one another
        raise Interrupted(f"{label}: stopped between two shards")
    spent = {name: sum(own[name] for own in costs) for name in ("seconds", "cpu_seconds")}
    done = [context.load(s.kind, s.key) for s in shards]
    total = {unit: sum(getattr(cost(a.manifest), unit) for a in done) for unit in UNITS}
    return done, {"inputs": {"shards": [a.key for a in done]}, "spent": spent, "shards": total}


def lazily(make: Callable[[], T]) -> Callable[[], T]:
    """Return a function that calls `make` at its first use only: cached shards need no model."""
    made: list[T] = []

    def get() -> T:
        if not made:
            made.append(make())
        return made[0]

    return get
