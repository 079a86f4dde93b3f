"""A worker of a search: a job that runs trials from the queue until there are enough."""

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
from iris.plan import VERSIONS, Stage
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

    @property
    def kinds(self) -> set[str]:
        """Return the kinds of stages that it may run."""
        return set(VERSIONS)

    def run(self, heartbeat: Heartbeat) -> None:
        """Run trials until there are enough, or until other workers run the last ones. Raises Interrupted."""
        if self._needed():
            runner.configure_threads(self.execution)
            Worker(self, heartbeat).run()

    def _needed(self) -> bool:
        """Whether this is no spare, or replaces a worker that has failed."""
        workers = self.folder.launch.settings.get("workers")  # of a local launch, which alone has spares
        states = [self.folder.state(n) for n in range(self.number)]
        failed = sum(state is not None and state.state == FAILED for state in states)
        return workers is None or self.number < workers + failed


class Worker:
    """All processes of a worker run this together; only the main one has the queue."""

    def __init__(self, work: SearchWork, heartbeat: Heartbeat) -> None:
        self.work, self.heartbeat = work, heartbeat
        store, self.world = CountingStore(work.store, heartbeat), World.join(work.execution.device)
        self.folder = folder_of(store, work.search)
        self.search = read(self.folder)
        self.context = Context(store, work.execution, FollowedProgress(heartbeat), self.world)
        self.queue: TrialQueue | None = None

    def run(self) -> None:
        """Run trials until nothing is left for this worker."""
        with storage_errors(self.context.store.root):
            self._preflight()
            self.queue = open_queue(self.search, self.folder, self.work.number) if self.world.main else None
            while (assignment := self.world.broadcast(self.queue.next() if self.queue else None)) is not None:
                self._check_interruption()
                if isinstance(assignment, Pause):
                    time.sleep(_POLL)
                else:
                    self._run_assignment(assignment)
            if self.queue and self.queue.ended:
                search_records.report(self.search, self.queue.study, self.context.store, self.folder)

    def _preflight(self) -> None:
        from iris.execution.device import check_precision, find_device

        if self.world.main:
            self.context.store.prepare()
        check_precision(compose.load(self.search.base).train.precision, find_device(self.work.execution.device))

    def _check_interruption(self) -> None:
        if self.world.broadcast(interruption.requested()):
            raise Interrupted("stopped between two stages")

    def _run_assignment(self, assignment: Assignment) -> None:
        """Run one trial. An error in its experiment fails the trial; any other ends the worker and leaves the trial."""
        queue = self.queue
        try:
            self._run_trial(assignment)
        except UserError as error:
            # All processes raise what a check finds; an error with a cause may be of this process alone.
            storage = isinstance(error.__cause__, OSError)
            if queue:
                queue.release() if storage else queue.fail(f"{' '.join(assignment.overrides)}: {error}")
            if storage or (error.__cause__ is not None and self.world.size > 1):
                raise
            self.context.progress.say(f"trial {assignment.number} failed: {error}")
        except (KeyboardInterrupt, Interrupted):
            if queue:
                queue.release()
            raise
        except Exception as error:
            if queue:
                queue.note(error=last_line(error))  # counts as an attempt
            raise
        finally:
            self._record()

    def _record(self) -> None:
        """Record the trials for `status`."""
        if self.queue:
            records = Records(self.context.store)
            search_records.write_study(records, self.work.launch, self.search, self.queue.study, self.folder)

    def _run_trial(self, assignment: Assignment) -> None:
        trial = make_trial(self.search, assignment.overrides)
        if self.queue:
            self.context.progress.say(f"trial {assignment.number}: {' '.join(assignment.overrides)}")
            self.queue.note(stages=trial.record(), job=f"{self.work.launch}/{self.work.number}")
            self._record()
        context = replace(self.context, folder=Path(trial.config.output).expanduser().absolute() / trial.name)
        if self.search.pruner["name"] != "none" and self._pruned(trial, context):
            return
        ensure([*trial.path, trial.whole], context, self._begin)
        values = [score(context.artifact(trial.whole), self.search.objective)]
        if self.search.cost:
            values.append(costs.of_record(context.store, trial.record(), self.search.cost))
        if self.queue:
            self.queue.complete(values)
            context.progress.say(f"  whole evaluation: {' '.join(f'{value:.4f}' for value in values)}")

    def _pruned(self, trial: Trial, context: Context) -> bool:
        """Run the trial rung by rung; return, on every process, whether it was pruned."""
        for step, rung in enumerate(trial.rungs, 1):
            ensure([*rung.stages, rung.part], context, self._begin)
            value = score(context.artifact(rung.part), self.search.objective)
            stop = self.world.broadcast(self.queue.report(step, value) if self.queue else None)
            if self.queue:
                context.progress.say(f"  {rung.label}: {value:.4f}{', pruned' if stop else ''}")
            if stop:
                if self.queue:
                    self.queue.prune()
                return True
        return False

    def _begin(self, stage: Stage) -> None:
        """Stop before the next stage if asked to."""
        self._check_interruption()
        self.heartbeat.begin(stage.id)


def open_queue(search: Search, folder: Path, number: int) -> TrialQueue:
    """Open the queue of the search in a folder for worker `number`."""
    storage = optuna_study.open_storage(folder, optuna_study.database())
    _, values = next(space.corners(search.space, 1))
    trial = make_trial(search, space.overrides(values))
    pruner = optuna_study.make_pruner(search, len(trial.rungs))
    with FileLock(folder / "gate.lock", thread_local=False):
        study = optuna_study.open_study(search, storage, optuna.samplers.RandomSampler(), pruner)
    # Workers, and a worker that comes back, draw differently.
    study.sampler = optuna_study.make_sampler(search, seed=1000 * len(study.get_trials(deepcopy=False)) + number)
    return TrialQueue(search, study, folder, trial.config.iterations)
