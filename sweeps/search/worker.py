"""A worker of a search: a job that takes trials from the book and runs them until there are enough."""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import optuna
from filelock import FileLock

from iris import compose
from iris.errors import UserError
from iris.execution import interruption, runner
from iris.execution.interruption import Interrupted
from iris.execution.runner import Context
from iris.execution.world import World
from iris.plan import Stage
from iris.store import storage_errors
from sweeps.launch.worker import CountingStore, Work
from sweeps.search import costs, optuna_study, space
from sweeps.search import records as search_records
from sweeps.search.file import Search, folder_of, read
from sweeps.search.trial import Trial, ensure, make_trial, score
from sweeps.search.trial_queue import Assignment, Pause, TrialQueue
from sweeps.state.heartbeat import FollowedProgress, Heartbeat, last_line
from sweeps.state.records import FAILED, Records

_POLL = 2.0  # seconds between two looks at whether the last trials have ended


@dataclass(frozen=True)
class SearchWork(Work):
    """Worker `number` of a search; it has no stages of its own."""

    search: str = ""
    first: int = 0  # the number of the launch's first worker
    workers: int = 1  # of the launch; those beyond only stand in for dead ones

    def run(self, heartbeat: Heartbeat) -> None:
        """Run trials until there are enough, or until other workers have the last ones. Raises Interrupted."""
        if self._needed():
            runner.configure_threads(self.execution)
            Worker(self, heartbeat).run()

    def _needed(self) -> bool:
        states = [self.folder.state(n) for n in range(self.first, self.number)]
        dead = sum(state is not None and state.state == FAILED for state in states)
        return self.number < self.first + self.workers + dead


class Worker:
    """All processes of a worker run this together; only the main one speaks with Optuna."""

    def __init__(self, work: SearchWork, heartbeat: Heartbeat) -> None:
        self.work, self.heartbeat = work, heartbeat
        store, self.world = CountingStore(work.store, heartbeat), World.join(work.execution.device)
        self.folder = folder_of(store, work.search)
        self.search = read(self.folder)
        self.context = Context(store, work.execution, FollowedProgress(heartbeat), self.world)

    def run(self) -> None:
        """Run trials until there is nothing left for this worker."""
        with storage_errors(self.context.store.root):
            self._preflight()
            book = open_book(self.search, self.folder, self.work.number) if self.world.main else None
            while (turn := self.world.broadcast(book.next() if book else None)) is not None:
                self._check_interruption()
                if isinstance(turn, Pause):
                    time.sleep(_POLL)
                else:
                    self._turn(turn, book)
            if book and book.ended:
                search_records.report(self.search, book.study, self.context.store, self.folder)

    def _preflight(self) -> None:
        from iris.evaluation.catalog import select
        from iris.execution.device import check_precision, find_device
        from iris.training import loop

        config = compose.load(self.search.base)
        if self.world.main:
            self.context.store.prepare()
        check_precision(config.train.precision, find_device(config.execution.device))
        loop.check_trackers(config.execution.tracking)
        select(config.evaluate.tasks, [Path(f) for f in config.evaluate.include])

    def _check_interruption(self) -> None:
        if self.world.broadcast(interruption.requested()):
            raise Interrupted("stopped between two stages")

    def _turn(self, turn: Assignment, book: TrialQueue | None) -> None:
        """One trial. What is wrong with it fails it; anything else ends the worker and leaves the trial to others."""
        try:
            self._trial(turn, book)
        except UserError as error:
            # What is found out beforehand all processes meet; what has happened (it has a cause), maybe only this one.
            storage = isinstance(error.__cause__, OSError)
            if book:
                book.release() if storage else book.fail(f"{' '.join(turn.overrides)}: {error}")
            if storage or (error.__cause__ is not None and self.world.size > 1):
                raise
            self.context.progress.say(f"trial {turn.number} failed: {error}")
        except (KeyboardInterrupt, Interrupted):
            if book:
                book.release()
            raise
        except Exception as error:
            if book:
                book.note(error=last_line(error))  # an attempt; those who find the trial know more
            raise
        finally:
            self._show(book)

    def _show(self, book: TrialQueue | None) -> None:
        """Let `status` know how the trials stand."""
        if book:
            records = Records(self.context.store)
            search_records.write_study(records, self.work.launch, self.search, book.study, self.folder)

    def _trial(self, turn: Assignment, book: TrialQueue | None) -> None:
        trial = make_trial(self.search, turn.overrides)
        if book:
            self.context.progress.say(f"trial {turn.number}: {' '.join(turn.overrides)}")
            book.note(stages=trial.record(), job=f"{self.work.launch}/{self.work.number}")
            self._show(book)
        context = replace(self.context, folder=Path(trial.config.output).expanduser().absolute() / trial.name)
        if self.search.pruner["name"] != "none" and self._pruned(trial, context, book):
            return
        ensure([*trial.path, trial.whole], context, self._begin)
        values = [score(context.artifact(trial.whole), self.search.objective)]
        if self.search.cost:
            values.append(costs.of_record(context.store, trial.record(), self.search.cost))
        if book:
            book.complete(values)
            context.progress.say(f"  whole evaluation: {' '.join(f'{value:.4f}' for value in values)}")

    def _pruned(self, trial: Trial, context: Context, book: TrialQueue | None) -> bool:
        """Run the trial rung by rung; whether it was stopped on the way. All processes get the same verdict."""
        for step, rung in enumerate(trial.rungs, 1):
            ensure([*rung.stages, rung.part], context, self._begin)
            value = score(context.artifact(rung.part), self.search.objective)
            stop = self.world.broadcast(book.report(step, value) if book else None)
            if book:
                context.progress.say(f"  {rung.label}: {value:.4f}{', pruned' if stop else ''}")
            if stop:
                if book:
                    book.prune()
                return True
        return False

    def _begin(self, stage: Stage) -> None:
        """Before each stage."""
        self._check_interruption()
        self.heartbeat.begin(stage.id)


def open_book(search: Search, folder: Path, number: int) -> TrialQueue:
    """The book of the search in a folder, as worker `number` sees it."""
    storage = optuna_study.open_storage(folder, optuna_study.database())
    _, values = next(space.corners(search.space, 1))
    seen = make_trial(search, space.overrides(values))
    pruner = optuna_study.make_pruner(search, len(seen.rungs))
    with FileLock(folder / "gate.lock", thread_local=False):
        study = optuna_study.open_study(search, storage, optuna.samplers.RandomSampler(), pruner)
    # Workers, and a worker that comes back, draw differently.
    study.sampler = optuna_study.make_sampler(search, seed=1000 * len(study.get_trials(deepcopy=False)) + number)
    return TrialQueue(search, study, folder, seen.config.iterations)
