"""Turn lm-eval's results into scores: one main metric a benchmark, one record a document."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lm_eval.api.group import Group
from lm_eval.utils import handle_non_serializable

from iris.errors import UserError
from iris.evaluation.subset import chosen

Main = tuple[str, float, float | None]


def metrics(results: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of one task or group: "metric,filter" and, where there is one, "metric_stderr,filter"."""
    return {key: float(value) for key, value in results.items() if "," in key and isinstance(value, int | float)}


def benchmarks(loaded: Mapping[str, Any], names: Iterable[str]) -> list[Any]:
    """Return the items of the average: the named tasks and groups, and the members of groups without a score."""
    found = []
    for name in names:
        group = loaded["groups"].get(name)
        if group is None:
            found.append(loaded["tasks"][name])
        else:
            found += [group] if group.has_aggregation else list(group)
    return found


def main_metric(item: Any, results: Mapping[str, Mapping[str, Any]]) -> Main:
    """Return the metric to report for a task or a group, its value and standard error.

    For a task: the accuracy normalised by length (acc_norm) where it has one, otherwise its first metric, under its
    first filter. For a group: lm-eval's aggregate of its tasks' main metric, or the mean of its members' values.
    """
    if not isinstance(item, Group):
        return _reported(item.task_name, _main_key(item), results)
    keys = {_main_key(task) for task in item.get_all_tasks()}
    for task in item.get_all_tasks():
        _reported(task.task_name, _main_key(task), results)
    if item.has_aggregation and len(keys) == 1:
        return _reported(item.name, keys.pop(), results)
    members = [main_metric(member, results) for member in item]
    errors = [error for _, _, error in members if error is not None]
    value = sum(value for _, value, _ in members) / len(members)
    complete = len(errors) == len(members)
    return "mean", value, math.hypot(*errors) / len(members) if complete else None


def _main_key(task: Any) -> str:
    listed = [str(entry["metric"]) for entry in task.get_config("metric_list") or []]
    if not listed:
        listed = list(task.aggregation())
    filters = task.get_config("filter_list")
    return f"{'acc_norm' if 'acc_norm' in listed else listed[0]},{filters[0]['name'] if filters else 'none'}"


def _reported(name: str, key: str, results: Mapping[str, Mapping[str, Any]]) -> Main:
    numbers = metrics(results[name])
    if not math.isfinite(numbers.get(key, math.nan)):
        reported = ", ".join(k for k in numbers if "_stderr," not in k) or "nothing"
        raise UserError(
            f"The evaluation task '{name}' has no value of its main metric '{key}'; it reports {reported}. "
            "Name a metric in its metric_list that lm-eval computes for its output_type."
        )
    return key, numbers[key], numbers.get(key.replace(",", "_stderr,", 1))


def check_counts(counts: Mapping[str, Mapping[str, int]], limit: int | None, share: float | None = None) -> None:
    """Raise UserError unless every document (of the share) was scored; counts: task → {"original", "effective"}."""
    for name, count in counts.items():
        documents = min(count["original"], limit or count["original"])
        expected = documents if share is None else len(chosen(name, documents, share))
        if count["effective"] != expected:
            raise UserError(f"The evaluation task '{name}' scored {count['effective']} of its {expected} documents.")


def records(task: Any, samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one record per document, in order and as JSON values, from lm-eval's one per document and filter."""
    merged: dict[int, dict[str, Any]] = {}
    for sample in samples:
        record = merged.setdefault(sample["doc_id"], _record(task, sample))
        record["filtered"][sample["filter"]] = sample["filtered_resps"]
        record["metrics"] |= {f"{metric},{sample['filter']}": sample[metric] for metric in sample["metrics"]}
    plain: list[dict[str, Any]] = json.loads(
        json.dumps([merged[index] for index in sorted(merged)], default=handle_non_serializable)
    )
    return plain


def _record(task: Any, sample: Mapping[str, Any]) -> dict[str, Any]:
    contexts = [arguments[0] for arguments in sample["arguments"]]
    choices = task.OUTPUT_TYPE in ("multiple_choice", "loglikelihood")
    responses = [
        [arguments[1], *response] if choices else response
        for arguments, answers in zip(sample["arguments"], sample["resps"], strict=True)
        for response in answers
    ]
    text = task.doc_to_text(sample["doc"])
    return {
        "doc_id": sample["doc_id"],
        "doc": sample["doc"],
        "text": text
        if isinstance(text, str)
        else "",  # the question without examples; "" where choices stand inside it
        "target": sample["target"],
        "prompt": contexts[0] if len(set(contexts)) == 1 else contexts,
        "response": responses,  # sampled texts, or of each choice [text, log-probability in nats, whether greedy]
        "filtered": {},
        "metrics": {},
    }
