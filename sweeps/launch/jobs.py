"""Fuse the missing stages of a plan into jobs: stages with the same users and resources run as one job."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

from iris.config import Config
from iris.plan import Stage
from sweeps.launch.launchers import Launcher, Resources
from sweeps.launch.worker import Work
from sweeps.study.plan import Plan

_MAIN = ("train", "sft", "evaluate", "generate", "score", "data", "base")  # a job has the name of its first of these


@dataclass(frozen=True)
class Job:
    """Stages that run one after the other in one place. Indices in `needs` are of earlier jobs in the same list."""

    name: str  # of its main stage
    kind: str
    stages: tuple[Stage, ...]
    needs: tuple[int, ...]  # jobs that must succeed first, without those implied by others
    awaited: tuple[str, ...]  # stages (kind/key) that it needs and that jobs of other launches compute
    resources: Resources
    users: tuple[int, ...]  # the experiments it is for, by their index in the plan
    config: Config  # of one of them; its execution half and folders hold for the job
    output: str  # the folder for what trackers write
    dependency: str = "afterok"  # Slurm's condition on the jobs in `needs`

    @property
    def stage_names(self) -> list[str]:
        """The stages as kind/key."""
        return [stage.id for stage in self.stages]

    def work(self, store: str, launch: str, number: int) -> Work:
        """Return what runs as job `number` of a launch."""
        return Work(store, launch, number, self.stages, self.config.execution, self.output)


def make_jobs(plan: Plan, launcher: Launcher, only: Collection[str] | None = None) -> list[Job]:
    """Return the jobs of the missing stages, or of those in `only`, each after the jobs it needs.

    Missing stages with the same users, number of trainings before them and resources are one job: the stages of an
    experiment fuse into one job per iteration, and those shared by several experiments are a job of their own. An
    evaluation is a job of its own, so that the next iteration does not wait for it.
    """
    groups = _groups(plan, launcher, [s for s in plan.missing if only is None or s.id in only])
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
    first = plan.experiments[users[0]]
    output = str(Path(first.config.output).expanduser().absolute() / first.chain.name)
    return Job(main.name, main.kind, tuple(group), tuple(needs), tuple(awaited), resources, users, first.config, output)


def _groups(plan: Plan, launcher: Launcher, stages: Iterable[Stage]) -> list[list[Stage]]:
    """Return the stages of each job.

    No two jobs need each other: every stage on a path between two stages of equal users has these users too, the number
    of trainings and the segment (which grows where resources change) never fall along a path, and nothing needs an
    evaluation.
    """
    trainings: dict[str, int] = {}
    for name, stage in plan.stages.items():
        trainings[name] = max((trainings[i.id] + (i.kind == "train") for i in stage.parents), default=0)
    segment: dict[str, int] = {}
    groups: dict[tuple[object, ...], list[Stage]] = {}
    for stage in stages:
        name, own = stage.id, launcher.of(stage.kind)
        before = [i for i in stage.parents if i.id in segment]
        segment[name] = max((segment[i.id] + (not own.same(launcher.of(i.kind))) for i in before), default=0)
        alone = name if stage.kind == "evaluate" else ""
        resources = next(kind for kind in _MAIN if launcher.of(kind).same(own))
        key = (tuple(plan.users[name]), trainings[name], segment[name], resources, alone)
        groups.setdefault(key, []).append(stage)
    return list(groups.values())


def _inputs(group: Iterable[Stage]) -> list[str]:
    """Return the inputs of a job's stages (kind/key), its own stages included."""
    return [i.id for stage in group for i in stage.parents]


def _reduced(needs: list[list[int]]) -> list[list[int]]:
    """Return needs, which refer to earlier jobs, without those that another need of the same job implies."""
    above: list[frozenset[int]] = []
    reduced = []
    for own in needs:
        implied = frozenset[int]().union(*(above[n] for n in own))
        reduced.append([n for n in own if n not in implied])
        above.append(implied.union(own))
    return reduced
