"""The group `papers` from its real task files, over a few rows in place of each data set."""

import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from iris.errors import UserError
from iris.evaluation.harness import Scores, evaluate
from iris.sampling.engine import Request, Rollout, Sampling, quiet

ROWS: dict[str, dict[str, Any]] = {
    "openai/gsm8k": {"question": "How many?", "answer": "Two and 3.\n#### 5"},
    "TAUR-Lab/MuSR": {
        "narrative": "She went.",
        "question": "Who?",
        "choices": "['Ann', 'Bob']",
        "answer_index": 1,
        "answer_choice": "Bob",
    },
    "cais/mmlu": {"question": "Which?", "choices": ["a", "b", "c", "d"], "answer": 2},
    "TIGER-Lab/MMLU-Pro": {"question": "Which?", "options": list("abcdefghij"), "answer": "J", "answer_index": 9},
    "Idavidrein/gpqa": {"Question": "Why?", "Correct Answer": "so"}
    | {f"Incorrect Answer {i}": str(i) for i in (1, 2, 3)},
    "Rowan/hellaswag": {
        "activity_label": "Cooking",
        "ctx_a": "He stirs.",
        "ctx_b": "then he",
        "endings": ["eats.", "flies.", "is a pan.", "sings."],
        "label": "0",
    },
    "allenai/winogrande": {"sentence": "The _ fits.", "option1": "box", "option2": "bag", "answer": "2"},
    "google/IFEval": {
        "key": 1,
        "prompt": "Say hello without a comma.",
        "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{}],
    },
}
MATH = [("One half?", "Level 5", "It is $\\boxed{\\frac{1}{2}}$."), ("One?", "Level 1", "It is $\\boxed{1}$.")]
BBH = {
    "boolean_expressions": "True",
    "causal_judgement": "Yes",
    "formal_fallacies": "valid",
    "navigate": "Yes",
    "object_counting": "3",
    "sports_understanding": "yes",
    "web_of_lies": "Yes",
}
RESPONSES = {"How many?\nAnswer:": " 2 + 3 = 5\n#### 5\n\nQuestion:", "One half?\n\nSolution:": "So $0.5$. Problem:"}
FEWSHOT = {
    "gsm8k": 5,
    "leaderboard_math_algebra_hard": 4,
    "leaderboard_musr_murder_mysteries": 0,
    "mmlu_anatomy": 5,
    "mmlu_world_religions": 5,
    "leaderboard_mmlu_pro": 5,
    "leaderboard_gpqa_main": 0,
    "hellaswag": 10,
    "winogrande": 5,
    "leaderboard_bbh_navigate": 3,
    "ifeval": 0,
}
MAIN = {
    "gsm8k": "exact_match,strict-match",
    "leaderboard_math_hard": "exact_match,none",
    "leaderboard_musr": "acc_norm,none",
    "mmlu": "acc,none",
    "leaderboard_mmlu_pro": "acc,none",
    "leaderboard_gpqa": "acc_norm,none",
    "hellaswag": "acc_norm,none",
    "winogrande": "acc,none",
    "leaderboard_bbh": "acc_norm,none",
    "ifeval": "prompt_level_strict_acc,none",
}


def load(path: str, name: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """What `datasets.load_dataset` gives, with the same few rows in every split."""
    if path == "DigitalLearningGmbH/MATH-lighteval":
        rows = [{"problem": problem, "level": level, "solution": solution} for problem, level, solution in MATH]
    elif path == "SaylorTwift/bbh":
        rows = [{"input": "Is it?", "target": BBH.get(name or "", "(A)")}]
    else:
        rows = [ROWS[path]]
    rows = [row | {"id": index} for index, row in enumerate(rows * 12)]
    splits = ("train", "validation", "test", "dev", "murder_mysteries", "object_placements", "team_allocation")
    return dict.fromkeys(splits, datasets.Dataset.from_list(rows))


class Scripted:
    name = version = "scripted"

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, progress: Callable[[int], None] = quiet
    ) -> list[list[Rollout]]:
        prompts = [self.tokenizer.decode(request.prompt) for request in requests]
        texts = [next((RESPONSES[k] for k in RESPONSES if p.endswith(k)), "Hello there") for p in prompts]
        return [[Rollout([*self.tokenizer.encode(text), 0], True)] for text in texts]


def make_policy() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    vocabulary = {token: i for i, token in enumerate(["<eos>", "<unk>", *string.printable])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(vocabulary), max_position_embeddings=8192, eos_token_id=0, **size)
    return LlamaForCausalLM(config), PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>"
    )


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Scores:
    import nltk

    sentences: Path = tmp_path_factory.mktemp("nltk")  # the prompt above counts no sentences
    (sentences / "tokenizers/punkt_tab").mkdir(parents=True)
    model, tokenizer = make_policy()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("HF_HUB_OFFLINE", raising=False)
        patch.setattr(datasets, "load_dataset", load)
        patch.setattr(nltk.data, "path", [str(sentences)])
        return evaluate(model, tokenizer, ["papers"], limit=1, engine=Scripted(tokenizer))


def test_ten_benchmarks_by_their_main_metrics(scores: Scores) -> None:
    assert {name: metric for name, (metric, _, _) in scores.main.items()} == MAIN
    assert scores.average == pytest.approx(sum(value for _, value, _ in scores.main.values()) / 10)
    # mmlu 57, bbh 24, math 7, musr 3, gpqa 3, and five tasks of their own
    assert len(scores.samples) == 57 + 24 + 7 + 3 + 3 + 5
    assert scores.warnings == []


def test_examples_are_those_of_the_leaderboards(scores: Scores) -> None:
    assert {name: scores.versions["tasks"][name]["num_fewshot"] for name in FEWSHOT} == FEWSHOT
    assert scores.samples["gsm8k"][0]["prompt"].count("Question:") == 6
    assert scores.samples["leaderboard_math_algebra_hard"][0]["prompt"].count("Problem:") == 5
    assert scores.samples["mmlu_anatomy"][0]["prompt"].count("Answer:") == 6
    assert scores.samples["leaderboard_bbh_navigate"][0]["prompt"].count("A:") == 4


def test_written_answers_are_compared_as_mathematics(scores: Scores) -> None:
    assert scores.main["gsm8k"][1] == 1.0
    assert scores.main["leaderboard_math_hard"][1] == 1.0  # 0.5 for one half
    assert scores.samples["leaderboard_math_algebra_hard"][0]["response"] == ["So $0.5$. "]
    assert list(scores.tasks["leaderboard_math_algebra_hard"]) == ["exact_match,none"]
    assert scores.main["ifeval"][1] == 1.0


def test_math_is_scored_wrong_and_right() -> None:
    from iris.evaluation.tasks.math_verified import process_results

    document = {"solution": "Hence $x = \\boxed{\\frac{3}{4}}$."}
    answers = {
        "The final answer is $\\frac{3}{4}$. I hope it is correct.": 1,
        "$\\boxed{0.75}$": 1,
        "$\\frac{4}{3}$": 0,
        "no idea": 0,
        "": 0,
    }
    assert {text: process_results(document, [text])["exact_match"] for text in answers} == answers


def test_a_data_set_that_cannot_be_had_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: str, **_: Any) -> None:
        raise ConnectionError(f"Couldn't reach '{path}' on the Hub (ConnectTimeout)")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(
        UserError, match=r"'leaderboard_gpqa_diamond' needs the data set 'Idavidrein/gpqa' \(gpqa_diamond\)"
    ):
        evaluate(*make_policy(), ["leaderboard_gpqa"])
