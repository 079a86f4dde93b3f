"""A study's plan: the union of its experiments' stages, each once, cached or missing."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from iris.plan import VERSIONS, Stage
from iris.store import Store
from sweeps.study.experiments import Planned

_SEED = re.compile(r"-s\d+(?=-|$)")


@dataclass
class Plan:
    """Every distinct stage of a study by its id, in an order that respects inputs.

    `users` holds the indices of the experiments that need a stage, `cached` the stages that are finished in the store.
    """

    study: str
    experiments: list[Planned]
    stages: dict[str, Stage] = field(default_factory=dict)
    users: dict[str, list[int]] = field(default_factory=dict)
    cached: set[str] = field(default_factory=set)

    @property
    def missing(self) -> list[Stage]:
        """The stages that are not finished, in an order that respects inputs."""
        return [stage for name, stage in self.stages.items() if name not in self.cached]


def make_plan(experiments: Sequence[Planned], store: Store, study: str = "") -> Plan:
    """Plan experiments on a store; lists the store's folders and reads no manifest."""
    plan = Plan(study, list(experiments))
    for number, experiment in enumerate(experiments):
        for stage in experiment.chain.stages:
            plan.stages.setdefault(stage.id, stage)
            plan.users.setdefault(stage.id, []).append(number)
    plan.cached = store.finished(VERSIONS) & plan.stages.keys()
    return plan


def seedless(name: str) -> str:
    """Return a stage's name without the seed of its experiment."""
    return _SEED.sub("", name)
