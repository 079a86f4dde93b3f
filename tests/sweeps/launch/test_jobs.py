"""From plans to jobs and arrays: what fuses, what waits for what, and that every stage is in the right place."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iris.errors import UserError
from sweeps.launch.arrays import lanes, make_arrays
from sweeps.launch.jobs import Job, make_jobs
from sweeps.launch.launchers import Launcher, load_launcher
from sweeps.study.plan import Plan
from tests.sweeps.tiny import tiny_plan

SLURM = load_launcher("slurm")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Four methods and two seeds, two iterations each; nothing is cached."""
    methods = {"method": ["sft", "spin", "iris", "t_spin"]}
    return tiny_plan(tmp_path_factory.mktemp("plan"), grid=methods, seeds=[0, 1], base={"iterations": 2})[0]


def kinds(job: Job) -> list[str]:
    return [stage.kind for stage in job.stages]


def named(plan: Plan, jobs: Sequence[Job], kind: str, user: int) -> list[Job]:
    """Return the jobs of a kind that are for one experiment alone."""
    return [job for job in jobs if job.kind == kind and job.users == (user,)]


def test_a_chain_fuses_into_one_job_an_iteration(whole: Plan) -> None:
    jobs = make_jobs(whole, SLURM)
    spin = next(n for n, e in enumerate(whole.experiments) if "method=spin" in e.name and "seed=0" in e.name)
    first, second = named(whole, jobs, "train", spin)
    assert kinds(first) == ["train"]
    assert kinds(second) == ["generate", "score", "score", "train"]
    assert second.needs == (jobs.index(first),)
    assert [kinds(jobs[n]) for n in first.needs] == [["score", "score"]], "shared with iris alone"


def test_no_job_waits_for_an_evaluation(whole: Plan) -> None:
    jobs = make_jobs(whole, SLURM)
    evaluations = [n for n, job in enumerate(jobs) if "evaluate" in kinds(job)]
    assert all(kinds(jobs[n]) == ["evaluate"] and len(jobs[n].needs) == 1 for n in evaluations)
    assert not {n for job in jobs for n in job.needs} & set(evaluations)
    assert len(evaluations) == 2 * (2 + 4 * 2), "base and sft of each seed, and every iteration"


def test_shared_stages_are_one_job_for_all(whole: Plan) -> None:
    jobs = make_jobs(whole, SLURM)
    shared = [job for job in jobs if kinds(job) == ["base", "data", "sft"]]
    assert [len(job.users) for job in shared] == [4, 4]
    assert all(job.needs == () for job in shared)


def test_one_experiment_alone_is_one_job_an_iteration(tmp_path: Path) -> None:
    plan, _ = tiny_plan(tmp_path, base={"method": "iris", "iterations": 2})
    jobs = [job for job in make_jobs(plan, SLURM) if job.kind != "evaluate"]
    first = ["base", "data", "sft", "generate", "score", "score", "train"]
    assert [kinds(job) for job in jobs] == [first, ["generate", "score", "score", "train"]]


def test_other_resources_are_another_job(whole: Plan) -> None:
    launcher = load_launcher("slurm", ["stages.generate.gpus=4", "stages.evaluate.minutes=10"])
    jobs = make_jobs(whole, launcher)
    for job in jobs:
        assert {launcher.of(kind).gpus for kind in kinds(job)} == {job.resources.gpus}
        assert ("generate" in kinds(job)) == (job.resources.gpus == 4)
    assert {job.resources.minutes for job in jobs if kinds(job) == ["evaluate"]} == {10}


def test_time_limits_split_no_jobs_and_the_longest_applies(whole: Plan) -> None:
    launcher = load_launcher("slurm", ["stages.train.minutes=2000", "stages.data={minutes: 5}"])
    jobs = make_jobs(whole, launcher)
    assert [kinds(job) for job in jobs] == [kinds(job) for job in make_jobs(whole, SLURM)]
    assert {job.resources.minutes for job in jobs if "train" in kinds(job)} == {2000}


# --- whatever the plan

RESOURCES = ["stages.generate.gpus=2", "stages.train.gpus=2", "stages.score.nodes=2", "stages.evaluate.gpus=0"]


