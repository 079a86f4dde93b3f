"""One experiment from its base model to a table: every method, and what may vary."""

import itertools
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from iris import compose, plan, run, table
from iris.config import Config, identity
from iris.errors import UserError
from iris.execution import runner
from iris.execution.progress import Progress
from iris.method.registry import METHODS
from iris.plan import Chain
from iris.store import Artifact, Store

Tiny = Callable[..., Config]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for the experiments of this file that need no fresh one."""
    return tmp_path_factory.mktemp("shared") / "store"


def chain_of(config: Config) -> Chain:
    return plan.chain(identity(config))


def artifacts(config: Config) -> list[Artifact]:
    """The finished artifacts of an experiment, each with its checksums compared."""
    store = Store(config.store)
    return [store.get(stage.kind, stage.key) for stage in chain_of(config).stages]


def weights(policy: Artifact) -> dict[str, torch.Tensor]:
    """The weights of a policy."""
    (file,) = policy.folder.rglob("*.safetensors")
    return load_file(file)


def artifacts_of(config: Config, kind: str) -> list[Artifact]:
    return [a for a in artifacts(config) if a.manifest["kind"] == kind]


def steps(artifact: Artifact) -> list[dict[str, float]]:
    return [json.loads(line) for line in (artifact.folder / "steps.jsonl").read_text().splitlines()]


def stored(store: Path) -> set[Path]:
    """The folders of all artifacts, shards included."""
    return {path.parent for path in store.glob("*/*/manifest.json")}


def check_rows(lines: list[table.Line], labels: list[str], *, alpha: bool, gap: bool, pretrained: bool = False) -> None:
    assert [line.label for line in lines] == labels
    for line in lines:
        assert 0 <= line.score <= 1 and line.tasks == {"tiny_sums": line.score}
        assert line.stderr is not None and math.isfinite(line.stderr)
        assert line.seconds > 0
        trained = line.label.startswith("t=")
        assert (line.tokens > 0) == (trained or (line.label == "start" and not pretrained))
        assert (line.alpha is not None) == (alpha and trained)
        assert (line.gap is not None) == (gap and trained)
        assert line.gap is None or line.gap >= 0


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_from_its_base_model_to_a_table(
    tiny: Tiny, shared: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    config = tiny(method, shared)
    needed = METHODS[method]
    lines = run.run(config)
    check_rows(lines, ["base", "start", "t=1", "t=2"], alpha=needed.alpha, gap=needed.players > 0)

    assert runner.missing(chain_of(config), Store(shared)) == []
    for policy in artifacts_of(config, "train"):
        records = steps(policy)
        rounds = 2 if config.method.rounds > 1 and "-s0-t2-" in policy.key else 1
        assert len(records) == policy.results["steps"] == round(20 * rounds / 8)
        assert all(math.isfinite(value) for record in records for value in record.values())
        assert ("alpha" in records[0]) == needed.alpha
        assert ("synthetic_ratio" in records[0]) == (needed.players > 0)
        assert ("synthetic_logp" in records[0]) == (needed.synthetic and needed.players == 0)
        assert records[0]["learning_rate"] > 0
    policies = [weights(a) for kind in ("sft", "train") for a in artifacts_of(config, kind)]
    for earlier, later in itertools.pairwise(policies):
        assert all(not torch.equal(later[name], earlier[name]) for name in later), "trained"

    printed = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed if line.startswith("│")]
    assert [row[0] for row in rows] == ["base", "start", "t=1", "t=2"]
    shown = [(row[2] != "–", row[3] != "–", row[4] != "–") for row in rows]
    own = (needed.alpha, needed.players > 0, True)
    assert shown == [(False, False, False), (False, False, True), own, own]


def test_the_reports_say_what_the_table_says(tiny: Tiny, shared: Path) -> None:
    config = tiny("iris", shared)
    lines = run.run(config)
    folder = Path(config.output) / chain_of(config).name
    report = json.loads((folder / "table.json").read_text())
    assert report["rows"] == [vars(line) for line in lines]
    assert report["evaluation_documents"] == 4 and report["contaminated"] == 0
    assert [(s["kind"], s["key"]) for s in report["stages"]] == [(s.kind, s.key) for s in chain_of(config).stages]
    markdown = (folder / "table.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in markdown[4:]] == [line.label for line in lines]
    assert "hidden_size: 16" in (folder / "config.yaml").read_text()
    log = (folder / "run.log").read_text()
    assert all(f" done {kind} " in log for kind in ("generate", "score", "train", "evaluate"))


def test_the_same_command_again_computes_nothing_and_imports_nothing(
    settings: list[str], tiny: Tiny, shared: Path
) -> None:
    before = run.run(tiny("iris", shared))
    there = {path: path.stat().st_mtime_ns for folder in stored(shared) for path in folder.iterdir()}
    program = """if True:
        import json, sys
        from iris import run
        status = run.main(sys.argv[1:])
        print(json.dumps([status, sorted(sys.modules)]))"""
    command = ["+method=iris", *settings, f"store={shared}", f"output={shared / 'outputs'}"]
    done = subprocess.run([sys.executable, "-c", program, *command], capture_output=True, text=True, check=True)
    printed, result = done.stdout.rstrip().rsplit("\n", 1)
    status, modules = json.loads(result)
    assert status == 0 and done.stderr == ""
    assert [line.label in printed for line in before] == [True] * 4
    heavy = {"torch", "transformers", "datasets", "lm_eval", "peft", "accelerate", "pandas", "reasoning_gym"}
    assert not heavy & set(modules)
    assert not [name for name in modules if name.startswith("iris.stages")]
    assert {path: path.stat().st_mtime_ns for folder in stored(shared) for path in folder.iterdir()} == there


def test_execution_changes_neither_keys_nor_results(tiny: Tiny, shared: Path, tmp_path: Path) -> None:
    usual = tiny("iris", shared)
    other = tiny(
        "iris",
        tmp_path / "store",
        {
            "execution.slots": 3,
            "execution.micro_batch_tokens": 64,
            "execution.gradient_checkpointing": True,
            "execution.checkpoint_minutes": 0.0,
            "execution.tracking": ["tensorboard"],
        },
    )
    run.run(usual)
    run.run(other)
    assert {(f.parent.name, f.name) for f in stored(tmp_path / "store")} <= {
        (f.parent.name, f.name) for f in stored(shared)
    }
    assert [s.key for s in chain_of(usual).stages] == [s.key for s in chain_of(other).stages]
    for mine, theirs in zip(artifacts_of(usual, "train"), artifacts_of(other, "train"), strict=True):
        for ours, others in zip(steps(mine), steps(theirs), strict=True):
            assert others == pytest.approx(ours, rel=1e-3, abs=1e-5)
    assert list((Path(other.output) / chain_of(other).name).rglob("events.out.tfevents.*")), "tensorboard files"
    final = [weights(artifacts_of(config, "train")[-1]) for config in (usual, other)]
    torch.testing.assert_close(*final, rtol=1e-3, atol=1e-5)


def test_two_samples_of_space_and_two_rounds_of_spin(tiny: Tiny, shared: Path) -> None:
    space = tiny("space", shared, {"method.samples": 2, "method.loss.mu": 2.0})
    check_rows(run.run(space), ["base", "start", "t=1", "t=2"], alpha=False, gap=True)
    assert [a.results["responses"] for a in artifacts_of(space, "generate")] == [40, 40]
    spin = tiny("spin", shared, {"method.rounds": 2})
    check_rows(run.run(spin), ["base", "start", "t=1", "t=2"], alpha=False, gap=True)
    assert [a.results["samples"] for a in artifacts_of(spin, "train")] == [20, 40]
    first = next(stage for stage in chain_of(tiny("spin", shared)).stages if stage.kind == "train")
    assert artifacts_of(spin, "train")[0].key == first.key, "the first round is that of plain SPIN"


def test_lora_trains_adapters_that_the_next_iteration_goes_on_with(tiny: Tiny, shared: Path) -> None:
    config = tiny("iris", shared, {"train.lora.rank": 2})
    check_rows(run.run(config), ["base", "start", "t=1", "t=2"], alpha=True, gap=True)
    base = chain_of(config).stages[0]
    policies = [*artifacts_of(config, "sft"), *artifacts_of(config, "train")]
    adapters = [weights(policy) for policy in policies]
    for policy, adapter in zip(policies, adapters, strict=True):
        assert policy.results["adapter_of"] == ["base", base.key]
        assert not (policy.folder / "model").exists()
        assert {min(t.shape) for t in adapter.values()} == {2}
    assert adapters[0].keys() == adapters[2].keys()
    assert all(not torch.equal(adapters[0][name], adapters[2][name]) for name in adapters[0])


def test_no_iterations_are_the_supervised_stage_alone(tiny: Tiny, shared: Path) -> None:
    config = tiny("iris", shared, {"iterations": 0})
    check_rows(run.run(config), ["base", "start"], alpha=False, gap=False)


@pytest.fixture(scope="module")
def pretrained(tiny: Tiny, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The supervised policy as somebody's local model that needs no supervised stage."""
    run.run(tiny("iris", shared, {"iterations": 0}))
    (sft,) = artifacts_of(tiny("iris", shared, {"iterations": 0}), "sft")
    folder = tmp_path_factory.mktemp("local") / "my model"
    shutil.copytree(sft.folder / "model", folder)
    return {"model.source": "pretrained", "model.path": str(folder), "model.sft": False}


