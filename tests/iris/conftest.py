"""A whole experiment on a few sums that takes about one second of CPU time, in process."""

import copy
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from iris import compose
from iris.config import Config
from tests import sums

Tiny = Callable[..., Config]


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command line of the tiny experiment, but for its method, store and output."""
    settings = {**sums.SETTINGS, "train.learning_rate": 1e-3, "iterations": 2}
    settings |= sums.write(tmp_path_factory.mktemp("tiny"))
    return [f"{key}={json.dumps(value) if isinstance(value, list) else value}" for key, value in settings.items()]


@pytest.fixture(scope="session")
def tiny(settings: list[str]) -> Tiny:
    """`tiny(method, store, {key: value})`: the configuration, with the values of dotted keys changed."""

    @functools.cache
    def composed(method: str) -> Config:
        return compose.load([f"+method={method}", *settings])

    def make(method: str, store: Path, changes: Mapping[str, Any] | None = None) -> Config:
        config = copy.deepcopy(composed(method))
        for key, value in ({"store": str(store), "output": str(store / "outputs")} | dict(changes or {})).items():
            _put(config, key, value)
        return config

    return make


def _put(config: Any, key: str, value: Any) -> None:
    *parents, name = key.split(".")
    for parent in parents:
        config = config[parent] if isinstance(config, dict) else getattr(config, parent)
    if isinstance(config, dict):
        config[name] = value
    else:
        assert hasattr(config, name), key
        setattr(config, name, value)
