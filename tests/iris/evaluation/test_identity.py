"""Which template and which data an experiment is evaluated with."""

from pathlib import Path

import pytest

from iris import compose, plan
from iris.config import Config, Evaluate, Model, identity
from iris.errors import UserError
from iris.evaluation.catalog import select

TEXT = "Q: {prompt} A:"


@pytest.mark.parametrize(
    ("template", "choice", "expected"),
    [
        ("chat", "auto", "chat"),
        ("chat", "true", "chat"),
        ("chat", "false", None),
        (TEXT, "auto", None),
        (TEXT, "True", TEXT),
        (TEXT, "false", None),
    ],
)
def test_the_template_of_an_evaluation(template: str, choice: str, expected: str | None) -> None:
    assert plan.evaluation_template(Evaluate(chat_template=choice), Model(template=template)) == expected


def test_an_unknown_choice_of_template() -> None:
    with pytest.raises(UserError, match="chat_template=yes: choose one of auto, true, false"):
        plan.evaluation_template(Evaluate(chat_template="yes"), Model(template="chat"))


def evaluation(*overrides: str) -> plan.Stage:
    config: Config = compose.load(["+method=sft", "iterations=1", *overrides])
    return plan.chain(identity(config)).rows[0].evaluate


def test_equal_templates_and_equal_held_out_data_are_equal_keys() -> None:
    one = evaluation()
    assert one.identity["template"] is None
    assert one.identity["generator"]["test"] == 1000 and "train" not in one.identity["generator"]
    assert evaluation("evaluate.chat_template=false").key == one.key
    assert evaluation("data.generator.train=3000").key == one.key
    assert evaluation("data.generator.test=500").key != one.key
    assert evaluation("evaluate.chat_template=true").identity["template"] == "{prompt}\n"


def test_own_data_choose_no_tasks(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text('{"prompt": "p", "response": "r"}\n')
    config = compose.load(["+method=sft", "data=files", f"data.path={tmp_path}/own.jsonl"])
    with pytest.raises(UserError, match=r"evaluate\.tasks is empty"):
        select(config.evaluate.tasks)
    with pytest.raises(UserError, match=r"'embedded' holds problems that data.source=generated keeps out"):
        evaluation("data=files", f"data.path={tmp_path}/own.jsonl", "evaluate=embedded")
