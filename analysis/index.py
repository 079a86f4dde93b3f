"""What the finished stages of a store say, kept in two tables that grow with it and may be deleted at any time.

<store>/.analysis/stages.parquet   one row a stage: cost, results, provenance
<store>/.analysis/scores.parquet   one row per evaluation × task × metric
"""

import contextlib
import hashlib
import json
import re
import uuid
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from iris.store import Damaged, Store

STAGES = {
    "stage": "str",  # kind/key
    "seconds": "float64",
    "cpu_seconds": "float64",
    "gpu_seconds": "float64",
    "tokens": "float64",
    "alpha": "float64",
    "gap": "float64",
    "rows": "float64",
    "batch": "float64",
    "revision": "str",  # of a model or data set: the hub's commit, or a digest of its content
    "provenance": "str",  # JSON: code, packages, python, host, device, harness
    "started": "str",
}
SCORES = {
    "evaluation": "str",
    "task": "str",
    "metric": "str",
    "main": "bool",
    "value": "float64",
    "stderr": "float64",
    "documents": "float64",
}
AVERAGE = "average"  # the task that stands for the mean of all main metrics
_SAID = ("code", "packages", "python", "host", "device", "platform", "harness")
_STDERR = re.compile(r"_stderr(?=,|$)")
_PAIR = b"pair"  # in the metadata of both files: two processes may write at once
_CODED = {"stages": ["provenance"], "scores": ["evaluation", "task", "metric"]}  # texts that many rows share
_FEW = 4000  # stages that one process reads in about a second
_NAN = float("nan")
Row = dict[str, Any]


@dataclass(frozen=True)
class Index:
    """The tables with the columns STAGES and SCORES, and the stages that do not match their checksums."""

    stages: pd.DataFrame
    scores: pd.DataFrame
    damaged: frozenset[str]


def read(store: Store, names: Collection[str], *, rebuild: bool = False) -> Index:
    """What is said by finished stages, called `kind/key`. Only those not seen before are read; damaged ones always."""
    folder = store.root / ".analysis"
    stages, scores = _empty() if rebuild else _load(folder)
    new = sorted(set(names).difference(stages["stage"].to_numpy(object)))
    if not new:
        return Index(stages, scores, frozenset())
    found, more, damaged = _read_all(store, new)
    if found:
        stages = pd.concat([stages.astype(STAGES), _frame(found, STAGES)], ignore_index=True)
        scores = pd.concat([scores.astype(SCORES), _frame(more, SCORES)], ignore_index=True)
        _save(folder, {"stages": stages, "scores": scores})
    return Index(stages, scores, frozenset(damaged))


def content(store: Store, stage: str, file: str) -> bytes | None:
    """A file of a finished stage; None where it is missing or does not match its checksum. Moves nothing."""
    try:
        manifest = store.manifest(*stage.split("/"))
        return _checked(store, stage, manifest, file) if manifest else None
    except (Damaged, OSError):
        return None


def _checked(store: Store, stage: str, manifest: Mapping[str, Any], file: str) -> bytes:
    text = (store.root / stage / file).read_bytes()
    if hashlib.sha256(text).hexdigest() != manifest["files"].get(file):
        raise Damaged(stage, file)
    return text


def _read_all(store: Store, names: list[str]) -> tuple[list[Row], list[Row], list[str]]:
    if len(names) <= _FEW:
        return _read_some(store, names)
    parts = [names[start : start + _FEW] for start in range(0, len(names), _FEW)]
    stages, scores, damaged = list[Row](), list[Row](), list[str]()
    with ProcessPoolExecutor() as pool:
        for a, b, c in pool.map(partial(_read_some, store), parts):
            stages += a
            scores += b
            damaged += c
    return stages, scores, damaged


