"""Group equal jobs into Slurm job arrays, and spread jobs over lanes that bound how many run at once."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from sweeps.launch.jobs import Job

Key = TypeVar("Key")


@dataclass(frozen=True)
class Array:
    """Jobs (indices) of one kind and equal resources, submitted in one call in this order.

    With `like` (the index of an earlier array) each depends on the job at its index there (`aftercorr`); otherwise all
    depend on the jobs `needs` and on the jobs of other launches that compute the stages `awaited`.
    """

    jobs: list[int]
    like: int | None
    needs: tuple[int, ...]
    awaited: tuple[str, ...]


def make_arrays(jobs: Sequence[Job], max_size: int) -> list[Array]:
    """Return arrays of at most `max_size` jobs in an order in which they can be submitted."""
    depth: list[int] = []  # the longest path to each job
    for job in jobs:
        depth.append(max((depth[n] + 1 for n in job.needs), default=0))
    arrays: list[Array] = []
    alike = _grouped(
        sorted(range(len(jobs)), key=depth.__getitem__),
        lambda n: (depth[n], jobs[n].kind, str(jobs[n].resources)),
    )
    for group in alike.values():
        arrays += _followers(jobs, group, arrays)
        followed = {n for array in arrays for n in array.jobs}
        rest = _grouped((n for n in group if n not in followed), lambda n: (jobs[n].needs, jobs[n].awaited))
        for (needs, awaited), part in rest.items():
            arrays += [Array(part[i : i + max_size], None, needs, awaited) for i in range(0, len(part), max_size)]
    return arrays


def _followers(jobs: Sequence[Job], group: Iterable[int], arrays: Sequence[Array]) -> list[Array]:
    """Return arrays of jobs of a group that need nothing but the job at the same index of an earlier array."""
    single = (n for n in group if len(jobs[n].needs) == 1 and not jobs[n].awaited)
    behind = _grouped(single, lambda n: jobs[n].needs[0])
    return [
        Array(list(row), like, (), ())
        for like, array in enumerate(arrays)
        if len(array.jobs) > 1
        for row in zip(*(behind.get(n, []) for n in array.jobs), strict=False)
    ]


def _grouped(indices: Iterable[int], key: Callable[[int], Key]) -> dict[Key, list[int]]:
    groups: dict[Key, list[int]] = {}
    for n in indices:
        groups.setdefault(key(n), []).append(n)
    return groups


def lanes(jobs: Sequence[Job], count: int) -> list[int]:
    """Return for each job one of `count` lanes; the jobs of a lane are to run one at a time.

    Each job takes the lane that is free first after what it needs, as if all took equally long.
    """
    free = [0] * count
    ends: list[int] = []
    chosen = []
    for job in jobs:
        ready = max((ends[n] for n in job.needs), default=0)
        lane = min(range(count), key=lambda k: (max(free[k], ready), -free[k]))
        free[lane] = max(free[lane], ready) + 1
        ends.append(free[lane])
        chosen.append(lane)
    return chosen
