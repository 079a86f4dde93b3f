"""The throw-away cluster: what the tests of the launcher rely on, and that no process outlives it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .cluster import Cluster
from .daemon import alive, wait_for
from .storm import QUICK

StartCluster = Callable[..., Cluster]
OWNER = """\
import pathlib, sys, time
from tests.slurm.cluster import Cluster
from tests.slurm.daemon import wait_for
cluster = Cluster.start(pathlib.Path(sys.argv[1]), nodes=1, accounting=False)
job = cluster.submit("setsid nohup sleep 600 & echo started; sleep 600")
wait_for(lambda: cluster.output(job), "both of its processes")
print(*cluster.processes(), flush=True)
time.sleep(600)
"""


def test_a_job_runs_and_is_accounted_for(cluster: Cluster) -> None:
    job = cluster.submit("echo $SLURM_JOB_PARTITION")
    cluster.wait(job, "COMPLETED")
    assert cluster.output(job) == "low\n"
    account = ("sacct", "-n", "-X", "-P", "-o", "State", "-j", job)
    wait_for(lambda: cluster.run(*account) == "COMPLETED\n", "sacct")


def test_jobs_of_a_node_get_different_gpus(cluster: Cluster) -> None:
    script = "echo $CUDA_VISIBLE_DEVICES; sleep 600"
    jobs = [cluster.submit(script, "--gres=gpu:1", "--nodelist=node2") for _ in "ab"]
    wait_for(lambda: all(map(cluster.output, jobs)), "both to run")
    assert sorted(map(cluster.output, jobs)) == ["0\n", "1\n"]


def test_array_and_dependency(cluster: Cluster) -> None:
    array = cluster.submit("exit $((SLURM_ARRAY_TASK_ID / 2))", "--array=0-2")  # the last task fails
    after = cluster.submit(":", f"--dependency=afterok:{array}_0:{array}_1", "--kill-on-invalid-dep=yes")
    never = cluster.submit(":", f"--dependency=afterok:{array}", "--kill-on-invalid-dep=yes")
    cluster.wait(f"{array}_2", "FAILED")
    cluster.wait(after, "COMPLETED")
    cluster.wait(never, "CANCELLED")


def test_requeue(cluster: Cluster) -> None:
    job = cluster.submit("echo restarts: ${SLURM_RESTART_COUNT-none}; sleep 600", "--open-mode=append")
    wait_for(lambda: "restarts: none\n" in cluster.output(job), "the first run")
    cluster.run("scontrol", "requeue", job)
    cluster.again(job)
    wait_for(lambda: "restarts: 1\n" in cluster.output(job), "the second run")


def test_the_high_partition_preempts(cluster: Cluster) -> None:
    low = cluster.submit("sleep 600", "--gres=gpu:2", "--nodelist=node1")
    cluster.wait(low, "RUNNING")
    high = cluster.submit("sleep 1", "--gres=gpu:2", "--nodelist=node1", "--partition=high")
    cluster.wait(high, "COMPLETED")
    cluster.again(low)
    cluster.wait(low, "RUNNING")


def test_preemption_with_a_grace_time_sends_the_signal(start_cluster: StartCluster) -> None:
    cluster = start_cluster(nodes=1, accounting=False, grace=600)
    trap = "trap 'echo signalled; exit' USR2; echo ready; sleep 600 & wait"
    low = cluster.submit(trap, "--exclusive", "--signal=B:USR2@60")
    wait_for(lambda: cluster.output(low) == "ready\n", "the trap")
    high = cluster.submit(":", "--exclusive", "--partition=high")
    cluster.wait(high, "COMPLETED")
    assert cluster.output(low).startswith("ready\nsignalled\n")


def test_a_drained_node_takes_no_job(cluster: Cluster) -> None:
    cluster.drain(3)
    assert cluster.states()[2] == "drain"
    job = cluster.submit(":", "--nodelist=node3")
    wait_for(lambda: "node3" in cluster.jobs()[job].reason, "the reason to wait")
    cluster.resume(3)
    cluster.wait(job, "COMPLETED")


def starts(cluster: Cluster, job: str) -> int:
    return cluster.output(job).count("start\n")


def test_nodes_die(start_cluster: StartCluster) -> None:
    cluster = start_cluster(nodes=3, accounting=False, extra=QUICK)
    jobs = [cluster.submit("echo start; sleep 600", "--exclusive", "--open-mode=append") for _ in "abc"]
    wait_for(lambda: [starts(cluster, job) for job in jobs] == [1, 1, 1], "the first runs")
    at = {job: cluster.at(job) for job in jobs}
    crashed, downed, going_on = jobs
    cluster.down(at[downed])
    cluster.wait(downed, "PENDING")
    cluster.empty(at[downed])
    cluster.resume(at[downed])
    cluster.kill_node(at[going_on], crash=False)
    cluster.start_node(at[going_on])
    cluster.kill_node(at[crashed])
    assert not cluster.nodes[at[crashed] - 1].processes()
    cluster.wait(crashed, "PENDING")
    assert cluster.states()[at[crashed] - 1] == "down*"
    cluster.start_node(at[crashed])
    for job in (crashed, downed):
        cluster.start_now(job)
    wait_for(lambda: [starts(cluster, job) for job in (crashed, downed)] == [2, 2], "the second runs")
    assert starts(cluster, going_on) == 1
    assert cluster.jobs()[going_on].state == "RUNNING"


def test_a_new_controller_takes_over(start_cluster: StartCluster, tmp_path: Path) -> None:
    cluster = start_cluster(nodes=1, accounting=False, extra=("MessageTimeout=5",))
    job = cluster.submit(f"until [ -e {tmp_path}/end ]; do sleep 0.1; done")
    cluster.wait(job, "RUNNING")
    cluster.save()
    cluster.kill_controller()
    with pytest.raises(subprocess.CalledProcessError):
        cluster.jobs()
    cluster.start_controller()
    assert cluster.jobs()[job].state == "RUNNING"
    (tmp_path / "end").touch()
    cluster.wait(job, "COMPLETED")


def test_without_accounting_sacct_fails(start_cluster: StartCluster) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        start_cluster(nodes=1, gpus=0, accounting=False).run("sacct")


def test_nothing_outlives_stop(start_cluster: StartCluster) -> None:
    cluster = start_cluster(nodes=2)
    job = cluster.submit("setsid nohup sleep 600 & echo started; sleep 600", "--nodes=2")
    wait_for(lambda: cluster.output(job), "both of its processes")
    processes = cluster.processes()
    assert len(processes) > 6
    cluster.stop()
    assert not cluster.processes()
    assert not any(map(alive, processes))


def test_nothing_outlives_a_killed_owner(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("slurm") / "c"
    command = [sys.executable, "-c", OWNER, str(folder)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout
        processes = [int(word) for word in owner.stdout.readline().split()]
        assert len(processes) > 4
        assert all(map(alive, processes))
        owner.kill()
    wait_for(lambda: not any(map(alive, processes)), "the end of all")


def test_missing_programs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"sbatch.*`make programs`"):
        Cluster.start(tmp_path / "c")
