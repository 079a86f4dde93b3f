"""Jobs as Slurm takes them: equal ones together as arrays, with the dependencies of the whole array."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from sweeps.launch.jobs import Job
from sweeps.launch.launchers import Resources

Key = tuple[object, ...]


@dataclass(frozen=True)
class Array:
    """Jobs (indices) of one kind and equal resources that are submitted in one call, in this order.

    With `like` (the index of an earlier array) each waits for the job in its place there; otherwise all wait for
    `needs` and for what somebody else computes of `awaited` (stages).
    """

    jobs: list[int]
    like: int | None
    needs: tuple[int, ...]
    awaited: tuple[str, ...]


def make_arrays(jobs: Sequence[Job], most: int) -> list[Array]:
    """The arrays of jobs (of at most `most` tasks) in the order in which they can be submitted."""
    builder = _Builder(jobs, most)
    for level in _levels(jobs):
        for group in _grouped(level, lambda n: (jobs[n].main.kind, *_resources_key(jobs[n].resources))):
            builder.add(group)
    return builder.arrays


class _Builder:
    def __init__(self, jobs: Sequence[Job], most: int) -> None:
        self.jobs, self.most = jobs, most
        self.arrays: list[Array] = []
        self.place: dict[int, tuple[int, int]] = {}  # job → its array and its index in it

    def add(self, group: list[int]) -> None:
        """Jobs of one level, kind and resources."""
        followers: dict[int, list[int]] = {}  # by the array of the one job that each needs
        others = []
        for n in group:
            job = self.jobs[n]
            array = self.place[job.needs[0]][0] if len(job.needs) == 1 and not job.awaited else -1
            if array >= 0 and len(self.arrays[array].jobs) > 1:
                followers.setdefault(array, []).append(n)
            else:
                others.append(n)
        for array, members in followers.items():
            others += self._follow(array, members)
        for part in _grouped(others, lambda n: (self.jobs[n].needs, self.jobs[n].awaited)):
            for start in range(0, len(part), self.most):
                first = self.jobs[part[0]]
                self._append(Array(part[start : start + self.most], None, first.needs, first.awaited))

    def _follow(self, array: int, members: list[int]) -> list[int]:
        """Arrays with one job for each of an earlier array; returns the jobs that fit into none."""
        behind: list[list[int]] = [[] for _ in self.arrays[array].jobs]
        for n in members:
            behind[self.place[self.jobs[n].needs[0]][1]].append(n)
        left = []
        for row in zip_longest(*behind):
            found = [n for n in row if n is not None]
            if len(found) == len(behind):
                self._append(Array(found, array, (), ()))
            else:
                left += found
        return left

    def _append(self, array: Array) -> None:
        self.place |= {n: (len(self.arrays), index) for index, n in enumerate(array.jobs)}
        self.arrays.append(array)


def _levels(jobs: Sequence[Job]) -> list[list[int]]:
    """The jobs by the length of the longest path to them."""
    level: list[int] = []
    for job in jobs:
        level.append(max((level[n] + 1 for n in job.needs), default=0))
    return [[n for n, its in enumerate(level) if its == wanted] for wanted in range(max(level, default=-1) + 1)]


def _grouped(indices: Sequence[int], key: Callable[[int], Key]) -> Iterator[list[int]]:
    groups: dict[Key, list[int]] = {}
    for n in indices:
        groups.setdefault(key(n), []).append(n)
    yield from groups.values()


def _resources_key(resources: Resources) -> Key:
    return tuple(str(value) for value in vars(resources).values())


def lanes(jobs: Sequence[Job], count: int) -> list[int]:
    """For each job one of `count` lanes whose jobs run one after the other, so that no more than `count` run at once.

    Each takes the lane that is free first after what it needs, as if all took equally long.
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
