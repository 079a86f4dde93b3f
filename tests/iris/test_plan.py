"""Keys: what determines content changes them, nothing else does, and what agrees is shared."""

import copy
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from iris import compose, fingerprint, plan
from iris.config import Config, Execution, identity
from iris.errors import UserError
from iris.method.registry import METHODS, find
from iris.plan import Chain, Stage

Keys = dict[str, str]
Tiny = Callable[..., Config]
HEAVY = ("torch", "transformers", "datasets", "lm_eval", "peft", "accelerate", "pandas", "reasoning_gym")
SHARED = {"base", "data", "sft", "generate0", "score0-y", "score0-y0", "evaluate-base", "evaluate-start"}
CONSTANT = {"schedule.name": "constant", "schedule.params": {"alpha": 2.0}}
LINEAR = {"schedule.name": "linear", "schedule.params": {"start": 2.0, "end": 0.5}}


@pytest.fixture
def chain(tiny: Tiny, tmp_path: Path) -> Callable[..., Chain]:
    def make(method: str = "iris", changes: dict[str, Any] | None = None) -> Chain:
        return plan.chain(identity(tiny(method, tmp_path / "store", changes)))

    return make


@pytest.fixture
def keys(chain: Callable[..., Chain]) -> Callable[..., Keys]:
    return lambda *arguments: named(chain(*arguments))


def named(chain: Chain) -> Keys:
    """The key of every stage under a name that says which it is: score1-y0 scores the first responses under π_1."""
    policies = [row.policy.key for row in chain.rows if row.label != "base"]
    generates = [s.key for s in chain.stages if s.kind == "generate"]

    def name(stage: Stage) -> str:
        if stage.kind in ("base", "data", "sft"):
            return stage.kind
        if stage.kind == "train":
            return f"train{policies.index(stage.key) - 1}"
        policy = stage.one("policy").key
        if stage.kind == "evaluate":
            return f"evaluate-{next(row.label for row in chain.rows if row.policy.key == policy)}"
        if stage.kind == "generate":
            return f"generate{policies.index(policy)}"
        responses = stage.one("responses")
        what = "y" if responses.kind == "data" else f"y{generates.index(responses.key)}"
        return f"score{policies.index(policy)}-{what}"

    result = {name(stage): stage.key for stage in chain.stages}
    assert len(result) == len(chain.stages) == len(set(result.values()))
    return result


def changed(before: Keys, after: Keys) -> set[str]:
    assert set(before) == set(after)
    return {name for name in before if before[name] != after[name]}


# --- the chain


def test_an_experiment_is_the_chain_of_the_design(keys: Callable[..., Keys]) -> None:
    first = SHARED | {"train0", "evaluate-t=1"}
    assert set(keys()) == first | {"generate1", "score1-y", "score1-y1", "train1", "evaluate-t=2"}
    assert set(keys("iris", {"iterations": 0})) == {"base", "data", "sft", "evaluate-base", "evaluate-start"}
    without = {"base", "data", "generate0", "score0-y", "score0-y0", "train0", "evaluate-start", "evaluate-t=1"}
    assert set(keys("iris", {"iterations": 1, "model.sft": False})) == without


def test_methods_score_what_their_references_and_rounds_need(chain: Callable[..., Chain]) -> None:
    def scored(method: str, **more: Any) -> set[str]:
        return {name for name in named(chain(method, {"iterations": 3} | more)) if name.startswith("score2")}

    assert scored("sft") == scored("t_spin") == set(), "no reference"
    assert scored("spin") == {"score2-y", "score2-y2"}
    assert scored("spin", **{"method.rounds": 2}) == {"score2-y", "score2-y1", "score2-y2"}
    third = chain("tpaw", {"iterations": 3}).rows[-1].policy
    assert [s.one("policy").key for s in third.many("real_scores")] == [
        row.policy.key for row in reversed(chain("tpaw", {"iterations": 2}).rows[1:])
    ], "the three latest players, π_t first"
    assert len(third.many("synthetic_scores")) == 9
    proto = [row.policy.inputs.get("proto") for row in chain("t_spin", {"iterations": 3}).rows[2:]]
    first = next(s for s in chain("t_spin").stages if s.kind == "generate")
    assert [stage and stage.key for stage in proto] == [None, first.key, first.key]


