"""The held-out problems of the embedded default, and reasoning-gym's verdict on an answer."""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset
from omegaconf import OmegaConf

from iris import compose, generators


def load(**_: Any) -> dict[str, Dataset]:
    """The validation and test splits of the shipped data set."""
    shipped = OmegaConf.load(compose.conf_dir() / "data" / "embedded.yaml")
    generator: Any = OmegaConf.to_container(shipped.generator)
    return {split: Dataset.from_list(generators.documents(generator, split)) for split in ("validation", "test")}


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """1 if the final answer is right; what a response says on the way does not count."""
    return {"accuracy": generators.verify(doc, results[0])}
