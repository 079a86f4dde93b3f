"""Stages whose work falls into shards: each is an artifact of its own, shared by nested subsets and resumed at."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from iris.plan import Stage
from iris.runner import Context, compute
from iris.store import Artifact, Claim
from iris.world import World

T = TypeVar("T")
Advance = Callable[[int], None]
Work = Callable[[int, Claim, Advance], dict[str, Any]]


def run_shards(
    shards: Sequence[Stage], sizes: Sequence[int], work: Work, context: Context, label: str, unit: str
) -> list[Artifact]:
    """Compute the missing shards, each process its share, and return all. `work(n, claim, advance)` computes shard n.

    `sizes` counts the units of each shard, for the progress line. A shard that another run holds is waited for.
    """
    alone = replace(context, world=World())
    found = [context.store.find(s.kind, s.key) is not None for s in shards]
    own = [n for n in range(context.world.rank, len(shards), context.world.size) if not found[n]]
    with contextlib.ExitStack() as stack:
        if own:
            line = stack.enter_context(context.progress.line(label, sum(sizes), unit))
            line.resume(sum(size for size, there in zip(sizes, found, strict=True) if there))
        for n in own:
            with alone.store.claim(shards[n].kind, shards[n].key) as claim:
                if claim is not None:
                    compute(shards[n], alone, claim, lambda n=n, claim=claim: work(n, claim, line.advance))  # type: ignore[misc]
    context.world.barrier()
    return [context.load(s.kind, s.key) for s in shards]


def lazily(make: Callable[[], T]) -> Callable[[], T]:
    """Call `make` once, at the first use: a model is not loaded when every shard is cached."""
    made: list[T] = []

    def get() -> T:
        if not made:
            made.append(make())
        return made[0]

    return get