def check(plan: Plan, jobs: Sequence[Job], launcher: Launcher, wanted: set[str]) -> None:
    owner = {stage.id: n for n, job in enumerate(jobs) for stage in job.stages}
    assert set(owner) == wanted and sum(len(job.stages) for job in jobs) == len(wanted), "each once"
    above: list[set[int]] = []
    for n, job in enumerate(jobs):
        assert all(m < n for m in job.needs)
        above.append(set(job.needs).union(*(above[m] for m in job.needs)))
        done = set(plan.cached)
        for stage in job.stages:
            assert launcher.of(stage.kind).same(job.resources)
            for name in (parent.id for parent in stage.parents):
                assert name in done or name in job.awaited or owner[name] in above[n]
                assert name in done or name not in job.awaited or name not in wanted
            done.add(stage.id)
        assert not any(m in above[k] for m in job.needs for k in job.needs), "no need is implied by another"


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_stage_is_in_one_job_after_what_it_needs(whole: Plan, data: Any) -> None:
    names = list(whole.stages)
    cached = set(data.draw(st.lists(st.sampled_from(names), unique=True), "cached"))
    left = [name for name in names if name not in cached]
    others = set(data.draw(st.lists(st.sampled_from(left), unique=True), "left to others") if left else [])
    launcher = load_launcher("slurm", data.draw(st.lists(st.sampled_from(RESOURCES), unique=True), "resources"))
    plan = Plan("some", whole.experiments, whole.stages, whole.users, cached)
    jobs = make_jobs(plan, launcher, set(left) - others)
    check(plan, jobs, launcher, set(left) - others)

    most = data.draw(st.integers(1, 9), "largest array")
    arrays = make_arrays(jobs, most)
    place = {n: (a, index) for a, array in enumerate(arrays) for index, n in enumerate(array.jobs)}
    assert sorted(n for array in arrays for n in array.jobs) == list(range(len(jobs)))
    for a, array in enumerate(arrays):
        assert 1 <= len(array.jobs) <= most
        assert len({str(jobs[n].resources) for n in array.jobs}) == 1
        for index, n in enumerate(array.jobs):
            if array.like is None:
                assert (array.needs, array.awaited) == (jobs[n].needs, jobs[n].awaited)
                assert all(place[m][0] < a for m in array.needs)
            else:
                assert array.like < a and jobs[n].awaited == ()
                assert [place[m] for m in jobs[n].needs] == [(array.like, index)]
                assert len(array.jobs) == len(arrays[array.like].jobs)

    count = data.draw(st.integers(1, 5), "lanes")
    assert set(lanes(jobs, count)) <= set(range(count))


def test_equal_jobs_are_few_arrays(tmp_path: Path) -> None:
    plan, _ = tiny_plan(tmp_path, grid={"method": ["spin", "iris"]}, seeds=list(range(30)), base={"iterations": 3})
    jobs = make_jobs(plan, SLURM)
    assert len(jobs) == 30 * (3 + 2 * 2 * 3)
    arrays = make_arrays(jobs, 1001)
    assert len(arrays) == 1 + 2 + 2 * 2 * 3, "a shared job a seed, its evaluations, and two of each method's iterations"
    assert all(array.like is not None for array in arrays[1:])
    assert len(make_arrays(jobs, 10)) == 3 * len(arrays)


def test_lanes_are_used_evenly(tmp_path: Path) -> None:
    plan, _ = tiny_plan(tmp_path, grid={"method": ["spin", "iris"]}, seeds=[0, 1, 2, 3], base={"iterations": 3})
    jobs = make_jobs(plan, SLURM)
    chosen = lanes(jobs, 4)
    assert max(chosen.count(lane) for lane in range(4)) - min(chosen.count(lane) for lane in range(4)) <= 2


# --- launchers


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("slurn", [], r"launcher=slurn: choose one of inline, local, slurm.*Did you mean 'slurm'"),
        ("slurm", ["partitoin=x"], r"launcher.partitoin: no such key"),
        ("slurm", ["resources.partitoin=x"], r"launcher.resources.partitoin: .* Did you mean 'partition'"),
        ("slurm", ["stages.tarin.gpus=1"], r"launcher.stages.tarin: .* Did you mean 'train'"),
        ("slurm", ["stages.train.gpu=1"], r"launcher.stages.train.gpu: .* Did you mean 'gpus'"),
        ("slurm", ["resources.gpus=many"], r"launcher.resources.gpus=many: expected a whole number at least 0"),
        ("slurm", ["stages.train.gpus=many"], r"launcher.stages.train.gpus=many: expected a whole number at least 0"),
        ("slurm", ["stages.train=8"], r"launcher.stages.train=8: expected a mapping of gpus, nodes"),
        ("slurm", ["resources.nodes=0"], r"launcher.resources.nodes=0: expected a whole number at least 1"),
        ("slurm", ["max_parallel=0"], r"launcher.max_parallel=0: expected a whole number at least 1"),
        ("slurm", ["signal_seconds=600", "resources.minutes=10"], r"launcher.signal_seconds=600: not below"),
        ("slurm", ["resources.sbatch={array: 0-3}"], r"sbatch.array: sets --array: set launcher.max_parallel instead"),
        ("slurm", ["resources.sbatch.job_name=x"], r"sbatch.job_name: sets --job-name, which the launcher needs"),
        ("slurm", ['resources.partition="a\\nb"'], r"launcher.resources.partition: .* one line"),
        ("slurm", ["resources.sbatch={'x y': 1}"], r"expected the long name of an option of sbatch"),
        ("slurm", ["resources={nodes: 2"], r"launcher.resources=\{nodes: 2: expected ',' or '\}'"),
        ("local", ["resources.nodes=2"], r"launcher=local has one node"),
        ("local", ["max_parallel=2"], r"launcher.max_parallel: no such key. Choose from"),
        ("nowhere.yaml", [], r"nowhere.yaml: no such file"),
    ],
)
def test_a_wrong_launcher_is_one_clear_line(name: str, changes: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        load_launcher(name, changes)
    assert "\n" not in str(error.value)


def test_a_launcher_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "ours.yaml").write_text(
        "{kind: slurm, resources: {partition: gpu, gpus: 2}, stages: {data: {gpus: 0}}}"
    )
    launcher = load_launcher(str(tmp_path / "ours.yaml"), ["stages.train.nodes=3"])
    assert (launcher.of("data").gpus, launcher.of("train").gpus, launcher.of("train").nodes) == (0, 2, 3)
    assert {launcher.of(kind).partition for kind in ("data", "train")} == {"gpu"}
