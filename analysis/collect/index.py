"""A cache of the store's finished stages in tables that grow with it and may be deleted at any time.

<store>/.analysis/stages.parquet         one row per stage: cost, results, provenance
<store>/.analysis/scores.parquet         one row per evaluation × task × metric
<store>/.analysis/samples/KEY.parquet    one row per task × document of an evaluation, written on first use
"""

import contextlib
import hashlib
import io
import json
import math
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import compress, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from iris.cost import cost
from iris.files import write_atomic
from iris.store import Damaged, Store, split_id

_TEXT, _NUMBER, _CODED = pa.string(), pa.float64(), pa.dictionary(pa.int32(), pa.string())  # coded: many equal values
STAGES = pa.schema(
    {
        "stage": _TEXT,  # kind/key
        **dict.fromkeys(("seconds", "gpu_seconds", "tokens", "alpha", "gap", "rows", "batch"), _NUMBER),
        "revision": _CODED,  # of a model or data set: the hub's commit, or a content digest
        "provenance": _CODED,  # JSON: code, packages, python, host, device, harness
    }
)
SCORES = pa.schema(
    {
        "row": pa.int32(),  # of the evaluation in STAGES, ascending
        **{"task": _CODED, "metric": _CODED, "main": pa.bool_()},
        **dict.fromkeys(("value", "stderr", "documents"), _NUMBER),
    }
)
SAMPLES = pa.schema({"task": _CODED, "document": pa.int64(), "text": _TEXT, "value": _NUMBER})
AVERAGE = "average"  # the pseudo-task for the mean of all main metrics
_PROVENANCE = ("code", "packages", "python", "host", "device", "platform", "harness")
_STDERR = re.compile(r"_stderr(?=,|$)")
_PAIR = b"pair"  # equal in the metadata of both files unless two processes wrote at once
_FEW = 4000  # stages that one process reads in about a second
_NAN = float("nan")
Row = tuple[Any, ...]
Tables = tuple[pa.Table, pa.Table]  # of STAGES and SCORES


@dataclass(frozen=True)
class Index:
    """The tables STAGES and SCORES; `row` gives the row in `stages` of each requested stage, −1 for none."""

    stages: pd.DataFrame
    scores: pd.DataFrame
    row: NDArray[np.int64]
    damaged: frozenset[str] = frozenset()  # stages that do not match their checksums


def read(store: Store, places: Mapping[str, int], stored: Iterable[str], *, rebuild: bool = False) -> Index:
    """Return the index for the stages (kind/key) in `places`, numbered from 0, of which some are `stored`.

    Reads only manifests that are new or damaged, with `rebuild` all.
    """
    folder = store.root / ".analysis"
    if rebuild:
        shutil.rmtree(folder / "samples", ignore_errors=True)
    there = _at(places, stored) >= 0
    known = (STAGES.empty_table(), SCORES.empty_table()) if rebuild else _load(folder)
    index = _index(known, places, there)
    new = sorted(compress(places, there & (index.row < 0)))
    if not new:
        return index
    parts = _read_all(store, new)
    damaged = frozenset(name for _, bad in parts for name in bad)
    if len(damaged) < len(new):
        known = _joined([known, *(tables for tables, _ in parts)])
        _save(folder, known)
        index = _index(known, places, there)
    return replace(index, damaged=damaged)


def _index(tables: Tables, places: Mapping[str, int], there: NDArray[np.bool_]) -> Index:
    stages, scores = map(_pandas, tables)
    return Index(stages, scores, np.where(there, _at(places, stages["stage"].to_numpy(object)), -1))


def _at(places: Mapping[str, int], names: Iterable[str]) -> NDArray[np.int64]:
    """Return for each place the position of its name in `names`; −1: none."""
    place = np.fromiter(map(places.get, names, repeat(-1)), np.int64)
    row = np.full(len(places) + 1, -1)
    row[place] = np.arange(len(place))  # names without a place write to the last entry
    return np.asarray(row[:-1])


def _joined(parts: Sequence[Tables]) -> Tables:
    """Concatenate tables and renumber the rows of stages in scores."""
    scores, before = [], 0
    for stages, more in parts:
        row = pa.array(more["row"].to_numpy() + before, pa.int32())
        scores.append(more.set_column(0, SCORES.field("row"), row))
        before += len(stages)
    return pa.concat_tables([stages for stages, _ in parts]), pa.concat_tables(scores)


# --- reading stages


def content(store: Store, stage: str, file: str) -> bytes | None:
    """Return a file of a finished stage; None if it is missing or does not match its checksum."""
    try:
        manifest = store.manifest(*split_id(stage))
        return _checked(store, stage, manifest, file) if manifest else None
    except (Damaged, OSError):
        return None


def _checked(store: Store, stage: str, manifest: Mapping[str, Any], file: str) -> bytes:
    text = (store.root / stage / file).read_bytes()
    if hashlib.sha256(text).hexdigest() != manifest["files"].get(file):
        raise Damaged(stage, file)
    return text


def _read_all(store: Store, names: list[str]) -> list[tuple[Tables, list[str]]]:
    if len(names) <= _FEW:
        return [_read_some(store, names)]
    parts = [names[start : start + _FEW] for start in range(0, len(names), _FEW)]
    with ProcessPoolExecutor() as pool:
        return list(pool.map(partial(_read_some, store), parts))


