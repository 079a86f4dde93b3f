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

Tiny = Callable[..., Config]

TASK = """\
task: tiny_sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}\\n"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["#"], max_gen_toks: 4, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1}}
"""
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2}
SETTINGS = [
    *("data=files", "data.name=sums", "data.size=20", "data.max_prompt_tokens=32", "data.max_response_tokens=32"),
    *(f"model.architecture.{name}={value}" for name, value in (SIZES | HEADS).items()),
    *("train=embedded", "train.batch=8", "train.epochs=1", "train.learning_rate=1e-3"),
    *("train.sft.batch=8", "train.sft.epochs=1"),
    *("generate=embedded", "generate.max_new_tokens=8", "generate.shard=10"),
    *("evaluate=embedded", "evaluate.tasks=[tiny_sums]"),
    *("iterations=2", "execution.tracking=[]", "execution.device=cpu"),
]


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command line of the tiny experiment, but for its method, store and output."""
    folder = tmp_path_factory.mktemp("tiny")
    sums = [(a, b) for a in range(1, 6) for b in range(1, 6)]
    rows = [{"prompt": f"{a} + {b} =", "response": f"{a} + {b} = {a + b} #### {a + b}"} for a, b in sums]
    _write_lines(folder / "rows.jsonl", rows)
    held = _write_lines(
        folder / "tasks" / "held.jsonl", [{"question": f"{a} + 7 =", "answer": str(a + 7)} for a in range(4)]
    )
    (folder / "tasks" / "tiny.yaml").write_text(TASK.format(file=held))
    return [*SETTINGS, f"data.path={folder / 'rows.jsonl'}", f"evaluate.include=[{folder / 'tasks'}]"]


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
