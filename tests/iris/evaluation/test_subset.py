"""A share of the documents: nested, asked as in the whole evaluation, and not asked again by it."""

import itertools
import json
import string
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from iris import plan, run
from iris.config import Config, identity
from iris.errors import UserError
from iris.evaluation.harness import Scores, evaluate
from iris.evaluation.subset import chosen, from_json
from iris.execution import runner
from iris.execution.progress import Progress
from iris.sampling.slots import SlotEngine
from iris.store import Store

Tiny = Callable[..., Config]
CHARACTERS = string.ascii_letters + string.digits + string.punctuation + " \n"
DATA = """
dataset_path: json
dataset_kwargs: {data_files: {train: data/shots.jsonl, test: data/rows.jsonl}}
test_split: test
fewshot_split: train
doc_to_text: "{{question}}="
doc_to_target: "{{answer}}"
num_fewshot: 2
fewshot_delimiter: " "
"""
WRITE = """task: write
generation_kwargs: {until: [";"], do_sample: true, temperature: 1.0, max_gen_toks: 6}
repeats: 2
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
CHOOSE = """task: choose
output_type: multiple_choice
doc_to_choice: ["1", "2", "xy"]
doc_to_target: 0
"""


def test_a_share_is_fixed_and_nested() -> None:
    shares = [chosen("gsm8k", 1319, share) for share in (0.01, 0.15, 0.3, 1)]
    assert [len(s) for s in shares] == [14, 198, 396, 1319]
    assert all(set(small) < set(large) for small, large in itertools.pairwise(shares))
    assert all(s == sorted(s) for s in shares)
    assert chosen("gsm8k", 1319, 0.15) == shares[1] != chosen("mmlu", 1319, 0.15)
    assert len(chosen("small", 3, 0.01)) == 1, "no task is left out"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    for name, rows in (("rows", range(10)), ("shots", range(20, 40))):
        lines = (json.dumps({"question": f"{i}+1", "answer": str(i + 1)}) + "\n" for i in rows)
        (tmp_path / "data" / f"{name}.jsonl").write_text("".join(lines))
    (tmp_path / "write.yaml").write_text(WRITE + DATA)
    (tmp_path / "choose.yaml").write_text(CHOOSE + DATA.replace('doc_to_target: "{{answer}}"\n', ""))
    return tmp_path


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: index for index, token in enumerate(["<eos>", "<unk>", *CHARACTERS])}
    letters = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    letters.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=letters, eos_token="<eos>", unk_token="<unk>")


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(CHARACTERS) + 2, eos_token_id=0, initializer_range=0.5, **sizes))


class Counting(SlotEngine):
    asked = 0

    def generate(self, requests: Any, *arguments: Any) -> Any:
        self.asked += len(requests)
        return super().generate(requests, *arguments)


def test_the_whole_asks_only_what_the_part_has_not_and_finds_the_same(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    engine = Counting(model, [0])

    def scores(**settings: Any) -> Scores:
        return evaluate(model, tokenizer, ["write", "choose"], include=[folder], engine=engine, **settings)

    whole = scores()
    assert engine.asked == 20 and whole.reused == 0
    part = scores(share=0.3)
    assert engine.asked == 26
    for task in ("write", "choose"):
        found = {sample["doc_id"]: sample for sample in whole.samples[task]}
        assert [s["doc_id"] for s in part.samples[task]] == chosen(task, 10, 0.3)
        for sample in part.samples[task]:
            same = found[sample["doc_id"]]
            assert sample["prompt"] == same["prompt"], "examples are drawn for each document as in the whole"
            assert sample["doc"] == same["doc"] and sample["metrics"] == same["metrics"]
        assert part.versions["tasks"][task]["documents"] == 3
    assert len({s["prompt"] for s in whole.samples["write"]}) == 10

    again = scores(answers=from_json(json.loads(json.dumps(part.answers))))
    assert engine.asked == 26 + 14 and again.reused == 6 + 9
    assert again.samples["write"] == whole.samples["write"]
    for task, metrics in whole.tasks.items():
        assert again.tasks[task] == pytest.approx(metrics)
    assert again.answers.keys() == whole.answers.keys() > part.answers.keys()
    assert part.tokens + again.tokens == whole.tokens
    nested = scores(share=0.5, answers=part.answers)
    assert nested.reused == 6 + 9 and engine.asked == 40 + 4
    limited = scores(share=0.3, limit=5)
    assert [s["doc_id"] for s in limited.samples["write"]] == chosen("write", 5, 0.3)


@pytest.mark.parametrize("share", [0, -0.1, 1.5, float("nan")])
def test_a_share_out_of_range_is_refused(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path, share: float
) -> None:
    with pytest.raises(UserError, match=r"share=.* above 0 and at most 1"):
        evaluate(model, tokenizer, ["write"], include=[folder], share=share)


# --- as stages


def prepared(tiny: Tiny, store: Path) -> tuple[Config, plan.Chain, runner.Context]:
    config = tiny("sft", store, {"iterations": 0})
    chain = plan.chain(identity(config))
    context = runner.Context(Store(store), config.execution, Progress(quiet=True), folder=store / "outputs")
    context.store.prepare()
    return config, chain, context


def test_the_whole_stage_reuses_the_part_whatever_its_share(tiny: Tiny, tmp_path: Path) -> None:
    _, chain, context = prepared(tiny, tmp_path / "a")
    whole = chain.rows[-1].evaluate
    for stage in chain.stages[:-1]:
        runner.ensure(stage, context)
    part = plan.part(whole, 0.5)
    runner.ensure(part, context)
    answers = context.artifact(part).read_json("answers.json")
    assert len(answers) == 2
    # Of a share that is not the usual one the whole evaluation learns by its location, which is no part of its key.
    located = replace(whole, location=dict(whole.location) | {"share": 0.5})
    assert located.key == whole.key
    runner.ensure(located, context)
    found = context.artifact(whole)
    assert found.manifest["provenance"]["reused"] == {part.key: 2}
    assert not (found.folder / "answers.json").exists()

    _, chain, alone = prepared(tiny, tmp_path / "b")
    for stage in chain.stages:
        runner.ensure(stage, alone)
    other = alone.artifact(whole)
    assert "reused" not in other.manifest["provenance"]
    assert other.manifest["files"]["samples/tiny_sums.jsonl"] == found.manifest["files"]["samples/tiny_sums.jsonl"]
    results = [{k: v for k, v in a.results.items() if k != "tokens"} for a in (found, other)]
    assert results[0] == results[1]


def test_a_plain_run_reuses_a_part_of_the_usual_share(tiny: Tiny, tmp_path: Path) -> None:
    config, chain, context = prepared(tiny, tmp_path)
    runner.ensure(chain.stages[0], context)
    base = chain.rows[0].evaluate
    runner.ensure(plan.part(base, plan.SHARE), context)
    run.run(config)
    assert context.artifact(base).manifest["provenance"]["reused"] == {plan.part(base, plan.SHARE).key: 1}
