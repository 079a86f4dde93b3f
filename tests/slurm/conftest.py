"""Real Slurm: a cluster for all tests of a pytest worker, and private ones for the tests that break things."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .cluster import Cluster

StartCluster = Callable[..., Cluster]


def enter(monkeypatch: pytest.MonkeyPatch, cluster: Cluster) -> None:
    """Let this process, and what it starts, use the cluster for the rest of the test."""
    for name, value in cluster.variables.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Use `cluster`, which leaves it as it was."""
    with Cluster.start(tmp_path_factory.mktemp("slurm") / "c") as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Four nodes with two GPUs each and accounting, in this process's environment, without jobs."""
    enter(monkeypatch, shared_cluster)
    yield shared_cluster
    shared_cluster.cancel_all()
    shared_cluster.forget()


@pytest.fixture
def start_cluster(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Cluster]]:
    """`start_cluster(**options of Cluster.start)`: one of the test's own, in this process's environment."""
    started: list[Cluster] = []

    def start(**options: Any) -> Cluster:
        started.append(Cluster.start(tmp_path_factory.mktemp("slurm") / "c", **options))
        enter(monkeypatch, started[-1])
        return started[-1]

    yield start
    for cluster in started:
        cluster.stop()