def test_a_local_model_and_nested_sizes_share_their_shards(
    tiny: Tiny, tmp_path: Path, pretrained: dict[str, Any]
) -> None:
    store = tmp_path / "store"
    small, large = (tiny("spin", store, pretrained | {"data.size": size, "iterations": 1}) for size in ("10", "20"))
    check_rows(run.run(small), ["start", "t=1"], alpha=False, gap=True, pretrained=True)
    before = stored(store)
    check_rows(run.run(large), ["start", "t=1"], alpha=False, gap=True, pretrained=True)
    shards = {path.name for path in before if "-0000-" in path.name}
    assert len(shards) == 3, "responses, and scores of both kinds"
    for kind in ("generate", "score"):
        for artifact in artifacts_of(large, kind):
            first, second = artifact.manifest["inputs"]["shards"]
            assert first in shards and "-0001-" in second
    new = {path.name for path in stored(store) - before}
    assert len([name for name in new if "-0000-" in name]) == 0
    assert len([name for name in new if "-0001-" in name]) == 3


def test_alpha_may_change_with_every_step(tiny: Tiny, shared: Path) -> None:
    params = {"start": 2.0, "end": 0.5}
    changes = {"schedule.name": "linear", "schedule.per": "step", "schedule.params": params, "train.epochs": 2.0}
    config = tiny("iris", shared, changes)
    lines = run.run(config)
    alphas = [record["alpha"] for policy in artifacts_of(config, "train") for record in steps(policy)]
    assert alphas == pytest.approx([2.0 - 1.5 * step / 9 for step in range(10)])
    assert [line.alpha for line in lines[2:]] == pytest.approx([alphas[4], alphas[9]])


