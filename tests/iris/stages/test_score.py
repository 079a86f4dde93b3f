"""Scores and training agree on the log-probabilities of the same weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iris import plan, run
from iris.config import Config, identity
from iris.errors import UserError
from iris.execution import device
from iris.stages import score
from iris.store import Store
from iris.training.loop import START_TOLERANCE

Tiny = Callable[..., Config]


def first_ratios(config: Config) -> list[float]:
    """Run an experiment; return the ratio at the first step of each iteration."""
    run.run(config)
    trained = [stage for stage in plan.chain(identity(config)).stages if stage.kind == "train"]
    folders = [Store(config.store).get("train", stage.key).folder for stage in trained]
    records = [json.loads((folder / "steps.jsonl").read_text().splitlines()[0]) for folder in folders]
    for record in records:
        assert abs(record["real_ratio"]) < 0.01 and abs(record["synthetic_ratio"]) < 0.01
    return [record["start_ratio"] for record in records]


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_first_ratio_is_zero(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, rank: int
) -> None:
    monkeypatch.setattr(device, "_cpu_has_bfloat16", lambda: True)
    changes = {"train.precision": precision, "train.lora.rank": rank, "train.learning_rate": 1e-2}
    ratios = first_ratios(tiny("iris", tmp_path, changes))
    assert len(ratios) == 2 and max(ratios) < START_TOLERANCE[precision] / 10


def test_scores_of_other_weights_are_noticed(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored: Any = score._score
    monkeypatch.setattr(score, "_score", lambda *arguments: scored(*arguments) + 1.0)
    with pytest.raises(UserError, match="Before its first step this policy gives other log-probabilities"):
        first_ratios(tiny("spin", tmp_path, {"iterations": 1}))
