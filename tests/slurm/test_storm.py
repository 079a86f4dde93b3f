"""A study under every fault ends with the files of an undisturbed one."""

from collections.abc import Callable
from pathlib import Path

from iris.store import Store
from sweeps.launch.launchers import load_launcher
from sweeps.launch.submit import Request, launch
from sweeps.state.job_status import LIVE

from ..sweeps.tiny import files, tiny_plan, write_study
from .cluster import Cluster
from .storm import QUICK, Storm

# Some seconds of steps in every job, with a checkpoint after each, so that every fault hits a running job.
SLOW = {"iterations": 2, "train.epochs": 30, "train.sft.epochs": 60, "execution.checkpoint_minutes": 0.0}
GRID = {"method": ["spin", "iris"], "seed": [0, 1]}


def test_a_study_in_a_storm(start_cluster: Callable[..., Cluster], tmp_path: Path) -> None:
    cluster = start_cluster(extra=QUICK)
    study = write_study(tmp_path, grid=GRID, base=SLOW)
    arguments = [f"study={study}", "launcher.resources.cpus=1", "launcher.resources.gpus=1"]
    storm = Storm(cluster, Store(tmp_path / "store"), arguments)
    storm.run()
    assert set(storm.completions().values()) == {1}, "each stage was completed once"
    assert not {job.status.state for job in storm.jobs()}.intersection(LIVE)

    other = {"store": str(tmp_path / "other"), "output": str(tmp_path / "other")}
    plan, _ = tiny_plan(tmp_path, grid=GRID, base=SLOW | other)
    assert launch(Request(plan), load_launcher("inline"), Store(tmp_path / "other")).failures == 0
    assert files(storm.store) == files(Store(tmp_path / "other"))
