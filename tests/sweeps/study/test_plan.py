"""The plan: every stage once, cached or missing, with its users; what it costs; why a stage runs."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from iris.errors import UserError
from iris.plan import VERSIONS, Stage
from iris.store import Store
from sweeps.cost.estimate import Estimate, check_budget, estimate
from sweeps.cost.formula import CPU, GPU
from sweeps.study.declare import points
from sweeps.study.experiments import compose_all
from sweeps.study.file import load_study
from sweeps.study.plan import Plan, make_plan
from sweeps.study.presets import names
from sweeps.study.why import why

COMMIT = "0123456789" * 4
HUB = (f"model.revision={COMMIT}", f"data.revision={COMMIT}")
TINY = {"data": "embedded", "data.size": 100, "iterations": 1, "execution.device": "cpu"}
COST = {"seconds": 10.0, "cpu_seconds": 10.0, "gpu_seconds": 0.0, "tokens": 0, "processes": 1}

Planner = Callable[..., Plan]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "store")
    made.prepare()
    return made


@pytest.fixture
def planned(tmp_path: Path, store: Store) -> Planner:
    """`planned({section: …}, changes)`: the plan of a study with these sections on `store`."""

    def make(content: Mapping[str, Any] | str, *changes: str) -> Plan:
        path = tmp_path / "mine.yaml"
        if not isinstance(content, str):
            tiny = {key: value for key, value in TINY.items() if key not in content.get("grid", {})}
            sections = dict(content) | {"base": tiny | content.get("base", {})}
            path.write_text(yaml.safe_dump(sections, sort_keys=False))
        study = load_study(content if isinstance(content, str) else str(path), changes)
        return make_plan(compose_all(points(study)), store, study.name)

    return make


def finish(store: Store, stage: Stage, results: Mapping[str, Any] | None = None, **changes: Any) -> None:
    """Leave an artifact of a stage as if it had been computed; `changes` are of its identity."""
    manifest = {
        "kind": stage.kind,
        "key": stage.key if not changes else f"{stage.name}-{abs(hash(json.dumps(changes))):012x}"[: len(stage.key)],
        "name": stage.name,
        "identity": {**stage.identity, **changes},
        "inputs": stage.input_keys,
        "results": dict(results or {}),
        "cost": COST,
        "provenance": {},
    }
    with store.claim(stage.kind, str(manifest["key"])) as claim:
        assert claim is not None
        (claim.new / "file").write_bytes(b"x" * 1000)
        store.commit(stage.kind, str(manifest["key"]), claim, manifest)


def of_kind(plan: Plan, kind: str) -> list[Stage]:
    return [stage for stage in plan.stages.values() if stage.kind == kind]


GRID = {"grid": {"method": ["iris", "spin"], "data.size": [100, 200]}, "base": {"iterations": 1}}


# --- the plan


def test_every_stage_is_there_once_after_its_inputs_with_its_users(planned: Planner) -> None:
    plan = planned(GRID)
    assert len(plan.experiments) == 4
    assert {stage.id for e in plan.experiments for stage in e.chain.stages} == set(plan.stages)
    done: set[str] = set()
    for name, stage in plan.stages.items():
        assert done.issuperset(parent.key for parent in stage.parents)
        assert name == stage.id
        assert plan.users[name] == [n for n, e in enumerate(plan.experiments) if stage in e.chain.stages]
        done.add(stage.key)
    assert plan.users[of_kind(plan, "base")[0].id] == [0, 1, 2, 3]
    assert [plan.users[s.id] for s in of_kind(plan, "sft")] == [[0, 2], [1, 3]]
    assert all(len(plan.users[s.id]) == 1 for s in of_kind(plan, "train"))


def test_what_is_in_the_store_is_cached_and_the_rest_missing_in_order(planned: Planner, store: Store) -> None:
    plan = planned(GRID)
    assert plan.missing == list(plan.stages.values())
    for stage in plan.missing[:3]:
        finish(store, stage)
    finish(store, of_kind(plan, "sft")[0], epochs=99.0)  # of another study
    again = planned(GRID)
    assert again.cached == {s.id for s in plan.missing[:3]}
    assert [s.id for s in again.missing] == [s.id for s in plan.missing[3:]]


@pytest.mark.parametrize("study", names("study"))
def test_every_shipped_study_can_be_planned(planned: Planner, store: Store, study: str) -> None:
    plan = planned(study, *(HUB if study != "embedded" else ()))
    assert len({e.name for e in plan.experiments}) == len(plan.experiments) >= 20
    assert len({e.chain.name for e in plan.experiments}) == len(plan.experiments), "no two compute the same"
    found = estimate(plan, store)
    assert found.machine is (CPU if study == "embedded" else GPU)
    assert found.hours < (1 if study == "embedded" else 5000)


def test_data_efficiency_shares_the_supervised_stage_of_each_size(planned: Planner) -> None:
    plan = planned("data_efficiency", *HUB)
    assert len(plan.experiments) == 105
    assert sorted(len(plan.users[s.id]) for s in of_kind(plan, "sft")) == [7] * 15
    assert len({plan.experiments[n].config.data.size for n in plan.users[of_kind(plan, "sft")[0].id]}) == 1


def test_a_model_of_the_hub_out_of_reach_is_one_line(planned: Planner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "/nowhere")
    with pytest.raises(UserError, match=r"Mistral|zephyr.*model\.revision=<40 hexadecimal digits>") as caught:
        planned("methods", HUB[1])
    assert "\n" not in str(caught.value)
    assert planned("methods", *HUB).stages, "named commits need no hub"


# --- what it costs


def by_kind(found: Estimate) -> dict[str, float]:
    return {kind.kind: kind.hours for kind in found.kinds}


def test_training_takes_the_measured_time_per_pair(planned: Planner, store: Store) -> None:
    """Of 64 pairs of (160, 300, 250) tokens on a model of 3.1 billion parameters: 1.87 s at 45 % of an H100's peak."""
    study = {"base": {"method": "spin", "model": "qwen2_5_3b", "data": "ultrachat", "data.size": "26k"} | NO_CPU}
    hours = by_kind(estimate(planned(study, *HUB), store))
    seconds = hours["train"] * 3600 - 36  # less start
    pairs = 2 * 26_000  # of two epochs
    assert seconds / pairs * 64 == pytest.approx(1.87 * 0.45 / 0.40, rel=0.1)


