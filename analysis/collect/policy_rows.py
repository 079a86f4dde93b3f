"""The policies of many experiments and the stages that led to each, in arrays: no loop in Python over experiments."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Numbers = NDArray[np.float64]
Flags = NDArray[np.bool_]
_HASH = 13  # signs at the end of a key that are not of the name
_PART = "-part"  # what the name of an evaluation of a share of the documents ends in
BASE, START = "base", "start"  # START: the policy that iterations start from
INITIAL = (BASE, START)


@dataclass(frozen=True)
class Entries:
    """The stages of experiments one after another: experiment `owner` [entry] has the one with the number `stage`."""

    places: dict[str, int]  # the number of each stage (kind/key), in their order
    stage: Ints
    owner: Ints
    experiments: int

    @classmethod
    def of(cls, experiments: Sequence[Sequence[str]]) -> "Entries":
        """The stages of each experiment, in an order that respects what they need."""
        every = list(chain.from_iterable(experiments))
        names = dict.fromkeys(every)
        places = dict(zip(names, range(len(names)), strict=True))
        stage = np.fromiter(map(places.__getitem__, every), np.int64, len(every))
        owner = np.repeat(np.arange(len(experiments)), [len(stages) for stages in experiments])
        return cls(places, stage, owner, len(experiments))

    @cached_property
    def names(self) -> list[str]:
        """The stages by their numbers."""
        return list(self.places)

    @cached_property
    def kinds(self) -> list[str]:
        """The kind of each of `names`."""
        return [name[: name.index("/")] for name in self.names]

    def are(self, kind: str) -> Flags:
        """Which entries are of a kind."""
        return np.array([each == kind for each in self.kinds], bool)[self.stage]

    def any(self, flags: Flags) -> Flags:
        """Of each experiment, whether one of its entries has a flag."""
        return np.bincount(self.owner[flags], minlength=self.experiments) > 0

    def first(self, kind: str) -> Ints:
        """Of each experiment, its first entry of a kind; −1 where there is none."""
        found, entries = np.full(self.experiments, -1), np.flatnonzero(self.are(kind))[::-1]
        found[self.owner[entries]] = entries  # the last one assigned stays
        return found


@dataclass(frozen=True)
class PolicyRows:
    """One per experiment × evaluation of a policy: two entries, and what the policy is called, `labels[label]`."""

    entries: Entries
    policy: Ints
    evaluation: Ints
    label: Ints
    labels: list[str]
    iteration: Ints
    part: Flags  # whether a share of the documents was evaluated
    trained: Flags  # whether the policy comes from an iteration
    group: Ints  # [entry] a number for each iteration of each experiment
    played: Flags  # [entry] whether the stage is a part of an iteration, but no evaluation

    @property
    def owner(self) -> Ints:
        """The experiment of each cell."""
        owner: Ints = self.entries.owner[self.evaluation]
        return owner

    @property
    def final(self) -> Flags:
        """Which cells are of their experiment's last policy."""
        last = np.searchsorted(self.owner, self.owner, side="right") - 1
        stage = self.entries.stage[self.policy]
        return np.asarray(stage == stage[last])

    def cost(self, values: Numbers) -> Numbers:
        """What values [stage] amount to for each cell: its evaluation, and what led from the policy before to its own.

        That is the policy's stage alone where it comes from no iteration.
        """
        each = values[self.entries.stage]
        sums = np.bincount(self.group, each * self.played)
        led = np.where(self.trained, sums[self.group[self.policy]], each[self.policy])
        return np.asarray(led + each[self.evaluation])


def cells(entries: Entries) -> PolicyRows:
    """The cells of experiments."""
    is_kind = {kind: entries.are(kind) for kind in ("base", "sft", "generate", "score", "train", "evaluate")}
    trained = np.cumsum(is_kind["train"])
    iteration = trained - np.concatenate([[0], trained])[np.searchsorted(entries.owner, entries.owner)]
    before = iteration - is_kind["train"]  # iterations that have ended before the entry
    evaluation = np.flatnonzero(is_kind["evaluate"])
    policy = _policies(entries, np.flatnonzero(is_kind["base"] | is_kind["sft"] | is_kind["train"]), evaluation)
    start = np.where(is_kind["sft"] | ~entries.any(is_kind["sft"])[entries.owner], 1, 0)
    label = np.where(is_kind["train"], len(INITIAL) - 1 + iteration, start)
    most = int(iteration.max(initial=0))
    return PolicyRows(
        entries=entries,
        policy=policy,
        evaluation=evaluation,
        label=label[policy],
        labels=[*INITIAL, *(f"t={t}" for t in range(1, most + 1))],
        iteration=iteration[policy],
        part=np.array([entries.names[n][:-_HASH].endswith(_PART) for n in entries.stage[evaluation]], bool),
        trained=is_kind["train"][policy],
        group=entries.owner * (most + 1) + before,
        played=is_kind["generate"] | is_kind["score"] | is_kind["train"],
    )


def _policies(entries: Entries, policies: Ints, evaluations: Ints) -> Ints:
    """The policy of each evaluation: the one of the same experiment that it is called after."""
    names: dict[str, int] = {}

    def numbers(at: Ints, end: str) -> Any:
        called = (name[name.index("/") + 1 : -_HASH].removesuffix(end) for name in map(entries.names.__getitem__, at))
        return np.fromiter((names.setdefault(name, len(names)) for name in called), np.int64, len(at))

    of_policy, of_evaluation = numbers(entries.stage[policies], ""), numbers(entries.stage[evaluations], _PART)
    known = entries.owner[policies] * len(names) + of_policy
    wanted = entries.owner[evaluations] * len(names) + of_evaluation
    order = np.argsort(known, kind="stable")
    found = order[np.minimum(np.searchsorted(known[order], wanted), len(order) - 1)]
    if not (known[found] == wanted).all():
        raise ValueError("an evaluation of no policy of its experiment")
    return np.asarray(policies[found])
