"""Trials without a controller: repetitions, retries, kills, and who stays for the last ones."""

import json
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from iris.errors import UserError
from sweeps.search.file import Search
from sweeps.search.lease import held
from sweeps.search.optuna_study import make_pruner, make_sampler, open_storage, open_study
from sweeps.search.space import read_space
from sweeps.search.trial_queue import Assignment, Pause, TrialQueue, valid

LEVELS = read_space({"a": {"low": 0, "high": 1, "step": 0.2, "per": "iteration"}}, "space")
RUNGS = 3
SEARCH = Search("s", (), LEVELS, trials=30)


def open_queue(search: Search, folder: Path, number: int = 0) -> TrialQueue:
    storage = open_storage(folder, None)
    study = open_study(search, storage, make_sampler(search, number), make_pruner(search, RUNGS))
    return TrialQueue(search, study, folder, RUNGS)


def take(queue: TrialQueue) -> Assignment:
    assignment = queue.next()
    assert isinstance(assignment, Assignment)
    return assignment


def play(queue: TrialQueue, assignment: Assignment, seconds: float = 0.0) -> None:
    """Run a trial whose score is the mean of its values so far."""
    values = json.loads(assignment.overrides[0].partition("=")[2])
    for step in range(1, RUNGS + 1):
        time.sleep(seconds)
        if queue.report(step, sum(values[:step]) / step):
            return queue.prune()
    queue.complete([sum(values) / RUNGS])


def finish(queue: TrialQueue) -> None:
    while isinstance(assignment := queue.next(), Assignment):
        play(queue, assignment)


def trials(queue: TrialQueue) -> list[FrozenTrial]:
    return queue.study.get_trials()


def check_ended(found: list[FrozenTrial], wanted: int) -> None:
    """As many valid trials as were asked for, each of other parameters, and none that is still under way."""
    counted = [trial for trial in found if valid(trial)]
    assert len(counted) == wanted
    assert len({tuple(trial.params.values()) for trial in counted}) == wanted
    assert not any(trial.state in (TrialState.RUNNING, TrialState.WAITING) for trial in found)


def test_one_worker_alone(tmp_path: Path) -> None:
    queue = open_queue(SEARCH, tmp_path)
    finish(queue)
    check_ended(trials(queue), 30)
    assert queue.ended and queue.next() is None
    more = open_queue(replace(SEARCH, trials=33), tmp_path)
    finish(more)
    check_ended(trials(more), 33)


def test_the_same_worker_draws_the_same_trials(tmp_path: Path) -> None:
    queues = [open_queue(replace(SEARCH, trials=12), tmp_path / name) for name in ("a", "b")]
    for queue in queues:
        finish(queue)
    assert [t.params for t in trials(queues[0])] == [t.params for t in trials(queues[1])]
    assert [t.values for t in trials(queues[0])] == [t.values for t in trials(queues[1])]


# --- repetitions


@pytest.mark.parametrize("sampler", ["tpe", "random", "cmaes", "grid"])
def test_a_small_space_is_searched_whole_and_then_ends(tmp_path: Path, sampler: str) -> None:
    space = read_space({"a": {"low": 0, "high": 1, "step": 0.5, "per": "iteration"}}, "space")
    queue = open_queue(replace(SEARCH, space=space, sampler={"name": sampler}, trials=100), tmp_path)
    finish(queue)
    check_ended(trials(queue), 3**RUNGS)
    assert queue.ended


def test_a_repetition_is_told_what_is_known_and_costs_nothing(tmp_path: Path) -> None:
    queue = open_queue(replace(SEARCH, trials=4), tmp_path)
    assignments = []
    for _ in range(2):
        assignments.append(take(queue))
        play(queue, assignments[-1])
    first = trials(queue)
    for trial in first:
        queue.study.enqueue_trial(trial.params)
    play(queue, take(queue))
    found = trials(queue)
    for trial in first:
        (same,) = [t for t in found if t.user_attrs.get("duplicate_of") == trial.number]
        assert same.values == trial.values and same.state == trial.state
        assert same.intermediate_values == trial.intermediate_values
        assert not valid(same)
    assert sum(map(valid, found)) == 3


