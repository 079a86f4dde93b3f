"""A whole experiment on a few sums that takes about one second of CPU time: its data, its task and its settings."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
SETTINGS: Mapping[str, Any] = {
    "data": "files",
    "train": "embedded",
    "generate": "embedded",
    "evaluate": "embedded",
    "data.name": "sums",
    "data.size": 20,
    "data.max_prompt_tokens": 32,
    "data.max_response_tokens": 32,
    "model.architecture.hidden_size": 16,
    "model.architecture.intermediate_size": 16,
    "model.architecture.num_hidden_layers": 1,
    "model.architecture.num_attention_heads": 2,
    "model.architecture.num_key_value_heads": 2,
    "train.batch": 8,
    "train.epochs": 1,
    "train.sft.batch": 8,
    "train.sft.epochs": 1,
    "generate.max_new_tokens": 8,
    "generate.shard": 10,
    "evaluate.tasks": ["tiny_sums"],
    "execution.tracking": [],
    "execution.device": "cpu",
}


def write(folder: Path) -> dict[str, Any]:
    """Write the data and the task below a folder; returns the settings that find them."""
    (folder / "tasks").mkdir(parents=True, exist_ok=True)
    sums = [(a, b) for a in range(1, 6) for b in range(1, 6)]
    rows, held = folder / "rows.jsonl", folder / "tasks" / "held.jsonl"
    _lines(rows, [{"prompt": f"{a} + {b} =", "response": f"{a} + {b} = {a + b} #### {a + b}"} for a, b in sums])
    _lines(held, [{"question": f"{a} + 7 =", "answer": str(a + 7)} for a in range(4)])
    (folder / "tasks" / "tiny.yaml").write_text(TASK.format(file=held))
    return {"data.path": str(rows), "evaluate.include": [str(folder / "tasks")]}


def _lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