def test_the_adaptive_schedule_follows_the_smoothed_gap(tiny: Tiny, shared: Path) -> None:
    params = {"alpha_min": 0.5, "alpha_max": 3.0, "tau": 0.2, "ema": 0.5}
    # At a low temperature responses are far likelier than annotations: the gap is not zero.
    config = tiny("iris", shared, {"schedule.params": params, "generate.temperature": 0.1})
    lines = run.run(config)[2:]
    first, second = gaps = [line.gap or 0.0 for line in lines]
    assert min(gaps) > 0.01
    expected = [0.5 + 2.5 * (1 - math.exp(-gap / 0.2)) for gap in (first, 0.5 * first + 0.5 * second)]
    assert [line.alpha for line in lines] == pytest.approx(expected)
    scores = {a.key: a.results["per_token"] for a in artifacts_of(config, "score")}
    for row, gap in zip(chain_of(config).rows[2:], gaps, strict=True):
        real, synthetic = (scores[stage.key] for stage in row.scores)
        assert gap == pytest.approx(synthetic - real)


def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not(tiny: Tiny, shared: Path, tmp_path: Path) -> None:
    usual = tiny("t_spin", shared)
    run.run(usual)
    again = tiny("t_spin", tmp_path / "store")
    run.run(again)
    for mine, theirs in zip(artifacts(usual), artifacts(again), strict=True):
        assert mine.manifest["files"] == theirs.manifest["files"], mine.key
    other = tiny("t_spin", shared, {"seed": 1})
    run.run(other)
    for mine, theirs in zip(artifacts_of(usual, "train"), artifacts_of(other, "train"), strict=True):
        assert mine.manifest["files"] != theirs.manifest["files"]