def test_a_repetition_of_a_running_trial_does_not_run(tmp_path: Path) -> None:
    one, two = open_queue(SEARCH, tmp_path, 0), open_queue(SEARCH, tmp_path, 1)
    assignment = take(one)
    two.study.enqueue_trial(trials(one)[assignment.number].params)
    other = take(two)
    assert other.overrides != assignment.overrides
    (same,) = [t for t in trials(one) if "duplicate_of" in t.user_attrs]
    assert same.state == TrialState.FAIL and same.user_attrs["duplicate_of"] == assignment.number


def test_what_has_failed_is_not_tried_again(tmp_path: Path) -> None:
    queue = open_queue(SEARCH, tmp_path)
    assignment = take(queue)
    params = trials(queue)[assignment.number].params
    queue.fail("the loss is not finite")
    queue.study.enqueue_trial(params)
    assert take(queue).overrides != assignment.overrides
    failed = [t for t in trials(queue) if t.params == params]
    assert [t.state for t in failed] == [TrialState.FAIL, TrialState.FAIL]
    assert failed[0].user_attrs["error"] == "the loss is not finite"


def test_a_worker_whose_trials_all_fail_gives_up(tmp_path: Path) -> None:
    queue = open_queue(SEARCH, tmp_path)
    for n in range(4):
        take(queue)
        queue.fail(f"error {n}")
    play(queue, take(queue))
    for n in range(5):
        take(queue)
        queue.fail(f"error {n}")
    with pytest.raises(UserError, match=r"5 trials in a row have failed. The last one: error 4"):
        queue.next()


# --- workers that die


def _take_and_die(search: Search, folder: Path, rungs: int) -> None:
    queue = open_queue(search, folder, 7)
    take(queue)
    for step in range(1, rungs + 1):
        queue.report(step, 1.0)
    os.kill(os.getpid(), signal.SIGKILL)


def die(search: Search, folder: Path, rungs: int = 0) -> None:
    process = multiprocessing.get_context("fork").Process(target=_take_and_die, args=(search, folder, rungs))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_a_dead_workers_trial_is_taken_over_with_what_it_has_reported(tmp_path: Path) -> None:
    search = replace(SEARCH, trials=3)
    die(search, tmp_path, rungs=1)
    queue = open_queue(search, tmp_path)
    (left,) = trials(queue)
    assert left.state == TrialState.RUNNING and not held(tmp_path, 0)
    assignment = take(queue)
    assert assignment.number == 0 and held(tmp_path, 0)
    assert trials(queue)[0].params == left.params
    queue.report(1, 0.0)  # what was reported stays
    assert trials(queue)[0].intermediate_values == {1: 1.0}
    queue.complete([0.5])
    finish(queue)
    check_ended(trials(queue), 3)


def test_a_trial_that_kills_its_workers_is_given_up(tmp_path: Path) -> None:
    search = replace(SEARCH, trials=2, retries=1)
    die(search, tmp_path)
    die(search, tmp_path)
    queue = open_queue(search, tmp_path)
    finish(queue)
    found = trials(queue)
    check_ended(found, 2)
    assert found[0].state == TrialState.FAIL and found[0].user_attrs["error"] == "its worker has died 2 times"


def test_a_trial_that_gets_on_may_lose_more_workers(tmp_path: Path) -> None:
    search = replace(SEARCH, trials=1, retries=1)
    for rungs in (1, 2, 3):
        die(search, tmp_path, rungs)
    queue = open_queue(search, tmp_path)
    assert take(queue).number == 0


def test_a_worker_that_is_told_to_stop_leaves_its_trial_as_it_was(tmp_path: Path) -> None:
    search = replace(SEARCH, retries=0)
    for _ in range(4):
        queue = open_queue(search, tmp_path)
        assert take(queue).number == 0
        queue.release()
        assert not held(tmp_path, 0)


def test_a_trial_without_values_gets_them_from_the_worker_that_finds_it(tmp_path: Path) -> None:
    queue = open_queue(SEARCH, tmp_path)
    queue.study.ask()  # and then died
    assignment = take(queue)
    assert assignment.number == 0 and len(trials(queue)[0].params) == RUNGS


