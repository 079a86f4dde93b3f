"""The three kinds of request, against lm-eval's own model class, and shared among processes."""

import json
import multiprocessing
import os
import random
import socket
import string
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from iris.errors import UserError
from iris.evaluation.harness import evaluate
from iris.execution.world import World
from iris.sampling.slots import SlotEngine

CHARACTERS = string.ascii_letters + string.digits + string.punctuation + " \n"
DATA = """
dataset_path: json
dataset_kwargs: {data_files: {train: data/shots.jsonl, test: data/FILE.jsonl}}
test_split: test
fewshot_split: train
doc_to_text: "{{question}}="
doc_to_target: "{{answer}}"
"""
ADD = """task: add
generation_kwargs: {until: [";"], do_sample: false, max_gen_toks: 8}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
num_fewshot: 4
"""
CHOOSE = """task: choose
output_type: multiple_choice
doc_to_choice: "{{choices}}"
"""
CHOICES = [("a", ["b", "cd"], 1), ("ab", ["b", "a", "bb"], 2), ("who", ["xyz", "b"], 0), ("hm", ["b", "what"], 0)]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character."""
    vocabulary = {token: index for index, token in enumerate(["<eos>", "<unk>", *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>")


def make_model(context: int = 2048, kind: str = "llama") -> PreTrainedModel:
    """A tiny model; mistral and gemma3 see eight tokens back in some or all layers."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind,
        vocab_size=len(CHARACTERS) + 2,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=context,
        bos_token_id=None,
        eos_token_id=0,
        initializer_range=0.3,  # far from uniform
    )
    for name, value in {"intermediate_size": 32, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8}.items():
        if kind != "gpt2":
            setattr(config, name, value)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model.eval()


def jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "add.yaml").write_text(DATA.replace("FILE", "add") + ADD)
    (tmp_path / "choose.yaml").write_text(DATA.replace("FILE", "choose").replace("shots", "choose") + CHOOSE)
    # Three questions for two processes, each with examples that are drawn at random.
    jsonl(tmp_path / "data/add.jsonl", [{"question": f"1+{i}", "answer": str(1 + i)} for i in range(3)])
    jsonl(tmp_path / "data/shots.jsonl", [{"question": f"{i}+0", "answer": str(i)} for i in range(20)])
    jsonl(tmp_path / "data/choose.jsonl", [{"question": q, "choices": c, "answer": n} for q, c, n in CHOICES])
    return tmp_path


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return make_model()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral", "gemma3_text"])
def test_likelihoods_agree_with_those_of_plain_hflm(kind: str) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from iris.evaluation.lm import PolicyLM
    from iris.execution.progress import Progress

    short = make_model(context=48, kind=kind)
    ours = PolicyLM(
        short,
        make_tokenizer(),
        SlotEngine(short, [0]),
        micro_batch_tokens=64,
        seed=0,
        world=World(),
        progress=Progress(quiet=True),
    )
    theirs = HFLM(pretrained=short, tokenizer=make_tokenizer(), batch_size=2)
    random.seed(1)
    text = "".join(random.choices(CHARACTERS, k=200))
    pairs = [(text[i : i + n], text[100 - m : 100]) for i in (0, 3) for n in (1, 17, 30) for m in (1, 4)] + [
        ("", "abc")
    ]
    greedy = short.generate(torch.tensor([make_tokenizer().encode("abc")]), max_new_tokens=1, do_sample=False)
    pairs.append(("abc", make_tokenizer().decode(greedy[0, -1:])))
    requests = [Instance("loglikelihood", {}, pair, 0, ("t", i, 1)) for i, pair in enumerate(pairs)]
    for (a, b), (c, d) in zip(ours.loglikelihood(requests), theirs.loglikelihood(requests), strict=True):
        assert a == pytest.approx(c, abs=1e-4)
        assert b == d
    assert ours.loglikelihood(requests)[-1][1] is True
    rolling = [Instance("loglikelihood_rolling", {}, (text[:n],), 0, ("t", n, 1)) for n in (1, 47, 130)]
    assert ours.loglikelihood_rolling(rolling) == pytest.approx(theirs.loglikelihood_rolling(rolling), abs=1e-3)
    assert short.config._attn_implementation == "sdpa"


def test_two_processes_score_like_one(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    one = evaluate(model, tokenizer, ["add", "choose"], include=[folder])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")  # spares the children the imports
    children = [fork.Process(target=score_in_a_process, args=(rank, port, folder)) for rank in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(timeout=60)
    assert [child.exitcode for child in children] == [0, 0]
    both = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    assert both[0]["tokens"] + both[1]["tokens"] == one.tokens
    for scores in both:
        assert scores["average"] == one.average
        assert scores["tasks"] == one.tasks
        assert [s["prompt"] for s in scores["samples"]["add"]] == [s["prompt"] for s in one.samples["add"]]
        assert [s["response"] for s in scores["samples"]["add"]] == [s["response"] for s in one.samples["add"]]
        for theirs, ours in zip(scores["samples"]["choose"], one.samples["choose"], strict=True):
            for (text, logp, greedy), expected in zip(theirs["response"], ours["response"], strict=True):
                assert [text, pytest.approx(logp, abs=1e-4), greedy] == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [({"limit": 0}, "limit=0"), ({"num_fewshot": -1}, "num_fewshot=-1"), ({"template": "chat"}, "no chat template")],
)
def test_options_out_of_range(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(model, tokenizer, ["gsm8k"], **options)


def test_documents_without_a_score_are_noticed() -> None:
    from iris.evaluation.scores import check_counts

    check_counts({"a": {"original": 5, "effective": 3}, "b": {"original": 2, "effective": 2}}, 3)
    with pytest.raises(UserError, match="'a' scored 3 of its 5 documents"):
        check_counts({"a": {"original": 5, "effective": 3}}, None)


class Pair(World):
    """Two processes, of which this one is real."""

    def gather(self, value: Any) -> list[Any]:
        return [value, ("ValueError: boom", [])]


def test_a_failure_reaches_all_processes(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    with pytest.raises(RuntimeError, match="Process 1 could not answer its evaluation requests: ValueError: boom"):
        evaluate(model, tokenizer, ["choose"], include=[folder], world=Pair(0, 2))
    long = "x" * 40
    jsonl(folder / "data/choose.jsonl", [{"question": "a", "choices": [long], "answer": 0}])
    with pytest.raises(RuntimeError, match=r"Process 0 .*UserError: A text to score has 41 tokens.*of 32") as caught:
        evaluate(make_model(context=32), tokenizer, ["choose"], include=[folder], world=Pair(0, 2))
    assert isinstance(caught.value.__cause__, UserError)


def score_in_a_process(rank: int, port: int, folder: Path) -> None:
    from accelerate import PartialState

    PartialState._reset_state()
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}
    torch.set_num_threads(1)
    world = World.join("cpu")
    assert world.size == 2
    names = ["add", "choose"]
    scores = evaluate(make_model(), make_tokenizer(), names, include=[folder], world=world)
    (folder / f"{rank}.json").write_text(json.dumps(asdict(scores)))
