import json
import logging
import math
import os
import random
import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import datasets
import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from iris.data.contamination import prompt_hash
from iris.errors import UserError
from iris.evaluation.harness import evaluate, prompt_hashes
from iris.evaluation.lm import PolicyLM
from iris.sampling.engine import Request, Rollout, Sampling, quiet

CHARACTERS = string.ascii_letters + string.digits + string.punctuation + " \n"


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character."""
    vocabulary = {token: index for index, token in enumerate(["<eos>", "<unk>", *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>")


def make_model(context: int = 2048) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(CHARACTERS) + 2,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        eos_token_id=0,
        initializer_range=0.3,  # far from uniform
    )
    return LlamaForCausalLM(config)


class Scripted:
    """A rollout engine that knows the response to every prompt by its last line; what it has not been told is empty."""

    name = version = "scripted"

    def __init__(self, tokenizer: PreTrainedTokenizerFast, responses: Mapping[str, str]) -> None:
        self.tokenizer, self.responses = tokenizer, responses
        self.asked: list[tuple[str, Request, Sampling]] = []

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, progress: Callable[[int], None] = quiet
    ) -> list[list[Rollout]]:
        rollouts = []
        for request in requests:
            prompt = self.tokenizer.decode(request.prompt)
            self.asked.append((prompt, request, sampling))
            known = [key for key in self.responses if key in prompt.rsplit("\n", 1)[-1]]
            text = self.responses[known[0]] if known else ""
            done = prompt.rpartition(known[0])[2] if known else ""
            tokens = [*self.tokenizer.encode(text[len(done) :]), 0][: sampling.max_new_tokens]
            rollouts.append([Rollout(tokens, tokens[-1] == 0)])
        progress(len(requests))
        return rollouts


ADD = """
task: add
dataset_path: json
dataset_kwargs: {data_files: {train: data/shots.jsonl, test: [data/add.jsonl]}}
test_split: test
fewshot_split: train
doc_to_text: "{{question}}="
doc_to_target: "{{answer}}"
target_delimiter: ""
fewshot_delimiter: "\\n"
generation_kwargs: {until: ["\\n", ";"], do_sample: false, max_gen_toks: 300}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
filter_list:
  - {name: number, filter: [{function: regex, regex_pattern: "(\\\\d+)"}, {function: take_first}]}
  - {name: whole, filter: [{function: take_first}]}
metadata: {version: 7}
"""
CHOOSE = """
task: choose
dataset_path: json
dataset_kwargs: {data_files: {test: data/choose.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{q}}:"
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
QUESTIONS = {"1+1": "2", "1+2": "3", "20+2": "22", "3+2": "5"}
CHOICES = [("a", ["b", "cd"], 1), ("ab", ["b", "a", "bb"], 2), ("who", ["xyz", "b"], 0), ("hm", ["b", "what"], 0)]


def jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "add.yaml").write_text(ADD)
    (tmp_path / "choose.yaml").write_text(CHOOSE)
    jsonl(tmp_path / "data/add.jsonl", [{"question": q, "answer": a} for q, a in QUESTIONS.items()])
    jsonl(tmp_path / "data/shots.jsonl", [{"question": f"{i}+0", "answer": str(i)} for i in range(20)])
    jsonl(tmp_path / "data/choose.jsonl", [{"q": q, "choices": c, "label": n} for q, c, n in CHOICES])
    return tmp_path


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return make_model()


def plain(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompt: str, answer: str) -> tuple[float, bool]:
    """log π(answer | prompt) and whether it is greedy, from one forward pass over the two."""
    before, tokens = tokenizer.encode(prompt), tokenizer.encode(answer)
    with torch.no_grad():
        logits = model(torch.tensor([before + tokens])).logits[0, len(before) - 1 : -1].double()
    labels = torch.tensor(tokens)
    return float(logits.log_softmax(-1)[range(len(tokens)), labels].sum()), bool((logits.argmax(-1) == labels).all())