NO_CPU = {"execution.device": "auto", "iterations": 1}


def test_cost_follows_what_it_depends_on(planned: Planner, store: Store) -> None:
    def cost(*changes: str) -> dict[str, float]:
        base = {"method": "spin", "model": "qwen2_5_3b", "data": "ultrachat"} | NO_CPU
        return by_kind(estimate(planned({"base": base}, *HUB, *changes), store))

    plain = cost("data.size=26k")
    assert cost("data.size=52k")["train"] == pytest.approx(2 * plain["train"], rel=0.02)
    assert cost("data.size=26k", "train.epochs=1")["train"] == pytest.approx(plain["train"] / 2, rel=0.05)
    assert cost("data.size=26k", "train.lora.rank=8")["train"] == pytest.approx(plain["train"] * 2 / 3, rel=0.05)
    assert cost("data.size=26k", "method.samples=3")["generate"] > 2 * plain["generate"]
    assert cost("data.size=26k", "generate.engine=vllm")["generate"] < plain["generate"] / 3
    assert cost("data.size=26k", "evaluate.limit=10")["evaluate"] < plain["evaluate"] / 5
    assert cost("data.size=26k", "evaluate.tasks=[gsm8k]")["evaluate"] < plain["evaluate"] / 3
    assert cost("data.size=26k", "model=mistral_7b")["train"] > 2 * plain["train"]


