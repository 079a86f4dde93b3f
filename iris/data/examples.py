"""Annotated examples from any source, the order that nested subsets follow, and the tokenized rows that stages read.

Two layouts are read. *Messages*: one column of chat messages ({"role", "content"}), of which the first round counts:
the prompt is the optional system message and the first user message, the response is the first assistant message.
*Columns*: one text column with the prompt and one with the response. The columns' names are configurable.
"""

import csv
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from iris import fingerprint
from iris.data import generators
from iris.errors import UserError, nearest
from iris.store import Artifact

ROWS = "rows.parquet"
_BATCH = 1000
_FIELD = 1 << 30  # bytes of the longest CSV field
_SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval")


@dataclass(frozen=True)
class Example:
    """One row of a source, counted from 0. `problem` names why it cannot be used; its texts are then empty."""

    row: int
    user: str = ""
    response: str = ""
    system: str | None = None
    problem: str | None = None

    @property
    def id(self) -> str:
        """16 hexadecimal digits of the content's SHA-256: the same for the same content in any source or layout."""
        return hashlib.sha256(json.dumps([self.system, self.user, self.response]).encode()).hexdigest()[:16]

    @property
    def messages(self) -> list[dict[str, str]]:
        """The prompt as chat messages."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.user}]

    @property
    def prompt(self) -> str:
        """The prompt as a person reads it."""
        return "\n\n".join(message["content"] for message in self.messages)


@dataclass(frozen=True)
class Rows:
    """The rows of a finished `data` stage, in subset order: N ids, and N prompts and responses as int32 arrays."""

    file: Path
    ids: list[str]
    prompt_tokens: list[np.ndarray]
    response_tokens: list[np.ndarray]

    @cached_property
    def prompts(self) -> list[str]:
        """The prompts as a person reads them, [N]."""
        return self._texts("prompt")

    @cached_property
    def responses(self) -> list[str]:
        """The annotated responses, [N]; not truncated."""
        return self._texts("response")

    def _texts(self, column: str) -> list[str]:
        texts: list[str] = pq.read_table(self.file, columns=[column])[column].to_pylist()
        return texts


def read_rows(artifact: Artifact) -> Rows:
    """The rows that a `data` stage has written."""
    file = artifact.folder / ROWS
    table = pq.read_table(file, columns=["id", "prompt_tokens", "response_tokens"])
    return Rows(file, table["id"].to_pylist(), lists(table, "prompt_tokens"), lists(table, "response_tokens"))


def shards(ids: Sequence[str], size: int) -> list[slice]:
    """Consecutive slices of at most `size` rows: all but the last are the same for every subset of one nest."""
    return [slice(start, min(start + size, len(ids))) for start in range(0, len(ids), size)]


def shard_digest(rows: Rows, part: slice) -> str:
    """A digest of the ids and tokens of one slice: what a shard of responses to it depends on."""
    digest = hashlib.sha256()
    for i, prompt, response in zip(rows.ids[part], rows.prompt_tokens[part], rows.response_tokens[part], strict=True):
        digest.update(f"{i}:{len(prompt)}:{len(response)}:".encode())
        digest.update(np.concatenate([prompt, response]).astype("<i4").tobytes())
    return digest.hexdigest()[:16]


def subset_order(ids: Sequence[str], seed: int) -> list[int]:
    """Positions of unique ids by SHA-256(`seed:id`): every subset is a prefix, however the source is ordered."""
    return sorted(range(len(ids)), key=lambda i: hashlib.sha256(f"{seed}:{ids[i]}".encode()).digest())


def read_source(identity: Mapping[str, Any], location: Mapping[str, Any]) -> Iterator[Example]:
    """The examples of a `data` stage's source, in its order, unusable ones included (see `Example.problem`).

    Raises UserError for a column, split, configuration or file that is not there.
    """
    names = [identity["messages"]] if identity["messages"] else [identity["prompt"], identity["response"]]
    parse = _first_round if identity["messages"] else _pair
    seen: set[str] = set()
    for row, values in enumerate(_SOURCES[identity["source"]](identity, location, names)):
        seen.update(values)
        yield parse(row, *(values.get(name) for name in names))
    if not seen:
        raise UserError(f"{described(identity, location)} holds no rows.")
    check_columns(names, seen, described(identity, location))


def described(identity: Mapping[str, Any], location: Mapping[str, Any]) -> str:
    """A source as an error message names it."""
    if identity["source"] == "generated":
        return f"The generated task '{identity['generator'].get('task')}'"
    return f"data.path={location['path']}"


def check_columns(names: Iterable[str], there: Iterable[str], where: str) -> None:
    """Raise UserError for a column that is not there; it lists the columns there are and the nearest name."""
    there = list(there)
    for name in names:
        if name not in there:
            raise UserError(
                f"{where} has no column '{name}': it has {', '.join(sorted(there))}.{nearest(name, there)} Set "
                "data.messages=COLUMN for chat messages, or data.prompt=COLUMN and data.response=COLUMN for texts."
            )


def _pair(row: int, prompt: Any, response: Any, system: str | None = None) -> Example:
    problem = _text_problem("prompt", prompt) or _text_problem("response", response)
    return Example(row, problem=problem) if problem else Example(row, prompt, response, system)


def _first_round(row: int, messages: Any) -> Example:
    if messages is None:
        return Example(row, problem="missing value")
    if not isinstance(messages, list) or not all(
        isinstance(m, dict) and {"role", "content"} <= m.keys() for m in messages
    ):
        return Example(row, problem="not chat messages")
    system, turns = (messages[0]["content"], messages[1:]) if _roles(messages[:1]) == ["system"] else ("", messages)
    if _roles(turns[:2]) != ["user", "assistant"]:
        return Example(row, problem="wrong role order")
    problem = _text_problem("system message", system)
    if problem in ("missing value", "not text"):
        return Example(row, problem=problem)
    return _pair(row, turns[0]["content"], turns[1]["content"], None if problem else system)


def _roles(messages: Sequence[Mapping[str, Any]]) -> list[Any]:
    return [message["role"] for message in messages]


def _text_problem(name: str, value: Any) -> str | None:
    if value is None:
        return "missing value"
    if not isinstance(value, str):
        return "not text"
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, as broken JSON escapes leave it
        return "not text"
    return None if value.strip() else f"empty {name}"


Values = Iterator[dict[str, Any]]


def _generated(identity: Mapping[str, Any], location: Mapping[str, Any], names: Sequence[str]) -> Values:
    for document in generators.documents(identity["generator"], identity["split"]):
        yield dict(zip(names, (document["prompt"], document["response"]), strict=True))


def _hub(identity: Mapping[str, Any], location: Mapping[str, Any], names: Sequence[str]) -> Values:
    """The repository at its commit is brought into the hub's cache, so that it is the same offline and online."""
    from datasets import load_dataset
    from huggingface_hub import snapshot_download

    where = f"data.path={location['path']} (commit {location['revision']})"
    try:
        folder = snapshot_download(location["path"], repo_type="dataset", revision=location["revision"])
    except fingerprint.hub_errors() as error:
        raise UserError(
            f"{where}: the hub does not give it and the cache does not hold all of it ({error}). Download it first: "
            f"hf download {location['path']} --repo-type dataset --revision {location['revision']}"
        ) from error
    try:
        dataset = load_dataset(folder, identity["config"], split=identity["split"])
    except (ValueError, FileNotFoundError) as error:  # an unknown split or configuration; the message has the choices
        raise UserError(
            f"{where}, data.config={identity['config']}, data.split={identity['split']}: {error}"
        ) from error
    yield from _dataset(dataset, names, where)