@pytest.mark.parametrize("method", METHODS)
def test_inputs_come_before_what_needs_them(chain: Callable[..., Chain], method: str) -> None:
    done: set[str] = set()
    for stage in chain(method, {"iterations": 4, "method.rounds": 2}).stages:
        for key in stage.input_keys.values():
            assert done.issuperset([key] if isinstance(key, str) else key)
        assert re.fullmatch(r"[\w.=-]+-[0-9a-f]{12}", stage.key)
        assert stage.key not in done
        done.add(stage.key)


# --- sharing


@pytest.mark.parametrize("method", METHODS)
def test_methods_share_what_does_not_depend_on_them(keys: Callable[..., Keys], method: str) -> None:
    own, iris = keys(method), keys("iris")
    assert {name for name in own if own[name] == iris.get(name)} == (
        set(own) if method == "iris" else set(own) & SHARED
    )
    assert ("generate0" in own, "score0-y" in own) == (METHODS[method].synthetic, METHODS[method].players > 0)


def test_schedules_share_up_to_where_they_differ(keys: Callable[..., Keys]) -> None:
    constant, linear = keys("iris", CONSTANT | {"iterations": 3}), keys("iris", LINEAR | {"iterations": 3})
    same = SHARED | {"train0", "evaluate-t=1", "generate1", "score1-y", "score1-y1"}
    assert {name for name in constant if constant[name] == linear[name]} == same
    cosine = keys("iris", LINEAR | {"schedule.name": "cosine", "iterations": 2})
    assert cosine == keys("iris", LINEAR), "the same α at both ends"
    adaptive = keys("iris", {"iterations": 3})
    assert {name for name in constant if constant[name] == adaptive[name]} == SHARED
    assert keys("spin", CONSTANT) == keys("spin", LINEAR), "SPIN has no α"


def test_levels_share_up_to_the_first_that_differs(keys: Callable[..., Keys]) -> None:
    def levels(*values: float, iterations: int = 3) -> Keys:
        return keys(
            "iris",
            {"schedule.name": "levels", "schedule.params": {}, "schedule.levels": list(values)}
            | {"iterations": iterations},
        )

    assert changed(levels(2.0, 1.0, 0.5), levels(2.0, 1.0, 0.25)) == {"train2", "evaluate-t=3"}
    assert levels(2.0, 1.0, 0.5).items() >= levels(2.0, 1.0, iterations=2).items(), "whatever the length of the run"
    assert levels(2.0, 2.0, 2.0) == levels(2.0) == keys("iris", CONSTANT | {"iterations": 3})
    assert levels(2.0, 0.5, iterations=2) == keys("iris", LINEAR)


def test_a_longer_experiment_continues_a_shorter_one(keys: Callable[..., Keys]) -> None:
    assert keys("iris", {"iterations": 3}).items() >= keys("iris", {"iterations": 2}).items()
    assert keys("tpaw", {"iterations": 3}).items() >= keys("tpaw", {"iterations": 2}).items()


def test_a_value_per_iteration_holds_from_its_iteration_on(keys: Callable[..., Keys]) -> None:
    last = {"train1", "evaluate-t=2"}
    for key in ("train.learning_rate", "train.epochs", "method.loss.scale"):
        assert keys("iris", {key: 0.5}) == keys("iris", {key: [0.5]}) == keys("iris", {key: [0.5, 0.5]})
        assert changed(keys("iris", {key: 0.5}), keys("iris", {key: [0.5, 0.25]})) == last
    assert changed(keys("t_spin"), keys("t_spin", {"method.loss.beta": 0.7})) == last, "β is 0 in iteration 0"


