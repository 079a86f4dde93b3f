"""The space of a search: what it reads, what trials get from it, and what a mistake is told."""

from typing import Any

import optuna
import pytest

from iris import compose
from iris.errors import UserError
from sweeps.search.space import corners, overrides, read_space, suggest

SPACE: dict[str, Any] = {
    "schedule": ["adaptive", "levels"],
    "schedule.levels": {"low": 0, "high": 1, "step": 0.1, "per": "iteration", "when": {"schedule": "levels"}},
    "schedule.params.tau": {"low": 0.1, "high": 10, "log": True, "when": {"schedule": ["adaptive"]}},
    "train.learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
    "train.batch": {"type": "int", "low": 16, "high": 64, "step": 16},
    "iterations": {"type": "int", "low": 1, "high": 3},
    "method.loss.scale": [0.1, 0.5],
}


def given(**values: Any) -> optuna.trial.FixedTrial:
    common = {"train.learning_rate": 1e-4, "train.batch": 32, "iterations": 2, "method.loss.scale": 0.5}
    return optuna.trial.FixedTrial(common | values)


def test_a_trial_gets_what_its_conditions_allow() -> None:
    space = read_space(SPACE, "space")
    assert space[0].key == "iterations", "how many values the others need"
    levels = {"schedule": "levels", "schedule.levels[1]": 0.1 * 3, "schedule.levels[2]": 1.0}
    values = suggest(space, given(**levels), 9)
    assert values == {
        "iterations": 2,
        "schedule": "levels",
        "schedule.levels": [0.3, 1.0],
        "train.learning_rate": 1e-4,
        "train.batch": 32,
        "method.loss.scale": 0.5,
    }, "0.3, not 0.30000000000000004: one key for one number"
    values = suggest(space, given(**{"schedule": "adaptive", "schedule.params.tau": 2.0}), 9)
    assert "schedule.levels" not in values and values["schedule.params.tau"] == 2.0


def test_what_a_trial_gets_is_a_configuration() -> None:
    space = read_space(SPACE, "space")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(8):
        values = suggest(space, study.ask(), 3)
        config = compose.load(["method=iris", *overrides(values)])
        assert config.schedule.name == values["schedule"]
        assert config.train.learning_rate == values["train.learning_rate"]
        assert config.schedule.levels == values.get("schedule.levels", [])


def test_corners_take_every_extreme_under_its_conditions() -> None:
    space = read_space(SPACE, "space")
    found = [values for _, values in corners(space, 3)]
    for parameter in space:
        iterations = 1  # the least that the space itself sets
        for extreme in parameter.extremes(iterations):
            assert any(values.get(parameter.key) == extreme for values in found), (parameter.key, extreme)
    assert all(("schedule.levels" in v) == (v["schedule"] == "levels") for v in found)
    for values in found:
        compose.load(["method=iris", *overrides(values)])


def test_conditions_may_follow_one_another() -> None:
    space = read_space(
        {
            "data": ["a", "b"],
            "model": {"choices": ["c", "d"], "when": {"data": "b"}},
            "seed": {"type": "int", "low": 0, "high": 1, "when": {"model": "d"}},
        },
        "space",
    )
    assert {"data": "b", "model": "d", "seed": 1} in [v for _, v in corners(space, 1)]
    assert suggest(space, optuna.trial.FixedTrial({"data": "a"}), 1) == {"data": "a"}


def test_groups_come_before_keys_that_change_them() -> None:
    assert overrides({"train.batch": 8, "schedule": "levels", "evaluate.tasks": ["a", "b"]}) == [
        "schedule=levels",
        "train.batch=8",
        "evaluate.tasks=[a,b]",
    ]


def test_a_list_can_be_a_choice() -> None:
    (parameter,) = read_space({"train.learning_rate": [[1e-4, 5e-5], [1e-4]]}, "space")
    trial = optuna.create_study().ask()
    assert compose.load(
        ["method=iris", *overrides({"train.learning_rate": parameter.suggest(trial, 2)})]
    ).train.learning_rate in ([1e-4, 5e-5], [1e-4])


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "from one or more keys"),
        ([1], "expected a mapping"),
        ({"a": 1}, "space: a: expected a list of choices"),
        ({"a": {"lo": 1}}, "space: a: lo: no such key.*Did you mean 'low'"),
        ({"a": {"low": 1}}, "space: a: .* has low and high"),
        ({"a": {"low": 2, "high": 1}}, "low <= high` must hold"),
        ({"a": {"low": "x", "high": 1}}, "low=x: expected a number"),
        ({"a": {"low": True, "high": 1}}, "low=True: expected a number"),
        ({"a": {"low": 0, "high": 1, "log": True}}, "low > 0` must hold for `log=True`"),
        ({"a": {"low": 1, "high": 4, "log": True, "step": 1}}, "`step` is not supported when `log` is true"),
        ({"a": {"low": 0, "high": 1, "step": 0}}, "step > 0` must hold"),
        ({"a": {"low": 0, "high": 1, "step": 0.3}}, "step=0.3, but the range is not divisible"),
        ({"a": {"low": 0, "high": 1.5, "type": "int"}}, "whole numbers"),
        ({"a": {"low": 0, "high": 1, "type": "flot"}}, "type=flot: choose .*Did you mean 'float'"),
        ({"a": {"low": 0, "high": 1, "per": "step"}}, "per=step: choose one of run, iteration"),
        ({"a": []}, "must contain one or more elements"),
        ({"a": {"choices": [1], "low": 1}}, "no range"),
        ({"a": [1], "b": {"choices": [1], "when": {"c": 1}}}, "when: c: expected a parameter .* stands before: a"),
        ({"b": {"choices": [1], "when": {"a": 1}}, "a": [1]}, "stands before: there is none"),
        ({"a": ["x"], "b": {"choices": [1], "when": {"a": "y"}}}, "when: a: y: choose one of x"),
        ({"a": [1], "b": {"choices": [1], "when": 1}}, "when=1: expected a mapping"),
    ],
)
def test_a_mistake_is_told_where_it_is(space: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_space(space, "space")