def test_the_embedded_default_in_small(tiny: Tiny, tmp_path: Path) -> None:
    sizes = ["data.size=16", "data.generator.train=20", "train.sft.epochs=2", "iterations=1", "evaluate.limit=2"]
    folders = [f"store={tmp_path / 'store'}", f"output={tmp_path / 'output'}"]
    config = compose.load(["+method=iris", *sizes, *folders, "execution.tracking=[]", "execution.device=cpu"])
    lines = run.run(config)
    assert [line.label for line in lines] == ["base", "start", "t=1"]
    assert list(lines[0].tasks) == ["embedded"]
    (data,) = artifacts_of(config, "data")
    assert (data.results["rows"], data.results["source_rows"], data.results["unusable"]) == (16, 20, {})


# --- methods and schedules under other names

OWN = """
from iris.method.objectives import t_spin
from iris.method.registry import needs

@needs(proto=True, players=0, first={"beta": 0.0})
def triplets(real, synthetic, proto, *, alpha=1.0, beta=0.1):
    return t_spin(real, synthetic, proto, alpha=alpha, beta=beta)

def following(position, gap, *, low, ema=0.0):
    return low + gap + position
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_functions.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_functions", raising=False)
    return "own_functions"


def test_a_copy_of_a_triplet_method_trains_the_same(tiny: Tiny, shared: Path, own: str) -> None:
    changes = {"method.samples": 2}
    usual = tiny("t_spin", shared, changes)
    copy = tiny("t_spin", shared, changes | {"method.name": "triplets", "method.function": f"{own}:triplets"})
    run.run(usual)
    run.run(copy)
    for one, other in zip(artifacts_of(usual, "train"), artifacts_of(copy, "train"), strict=True):
        assert one.key != other.key and steps(one) == steps(other)
        assert all(torch.equal(value, weights(other)[name]) for name, value in weights(one).items())


def test_a_second_schedule_that_follows_the_gap(tiny: Tiny, shared: Path, own: str) -> None:
    schedule = {"name": "following", "function": f"{own}:following", "params": {"low": 0.5, "ema": 0.25}}
    changes = {f"schedule.{name}": value for name, value in schedule.items()} | {"generate.temperature": 0.3}
    config = tiny("iris", shared, changes)  # cold: the policy prefers its own responses
    run.run(config)
    first, second = (artifact.results for artifact in artifacts_of(config, "train"))
    assert first["gap_smoothed"] == first["gap"] > 0
    assert second["gap_smoothed"] == pytest.approx(0.25 * first["gap"] + 0.75 * second["gap"])
    assert [r["alpha"] - r["gap_smoothed"] for r in (first, second)] == pytest.approx([0.5, 1.5])


def test_a_function_that_changed_after_the_plan_does_not_run(
    tiny: Tiny, shared: Path, own: str, tmp_path: Path
) -> None:
    config = tiny("t_spin", shared, {"method.name": "triplets", "method.function": f"{own}:triplets"})
    chain = chain_of(config)
    (tmp_path / f"{own}.py").write_text(OWN.replace("beta=beta", "beta=2 * beta"))
    with pytest.raises(UserError, match=r"own_functions:triplets has changed since this was planned"):
        runner.run_chain(chain, runner.Context(Store(shared), config.execution, Progress(quiet=True)))
