"""The held-out problems of the embedded default, and reasoning-gym's verdict on an answer."""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset
from omegaconf import OmegaConf

from iris import compose
from iris.data import generators


def load(**_: Any) -> dict[str, Dataset]:
    """The validation and test splits of the shipped data set."""
    shipped = OmegaConf.load(compose.conf_dir() / "data" / "embedded.yaml")
    generator: Any = OmegaConf.to_container(shipped.generator)
    return {split: Dataset.from_list(generators.documents(generator, split)) for split in ("validation", "test")}


def load_choices(**_: Any) -> dict[str, Dataset]:
    """The test split, each problem with its own worked answer among those of the three problems after it."""
    documents = load()["test"].to_list()
    for n, document in enumerate(documents):
        others = [documents[(n + step) % len(documents)]["response"] for step in (1, 2, 3)]
        document["right"] = n % 4
        document["choices"] = [*others[: n % 4], document["response"], *others[n % 4 :]]
    return {"test": Dataset.from_list(documents)}


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """1 if the final answer is right; what a response says on the way does not count."""
    return {"accuracy": generators.verify(doc, results[0])}
