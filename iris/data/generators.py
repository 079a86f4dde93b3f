"""Generated data: reasoning-gym problems with worked answers, in splits that share no prompt, and their verifier.

A worked answer ends with `#### ANSWER`, as in GSM8K; reasoning-gym's own `score_answer` judges what follows the mark.
"""

import functools
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from iris.data.contamination import normalised
from iris.errors import UserError, nearest

SPLITS = ("test", "validation", "train")  # drawn in this order, so that more training data changes no other split
MARK = "####"
_STRIDE = 10_000_000  # problems between one seed and the next: item i at seed s is item i − d at seed s + d
_PATIENCE = 10_000  # repeated prompts in a row after which a task counts as exhausted
_TERM = re.compile(r"([+-]?) ?(\d+)")
_OWN = {"task", "seed", *SPLITS}

Document = dict[str, str]


@dataclass(frozen=True)
class Task:
    """A reasoning-gym data set with functions that write an entry as a prompt and a worked answer."""

    dataset: str
    prompt: Callable[[Mapping[str, Any]], str]
    work: Callable[[Mapping[str, Any], Random], str]


def _chain_sum_prompt(entry: Mapping[str, Any]) -> str:
    return f"{entry['metadata']['expression']} ="


def _chain_sum_work(entry: Mapping[str, Any], random: Random) -> str:
    """Choose one of two ways of working at random, so that a prompt has many right answers that differ."""
    terms = [int(sign + digits) for sign, digits in _TERM.findall(entry["metadata"]["expression"])]
    return random.choice((_left_to_right, _in_any_order))(terms, random)


def _left_to_right(terms: Sequence[int], random: Random) -> str:
    """Write [4, -1, 7] as '4 - 1 = 3, 3 + 7 = 10'."""
    totals = itertools.pairwise(itertools.accumulate(terms))
    steps = zip(totals, terms[1:], strict=True)
    return ", ".join(f"{a} {'-' if term < 0 else '+'} {abs(term)} = {b}" for (a, b), term in steps)


def _in_any_order(terms: Sequence[int], random: Random) -> str:
    """Write [4, -1, 7] as, for instance, 'add 7: 7, take 1: 6, add 4: 10'."""
    order = random.sample(terms, len(terms))
    steps = zip(order, itertools.accumulate(order), strict=True)
    return ", ".join(f"{'take' if term < 0 else 'add'} {abs(term)}: {total}" for term, total in steps)


def _spell_backward_prompt(entry: Mapping[str, Any]) -> str:
    return f"spell backward: {entry['metadata']['word']}"


def _spell_backward_work(entry: Mapping[str, Any], random: Random) -> str:
    word = entry["metadata"]["word"]
    return f"{' '.join(word)} -> {' '.join(reversed(word))}"


TASKS = {
    "chain_sum": Task("chain_sum", _chain_sum_prompt, _chain_sum_work),
    "spell_backward": Task("spell_backward", _spell_backward_prompt, _spell_backward_work),
}


def documents(generator: Mapping[str, Any], split: str) -> list[Document]:
    """Return prompt, worked response, answer and task name of every problem of one split; splits share no prompt.

    `generator` names the `task`, the sizes of `train`, `validation` and `test`, the `seed`, and arguments of the
    reasoning-gym data set. Raises UserError for an unknown split, task or argument and for an exhausted task.
    """
    if split not in SPLITS:
        raise UserError(f"data.split={split}: a generated task has {', '.join(SPLITS)}.{nearest(split, SPLITS)}")
    problems = _unique(_problems(generator))
    for name in SPLITS:
        chosen = list(itertools.islice(problems, _whole(generator, name)))
        if name == split:
            break
    return chosen


def verify(document: Mapping[str, Any], completion: str) -> float:
    """Return 1.0 if the final answer of a completion is right, else 0.0; parts of an answer get no credit."""
    _, mark, rest = completion.rpartition(MARK)
    answer = rest.strip().partition("\n")[0].strip()
    return float(bool(mark) and _scorer(document["task"])(answer, {"answer": document["answer"]}) == 1.0)


def task(name: str) -> Task:
    """Return the task of a name. Raises UserError with the choices."""
    if name not in TASKS:
        raise UserError(f"data.generator.task={name}: choose one of {', '.join(TASKS)}.{nearest(name, TASKS)}")
    return TASKS[name]


@functools.cache
def _scorer(name: str) -> Callable[[str, dict[str, str]], float]:
    from reasoning_gym import get_score_answer_fn

    score: Callable[[str, dict[str, str]], float] = get_score_answer_fn(task(name).dataset)
    return score


def _problems(generator: Mapping[str, Any]) -> Iterator[Document]:
    name, seed = str(generator.get("task")), _whole(generator, "seed")
    chosen = task(name)
    entries = _dataset(chosen.dataset, seed * _STRIDE, {k: v for k, v in generator.items() if k not in _OWN})
    for index in range(_STRIDE):
        entry = entries[index]
        work = chosen.work(entry, Random(f"{seed}:{index}"))
        answer = entry["answer"]
        yield {"prompt": chosen.prompt(entry), "response": f"{work} {MARK} {answer}", "answer": answer, "task": name}


def _whole(generator: Mapping[str, Any], key: str) -> int:
    value = generator.get(key, 0)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UserError(f"data.generator.{key}={value}: expected a whole number, 0 or more.")
    return value


def _dataset(name: str, seed: int, arguments: dict[str, Any]) -> Any:
    from reasoning_gym import create_dataset
    from reasoning_gym.factory import DATASETS

    known = sorted(set(DATASETS[name][1].__dataclass_fields__) - {"seed", "size"})
    for key in arguments:
        if key not in known:
            raise UserError(f"data.generator.{key}: '{name}' takes {', '.join(known)}.{nearest(key, known)}")
    try:
        return create_dataset(name, seed=seed, size=_STRIDE, **arguments)
    except (AssertionError, TypeError, ValueError) as error:
        raise UserError(f"data.generator: reasoning-gym's '{name}' refuses {arguments}: {error}") from error


def _unique(problems: Iterator[Document]) -> Iterator[Document]:
    seen: set[str] = set()
    repeated = 0
    for problem in problems:
        prompt = normalised(problem["prompt"])
        repeated = repeated + 1 if prompt in seen else 0
        if repeated > _PATIENCE:
            raise UserError(
                f"data.generator: the task '{problem['task']}' has only about {len(seen)} different prompts with these "
                "arguments. Lower train, validation or test, or choose arguments with more variety."
            )
        if not repeated:
            seen.add(prompt)
            yield problem
