"""The policies of all experiments of a study and the stages that made them, as arrays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Numbers = NDArray[np.float64]
Flags = NDArray[np.bool_]
BASE, START = "base", "start"  # START: the policy that iterations start from
INITIAL = (BASE, START)  # policies before the first iteration


@dataclass(frozen=True)
class PolicyRows:
    """One row per experiment × evaluation of a policy. A stage is its number in `places`."""

    places: dict[str, int]  # the number of each stage (kind/key)
    stage: Ints  # all stages, one experiment after another
    owner: Ints  # the experiment of each `stage`
    experiment: Ints
    label: list[str]  # base, start, t=1 …
    made: Ints  # [row, 2] the part of `stage` that made the policy: first and behind the last
    evaluation: Ints
    part: Flags  # whether a share of the documents was evaluated

    @classmethod
    def of(cls, points: Sequence[Mapping[str, Any]]) -> "PolicyRows":
        """Read the rows of a study's record (see `Records.write_study`)."""
        every = list(chain.from_iterable(point["stages"] for point in points))
        names = dict.fromkeys(every)
        places = dict(zip(names, range(len(names)), strict=True))
        stage = np.fromiter(map(places.__getitem__, every), np.int64, len(every))
        counts = np.array([len(point["stages"]) for point in points], np.int64)
        rows = [row for point in points for row in point["rows"]]
        label, *columns, part = zip(*rows, strict=True) if rows else [()] * 5
        experiment = np.repeat(np.arange(len(points)), [len(point["rows"]) for point in points])
        first, last, evaluation = np.array(columns, np.int64) + (np.cumsum(counts) - counts)[experiment]
        made = np.column_stack([first, last + 1])
        owner = np.repeat(np.arange(len(points)), counts)
        return cls(places, stage, owner, experiment, list(label), made, stage[evaluation], np.array(part, bool))

    @property
    def policy(self) -> Ints:
        """The stage whose artifact is the policy."""
        return np.asarray(self.stage[self.made[:, 1] - 1])

    @property
    def iteration(self) -> Ints:
        """The iteration that made the policy, from 1; 0 for policies before the first."""
        numbers = {label: 0 if label in INITIAL else int(label.removeprefix("t=")) for label in set(self.label)}
        return np.array([numbers[label] for label in self.label], np.int64)

    @property
    def final(self) -> Flags:
        """Whether the policy is the last one of its experiment."""
        last = np.searchsorted(self.experiment, self.experiment, side="right") - 1
        return np.asarray(self.policy == self.policy[last])

    def cost(self, values: Numbers) -> Numbers:
        """Sum `values` [stage number] over the stages that made each policy and its evaluation."""
        each = np.append(values[self.stage], 0.0)  # reduceat takes no index behind the last
        sums = np.add.reduceat(each, self.made.ravel())[::2] if len(self.made) else np.zeros(0)
        return np.asarray(sums + values[self.evaluation])
