"""The trials of a search, shared by its workers without a controller: none lost, none run twice at once.

<store>/.sweeps/searches/<name>/
    search.json         the search as it was begun
    journal.log         Optuna's trials, unless they are kept in a database
    gate.lock           held while a worker takes a trial
    trials/<n>.lock     held (flock) by the worker that runs trial n: the kernel frees it when that worker dies
    trials/<n>.json     who that is; touched every few seconds
"""

import json
import os
import platform
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial, TrialState

from iris.errors import UserError
from iris.files import write_atomic
from sweeps.search import space
from sweeps.search.file import Search
from sweeps.search.optuna_study import Exhaustive
from sweeps.state import records

BEAT = 10.0  # seconds between two signs of life of a worker
SILENCE = 60.0  # seconds after which a worker of another host counts as dead, if its lock is free
_REPEATS = 5  # suggestions in a row that are known already, before one is drawn that is not
_FAILURES = 5  # trials in a row that fail, before a worker gives up
EXHAUSTED = "exhausted"  # an attribute of the study: no other parameters are left
_VALID = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True)
class Assignment:
    """A trial that this worker is to run."""

    number: int
    overrides: tuple[str, ...]


class Pause:
    """Nothing to run now, but the last trials are still with other workers, who may die."""


class TrialQueue:
    """The trials as one worker sees them. It runs at most one at a time: the one that `next` has given."""

    def __init__(self, search: Search, study: optuna.Study, folder: Path, iterations: int) -> None:
        self.search, self.study, self.folder, self.iterations = search, study, folder, iterations
        (folder / "trials").mkdir(parents=True, exist_ok=True)
        self.sampler = study.sampler
        self.gate = FileLock(folder / "gate.lock", thread_local=False)
        self.last = FileLock(folder / "last.lock", thread_local=False)
        self.trial: optuna.Trial | None = None
        self.held: _Held | None = None
        self.failures: list[str] = []
        self.exhausted = False

    @property
    def number(self) -> int:
        """The number of the trial at hand."""
        assert self.trial is not None
        return self.trial.number

    @property
    def ended(self) -> bool:
        """Whether all trials have ended and there are enough, or no more to be found."""
        trials = self.study.get_trials(deepcopy=False)
        enough = self.exhausted or sum(map(valid, trials)) >= self.search.trials
        return enough and not any(t.state == TrialState.RUNNING for t in trials)

    # --- taking a trial

    def next(self) -> Assignment | Pause | None:
        """A trial to run; a pause; or None when there is nothing left for this worker."""
        if len(self.failures) >= _FAILURES:
            raise UserError(f"{_FAILURES} trials in a row have failed. The last one: {self.failures[-1]}")
        with self.gate:
            trials = self.study.get_trials(deepcopy=False)
            number = self._adopt(trials)
            if number is None:
                number = self._ask(trials)
            left = self._running()
        if number is not None:
            assert self.trial is not None
            self.last.release(force=True)
            return Assignment(number, tuple(self.trial.user_attrs["overrides"]))
        return Pause() if left and self._stays() else None

    def _stays(self) -> bool:
        """One worker waits for the last trials to end; the others need not keep their machines."""
        try:
            self.last.acquire(timeout=0)
        except Timeout:
            return False
        return True

    def _running(self) -> bool:
        return bool(self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))

    def _adopt(self, trials: Sequence[FrozenTrial]) -> int | None:
        """The number of a trial whose worker has died, from now on this worker's."""
        for frozen in trials:
            if frozen.state == TrialState.RUNNING and self._hold(frozen.number):
                trial, attempts = optuna.Trial(self.study, frozen._trial_id), frozen.user_attrs.get("attempts", 0)
                if attempts > self.search.retries:
                    self._fail(trial, f"its worker has died {attempts} times")
                elif self._begin(trial, attempts + 1):
                    return trial.number
        return None

    def _ask(self, trials: Sequence[FrozenTrial]) -> int | None:
        """The number of a new trial, unlike all before; known ones are told what is known of them."""
        taken = sum(t.state == TrialState.RUNNING or valid(t) for t in trials)
        repeats = 0
        while taken < self.search.trials and not self.exhausted:
            if repeats == _REPEATS:
                self.study.sampler = self._explorer()
            trial = self.study.ask()
            self._hold(trial.number)
            new = self._begin(trial, 1)
            self.study.sampler = self.sampler
            if new:
                return trial.number
            repeats += 1
            if repeats > _REPEATS:
                self.exhausted = True
                self.study.set_user_attr(EXHAUSTED, True)
        return None

    def _explorer(self) -> optuna.samplers.BaseSampler:
        """What finds a point that has not been tried, if there is one."""
        finite = all(parameter.finite for parameter in self.search.space)
        return Exhaustive() if finite else optuna.samplers.RandomSampler()

    def _begin(self, trial: optuna.Trial, attempts: int) -> bool:
        """Give a trial its values (an adopted one its own); False if they are known, which ends it."""
        values = space.suggest(self.search.space, trial, self.iterations)
        same = self._same(trial)
        if same is not None:
            self._repeat(trial, same)
            return False
        self.trial = trial
        self.note(overrides=space.overrides(values), attempts=attempts)
        return True

    def _same(self, trial: optuna.Trial) -> FrozenTrial | None:
        """An earlier trial of the same parameters."""
        for other in self.study.get_trials(deepcopy=False):
            if other.number != trial.number and other.params == trial.params and "duplicate_of" not in other.user_attrs:
                return other
        return None

    def _repeat(self, trial: optuna.Trial, same: FrozenTrial) -> None:
        """Tell a trial what is known of its parameters; of those that still run, nothing is known yet."""
        trial.set_user_attr("duplicate_of", same.number)
        if same.state not in _VALID:
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            for step, value in same.intermediate_values.items():
                trial.report(value, step)
            complete = same.state == TrialState.COMPLETE
            self.study.tell(trial, same.values if complete else None, state=same.state)
        self._let_go()

    # --- the trial at hand

    def note(self, **facts: Any) -> None:
        """Keep facts about the trial."""
        assert self.trial is not None
        for name, value in facts.items():
            self.trial.set_user_attr(name, value)

    def report(self, step: int, value: float) -> bool:
        """Report a rung's score; whether the trial is to stop here."""
        assert self.trial is not None
        known = self.study.get_trials(deepcopy=False)[self.trial.number].intermediate_values
        if step not in known:  # from the worker that had it before
            self.trial.report(value, step)
        self.note(attempts=1)  # it gets on
        return self.trial.should_prune()

    def complete(self, values: Sequence[float]) -> None:
        """The trial has come to its end."""
        self._tell(TrialState.COMPLETE, values)

    def prune(self) -> None:
        """The trial has been stopped early."""
        self._tell(TrialState.PRUNED, None)

    def fail(self, error: str) -> None:
        """The trial cannot be run."""
        assert self.trial is not None
        self._fail(self.trial, error)
        self.trial = None
        self.failures.append(error)

    def release(self) -> None:
        """Leave the trial to another worker, or to this one when it comes back; that does not count as an attempt."""
        if self.trial is not None:
            self.note(attempts=int(self.trial.user_attrs["attempts"]) - 1)
            self.trial = None
        self._let_go()

    def _tell(self, state: TrialState, values: Sequence[float] | None) -> None:
        assert self.trial is not None
        self.study.tell(self.trial, values, state=state)
        self.trial, self.failures = None, []
        self._let_go()

    def _fail(self, trial: optuna.Trial, error: str) -> None:
        trial.set_user_attr("error", error)
        self.study.tell(trial, state=TrialState.FAIL)
        self._let_go()

    # --- signs of life

    def _hold(self, number: int) -> bool:
        """Make a running trial this worker's, unless it is a living one's or has ended meanwhile."""
        held = _Held.take(self.folder / "trials", number)
        if held is None:
            return False
        if self.study.get_trials(deepcopy=False)[number].state != TrialState.RUNNING:
            held.free()
            return False
        self.held = held
        return True

    def _let_go(self) -> None:
        if self.held is not None:
            self.held.free()
            self.held = None