def _read_some(store: Store, names: Iterable[str]) -> tuple[Tables, list[str]]:
    """Return the tables of some stages, and the damaged stages."""
    stages, scores, damaged = list[Row](), list[Row](), list[str]()
    for name in names:
        try:
            manifest = store.manifest(*split_id(name))
            if manifest is None:
                continue  # just removed
            stage, more = _stage(name, manifest), list[Row]()
            if split_id(name)[0] == "evaluate":
                scored = json.loads(_checked(store, name, manifest, "scores.json"))
                more = list(_scores(len(stages), scored, manifest["results"]["stderr"]))
            stages.append(stage)
            scores += more
        except (Damaged, OSError, KeyError, TypeError, ValueError):
            damaged.append(name)
    return (_table(stages, STAGES), _table(scores, SCORES)), damaged


def _stage(name: str, manifest: Mapping[str, Any]) -> Row:
    results, identity, provenance = manifest["results"], manifest["identity"], manifest["provenance"]
    spent = cost(manifest, whole=True)
    amounts = spent.seconds, spent.gpu_seconds, spent.tokens
    numbers = [results.get("alpha"), results.get("gap"), results.get("rows"), identity.get("batch")]
    revision = identity.get("commit") or identity.get("content") or identity.get("package") or ""
    kept = json.dumps({key: provenance[key] for key in _PROVENANCE if key in provenance}, sort_keys=True)
    return name, *amounts, *(_NAN if n is None else float(n) for n in numbers), str(revision), kept


def _scores(row: int, content: Mapping[str, Any], stderr: float | None) -> Iterator[Row]:
    documents = {task: float(entry["documents"]) for task, entry in content["versions"]["tasks"].items()}
    main = {task: metric for task, (metric, _, _) in content["main"].items()}
    yield row, AVERAGE, AVERAGE, True, float(content["average"]), _NAN if stderr is None else float(stderr), _NAN
    for task, metrics in content["tasks"].items():
        for metric, value in metrics.items():
            if not _STDERR.search(metric) and isinstance(value, int | float):
                first, comma, rest = metric.partition(",")
                error = metrics.get(f"{first}_stderr{comma}{rest}")
                error = float(error) if isinstance(error, int | float) else _NAN
                yield row, task, metric, main.get(task) == metric, float(value), error, documents.get(task, _NAN)


# --- the score of every document


def samples(store: Store, evaluation: str) -> pd.DataFrame:
    """Return the main metrics of all documents of an evaluation (kind/key), without tasks whose samples are damaged."""
    path = store.root / ".analysis" / "samples" / f"{split_id(evaluation)[1]}.parquet"
    with contextlib.suppress(OSError, ValueError):
        table = _table_of(path)
        if table.schema.equals(SAMPLES):
            return _pandas(table)
    main = json.loads(content(store, evaluation, "scores.json") or b'{"main": {}}')["main"]
    texts = {task: content(store, evaluation, f"samples/{task}.jsonl") for task in main}
    rows = [row for task, text in texts.items() for row in _samples(task, main[task][0], text or b"")]
    table = _table(rows, SAMPLES)
    if main and None not in texts.values():
        _write(path, table)
    return _pandas(table)


def _samples(task: str, metric: str, text: bytes) -> Iterator[Row]:
    for line in text.splitlines():
        sample = json.loads(line)
        value = float(sample["metrics"].get(metric, _NAN))
        if not math.isnan(value):
            yield task, sample["doc_id"], hashlib.sha256(sample["text"].encode()).hexdigest()[:16], value


# --- the tables on disk


def _table(rows: Sequence[Row], schema: pa.Schema) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [()] * len(schema)
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema)


def _pandas(table: pa.Table) -> pd.DataFrame:
    frame: pd.DataFrame = table.unify_dictionaries().to_pandas()
    return frame


def _table_of(path: Path) -> pa.Table:
    return pq.ParquetFile(path).read()  # pq.read_table first imports a module for data sets of many files


def _load(folder: Path) -> Tables:
    """Read the tables; empty ones if they are missing, unreadable or not written together."""
    empty = STAGES.empty_table(), SCORES.empty_table()
    try:
        stages, scores = (_table_of(folder / f"{name}.parquet") for name in ("stages", "scores"))
    except (OSError, ValueError):  # pyarrow's errors derive from these
        return empty
    fits = stages.schema.equals(STAGES) and scores.schema.equals(SCORES)
    pairs = [(table.schema.metadata or {}).get(_PAIR) for table in (stages, scores)]
    return (stages, scores) if fits and pairs[0] is not None and pairs[0] == pairs[1] else empty


def _save(folder: Path, tables: Tables) -> None:
    pair = {_PAIR: uuid.uuid4().hex}
    for name, table in zip(("stages", "scores"), tables, strict=True):
        _write(folder / f"{name}.parquet", table.replace_schema_metadata(pair))


def _write(path: Path, table: pa.Table) -> None:
    """Write a table atomically, unless the store is read-only."""
    content = io.BytesIO()
    with contextlib.suppress(OSError):
        pq.write_table(table.unify_dictionaries(), content)
        write_atomic(path, content.getvalue())
