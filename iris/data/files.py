"""Local files: which files of a folder belong to a split, and a reader for each format.

The rules follow `datasets`: a file's name decides, then the nearest folder's that names a split; `train`, `training`
and so on count between separators. A longer name such as train_sft is a split of its own.
"""

import contextlib
import csv
import io
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from iris import fingerprint
from iris.errors import UserError, nearest

Values = Iterator[dict[str, Any]]
Reader = Callable[[Path, Sequence[str]], Values]
_BATCH = 1000
_FIELD = 1 << 30  # bytes of the longest CSV field
_LISTED = 10  # file names in an error
_ENDINGS = ".jsonl, .json, .csv, each also with .gz, .bz2 or .zst, or .parquet"
_ENDING = re.compile(r"(\.jsonl|\.json|\.csv|\.parquet)(\.gz|\.bz2|\.zst)?$", re.IGNORECASE)
_DESCRIPTIONS = {"config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
_SAVED = ("state.json", "dataset_dict.json")  # in a folder that save_to_disk has written
_COUNTED = 1 << 26  # bytes of a text file whose lines are counted
_KEYWORDS = {"train": "train", "training": "train"}
_KEYWORDS |= dict.fromkeys(("validation", "valid", "dev", "val"), "validation")
_KEYWORDS |= dict.fromkeys(("test", "testing", "eval", "evaluation"), "test")
_KEYWORD = re.compile(rf"(?<![a-z])({'|'.join(_KEYWORDS)})(?![a-z])([^0-9]*)", re.IGNORECASE)


def read_files(path: Path, split: str, names: Sequence[str]) -> Values:
    """Yield the named columns of every row of a split in a file, a folder of files or a saved data set.

    Raises UserError for files that cannot be read and for a split or column that is not there.
    """
    if any((path / name).is_file() for name in _SAVED):
        yield from _saved(path, split, names)
        return
    for file in files_of_split(path, split):
        ending = _ENDING.search(file.name)
        if ending is None:
            raise UserError(f"data.path={file}: choose a file that ends in {_ENDINGS}, or a folder of such files.")
        try:
            yield from _READERS[ending[1].lower()](file, names)
        except (UnicodeDecodeError, csv.Error, pa.ArrowInvalid, OSError) as error:
            raise UserError(f"data.path={file} cannot be read as {ending[0][1:]} (texts in UTF-8): {error}") from error


def files_of_split(path: Path, split: str) -> list[Path]:
    """Return the file itself, or the files of a folder that belong to a split.

    All files are `train` if none is named after a split. Raises UserError if there are none or several splits fit.
    """
    if path.is_file():
        return [path]
    files = [p for p in fingerprint.files_below(path) if _ENDING.search(p.name) and p.name not in _DESCRIPTIONS]
    if not files:
        raise UserError(f"data.path={path} holds no file that ends in {_ENDINGS}.")
    named = {p: split_name(p.relative_to(path)) for p in files}
    wanted = split_name(Path(split)) or split
    chosen = [p for p in files if wanted in (named[p], *_words(p.relative_to(path)))]
    if not chosen and wanted == "train" and not any(named.values()):
        return files
    longer = {p: name for p, name in named.items() if name and _extends(name, wanted)}
    if not chosen and len(set(longer.values())) == 1:
        return list(longer)
    if not chosen:
        raise UserError(_unclear(path, split, longer or named))
    return chosen


def _extends(name: str, split: str) -> bool:
    """Return whether a name such as train_sft, but not train_test, begins with a split's."""
    return name.startswith(f"{split}_") and not _KEYWORD.search(name.removeprefix(split))


def _words(path: Path) -> list[str]:
    """Return the parts between separators in a path that is named after no split."""
    return [] if split_name(path) else re.split(r"[-._ /]", path.as_posix())


def most_rows(path: Path, split: str) -> int | None:
    """Return how many rows a split can have at most, or None where only reading it would tell.

    Rows of parquet files are counted, and lines of small uncompressed .jsonl and .csv files.
    """
    if any((path / name).is_file() for name in _SAVED):
        return None
    counts = [_most_rows_of(file) for file in files_of_split(path, split)]
    return None if None in counts else sum(count for count in counts if count is not None)


def _most_rows_of(file: Path) -> int | None:
    ending = file.suffix.lower()
    if ending == ".parquet":
        with contextlib.suppress(pa.ArrowInvalid):  # reported when it is read
            return int(pq.read_metadata(file).num_rows)
    if ending in (".jsonl", ".csv") and file.stat().st_size <= _COUNTED:
        content = file.read_bytes()
        return None if content.lstrip(b"\xef\xbb\xbf \r\n").startswith(b"[") else len(content.splitlines())
    return None


def split_name(path: Path) -> str | None:
    """Return the split a relative path is named after, the keyword as train, validation or test, or None.

    Words after the keyword belong to the name ('train_sft'), up to the first digit.
    """
    for part in (_ENDING.sub("", path.name), *reversed(path.parent.parts)):
        if match := _KEYWORD.search(part):
            return "_".join([_KEYWORDS[match[1].lower()], *re.findall("[a-z]+", match[2].lower())])
    return None


def _unclear(folder: Path, split: str, files: Mapping[Path, str | None]) -> str:
    listed = [f"{p.relative_to(folder)} ({name or 'no split'})" for p, name in files.items()]
    return (
        f"data.path={folder} holds no file named after the split '{split}', but {', '.join(listed[:_LISTED])}"
        f"{', …' if len(files) > _LISTED else ''}. Set data.split to a name in brackets, or data.path to one file "
        "or to a folder of which all files are to be read."
    )


def check_columns(names: Iterable[str], there: Iterable[str], where: str) -> None:
    """Raise UserError for a column that is not there, with the columns there are and the nearest name."""
    there = list(there)
    for name in names:
        if name not in there:
            raise UserError(
                f"{where} has no column '{name}': it has {', '.join(sorted(there))}.{nearest(name, there)} Set "
                "data.messages=COLUMN for chat messages, or data.prompt=COLUMN and data.response=COLUMN for texts."
            )


def of_dataset(dataset: Any, names: Sequence[str], where: str) -> Values:
    """Yield the named columns of every row of a `datasets.Dataset`, a batch in memory at a time."""
    check_columns(names, dataset.column_names, where)
    for batch in dataset.select_columns(list(names)).with_format("arrow").iter(_BATCH):
        yield from batch.to_pylist()


def _saved(path: Path, split: str, names: Sequence[str]) -> Values:
    from datasets import DatasetDict, load_from_disk

    dataset = load_from_disk(str(path))
    if isinstance(dataset, DatasetDict):
        if split not in dataset:
            raise UserError(f"data.path={path} has no split '{split}': set data.split to one of {', '.join(dataset)}.")
        dataset = dataset[split]
    yield from of_dataset(dataset, names, f"data.path={path}")


def _open(file: Path) -> io.TextIOWrapper:
    """Open a text file, decompressed as its ending says, without a byte order mark."""
    return io.TextIOWrapper(pa.input_stream(str(file), compression="detect"), encoding="utf-8-sig", newline="")


def _json(file: Path, names: Sequence[str]) -> Values:
    with _open(file) as lines:
        for number, line in enumerate(lines, start=1):
            if line.lstrip().startswith("["):
                for entry, values in enumerate(_parsed(line + lines.read(), str(file))):
                    yield _mapping(values, f"{file}, entry {entry}")
            elif line.strip():
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
    with _open(file) as lines:
        table = itertools.dropwhile(lambda line: not line.strip(), lines)
        yield from csv.DictReader(table, restkey="(unnamed)", strict=True)


def _parquet(file: Path, names: Sequence[str]) -> Values:
    with pq.ParquetFile(file, pre_buffer=False) as table:  # otherwise all of it stays in memory
        check_columns(names, table.schema_arrow.names, f"data.path={file}")
        for batch in table.iter_batches(_BATCH, columns=list(names)):
            yield from batch.to_pylist()


_READERS: dict[str, Reader] = {".jsonl": _json, ".json": _json, ".parquet": _parquet, ".csv": _csv}