def test_responses_are_cut_filtered_and_scored(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    # Right; right after the filter alone; wrong, for 22 comes after the stop string; not a number at all.
    script = {"1+1=": "2\n9", "1+2=": "is 3", "20+2=": "2;22", "3+2=": "five"}
    engine = Scripted(tokenizer, script)
    scores = evaluate(model, tokenizer, ["add"], include=[folder], engine=engine)
    assert scores.tasks["add"]["exact_match,number"] == 0.5
    assert scores.tasks["add"]["exact_match,whole"] == 0.25
    assert scores.main == {"add": ("exact_match,number", 0.5, pytest.approx(math.sqrt(0.25 / 3)))}
    assert scores.average == 0.5
    assert scores.versions["tasks"] == {"add": {"version": 7, "num_fewshot": 0, "documents": 4}}
    assert scores.warnings == []
    samples = scores.samples["add"]
    assert [sample["response"] for sample in samples] == [["2"], ["is 3"], ["2"], ["five"]]
    assert samples[1] == {
        "doc_id": 1,
        "doc": {"question": "1+2", "answer": "3"},
        "text": "1+2=",
        "target": "3",
        "prompt": "1+2=",
        "response": ["is 3"],
        "filtered": {"number": ["3"], "whole": ["is 3"]},
        "metrics": {"exact_match,number": 1.0, "exact_match,whole": 0.0},
    }
    assert json.loads(json.dumps(samples)) == samples
    assert prompt_hashes(samples)[1] == sorted(map(prompt_hash, ("1+2=", "1+2", "3")))


def test_limit_takes_the_first_documents_with_the_same_examples(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    engine = Scripted(tokenizer, {f"{q}=": a for q, a in QUESTIONS.items()})
    (folder / "add.yaml").write_text(ADD + "num_fewshot: 1\n")
    runs = [
        evaluate(model, tokenizer, ["add"], include=[folder], engine=engine, num_fewshot=n, limit=limit).samples["add"]
        for n, limit in ((3, None), (3, 2), (None, 2))
    ]
    assert [len(run) for run in runs] == [4, 2, 2]
    assert runs[1] == runs[0][:2]
    assert {sample["prompt"].count("\n") for sample in runs[0]} == {3}
    assert {sample["prompt"].count("\n") for sample in runs[2]} == {1}


def test_slot_engine_writes_what_hf_generates_up_to_the_stop(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    prompt = torch.tensor([tokenizer.encode("1+1=")])
    full = tokenizer.decode(
        model.generate(prompt, max_new_tokens=300, do_sample=False)[0, 4:], skip_special_tokens=True
    )
    stop = full[-30:-28]
    assert full.find(stop) > 0
    text = ADD.replace('["\\n", ";"]', json.dumps([stop]))
    (folder / "add.yaml").write_text(text)
    scores = evaluate(model, tokenizer, ["add"], include=[folder], limit=1)
    assert scores.samples["add"][0]["response"] == [full.split(stop)[0]]
    (folder / "add.yaml").write_text(text.replace(json.dumps([stop]), "[]").replace("toks: 300", "toks: 40"))
    scores = evaluate(model, tokenizer, ["add"], include=[folder], limit=1)
    assert scores.samples["add"][0]["response"] == [full[:40]]
    assert scores.tokens == 44


def test_long_responses_are_looked_at_for_stops_as_they_grow(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    engine = Scripted(tokenizer, {"1+1=": "a" * 127 + ";" + "b" * 500, "1+2=": "c" * 500})
    scores = evaluate(model, tokenizer, ["add"], include=[folder], engine=engine, limit=2)
    assert [sample["response"] for sample in scores.samples["add"]] == [["a" * 127], ["c" * 300]]
    assert [(len(request.prompt), sampling.max_new_tokens) for _, request, sampling in engine.asked] == [
        (4, 128),
        (4, 128),
        (132, 128),
        (260, 44),
    ]


def test_sampled_responses_have_a_seed_each(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    (folder / "add.yaml").write_text(ADD.replace("do_sample: false", "temperature: 0.7, top_p: 0.9") + "repeats: 3\n")
    seeds = []
    for seed, limit in ((0, None), (0, 2), (1, 2)):
        engine = Scripted(tokenizer, {f"{q}=": a for q, a in QUESTIONS.items()})
        scores = evaluate(model, tokenizer, ["add"], include=[folder], engine=engine, seed=seed, limit=limit)
        assert {sampling for _, _, sampling in engine.asked} == {Sampling(0.7, 0.9, 128)}
        assert scores.samples["add"][0]["response"] == ["2", "2", "2"]
        seeds.append([request.seed for _, request, _ in engine.asked])
    assert len(set(seeds[0] + seeds[2])) == 12 + 6
    assert seeds[1] == seeds[0][:6]


def test_choices_are_scored_by_their_likelihood(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    scores = evaluate(model, tokenizer, ["choose"], include=[folder], micro_batch_tokens=20)
    right = {"acc": 0, "acc_norm": 0}
    for sample, (question, choices, label) in zip(scores.samples["choose"], CHOICES, strict=True):
        expected = [plain(model, tokenizer, f"{question}:", f" {choice}") for choice in choices]
        for (text, logp, greedy), choice, (value, sure) in zip(sample["response"], choices, expected, strict=True):
            assert (text, greedy) == (f" {choice}", sure)
            assert logp == pytest.approx(value, abs=1e-4)
        values = [value for value, _ in expected]
        right["acc"] += values.index(max(values)) == label
        by_length = [value / len(choice) for value, choice in zip(values, choices, strict=True)]
        right["acc_norm"] += by_length.index(max(by_length)) == label
    assert right["acc"] != right["acc_norm"]
    assert scores.tasks["choose"]["acc,none"] == right["acc"] / 4
    assert scores.main["choose"][:2] == ("acc_norm,none", right["acc_norm"] / 4)
    assert scores.truncated == 0


def test_prompts_longer_than_the_context_lose_their_beginning_and_are_counted(
    tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    small, long = make_model(context=32), "x" * 40
    jsonl(folder / "data/choose.jsonl", [{"q": long, "choices": ["b", "cd"], "label": 1}])
    scores = evaluate(small, tokenizer, ["choose"], include=[folder])
    response = scores.samples["choose"][0]["response"]
    expected = [plain(small, tokenizer, (long + ":")[len(choice) - 32 :], f" {choice}")[0] for choice in ("b", "cd")]
    assert [value for _, value, _ in response] == pytest.approx(expected, abs=1e-4)
    assert scores.truncated == 2
    jsonl(folder / "data/add.jsonl", [{"question": long, "answer": "1"}])
    engine = Scripted(tokenizer, {})
    (folder / "add.yaml").write_text(ADD.replace("toks: 300", "toks: 10"))
    scores = evaluate(small, tokenizer, ["add"], include=[folder], engine=engine)
    assert engine.asked[0][0] == (long + "=")[-22:]
    assert scores.truncated == 1


def test_groups(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    jsonl(folder / "data/less.jsonl", [{"question": q, "answer": a} for q, a in list(QUESTIONS.items())[:2]])
    (folder / "less.yaml").write_text(ADD.replace("task: add", "task: less").replace("add.jsonl", "less.jsonl"))
    aggregate = "aggregate_metric_list: [{metric: exact_match, aggregation: mean, weight_by_size: true}]\n"
    (folder / "sums.yaml").write_text("group: sums\ntask: [add, less]\n" + aggregate)
    (folder / "all.yaml").write_text("group: all\ntask: [sums, choose]\n")
    engine = Scripted(tokenizer, {"20+2=": "22", "1+1=": "2"})  # right: 2 of add's 4 and 1 of less's 2
    engine.responses = {"20+2=": "22", "3+2=": "5", "1+1=": "2"}  # 3 of 4, 1 of 2
    scores = evaluate(model, tokenizer, ["all"], include=[folder], engine=engine)
    assert scores.main["sums"][:2] == ("exact_match,number", pytest.approx(4 / 6))
    assert set(scores.main) == {"sums", "choose"}
    assert scores.average == pytest.approx((4 / 6 + scores.main["choose"][1]) / 2)
    (folder / "top.yaml").write_text("group: top\ntask: [all]\n")
    nested = evaluate(model, tokenizer, ["top"], include=[folder], engine=engine)
    error = math.hypot(*(scores.main[name][2] or math.nan for name in ("sums", "choose"))) / 2
    assert nested.main == {"all": ("mean", pytest.approx(scores.average), pytest.approx(error))}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("metric: exact_match", "metric: exact_mach"), r"the metric 'exact_mach'.*Did you mean 'exact_match'\?"),
        (("{{question}}", "{{question"), "'add' cannot be built from its data set 'json'"),
        (("doc_to_text:", "doc_to_text: !function helpers.missing\nx:"), "'add' cannot be read from .*helpers"),
        (("data/add.jsonl", "broken.yaml"), "'add' cannot be built from its data set 'json': .*(JSON|json)"),
        (("max_gen_toks: 300", "max_gen_toks: 3000"), "ask for 3000 new tokens.*context of 2048"),
        (("max_gen_toks: 300", "num_beams: 4"), "hold num_beams; only"),
        (("do_sample: false", "do_sample: true"), "without a temperature"),
        (("fewshot_split: train", "fewshot_split: trian"), "'add' cannot be built.*trian"),
    ],
)
def test_mistakes_in_a_task_are_told(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path, change: tuple[str, str], message: str
) -> None:
    (folder / "broken.yaml").write_text("output_type: generate_until\n")
    (folder / "add.yaml").write_text(ADD.replace(*change))
    with pytest.raises(UserError, match=f"(?s){message}"):
        evaluate(model, tokenizer, ["add"], include=[folder], engine=Scripted(tokenizer, {}))


def test_a_task_can_be_asked_for_once(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    (folder / "sums.yaml").write_text("group: sums\ntask: [add]\n")
    with pytest.raises(UserError, match=r"add, sums do not go together.*'add'"):
        evaluate(model, tokenizer, ["add", "sums"], include=[folder])


def test_default_metric(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    (folder / "choose.yaml").write_text(CHOOSE.partition("metric_list")[0])
    scores = evaluate(model, tokenizer, ["choose"], include=[folder])
    assert scores.main["choose"] == ("acc_norm,none", scores.tasks["choose"]["acc_norm,none"], ANY)


def test_a_task_without_its_main_metric_has_no_score(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    (folder / "choose.yaml").write_text(CHOOSE.replace("metric: acc,", "metric: bleu,").replace("acc_norm", "acc"))
    with pytest.raises(UserError, match="'choose' has no value of its main metric 'bleu,none'; it reports acc,none"):
        evaluate(model, tokenizer, ["choose"], include=[folder])


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        (None, "5+0=5\n1+1="),
        ("chat", "<user>5+0=<assistant>5<user>1+1=<A>"),
        ("Q: {prompt}\nA:", "Q: 5+0=5\n1+1=\nA:"),
    ],
)
def test_the_template_of_training_is_put_around_prompts(
    model: LlamaForCausalLM, folder: Path, template: str | None, prompt: str
) -> None:
    jsonl(folder / "data/shots.jsonl", [{"question": "5+0", "answer": "5"}])
    tokenizer, engine = make_tokenizer(), Scripted(make_tokenizer(), {})
    tokenizer.chat_template = (
        "{% for m in messages %}<{{m['role']}}>{{m['content']}}{% endfor %}{% if add_generation_prompt %}<A>{% endif %}"
    )
    tasks: dict[str, Any] = {"include": [folder], "num_fewshot": 1, "limit": 1}
    (folder / "add.yaml").write_text(ADD + "num_fewshot: 1\n")
    scores = evaluate(model, tokenizer, ["add"], engine=engine, template=template, **tasks)
    assert scores.samples["add"][0]["prompt"] == engine.asked[0][0] == prompt


@pytest.mark.parametrize("template", [None, "chat", "<user>{prompt}<eos>"])
def test_control_tokens_in_documents_stay_text(model: LlamaForCausalLM, folder: Path, template: str | None) -> None:
    jsonl(folder / "data/add.jsonl", [{"question": "a<eos>b<user>", "answer": "1"}])
    jsonl(folder / "data/choose.jsonl", [{"q": "a<eos>b", "choices": ["c<eos>", "d"], "label": 0}])
    (folder / "add.yaml").write_text(ADD + "num_fewshot: 0\n")
    tokenizer, seen = make_tokenizer(), []
    engine = Scripted(tokenizer, {})
    tokenizer.chat_template = "{% for m in messages %}<user>{{m['content']}}<eos>{% endfor %}"
    tokenize = PolicyLM._loglikelihood_tokens

    def spy(self: PolicyLM, requests: Sequence[Any], **options: Any) -> list[Any]:
        seen.extend(requests)
        return tokenize(self, requests, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PolicyLM, "_loglikelihood_tokens", spy)
        scores = evaluate(model, tokenizer, ["add", "choose"], include=[folder], engine=engine, template=template)
    ends = 0 if template is None else 1
    assert engine.asked[0][1].prompt.count(0) == ends
    assert engine.asked[0][0] == scores.samples["add"][0]["prompt"]
    assert [(list(context).count(0), rest.count(0)) for _, context, rest in seen] == [(ends, 0), (ends, 0)]
    assert str(tokenizer.decode(seen[0][2])).strip() == "c<eos>"


@pytest.mark.parametrize("question", ["1+1", "<unk>1+1<eos>"])
@pytest.mark.parametrize("template", ["{prompt}", "<unk>Q {prompt}"])
def test_a_beginning_token_is_there_once(model: LlamaForCausalLM, folder: Path, template: str, question: str) -> None:
    jsonl(folder / "data/add.jsonl", [{"question": question, "answer": "1"}])
    tokenizer = make_tokenizer()
    tokenizer.bos_token = "<unk>"
    first = TemplateProcessing(single="<unk> $A", special_tokens=[("<unk>", 1)])
    tokenizer.backend_tokenizer.post_processor = first
    engine = Scripted(tokenizer, {})
    evaluate(model, tokenizer, ["add"], include=[folder], num_fewshot=0, engine=engine, template=template)
    prompt = engine.asked[0][1].prompt
    assert (prompt[0], prompt.count(1), prompt.count(0)) == (1, 1, 0)


def test_shuffled_choices_do_not_depend_on_the_tasks_before(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    (folder / "shuffling.py").write_text(
        "import random\n\n\ndef shuffled(docs):\n    return docs.map(lambda doc: {**doc, 'choices': "
        "random.sample(doc['choices'], len(doc['choices']))})\n"
    )
    letters = list("abcdefgh")
    jsonl(folder / "data/choose.jsonl", [{"q": str(i), "choices": letters, "label": i % 8} for i in range(4)])
    for name in ("choose", "again"):
        text = CHOOSE.replace("task: choose", f"task: {name}") + "process_docs: !function shuffling.shuffled\n"
        (folder / f"{name}.yaml").write_text(text)
    alone, both = (evaluate(model, tokenizer, names, include=[folder]) for names in (["choose"], ["again", "choose"]))
    assert alone.samples["choose"] == both.samples["choose"]
    orders = [sample["doc"]["choices"] for sample in alone.samples["choose"]]
    assert all(sorted(order) == letters for order in orders)
    assert orders[0] != orders[1]
    for sample, order in zip(alone.samples["choose"], orders, strict=True):
        assert [text for text, _, _ in sample["response"]] == [f" {letter}" for letter in order]


def test_data_changed_under_the_same_time_stamp_are_read_again(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    file = folder / "data/add.jsonl"
    stamp = file.stat()
    for text in ("1+1", "5+5"):
        jsonl(file, [{"question": text, "answer": "2"}])
        os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        scores = evaluate(model, tokenizer, ["add"], include=[folder], engine=Scripted(tokenizer, {}))
        assert scores.samples["add"][0]["prompt"] == f"{text}="


def test_nothing_is_left_behind(
    tokenizer: PreTrainedTokenizerFast, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model, logger = make_model(), logging.getLogger("lm_eval")
    model.train()
    model.model.layers[0].eval()
    state, numbers, level = random.getstate(), np.random.get_state()[1].tolist(), logger.level
    (folder / "add.yaml").write_text(ADD.replace("toks: 300", "toks: 4"))
    evaluate(model, tokenizer, ["add", "choose"], include=[folder], limit=1)
    assert model.training
    assert not model.model.layers[0].training
    assert tokenizer.pad_token is None
    assert random.getstate() == state
    assert np.random.get_state()[1].tolist() == numbers
    assert logger.level == level
    assert datasets.is_caching_enabled()
    assert capfd.readouterr() == ("", "")
