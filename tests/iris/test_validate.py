"""Values are converted by their declared types, and all that is wrong with them is told at once."""

import math
from dataclasses import dataclass, field
from typing import Any

import pytest

from iris import compose, plan
from iris.config import identity
from iris.errors import UserError
from iris.validate import build, choice, ranged


def loaded(*overrides: str) -> Any:
    return compose.load(["+method=iris", *overrides])


EQUAL = [
    ["data.size=2k", "data.size=2000", "data.size=2K", "data.size=2e3", "data.size=2_000", "data.size='2k '"],
    ["data.size=1500", "data.size=1.5k", "data.size=1500.0"],
    ["data.size=all", "data.size=ALL"],
    ["train.epochs=2", "train.epochs=2.0", "train.epochs=2e0"],
    ["train.epochs=[1,2]", "train.epochs=[1.0,2.0]", "train.epochs=['1',2]"],
    ["train.sft.epochs=3", "train.sft.epochs=3.0"],
    ["train.learning_rate=1", "train.learning_rate=1.0"],
    ["train.learning_rate=[1e-6,0.0000005]", "train.learning_rate=[0.000001,5e-7]"],
    ["train.batch=8", "train.batch=8.0", "train.batch='8'"],
    ["iterations=2", "iterations=2.0"],
    ["seed=7", "seed=7.0", "seed='7'"],
    ["method.loss.scale=1", "method.loss.scale=1.0"],
    ["method.loss.scale=[1,2]", "method.loss.scale=[1.0,2.0]"],
    ["method.samples=2", "method.samples=2.0"],
    ["schedule.params.tau=1", "schedule.params.tau=1.0"],
    ["schedule=levels schedule.levels=[2,1]", "schedule=levels schedule.levels=[2.0,1.0]"],
    ["model.architecture.initializer_range=1", "model.architecture.initializer_range=1.0"],
    ["model.architecture.hidden_size=64", "model.architecture.hidden_size=64.0"],
    ["+model.architecture.nested={a:[1,{b:2}]}", "+model.architecture.nested={a:[1.0,{b:2.0}]}"],
    ["data.generator.seed=1", "data.generator.seed=1.0"],
    ["model.sft=false", "model.sft=False", "model.sft=no", "model.sft=0", "model.sft='false'"],
    ["train.lora.rank=4 train.lora.alpha=8", "train.lora.rank=4.0 train.lora.alpha=8.0"],
    [f"train.lora.rank=4 train.lora.target_modules={names}" for names in ("q_proj", "[q_proj]", "[q_proj,q_proj]")],
    [f"train.lora.rank=4 train.lora.target_modules={names}" for names in ("[q_proj,v_proj]", "[v_proj,q_proj]")],
    ["generate.temperature=1", "generate.temperature=1.0"],
    ["evaluate.limit=5", "evaluate.limit=5.0"],
    ["evaluate.tasks=[embedded]", "evaluate.tasks=[embedded,embedded]"],
]


@pytest.mark.parametrize("written", EQUAL, ids=lambda w: w[0])
def test_equal_values_are_equal_keys(written: list[str]) -> None:
    configs = [loaded(*text.split(" ", 1) if "'" not in text else [text]) for text in written]
    first = configs[0]
    assert all(repr(config) == repr(first) for config in configs), "not only equal: 1 == 1.0 == True"
    keys = {tuple(stage.id for stage in plan.chain(identity(config)).stages) for config in configs}
    assert len(keys) == 1


def test_a_size_is_named_in_one_way() -> None:
    names = {plan.chain(identity(loaded(f"data.size={size}"))).data.name for size in ("2e3", "2000", "2K")}
    assert names == {"sums-2k"}


# What each numeric field refuses beside a text, NaN, a truth value and a mapping.
REFUSED = {
    "iterations": ["-1", "1.5", "[1]"],
    "seed": ["-1", "5000000000", "1.5"],
    "data.subset_seed": ["-1"],
    "data.max_prompt_tokens": ["0"],
    "data.max_response_tokens": ["0"],
    "method.samples": ["0"],
    "method.rounds": ["0"],
    "train.epochs": ["0", "[]", "[1,0]", "inf", "[1,[2]]"],
    "train.batch": ["0", "2.5"],
    "train.learning_rate": ["0", "[]", "[1,x]"],
    "train.weight_decay": ["-1", "inf"],
    "train.warmup": ["-0.1", "1.1"],
    "train.max_grad_norm": ["0"],
    "train.lora.rank": ["-1"],
    "train.lora.alpha": ["0"],
    "train.sft.batch": ["0"],
    "train.sft.weight_decay": ["-1"],
    "generate.temperature": ["-1", "inf"],
    "generate.top_p": ["0", "1.1"],
    "generate.max_new_tokens": ["0"],
    "generate.shard": ["0"],
    "evaluate.limit": ["0", "0.5"],
    "evaluate.num_fewshot": ["-1"],
    "execution.processes": ["0"],
    "execution.threads": ["0"],
    "execution.micro_batch_tokens": ["0"],
    "execution.slots": ["0"],
    "execution.checkpoint_minutes": ["-1"],
    "method.loss.scale": ["0", "-1", "[]", "[1,0]", "inf"],
    "schedule.params.tau": ["0", "inf", "[1]"],
}


