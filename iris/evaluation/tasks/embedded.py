"""Held-out problems of the experiment's generated data, judged by reasoning-gym."""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset

from iris.data import generators
from iris.errors import UserError


def load(generator: Mapping[str, Any] | None = None, **_: Any) -> dict[str, Dataset]:
    """Return the validation and test splits of the experiment's `data.generator`."""
    if generator is None:
        raise UserError(
            "The evaluation tasks 'embedded…' hold the problems that data.source=generated keeps out of training, and "
            "this experiment has other data: name tasks that suit it in evaluate.tasks."
        )
    return {split: Dataset.from_list(generators.documents(generator, split)) for split in ("validation", "test")}


def load_choices(**settings: Any) -> dict[str, Dataset]:
    """Return the test split, each problem with its worked answer among those of the three problems after it."""
    documents = load(**settings)["test"].to_list()
    for n, document in enumerate(documents):
        others = [documents[(n + step) % len(documents)]["response"] for step in (1, 2, 3)]
        document["right"] = n % 4
        document["choices"] = [*others[: n % 4], document["response"], *others[n % 4 :]]
    return {"test": Dataset.from_list(documents)}


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Return accuracy 1 for a right final answer, whatever comes before it."""
    return {"accuracy": generators.verify(doc, results[0])}