# --- what changes a key


@pytest.mark.parametrize("method", METHODS)
def test_each_part_of_the_identity_changes_what_it_determines(keys: Callable[..., Keys], method: str) -> None:
    own = keys(method)
    everything, trained = set(own), set(own) - SHARED
    evaluations = {name for name in everything if name.startswith("evaluate")}
    sampled = {name for name in everything if name.startswith(("generate", "score"))}
    synthetic = METHODS[method].synthetic
    for key, value, expected in [
        ("train.learning_rate", 0.5, trained),
        ("train.optimizer", "rmsprop", trained),
        ("method.samples", 2, trained | (everything & {"generate0", "score0-y0"})),
        ("train.sft.epochs", 9, everything - {"base", "data", "evaluate-base"}),
        ("train.lora.rank", 4, everything - {"base", "data", "evaluate-base"}),
        ("train.precision", "bfloat16", everything - {"base", "data"}),
        ("generate.temperature", 0.5, trained | {"generate0", "score0-y0"} if synthetic else set()),
        ("generate.shard", 7, trained | sampled if synthetic else set()),
        ("evaluate.tasks", ["tiny_sums", "other"], evaluations),
        ("evaluate.limit", 3, evaluations),
        ("data.size", "19", everything - {"base", "evaluate-base"}),
        ("data.max_response_tokens", 9, everything - {"base", "evaluate-base"}),
        ("model.template", "Q: {prompt}\n", everything - {"base", "evaluate-base"}),
        ("model.architecture.hidden_size", 32, everything),
        ("seed", 1, everything),
    ]:
        assert changed(own, keys(method, {key: value})) == expected & everything, key


@pytest.mark.parametrize("method", [m for m in METHODS if find(m).parameters])
def test_a_parameter_of_a_method_changes_what_it_trains(keys: Callable[..., Keys], method: str) -> None:
    own = keys(method)
    for parameter in set(find(method).parameters) - METHODS[method].first.keys():
        assert changed(own, keys(method, {f"method.loss.{parameter}": 0.7})) == set(own) - SHARED