def _read_some(store: Store, names: Iterable[str]) -> tuple[list[Row], list[Row], list[str]]:
    stages, scores, damaged = list[Row](), list[Row](), list[str]()
    for name in names:
        kind, _, key = name.partition("/")
        try:
            manifest = store.manifest(kind, key)
            if manifest is None:
                continue  # removed a moment ago
            if kind == "evaluate":
                said = json.loads(_checked(store, name, manifest, "scores.json"))
                scores += _scores(name, said, manifest["results"]["stderr"])
            stages.append(_stage(name, manifest))
        except (Damaged, OSError, KeyError, TypeError, ValueError):
            damaged.append(name)
    return stages, scores, damaged


def _stage(name: str, manifest: Mapping[str, Any]) -> Row:
    cost, results, provenance = manifest["cost"], manifest["results"], manifest["provenance"]
    shards = cost.get("shards", {})
    summed = {unit: cost[unit] + shards.get(unit, 0.0) for unit in ("seconds", "cpu_seconds", "gpu_seconds", "tokens")}
    numbers = {name: results.get(name) for name in ("alpha", "gap", "rows")}
    said = {key: provenance[key] for key in _SAID if key in provenance}
    identity = manifest["identity"]
    batch = identity.get("batch")
    return {
        "stage": name,
        **summed,
        **{key: _NAN if value is None else value for key, value in numbers.items()},
        "batch": _NAN if batch is None else batch,
        "revision": str(identity.get("commit") or identity.get("content") or identity.get("package") or ""),
        "provenance": json.dumps(said, sort_keys=True),
        "started": provenance["start"],
    }


def _scores(name: str, content: Mapping[str, Any], stderr: float | None) -> list[Row]:
    documents = {task: entry["documents"] for task, entry in content["versions"]["tasks"].items()}
    main = {task: metric for task, (metric, _, _) in content["main"].items()}
    rows = [_score(name, AVERAGE, AVERAGE, content["average"], _NAN if stderr is None else stderr, _NAN, True)]
    for task, metrics in content["tasks"].items():
        for metric, value in metrics.items():
            if not _STDERR.search(metric) and isinstance(value, int | float):
                first, comma, rest = metric.partition(",")
                error = metrics.get(f"{first}_stderr{comma}{rest}")
                error = error if isinstance(error, int | float) else _NAN
                counted = documents.get(task, _NAN)
                rows.append(_score(name, task, metric, value, error, counted, main.get(task) == metric))
    return rows


def _score(name: str, task: str, metric: str, value: float, stderr: float, documents: float, main: bool) -> Row:
    values = (name, task, metric, main, float(value), float(stderr), float(documents))
    return dict(zip(SCORES, values, strict=True))


# --- the tables on disk


def _frame(rows: list[Row], columns: Mapping[str, str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(columns)).astype(columns)


def _empty() -> tuple[pd.DataFrame, pd.DataFrame]:
    return _frame([], STAGES), _frame([], SCORES)


def _load(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables; empty ones where they are not there, cannot be read, or were not written together."""
    try:
        tables = [pq.read_table(folder / f"{name}.parquet", read_dictionary=coded) for name, coded in _CODED.items()]
    except (OSError, ValueError):  # pyarrow's errors are of these
        return _empty()
    pairs = [(table.schema.metadata or {}).get(_PAIR) for table in tables]
    fits = all(table.column_names == list(c) for table, c in zip(tables, (STAGES, SCORES), strict=True))
    if not fits or pairs[0] is None or pairs[0] != pairs[1]:
        return _empty()
    return tables[0].to_pandas(), tables[1].to_pandas()


def _save(folder: Path, tables: Mapping[str, pd.DataFrame]) -> None:
    """A store that may not be written is read again next time."""
    pair = uuid.uuid4().hex
    with contextlib.suppress(OSError):
        folder.mkdir(exist_ok=True)
        for name, frame in tables.items():
            new = folder / f".{name}-{pair[:8]}"
            table = pa.Table.from_pandas(frame, preserve_index=False)
            pq.write_table(table.replace_schema_metadata({_PAIR: pair}), new)
            new.replace(folder / f"{name}.parquet")