def _files(identity: Mapping[str, Any], location: Mapping[str, Any], names: Sequence[str]) -> Values:
    path = Path(location["path"])
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        yield from _saved(path, identity["split"], names)
        return
    for file in [path] if path.is_file() else _of_split(path, identity["split"]):
        reader = _READERS.get(file.suffix.lower())
        if reader is None:
            raise UserError(
                f"data.path={file}: choose a file that ends in {', '.join(_READERS)}, or a folder of such files."
            )
        try:
            yield from reader(file, names)
        except (UnicodeDecodeError, csv.Error, pa.ArrowInvalid) as error:
            raise UserError(
                f"data.path={file} cannot be read as {file.suffix[1:]} (texts in UTF-8): {error}"
            ) from error


_SOURCES: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any], Sequence[str]], Values]] = {
    "generated": _generated,
    "hub": _hub,
    "files": _files,
}


def _saved(path: Path, split: str, names: Sequence[str]) -> Values:
    from datasets import DatasetDict, load_from_disk

    dataset = load_from_disk(str(path))
    if isinstance(dataset, DatasetDict):
        if split not in dataset:
            raise UserError(f"data.path={path} has no split '{split}': set data.split to one of {', '.join(dataset)}.")
        dataset = dataset[split]
    yield from _dataset(dataset, names, f"data.path={path}")