def test_sharing_saves_what_experiments_alone_would_pay(planned: Planner, store: Store) -> None:
    together = estimate(planned(GRID), store)
    alone = sum(
        estimate(planned(GRID, f"method={method}", f"data.size={size}"), store).hours
        for method in ("iris", "spin")
        for size in (100, 200)
    )
    assert together.hours + together.shared == pytest.approx(alone)
    assert together.shared > 0
    assert together.prefixes == together.nested == together.cached == 0


def test_iterations_in_common_are_a_saving_of_their_own(planned: Planner, store: Store) -> None:
    levels = {"grid": {"schedule.levels": [[0.5, 1.0], [0.5, 1.5]]}}
    base = {"base": {"method": "iris", "schedule": "levels", "iterations": 2}}
    plan = planned(levels | base)
    together, alone = estimate(plan, store), estimate(planned(levels | base, "schedule.levels=[0.5,1.0]"), store)
    assert [len(plan.users[stage.id]) for stage in of_kind(plan, "train")] == [2, 1, 1]
    assert together.hours + together.shared + together.prefixes == pytest.approx(2 * alone.hours)
    assert together.shared > 0 and together.prefixes > 0


def test_nested_subsets_pay_for_their_own_prompts_alone(planned: Planner, store: Store) -> None:
    """Where the policy is one, as that of a checkpoint without a supervised stage."""
    base = {"method": "spin", "model": "zephyr_7b_sft_full", "data": "ultrachat"} | NO_CPU

    def found(*sizes: str) -> Estimate:
        return estimate(planned({"base": base, "grid": {"data.size": list(sizes)}}, *HUB), store)

    both, large, small = found("50k", "26k"), found("50k"), found("26k")
    start = 44 / 3600
    assert by_kind(both)["generate"] == pytest.approx(by_kind(large)["generate"] + start, rel=1e-3)
    assert both.nested == pytest.approx(by_kind(small)["generate"] + by_kind(small)["score"] - 3 * start, rel=0.02)
    assert large.nested == small.nested == 0


def test_finished_stages_calibrate_the_formula(planned: Planner, store: Store) -> None:
    study = {"base": {"method": "spin"}, "seeds": [0, 1, 2]}
    before = estimate(planned(study), store)
    assert before.measured == {}
    plan = planned(study)
    seed0 = plan.experiments[0].chain.stages
    for stage in seed0:
        rows = {"rows": 100, "prompt_tokens": 1000, "response_tokens": 3000} if stage.kind == "data" else {}
        finish(store, stage, rows)
    after = estimate(planned(study), store)
    assert set(after.measured) == set(VERSIONS)
    assert sum(after.measured.values()) <= 4 * len(VERSIONS)
    per_stage = {kind.kind: kind.hours / kind.missing * 3600 for kind in after.kinds if kind.missing}
    assert per_stage["train"] == pytest.approx(10)
    assert per_stage["sft"] == pytest.approx(10), "the other seeds' data are taken to be as long as the finished ones"
    assert {kind.kind: kind.stored / kind.missing for kind in after.kinds}["sft"] == pytest.approx(1000)
    assert after.cached == pytest.approx(10 * len(seed0) / 3600, rel=0.3)


def test_stages_of_another_study_are_like_those_of_the_same_name(planned: Planner, store: Store) -> None:
    study = {"base": {"method": "spin"}, "seeds": [0]}
    plan = planned(study)
    finish(store, of_kind(plan, "train")[0], epochs=plan.stages[of_kind(plan, "train")[0].id].identity["epochs"] * 2)
    found = estimate(planned({"base": {"method": "spin"}, "seeds": [5]}), store)
    assert found.measured == {"train": 1}
    assert 5 < by_kind(found)["train"] * 3600 < 10, "it had twice the epochs, and started once"


def test_the_longest_chain_and_its_devices(planned: Planner, store: Store) -> None:
    plan = planned({"base": {"method": "spin", "iterations": 2}, "seeds": [0, 1]})
    found = estimate(plan, store)
    assert found.longest < found.hours * 3600 / 1.8, "two seeds run side by side"
    halved = estimate(plan, store, lambda kind: 2)
    assert halved.longest == pytest.approx(found.longest / 2)
    assert halved.hours == found.hours


