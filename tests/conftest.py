"""Marks for make test-fast, and a skipped test is not a passed one: where CI is set, it fails the run."""

import os
from pathlib import Path

import pytest

# Slurm, a browser, several processes, documents, or whole experiments.
SLOW = (
    "slurm/",
    "test_add_a_method.py",
    "test_benchmarks.py",
    "test_docs.py",
    "test_packaging.py",
    "analysis/cli/",
    "analysis/show/test_page.py",
    "iris/evaluation/test_identity.py",
    "iris/execution/",
    "iris/model/test_families.py",
    "iris/stages/",
    "iris/test_compose.py",
    "iris/test_experiment.py",
    "iris/test_faults.py",
    "iris/test_outdated.py",
    "iris/test_preflight.py",
    "iris/test_run.py",
    "iris/test_validate.py",
    "iris/training/",
    "sweeps/cli/test_changed.py",
    "sweeps/cli/test_plan.py",
    "sweeps/cli/test_search.py",
    "sweeps/launch/test_local.py",
    "sweeps/search/test_space.py",
    "sweeps/search/test_trial.py",
    "sweeps/search/test_trial_queue.py",
    "sweeps/search/test_worker.py",
    "sweeps/study/test_experiments.py",
    "sweeps/study/test_plan.py",
)
_skipped: list[str] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    root = Path(__file__).parent
    for item in items:
        if item.path.relative_to(root).as_posix().startswith(SLOW):
            item.add_marker("slow")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped:
        _skipped.append(report.nodeid)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if _skipped and os.environ.get("CI"):
        print(f"\nskipped, which CI does not allow: {', '.join(sorted(set(_skipped)))}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
