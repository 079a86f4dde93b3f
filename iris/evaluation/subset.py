"""Evaluate a fixed share of the documents, and reuse its answers in the whole evaluation."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from iris.errors import UserError


def chosen(task: str, documents: int, share: float) -> list[int]:
    """Return the indices of a share of a task's documents, ascending; a larger share contains a smaller one."""
    order = sorted(range(documents), key=lambda index: hashlib.sha256(f"{task}/{index}".encode()).digest())
    return sorted(order[: math.ceil(share * documents)])


def check_share(share: float | None) -> None:
    """Raise UserError unless the share is above 0 and at most 1 (or None: everything)."""
    if share is not None and not 0 < share <= 1:
        raise UserError(f"share={share}: give a share of the documents above 0 and at most 1, such as 0.15.")


def restrict(task: Any, share: float, limit: int | None) -> None:
    """Restrict lm-eval's task to its chosen documents, each with the prompt it has in the whole evaluation."""
    build, documents = task.build_all_requests, task.eval_docs
    indices = chosen(task.task_name, min(limit or len(documents), len(documents)), share)

    def build_chosen(**settings: Any) -> None:
        build(**settings)  # for all documents: random examples are drawn one document after the other
        wanted = set(indices)
        task._instances = [instance for instance in task.instances if instance.doc_id in wanted]
        task.doc_iterator = lambda **_: ((index, documents[index]) for index in indices)

    task.build_all_requests = build_chosen


def request_keys(requests: Sequence[Any]) -> list[str]:
    """Return for each lm-eval request a digest of what its answer depends on besides model and template."""
    places: Counter[tuple[str, int]] = Counter()
    keys = []
    for request in requests:
        document = request.task_name, request.doc_id
        text = json.dumps([request.request_type, *document, places[document], request.args], default=str)
        keys.append(hashlib.sha256(text.encode()).hexdigest()[:24])
        places[document] += 1
    return keys


def from_json(answers: dict[str, Any]) -> dict[str, Any]:
    """Return answers read from JSON as lm-eval expects them."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in answers.items()}