@pytest.mark.parametrize("key", REFUSED)
def test_numbers_out_of_range_are_refused(key: str) -> None:
    for value in [*REFUSED[key], "nan", "abc", "true", "{a:1}"]:
        with pytest.raises(UserError) as error:
            loaded(f"{key}={value}")
        assert key.rsplit(".", 1)[0] in str(error.value) and "\n" not in str(error.value), (value, str(error.value))


def test_every_numeric_field_has_a_row_above() -> None:
    def numeric(node: Any, prefix: str = "") -> set[str]:
        found = set()
        for name, value in vars(node).items():
            if hasattr(value, "__dataclass_fields__"):
                found |= numeric(value, f"{prefix}{name}.")
            elif isinstance(value, int | float) and not isinstance(value, bool):
                found.add(f"{prefix}{name}")
        return found

    sft = {f"train.sft.{name}" for name in ("epochs", "learning_rate", "warmup", "max_grad_norm")}  # as train's
    assert numeric(loaded()) - sft <= REFUSED.keys()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.optimizer=[adamw]", "choose one of adamw, rmsprop|expected a text"),
        ("data.name={a:1}", "data.name={'a': 1}: expected a text"),
        ("evaluate.tasks=embedded", "evaluate.tasks=embedded: expected a list"),
        ("evaluate.tasks=[[a]]", "expected a text"),
        ("method.loss=3", "method.loss=3: expected a mapping"),
        ("train=none", "train=none: choose one of"),
        ("train.lora=3", "train.lora=3: expected a mapping"),
        ("model.sft=maybe", "model.sft=maybe: expected true or false"),
        ("data.size=true", "data.size=True: expected 'all' or a number of rows"),
        ("data.size=0.5", "data.size=0.5: expected 'all' or a number of rows"),
        ("data.size=[1]", r"data.size=\[1\]: expected 'all' or a number of rows"),
        ("data.size=null", "data.size=None: expected 'all' or a number of rows"),
        ("model.name=null", "model.name=None: expected a text"),
        ("model.source=hf", "model.source=hf: choose one of config, pretrained, gguf"),
    ],
)
def test_wrong_types_are_refused(override: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        loaded(override)


def test_all_mistakes_are_told_at_once() -> None:
    wrong = ["train.batch=x", "train.optimizer=adam", "evaluate.limit=0", "sede=1", "method.loss.scale=-1", "seed=-1"]
    with pytest.raises(UserError) as error:
        loaded(*wrong, "schedule.params.tau=-1", "model.template=hello", "train.epochs=[]")
    text = str(error.value)
    assert text.startswith("9 mistakes:\n") and len(text.splitlines()) == 10
    for part in [*wrong[:2], "'adamw'", "evaluate.limit=0", "'seed'", "scale=-1", "seed=-1", "tau", "{prompt}", "[]"]:
        assert part in text, part


def test_infinity_is_a_bound_where_it_means_none() -> None:
    assert loaded("train.max_grad_norm=inf").train.max_grad_norm == math.inf


# --- any dataclass


@dataclass
class Part:
    """A part of settings."""

    count: int = ranged(1, 1, 8)


@dataclass
class Settings:
    """Settings of no part of the product."""

    name: str
    part: Part = field(default_factory=Part)
    kind: str = choice("a", "bb")
    below: float = ranged(0.0, 0, below=1)
    rates: float | list[float] = ranged(1.0, above=0)


def test_any_dataclass_can_be_built() -> None:
    made = build(Settings, {"name": 3, "part": {"count": "2"}, "rates": (1, 2)})
    assert made == Settings("3", Part(2), "a", 0.0, [1.0, 2.0])
    with pytest.raises(UserError) as error:
        build(Settings, {"part": {"count": 9, "cont": 1}, "kind": "b", "below": 1}, "here")
    assert str(error.value).splitlines()[1:] == [
        "  here.name is not set.",
        "  here.part.cont: no such key. Choose from count. Did you mean 'count'?",
        "  here.part.count=9: expected a whole number at least 1 and at most 8.",
        "  here.kind=b: choose one of a, bb. Did you mean 'bb'?",
        "  here.below=1: expected a number at least 0 and below 1.",
    ]
