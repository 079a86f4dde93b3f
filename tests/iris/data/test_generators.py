"""Generated problems: the same for the same configuration, no prompt in two splits, and a verifier that knows right."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from iris.data import generators
from iris.data.contamination import normalised
from iris.data.generators import SPLITS, TASKS, Document, documents, verify
from iris.errors import UserError
from iris.evaluation.tasks import embedded

SIZES = {"train": 120, "validation": 30, "test": 30}
DIGITS = {"min_digits": 1, "max_digits": 1}


def prompts(of: list[Document]) -> list[str]:
    return [normalised(document["prompt"]) for document in of]


@pytest.mark.parametrize("task", TASKS)
def test_the_same_configuration_gives_the_same_documents(task: str) -> None:
    generator = {"task": task, "seed": 3} | SIZES
    for split in SPLITS:
        assert documents(generator, split) == documents(dict(generator), split)
        assert len(documents(generator, split)) == SIZES[split]
    assert prompts(documents(generator, "train")) != prompts(documents(generator | {"seed": 4}, "train"))


@pytest.mark.parametrize(
    "generator", [{"task": task} for task in TASKS] + [{"task": "chain_sum", "max_terms": 3} | DIGITS]
)
def test_no_prompt_is_in_two_splits_or_twice_in_one(generator: Mapping[str, Any]) -> None:
    together = [p for split in SPLITS for p in prompts(documents(SIZES | generator, split))]
    assert len(set(together)) == len(together) == sum(SIZES.values())


def test_repeated_prompts_are_drawn_and_dropped() -> None:
    generator = SIZES | {"task": "chain_sum", "min_terms": 2, "max_terms": 2} | DIGITS
    drawn = generators._problems(generator)
    first = prompts([next(drawn) for _ in range(180)])
    assert len(set(first)) < 180
    assert prompts(documents(generator, "test")) == list(dict.fromkeys(first))[:30]


def test_seeds_share_no_item_of_the_stream() -> None:
    """Item i of reasoning-gym at seed s is item i − 1 at seed s + 1."""
    generator = SIZES | {"task": "chain_sum", "min_terms": 6, "max_digits": 4}
    train = prompts(documents(generator | {"seed": 0}, "train"))
    assert not set(train) & {p for split in SPLITS for p in prompts(documents(generator | {"seed": 1}, split))}


def test_more_training_data_changes_nothing_else() -> None:
    generator: dict[str, Any] = {"task": "chain_sum"} | SIZES
    larger = generator | {"train": 200}
    for split in ("test", "validation"):
        assert documents(larger, split) == documents(generator, split)
    assert documents(larger, "train")[:120] == documents(generator, "train")


@pytest.mark.parametrize("task", TASKS)
def test_every_annotation_is_verified(task: str) -> None:
    for document in documents({"task": task, "train": 300}, "train"):
        assert document["response"].endswith(f" #### {document['answer']}")
        assert verify(document, document["response"]) == 1.0


@pytest.mark.parametrize("task", TASKS)
def test_every_other_answer_is_refused(task: str) -> None:
    for document in documents({"task": task, "test": 50}, "test"):
        right = document["answer"]
        for wrong in (
            f"{right}1",
            "",
            "####",
            f"#### {right}x",
            f"#### {right} or 7",
            f"#### {right} #### {right}9",
            right,
        ):
            assert verify(document, wrong) == 0.0
        assert verify(document, f" work #### {right} \nmore") == 1.0


def test_a_part_of_the_answer_earns_nothing() -> None:
    """reasoning-gym itself gives 1/2 to '12' where '2' is right."""
    assert verify({"task": "chain_sum", "answer": "2"}, "#### 12") == 0.0


def test_worked_answers_are_right_and_come_in_both_ways() -> None:
    train = documents({"task": "chain_sum", "train": 200, "min_terms": 4, "max_terms": 5} | DIGITS, "train")
    narrated = [d for d in train if d["response"].startswith(("add", "take"))]
    assert 70 < len(narrated) < 130
    for document in train:
        expression = document["prompt"].removesuffix(" =")
        steps = document["response"].rpartition(" ####")[0].split(", ")
        if document in narrated:
            total = 0
            for step in steps:
                verb, number, after = step.split()
                total += int(number.strip(":")) * {"add": 1, "take": -1}[verb]
                assert total == int(after)
            assert len(steps) == len(expression.split()[::2])
        else:
            assert all(eval(left) == int(right) for left, right in (step.split(" = ") for step in steps))
            assert len(steps) == len(expression.split()[::2]) - 1
        assert eval(expression) == int(document["answer"])


def test_worked_answer_by_hand() -> None:
    assert generators._left_to_right([4, -1, 7], generators.Random(0)) == "4 - 1 = 3, 3 + 7 = 10"
    assert generators._in_any_order([4], generators.Random(0)) == "add 4: 4"


@pytest.mark.parametrize(
    ("generator", "split", "message"),
    [
        ({"task": "chain_sun", "test": 1}, "test", r"task=chain_sun: choose one of .*Did you mean 'chain_sum'"),
        ({"test": 1}, "test", "task=None: choose one of"),
        ({"task": "chain_sum"}, "validate", r"data.split=validate: .*test, validation, train.*'validation'"),
        ({"task": "chain_sum", "test": 1, "min_term": 3}, "test", r"min_term: 'chain_sum' takes .*'min_terms'"),
        ({"task": "chain_sum", "test": 1, "size": 3}, "test", "data.generator.size: 'chain_sum' takes"),
        ({"task": "chain_sum", "test": 1, "min_terms": 9}, "test", "refuses {'min_terms': 9}: max_terms must be"),
        ({"task": "chain_sum", "test": 1, "min_terms": "x"}, "test", "refuses {'min_terms': 'x'}"),
        ({"task": "chain_sum", "test": "9k"}, "test", "data.generator.test=9k: expected a whole number"),
        ({"task": "chain_sum", "test": 1, "seed": -1}, "test", "data.generator.seed=-1: expected a whole number"),
    ],
)
def test_what_there_is_not_gives_one_message(generator: dict[str, Any], split: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        documents(generator, split)


def test_a_task_without_new_prompts_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generators, "_PATIENCE", 500)
    generator: dict[str, Any] = {"task": "chain_sum", "test": 300, "min_terms": 2, "max_terms": 2} | DIGITS
    with pytest.raises(UserError, match="has only about 199 different prompts"):
        documents(generator, "test")


EMBEDDED = {
    "task": "chain_sum",
    "min_terms": 4,
    "max_terms": 5,
    "min_digits": 1,
    "max_digits": 1,
    "test": 1000,
    "validation": 10,
}


def test_evaluation_reads_the_splits_of_the_experiment() -> None:
    generator: dict[str, Any] = {"task": "spell_backward", "test": 5, "validation": 4, "seed": 3}
    splits = embedded.load(generator=generator)
    for split in ("test", "validation"):
        assert splits[split].to_list() == documents(generator | {"train": 9}, split)
    with pytest.raises(UserError, match="name tasks that suit it"):
        embedded.load()


def test_choices_hold_the_right_answer_in_every_place() -> None:
    found = embedded.load_choices(generator=EMBEDDED)["test"].to_list()
    assert all(document["choices"][document["right"]] == document["response"] for document in found)
    assert Counter(document["right"] for document in found[:400]) == dict.fromkeys(range(4), 100)
    assert sum(len(set(document["choices"])) == 4 for document in found) > 0.99 * len(found)