def test_a_worker_of_another_host_counts_as_alive_while_it_beats(tmp_path: Path) -> None:
    """On a file system whose locks do not reach other hosts."""
    one, two = open_queue(SEARCH, tmp_path, 0), open_queue(SEARCH, tmp_path, 1)
    take(one)
    one._release_lease()  # as it looks from there
    beat = tmp_path / "trials" / "0.json"
    beat.write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    assert held(tmp_path, 0)
    assert take(two).number == 1
    two.complete([0.0])
    os.utime(beat, (0, time.time() - 61))
    assert not held(tmp_path, 0)
    assert take(two).number == 0


def test_one_worker_stays_for_the_last_trials(tmp_path: Path) -> None:
    search = replace(SEARCH, trials=2)
    one, two, three, four = (open_queue(search, tmp_path, n) for n in range(4))
    first, second = take(one), take(two)
    assert isinstance(three.next(), Pause) and four.next() is None
    assert isinstance(three.next(), Pause), "as long as there are trials under way"
    play(one, first)
    assert one.next() is None
    two.fail("no")
    assert take(three).number == 2, "there is one trial too few now"
    assert isinstance(four.next(), Pause), "another one stays"
    play(three, Assignment(2, tuple(trials(three)[2].user_attrs["overrides"])))
    assert three.next() is None and four.next() is None and second.number == 1
    check_ended(trials(one), 2)


def _work(search: Search, folder: Path, number: int, log: Path) -> None:
    queue = open_queue(search, folder, number)
    dice = random.Random()
    while (assignment := queue.next()) is not None:
        if isinstance(assignment, Pause):
            time.sleep(0.1)
            continue
        with (log / f"{assignment.number}").open("a") as file:  # nobody else may have it now
            assert held(folder, assignment.number)
            file.write(f"{os.getpid()}\n")
        play(queue, assignment, dice.random() / 20)


def test_sixteen_workers_with_random_kills(tmp_path: Path) -> None:
    """Every one that dies is replaced, as launchers do, until the search has ended."""
    search, log = replace(SEARCH, trials=40, retries=20), tmp_path / "log"
    log.mkdir()
    open_queue(search, tmp_path)
    context, dice = multiprocessing.get_context("fork"), random.Random(3)
    workers: list[Any] = []
    kills, started = 0, time.monotonic()

    def start(number: int) -> None:
        workers.append(context.Process(target=_work, args=(search, tmp_path, number, log)))
        workers[-1].start()

    for n in range(16):
        start(n)
    while any(worker.is_alive() for worker in workers):
        assert time.monotonic() - started < 1500
        time.sleep(0.15)
        living = [worker for worker in workers if worker.is_alive()]
        taken = [path.read_text().split() for path in log.iterdir() if held(tmp_path, int(path.name))]
        busy = {int(pid) for pids in taken for pid in pids[-1:]}
        if living and kills < 30:  # in the middle of a trial, if there is one
            chosen = [worker for worker in living if worker.pid in busy] or living
            os.kill(dice.choice(chosen).pid, signal.SIGKILL)
            kills += 1
            start(16 + kills)
    for worker in workers:
        worker.join()
    assert Counter(worker.exitcode for worker in workers).keys() <= {0, -signal.SIGKILL}
    found = trials(open_queue(search, tmp_path))
    check_ended(found, 40)
    assert kills >= 10
    assert not [t for t in found if t.state == TrialState.FAIL and "duplicate_of" not in t.user_attrs]
    again = [len(set((log / str(t.number)).read_text().split())) for t in found if valid(t)]
    assert max(again) > 1, "some were taken over"


def test_a_queue_on_a_database(tmp_path: Path) -> None:
    search, url = replace(SEARCH, trials=5), f"sqlite:///{tmp_path / 'trials.db'}"
    study = open_study(search, open_storage(tmp_path, url), make_sampler(search, 0), make_pruner(search, RUNGS))
    queue = TrialQueue(search, study, tmp_path, RUNGS)
    finish(queue)
    check_ended(trials(queue), 5)
    assert isinstance(queue.study._storage, optuna.storages._CachedStorage)
