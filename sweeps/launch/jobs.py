"""From the missing stages of a plan to jobs: what has the same users and needs the same machine runs as one job."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from graphlib import TopologicalSorter

from iris.config import Config
from iris.plan import Stage
from sweeps.launch.launchers import Launcher, Resources
from sweeps.study.plan import Plan

_MAIN = ("train", "sft", "evaluate", "generate", "score", "data", "base")  # what a job is called after


@dataclass(frozen=True)
class Job:
    """Stages that run one after the other in one place. Indices in `needs` are of earlier jobs in the same list."""

    main: Stage
    stages: tuple[Stage, ...]
    needs: tuple[int, ...]  # jobs that must succeed first, less those that others of them need
    awaited: tuple[str, ...]  # stages (kind/key) that it needs and that somebody else is to compute
    resources: Resources
    users: tuple[int, ...]  # the experiments it is for, by their index in the plan
    config: Config  # of one of them; its execution half and folders hold for the job


def make_jobs(plan: Plan, launcher: Launcher, only: Collection[str] | None = None) -> list[Job]:
    """The jobs of the missing stages (of those in `only`, if given), each after those it needs.

    Missing stages with the same users, the same number of trainings before them and the same resources are one job; so
    the stages of an experiment fuse into one job an iteration, and what several experiments share is a job of its own.
    An evaluation is a job of its own, so that the next iteration does not wait for it.
    """
    stages = [s for s in plan.missing if only is None or s.id in only]
    groups = _groups(plan, launcher, stages)
    owner = {stage.id: n for n, group in enumerate(groups) for stage in group}
    graph = {n: {owner[i] for i in _inputs(group) if i in owner} - {n} for n, group in enumerate(groups)}
    order = list(TopologicalSorter(graph).static_order())
    place = {n: index for index, n in enumerate(order)}
    needs = _reduced([sorted(place[p] for p in graph[n]) for n in order])
    return [_job(plan, launcher, groups[n], owner, needs[index]) for index, n in enumerate(order)]


def _job(plan: Plan, launcher: Launcher, group: list[Stage], owner: dict[str, int], needs: list[int]) -> Job:
    main = min(reversed(group), key=lambda stage: _MAIN.index(stage.kind))
    resources = max((launcher.of(stage.kind) for stage in group), key=lambda r: r.minutes)
    awaited = dict.fromkeys(i for i in _inputs(group) if i not in owner and i not in plan.cached)
    users = tuple(plan.users[main.id])
    return Job(main, tuple(group), tuple(needs), tuple(awaited), resources, users, plan.experiments[users[0]].config)


def _groups(plan: Plan, launcher: Launcher, stages: Iterable[Stage]) -> list[list[Stage]]:
    """The stages of each job.

    No two jobs need each other: what lies between two stages of equal users has these users too, the number of
    trainings and the segment (which grows where resources change) never fall along a path, and nothing needs an
    evaluation.
    """
    depth: dict[str, int] = {}
    for name, stage in plan.stages.items():
        depth[name] = max((depth[i.id] + (i.kind == "train") for i in stage.parents), default=0)
    segment: dict[str, int] = {}
    groups: dict[tuple[object, ...], list[Stage]] = {}
    for stage in stages:
        name, own = stage.id, launcher.of(stage.kind)
        before = [i for i in stage.parents if i.id in segment]
        segment[name] = max((segment[i.id] + (not own.same(launcher.of(i.kind))) for i in before), default=0)
        alone = name if stage.kind == "evaluate" else ""
        resources = next(kind for kind in _MAIN if launcher.of(kind).same(own))
        groups.setdefault((tuple(plan.users[name]), depth[name], segment[name], resources, alone), []).append(stage)
    return list(groups.values())


def _inputs(group: Iterable[Stage]) -> list[str]:
    """What the stages of a job read, by name, the job's own included."""
    return [i.id for stage in group for i in stage.parents]


def _reduced(needs: list[list[int]]) -> list[list[int]]:
    """Needs (each job's come before it) without those that another need of the same job has anyway."""
    above: list[frozenset[int]] = []
    reduced = []
    for own in needs:
        implied = frozenset[int]().union(*(above[n] for n in own))
        reduced.append([n for n in own if n not in implied])
        above.append(implied.union(own))
    return reduced
