"""The benchmarks run, and what they compare is the same computation."""

import itertools
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks"))

from trl.trainer import utils as trl_utils  # noqa: E402

import plain  # noqa: E402
import rollouts  # noqa: E402
import scoring  # noqa: E402
import step  # noqa: E402
import trl_step  # noqa: E402
import workload  # noqa: E402

TINY = workload.SHAPES["tiny"]


class Losses:
    """In place of the meter: the loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def step(self, batch: Iterable[Any], loss: float) -> None:
        self.values.append(loss)


@pytest.fixture(scope="module")
def work() -> list[list[Any]]:
    return workload.batches(workload.rows(12, TINY.vocabulary), 4, 3)


@pytest.fixture(scope="module")
def ours(work: list[list[Any]]) -> list[float]:
    losses: Any = Losses()
    step.ours(work, TINY, losses, "spin", "ddp")
    return losses.values


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("peer", ["trl", "trl compact", "plain"])
def test_peers_take_the_steps_that_we_take(
    peer: str, cached: bool, work: list[list[Any]], ours: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same loss in every step, so also the same gradient, clipping and update."""
    monkeypatch.setattr(trl_utils, "_use_triton", trl_utils._use_triton)  # put back afterwards
    losses: Any = Losses()
    if peer == "plain":
        plain.plain(work, TINY, losses, cached=cached)
    else:
        trl_step.trl(work, TINY, losses, cached=cached, compact=peer == "trl compact")
    assert len(set(ours)) == len(ours) == 3
    assert losses.values == pytest.approx(ours, rel=1e-4)
    assert max(abs(a - b) for a, b in itertools.pairwise(ours)) > 100 * 1e-4


@pytest.mark.parametrize("variant", ["padded", "one-by-one"])
def test_scores_agree_with_a_forward_pass(variant: str, work: list[list[Any]]) -> None:
    with torch.inference_mode():
        expected, found = (scoring.VARIANTS[v](workload.model(TINY))(work[0]) for v in (variant, "packed"))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("variant", rollouts.VARIANTS)
def test_every_engine_samples_the_lengths_that_are_imposed(variant: str) -> None:
    tasks = rollouts.tasks(4, TINY.vocabulary)
    tasks = [rollouts.Task(task.prompt, 2 + n, task.hint) for n, task in enumerate(tasks)]
    assert rollouts.VARIANTS[variant](workload.model(TINY))(tasks) == 2 + 3 + 4 + 5


def test_the_quick_run_prints_a_table_of_80_columns() -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(ROOT / "benchmarks" / "run.py"), "--quick"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    for name in ("iris (spin)", "TRL DPOTrainer, defaults", "iris (slots)", "continuous batching"):
        row = next(line for line in lines if line.startswith(name))
        assert float(row[28:37]) > 0
        assert float(row[53:60]) > 0.1