def _dataset(dataset: Any, names: Sequence[str], where: str) -> Values:
    check_columns(names, dataset.column_names, where)
    for batch in dataset.select_columns(list(names)).with_format("arrow").iter(_BATCH):
        yield from batch.to_pylist()


def _of_split(folder: Path, split: str) -> list[Path]:
    """The files of a folder that are named after the split; all of them when no file is named after any split."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix.lower() in _READERS]
    if not files:
        raise UserError(f"data.path={folder} holds no file that ends in {', '.join(_READERS)}.")
    chosen = [p for p in files if _named(p.relative_to(folder), split)]
    others = [p for p in files if any(_named(p.relative_to(folder), name) for name in _SPLITS)]
    if others and not chosen:
        found = ", ".join(str(p.relative_to(folder)) for p in others[:5])
        raise UserError(
            f"data.path={folder} holds no file named after the split '{split}', but {found}. Set data.split to a name "
            "in these, or data.path to one file."
        )
    return chosen or files


def _named(path: Path, split: str) -> bool:
    return re.search(rf"(?<![A-Za-z0-9]){re.escape(split)}(?![A-Za-z0-9])", str(path.with_suffix(""))) is not None


def _json(file: Path, names: Sequence[str]) -> Values:
    with file.open(encoding="utf-8-sig") as lines:
        if lines.read(1) == "[":
            lines.seek(0)
            for number, values in enumerate(_parsed(lines.read(), str(file))):
                yield _mapping(values, f"{file}, entry {number}")
            return
        lines.seek(0)
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _mapping(_parsed(line, f"{file}, line {number}"), f"{file}, line {number}")


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(
            f"data.path={where} is not JSON: {error}. One object a line, or one list of objects."
        ) from error


def _mapping(values: Any, where: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise UserError(f"data.path={where}: expected an object with named columns, found {type(values).__name__}.")
    return values


def _csv(file: Path, names: Sequence[str]) -> Values:
    csv.field_size_limit(_FIELD)
    with file.open(encoding="utf-8-sig", newline="") as lines:
        yield from csv.DictReader(lines, restkey="(unnamed)")


def _parquet(file: Path, names: Sequence[str]) -> Values:
    with pq.ParquetFile(file, pre_buffer=False) as table:  # otherwise all of it stays in memory
        check_columns(names, table.schema_arrow.names, f"data.path={file}")
        for batch in table.iter_batches(_BATCH, columns=list(names)):
            yield from batch.to_pylist()


_READERS: dict[str, Callable[[Path, Sequence[str]], Values]] = {
    ".jsonl": _json,
    ".json": _json,
    ".parquet": _parquet,
    ".csv": _csv,
}


def lists(table: pa.Table, column: str) -> list[np.ndarray]:
    """A column of lists as arrays that share one buffer."""
    values = table[column].combine_chunks()
    flat, offsets = values.flatten().to_numpy(), values.offsets.to_numpy()
    return np.split(flat, (offsets - offsets[0])[1:-1]) if len(values) else []
