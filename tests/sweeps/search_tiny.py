"""A search whose trials take about a second of CPU time per iteration, scored by the likelihood of held-out texts."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from iris.store import Store
from sweeps import __main__ as command
from sweeps.search.file import Search, load_search
from sweeps.search.optuna_study import database
from sweeps.search.session import Session
from tests.sweeps.tiny import write_study

LEVELS = {"schedule.levels": {"low": 0.25, "high": 1.5, "step": 0.25, "per": "iteration"}}
# Unlike right answers, which such a model does not give, likelihoods differ between any two policies.
TASK = """\
task: tiny_texts
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}}]
metadata: {{version: 1}}
"""


def write_search(folder: Path, base: Mapping[str, Any] | None = None, **content: Any) -> Path:
    """Write a search file and its data, with a store in the folder; a value of None removes a key of the tiny base."""
    own: dict[str, Any] = yaml.safe_load(write_study(folder).read_text())["base"]
    texts = folder / "tasks" / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"{a} + 6 = {a + 6} #### {a + 6}"}) + "\n" for a in range(8)))
    (folder / "tasks" / "texts.yaml").write_text(TASK.format(file=texts))
    own |= {"method": "iris", "schedule": "levels", "iterations": 2, "evaluate.tasks": ["tiny_texts"]}
    own |= {"train.learning_rate": 0.01} | dict(base or {})
    declared = {"space": LEVELS, "direction": "minimize", "trials": 6, "share": 0.25, "retries": 20}
    declared |= {"pruner": {"name": "asha", "reduction_factor": 2}} | content
    path = folder / "mine.yaml"
    base = {key: value for key, value in own.items() if value is not None}
    path.write_text(yaml.safe_dump({"base": base, **declared}, sort_keys=False))
    return path


def search(path: Path, *words: str) -> int:
    """Run the command; return its exit status."""
    return command.main(["search", f"search={path}", *words])


def session(path: Path, *words: str) -> Session:
    return Session(load(path, *words), str(path.parent / "store"), database())


def load(path: Path, *words: str) -> Search:
    return load_search(str(path), words)


def stored(folder: Path) -> dict[str, float]:
    """Return the time at which each artifact of the store was made, by kind/key."""
    store = Store(folder / "store")
    found = store.root.glob("[!.]*/[!.]*/manifest.json")
    return {str(path.parent.relative_to(store.root)): path.stat().st_mtime for path in found}