def test_the_budget_refuses_what_costs_more(planned: Planner, store: Store) -> None:
    found = estimate(planned("methods", *HUB), store)
    check_budget(found, found.hours + 1)
    with pytest.raises(UserError, match=r"budget_gpu_hours=100: .*hours \(train .*Reduce the study"):
        check_budget(found, 100)


def test_a_model_whose_size_nobody_knows_is_said_to_be_assumed(planned: Planner, store: Store) -> None:
    study = {
        "base": {"method": "spin", "model": "pretrained", "model.path": "owner/thing", "data": "ultrachat"} | NO_CPU
    }
    assert estimate(planned(study, *HUB), store).notes == ["pretrained: size unknown, assumed 7 billion parameters"]
    named = estimate(planned(study, *HUB, "model.path=owner/Thing-1.5B-v2"), store)
    assert named.notes == ["pretrained: 1.5 billion parameters, from its name"]


def test_a_local_model_has_the_size_of_its_configuration(planned: Planner, store: Store, tmp_path: Path) -> None:
    qwen = {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16}
    qwen |= {"num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(qwen))
    study = {"base": {"method": "spin", "model": "pretrained", "model.path": str(tmp_path / "model")} | NO_CPU}
    found = estimate(planned(study), store)
    assert found.notes == []
    train = next(kind for kind in found.kinds if kind.kind == "train")
    assert train.stored == pytest.approx(4 * 3.0857e9, rel=0.001), "Qwen2.5-3B has 3.09 billion parameters; float32"


# --- why a stage runs


def test_why_names_the_nearest_artifact_and_every_difference(planned: Planner, store: Store) -> None:
    plan = planned({"base": {"method": "spin"}, "seeds": [0]})
    for stage in plan.stages.values():
        finish(store, stage)
    changed = planned({"base": {"method": "spin"}, "seeds": [0]}, "train.sft.epochs=7", "train.learning_rate=3e-4")
    old, new = of_kind(plan, "train")[0], of_kind(changed, "train")[0]
    text = why(changed, store, new.key)
    assert f"nearest finished one is train/{old.key}" in text
    assert re.search(r"^  learning_rate: 0\.0001 there, 0\.0003 here$", text, re.MULTILINE)
    assert re.search(rf"^  policy: sft/{of_kind(plan, 'sft')[0].key} there", text, re.MULTILINE)
    assert re.search(r"^    epochs: 20 there, 7 here$", text, re.MULTILINE)
    assert text.count("epochs: 20 there, 7 here") == 1, "said once, though several inputs follow from it"
    assert "batch" not in text, "what is equal is not listed"


def test_why_of_a_finished_a_resumable_and_an_unknown_stage(planned: Planner, store: Store) -> None:
    plan = planned({"base": {"method": "spin"}})
    base, sft = of_kind(plan, "base")[0], of_kind(plan, "sft")[0]
    assert "No sft stage has finished" in why(plan, store, sft.key)
    finish(store, base)
    work = store.root / "sft" / f".work-{sft.key}"
    work.mkdir(parents=True)
    (work / "checkpoint").write_text("x")
    again = planned({"base": {"method": "spin"}})
    assert "is finished and will not run" in why(again, store, base.id)
    assert "continues from its checkpoint" in why(again, store, f"sft/{sft.key}")
    with pytest.raises(UserError, match=rf"no such stage\. Did you mean '{sft.key}'"):
        why(again, store, f"sft/{sft.key[:-1]}")


def test_why_of_a_raised_version(planned: Planner, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned({"base": {"method": "spin"}})
    for stage in plan.stages.values():
        finish(store, stage)
    monkeypatch.setitem(VERSIONS, "sft", 2)
    again = planned({"base": {"method": "spin"}})
    assert "nothing but the stage's version" in why(again, store, of_kind(again, "sft")[0].key)
