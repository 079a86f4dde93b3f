"""The trials of a search, shared by its workers without a controller: none lost, none run twice at once.

<store>/.sweeps/searches/<name>/
    search.json         the declaration of the search
    journal.log         Optuna's journal, unless the trials are in a database
    gate.lock           held while a worker takes a trial
    last.lock           held by the worker that waits for the last trials to end
    trials/<n>.lock     held by the worker that runs trial n
    trials/<n>.json     that worker's host and process; touched every few seconds
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial, TrialState

from iris.errors import UserError
from sweeps.search import space
from sweeps.search.file import Search
from sweeps.search.lease import Lease
from sweeps.search.optuna_study import Exhaustive

EXHAUSTED = "exhausted"  # an attribute of the study: the space holds no other parameters
_REPEATS = 5  # known suggestions in a row, before another sampler looks for a new one
_FAILURES = 5  # failed trials in a row, before a worker gives up
_VALID = (TrialState.COMPLETE, TrialState.PRUNED)


def valid(trial: FrozenTrial) -> bool:
    """Whether a trial counts: complete or pruned, and no duplicate of another."""
    return trial.state in _VALID and "duplicate_of" not in trial.user_attrs


@dataclass(frozen=True)
class Assignment:
    """A trial for a worker to run."""

    number: int
    overrides: tuple[str, ...]


class Pause:
    """No trial now; one may come, because the workers that run the last trials may die."""


class TrialQueue:
    """The trials as one worker sees them; it runs at most one at a time, the one that `next` returned."""

    def __init__(self, search: Search, study: optuna.Study, folder: Path, iterations: int) -> None:
        self.search, self.study, self.folder, self.iterations = search, study, folder, iterations
        (folder / "trials").mkdir(parents=True, exist_ok=True)
        self.sampler = study.sampler
        self.gate = FileLock(folder / "gate.lock", thread_local=False)
        self.last = FileLock(folder / "last.lock", thread_local=False)
        self.trial: optuna.Trial | None = None
        self.lease: Lease | None = None
        self.failures: list[str] = []
        self.exhausted = False

    @property
    def ended(self) -> bool:
        """Whether no trial runs and there are enough, or no others to find."""
        enough = self.exhausted or sum(map(valid, self._trials())) >= self.search.trials
        return enough and not self._running()

    def _trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _running(self) -> list[FrozenTrial]:
        return [trial for trial in self._trials() if trial.state == TrialState.RUNNING]

    # --- taking a trial

    def next(self) -> Assignment | Pause | None:
        """Return a trial to run, a pause, or None when nothing is left for this worker.

        Raises UserError after several failed trials in a row.
        """
        if len(self.failures) >= _FAILURES:
            raise UserError(f"{_FAILURES} trials in a row have failed. The last one: {self.failures[-1]}")
        with self.gate:
            trial = self._adopt() or self._ask()
            running = bool(self._running())
        if trial is not None:
            self.last.release(force=True)
            return Assignment(trial.number, tuple(trial.user_attrs["overrides"]))
        return Pause() if running and self._waits() else None

    def _waits(self) -> bool:
        """Whether this is the one worker that waits for the last trials; the others need not keep their machines."""
        try:
            self.last.acquire(timeout=0)
        except Timeout:
            return False
        return True

    def _adopt(self) -> optuna.Trial | None:
        """Take over a trial whose worker has died."""
        for frozen in self._running():
            if self._take(frozen.number):
                trial, attempts = optuna.Trial(self.study, frozen._trial_id), frozen.user_attrs.get("attempts", 0)
                if attempts > self.search.retries:
                    self._fail(trial, f"its worker has died {attempts} times")
                elif self._begin(trial, attempts + 1):
                    return trial
        return None

    def _ask(self) -> optuna.Trial | None:
        """Ask for a trial unlike all before; a duplicate gets the result of the first."""
        taken = sum(trial.state == TrialState.RUNNING or valid(trial) for trial in self._trials())
        repeats = 0
        while taken < self.search.trials and not self.exhausted:
            if repeats == _REPEATS:
                self.study.sampler = self._explorer()
            trial = self.study.ask()
            self._take(trial.number)
            new = self._begin(trial, 1)
            self.study.sampler = self.sampler
            if new:
                return trial
            repeats += 1
            if repeats > _REPEATS:
                self.exhausted = True
                self.study.set_user_attr(EXHAUSTED, True)
        return None

    def _explorer(self) -> optuna.samplers.BaseSampler:
        """Return a sampler that finds a new point of the space, if there is one."""
        finite = all(parameter.finite for parameter in self.search.space)
        return Exhaustive() if finite else optuna.samplers.RandomSampler()

    def _begin(self, trial: optuna.Trial, attempts: int) -> bool:
        """Give a trial its values (an adopted one keeps its own); False for a duplicate, which ends here."""
        values = space.suggest(self.search.space, trial, self.iterations)
        self.trial = trial
        if (same := self._same(trial)) is not None:
            self._end_duplicate(same)
            return False
        self.note(overrides=space.overrides(values), attempts=attempts)
        return True

    def _same(self, trial: optuna.Trial) -> FrozenTrial | None:
        """Return an earlier trial of the same parameters."""
        others = (t for t in self._trials() if t.number != trial.number and "duplicate_of" not in t.user_attrs)
        return next((other for other in others if other.params == trial.params), None)

    def _end_duplicate(self, same: FrozenTrial) -> None:
        """Tell the trial at hand the result of the same one, or a failure if that has none."""
        self.note(duplicate_of=same.number)
        assert self.trial is not None
        for step, value in same.intermediate_values.items() if same.state in _VALID else ():
            self.trial.report(value, step)
        self._tell(same.state if same.state in _VALID else TrialState.FAIL, same.values)

    # --- the trial at hand

    def note(self, **facts: Any) -> None:
        """Keep facts about the trial."""
        assert self.trial is not None
        for name, value in facts.items():
            self.trial.set_user_attr(name, value)

    def report(self, step: int, value: float) -> bool:
        """Report a rung's score; return whether to prune the trial."""
        assert self.trial is not None
        if step not in self._trials()[self.trial.number].intermediate_values:  # a worker that died may have reported
            self.trial.report(value, step)
        self.note(attempts=1)  # it makes progress
        return self.trial.should_prune()

    def complete(self, values: Sequence[float]) -> None:
        """End the trial with its values."""
        self.failures = []
        self._tell(TrialState.COMPLETE, values)

    def prune(self) -> None:
        """End the trial early."""
        self.failures = []
        self._tell(TrialState.PRUNED)

    def fail(self, error: str) -> None:
        """End the trial, which cannot run."""
        assert self.trial is not None
        self.failures.append(error)
        self._fail(self.trial, error)

    def release(self) -> None:
        """Leave the trial to any worker; this does not count as an attempt."""
        if self.trial is not None:
            self.note(attempts=int(self.trial.user_attrs["attempts"]) - 1)
            self.trial = None
        self._release_lease()

    def _fail(self, trial: optuna.Trial, error: str) -> None:
        self.trial = trial
        self.note(error=error)
        self._tell(TrialState.FAIL)

    def _tell(self, state: TrialState, values: Sequence[float] | None = None) -> None:
        assert self.trial is not None
        self.study.tell(self.trial, values if state == TrialState.COMPLETE else None, state=state)
        self.trial = None
        self._release_lease()

    # --- leases

    def _take(self, number: int) -> bool:
        """Take the lease of a running trial; False if another worker holds it or the trial has ended meanwhile."""
        lease = Lease.take(self.folder / "trials", number)
        if lease is None:
            return False
        if self._trials()[number].state != TrialState.RUNNING:
            lease.release()
            return False
        self.lease = lease
        return True

    def _release_lease(self) -> None:
        if self.lease is not None:
            self.lease.release()
            self.lease = None