def valid(trial: FrozenTrial) -> bool:
    """Whether a trial counts: it has come to its end or was pruned, and is no repetition of another."""
    return trial.state in _VALID and "duplicate_of" not in trial.user_attrs


class _Held:
    """The lock of a trial, and a thread that shows that its holder lives."""

    def __init__(self, lock: FileLock, beat: Path) -> None:
        self.lock, self.beat, self.ended = lock, beat, threading.Event()
        write_atomic(beat, json.dumps({"host": platform.node(), "pid": os.getpid()}))
        threading.Thread(target=self._beat, daemon=True).start()

    @classmethod
    def take(cls, folder: Path, number: int) -> "_Held | None":
        """Hold a trial's lock; None if somebody holds it, or is alive on a host that locks do not reach."""
        lock, beat = FileLock(folder / f"{number}.lock", thread_local=False), folder / f"{number}.json"
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
        if _elsewhere(beat):
            lock.release()
            return None
        return cls(lock, beat)

    def free(self) -> None:
        """Let others take it."""
        self.ended.set()
        self.beat.unlink(missing_ok=True)
        self.lock.release()

    def _beat(self) -> None:
        while not self.ended.wait(BEAT):
            try:
                os.utime(self.beat)
            except FileNotFoundError:
                return


def held(folder: Path, number: int) -> bool:
    """Whether a living worker has a trial."""
    lock = folder / "trials" / f"{number}.lock"
    return records.held(lock) or (lock.exists() and _elsewhere(lock.with_suffix(".json")))


def _elsewhere(beat: Path) -> bool:
    try:
        return json.loads(beat.read_text())["host"] != platform.node() and time.time() - beat.stat().st_mtime < SILENCE
    except (FileNotFoundError, ValueError):
        return False
