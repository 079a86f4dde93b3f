"""Which template and which data an experiment is evaluated with."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from iris import compose, content, plan, run
from iris.config import Config, Evaluate, Model, identity
from iris.errors import UserError
from iris.evaluation.catalog import select
from iris.stages.base import character_tokenizer
from iris.store import Store

CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
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
    assert content.evaluation_template(Evaluate(chat_template=choice), Model(template=template)) == expected


def test_an_unknown_choice_of_template() -> None:
    with pytest.raises(UserError, match="chat_template=yes: choose one of auto, true, false"):
        content.evaluation_template(Evaluate(chat_template="yes"), Model(template="chat"))


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


def test_a_chat_model_is_evaluated_in_its_chat_template(tiny: Callable[..., Config], tmp_path: Path) -> None:
    tokenizer = character_tokenizer("abcdefghijklmnopqrstuvwxyz0123456789 +-=#<>\n")
    tokenizer.chat_template = CHAT
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **sizes))
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "model")
    changes = {"model.source": "pretrained", "model.path": str(tmp_path / "model"), "model.template": "chat"}
    config = tiny("sft", tmp_path / "store", changes | {"model.sft": False, "iterations": 0})
    run.run(config)
    stage = plan.chain(identity(config)).rows[0].evaluate
    samples = (Store(config.store).get("evaluate", stage.key).folder / "samples/tiny_sums.jsonl").read_text()
    prompt = json.loads(samples.splitlines()[0])["prompt"]
    assert prompt.startswith("<user>0 + 7 =") and prompt.endswith("</s><assistant>")