def test_every_leaf_of_the_identity_reaches_a_key(tiny: Tiny, tmp_path: Path) -> None:
    """By walking the dataclasses, so that a new field cannot be forgotten."""
    config = tiny("iris", tmp_path, LINEAR | {"train.lora.rank": 4})

    def everything(config: Config) -> set[str]:
        return {stage.key for stage in plan.chain(identity(config)).stages}

    # Places, whose content enters a key instead; the names of what is resolved to values; choices of other tests.
    elsewhere = {"model.path", "model.revision", "model.gguf_file", "data.path", "data.revision", "evaluate.include"}
    elsewhere |= {"schedule.name", "schedule.levels", "method.name", "model.source", "data.source"}
    elsewhere |= {"schedule.function", "method.function", "method.needs"}
    for path, value in leaves(identity(config)):
        if path not in elsewhere:
            other = copy.deepcopy(config)
            *parents, name = path.split(".")
            node: Any = other
            for parent in parents:
                node = getattr(node, parent)
            setattr(node, name, different(path, value))
            assert everything(other) != everything(config), path


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for item in fields(node):
        value = getattr(node, item.name)
        if is_dataclass(value):
            yield from leaves(value, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", value


def different(path: str, value: Any) -> Any:
    special = {"data.size": "7", "schedule.per": "step", "schedule.params": {"start": 1.0, "end": 0.5}}
    special["evaluate.chat_template"] = "true"
    if path in special:
        return special[path]
    if isinstance(value, bool):
        return not value
    if isinstance(value, dict):
        return value | {"scale": 9.0}
    if isinstance(value, list):
        return [*value, "more"]
    return value + 1 if isinstance(value, int | float) else f"{value}x"


def test_execution_and_folders_reach_no_key(keys: Callable[..., Keys]) -> None:
    own = keys()
    defaults = Execution()
    for item in fields(Execution):
        value = getattr(defaults, item.name)
        choices = {"device": "cuda", "distributed": "fsdp2", "threads": 3, "tracking": ["wandb"]}
        other = choices.get(item.name, (not value) if isinstance(value, bool) else 7)
        assert keys("iris", {f"execution.{item.name}": other}) == own, item.name
    assert keys("iris", {"store": "elsewhere", "output": "somewhere"}) == own


def test_the_evaluation_of_a_share_is_a_stage_of_its_own(chain: Callable[..., Chain]) -> None:
    whole = chain("iris").rows[-1].evaluate
    part, other = plan.part(whole, 0.15), plan.part(whole, 0.3)
    assert len({whole.key, part.key, other.key}) == 3
    assert part.kind == "evaluate" and part.inputs == whole.inputs
    assert part.key == plan.part(chain("iris").rows[-1].evaluate, 0.15).key


def test_keys_stay_what_they_are() -> None:
    """Another key makes every user compute everything again."""
    commits = [f"{part}.revision={'0123456789' * 4}" for part in ("model", "data")]
    overrides = ["method=spin", "model=qwen2_5_3b", "data=ultrachat", "data.size=14k", *commits]
    last = plan.chain(identity(compose.load(overrides))).rows[-1].policy
    assert last.key == "spin-ultrachat-14k-qwen2.5-3b-s0-t3-827077ac6f9e"


@pytest.mark.parametrize("method", METHODS)
def test_what_is_known_of_one_experiment_gives_the_next_the_same_stages(
    tiny: Tiny, tmp_path: Path, method: str
) -> None:
    """For every leaf of the identity, on configurations that share all other sections."""
    config = tiny(method, tmp_path, LINEAR | {"iterations": 3, "method.rounds": 2})
    known = plan.Known()
    before = plan.chain(identity(config), known)
    for path, value in leaves(identity(config)):
        if path in ("schedule.name", "schedule.levels", "method.name", "model.source", "data.source", "data.path"):
            continue
        if path in ("evaluate.include", "method.function", "method.needs", "schedule.function"):
            continue
        other = shared_but(config, path.split("."), different(path, value))
        after, alone = plan.chain(identity(other), known), plan.chain(identity(other))
        assert [s.key for s in after.stages] == [s.key for s in alone.stages], path
        assert [row.evaluate.key for row in after.rows] == [row.evaluate.key for row in alone.rows], path
        objects = {id(stage) for stage in before.stages}
        same = {s.key for s in before.stages} & {s.key for s in after.stages}
        if path.startswith(("train.learning_rate", "generate.temperature")):
            assert same <= {s.key for s in after.stages if id(s) in objects}, "what is the same is the same object"


def shared_but(node: Any, path: list[str], value: Any) -> Any:
    changed = copy.copy(node)
    setattr(changed, path[0], shared_but(getattr(node, path[0]), path[1:], value) if path[1:] else value)
    return changed


def test_what_is_not_to_be_had_is_asked_for_once(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny("iris", tmp_path, {"data.path": str(tmp_path / "rows.jsonl")})
    known = plan.Known()
    for _ in range(2):
        with pytest.raises(UserError, match="no such file"):
            plan.chain(identity(config), known)
        (tmp_path / "rows.jsonl").write_text('{"prompt": "1", "response": "2"}\n')
    assert plan.chain(identity(config)).stages


def test_a_hub_out_of_reach_says_that_a_commit_may_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(UserError, match=r"model\.path=owner/model .*does not answer.* model\.revision=<40 hexadecimal"):
        fingerprint.of_hub("owner/model", None, "model", "model.path")


def test_a_stage_version_changes_its_stages_and_what_follows(
    keys: Callable[..., Keys], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = keys()
    monkeypatch.setitem(plan.VERSIONS, "score", plan.VERSIONS["score"] + 1)
    assert changed(own, keys()) == {"score0-y", "score0-y0"} | (set(own) - SHARED)


# --- content outside the store


def test_local_data_enters_by_its_content(keys: Callable[..., Keys], tmp_path: Path) -> None:
    first, second = tmp_path / "a" / "rows.jsonl", tmp_path / "b" / "other name.jsonl"
    first.parent.mkdir()
    first.write_text('{"prompt": "1", "response": "2"}\n')
    shutil.copytree(first.parent, second.parent)
    (second.parent / "rows.jsonl").rename(second)
    own = keys("iris", {"data.path": str(first)})
    assert keys("iris", {"data.path": str(second)}) == own, "wherever it lies"
    second.write_text('{"prompt": "1", "response": "3"}\n')
    assert changed(own, keys("iris", {"data.path": str(second)})) == set(own) - {"base", "evaluate-base"}


def test_a_local_model_enters_by_its_content_and_has_no_seed(keys: Callable[..., Keys], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    local = {"model.source": "pretrained", "model.path": str(folder), "model.sft": False}
    own = keys("iris", local)
    shutil.copytree(folder, tmp_path / "moved")
    assert keys("iris", local | {"model.path": str(tmp_path / "moved")}) == own
    sampled = set(own) - {"base", "data", "evaluate-start"}
    assert changed(own, keys("iris", local | {"seed": 1})) == sampled - {"score0-y"}
    (folder / "model.safetensors").write_bytes(b"others!")
    assert changed(own, keys("iris", local)) == set(own)


def test_evaluation_tasks_enter_by_their_content(keys: Callable[..., Keys], tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text("task: one")
    own = keys("iris", {"evaluate.include": [str(tmp_path)]})
    (tmp_path / "task.yaml").write_text("task: two")
    evaluations = {name for name in own if name.startswith("evaluate")}
    assert changed(own, keys("iris", {"evaluate.include": [str(tmp_path)]})) == evaluations


def test_a_hub_name_enters_by_its_commit(chain: Callable[..., Chain]) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    hub = {"model.source": "pretrained", "model.path": "owner/model", "model.revision": commit}
    hub |= {"data.source": "hub", "data.path": "owner/data", "data.revision": commit}
    made = chain("iris", hub)
    assert made.stages[0].identity["commit"] == made.data.identity["commit"] == commit
    assert made.data.location == {"path": "owner/data", "revision": commit}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.path": "nowhere.jsonl"}, r"data\.path=nowhere\.jsonl: no such file"),
        ({"data.path": None}, r"data\.path is empty"),
        ({"model.source": "pretrained", "model.path": None}, r"model\.path is empty"),
        ({"model.source": "gguf", "model.path": "no-such-package"}, r"'no-such-package' is not installed: pip install"),
        ({"evaluate.include": ["nowhere"]}, r"evaluate\.include: .*nowhere is no folder"),
    ],
)
def test_what_cannot_be_found_is_one_clear_message(
    chain: Callable[..., Chain], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        chain("iris", changes)


def test_readable_names_are_file_names(chain: Callable[..., Chain]) -> None:
    made = chain("iris", {"model.name": "Org/Some Model!", "data.name": "../ö/x"})
    assert made.stages[0].name == "Org_Some_Model"
    assert all("/" not in stage.key and not stage.key.startswith(".") for stage in made.stages)


def test_another_process_plans_the_same_without_heavy_imports(settings: list[str], keys: Callable[..., Keys]) -> None:
    program = """if True:
        import json, sys
        from iris import compose, plan, run, table
        from iris.config import identity
        stages = plan.chain(identity(compose.load(sys.argv[1:]))).stages
        print(json.dumps([[stage.key for stage in stages], sorted(sys.modules)]))"""
    command = [sys.executable, "-c", program, "+method=iris", *settings]
    found, modules = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert found == list(keys().values())
    assert not set(HEAVY) & set(modules)
