"""Which files of a folder a split is read from, and how unusual files are read."""

import bz2
import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from iris import fingerprint
from iris.data.files import files_of_split, most_rows, read_files, split_name
from iris.data.sources import check_size
from iris.errors import UserError

PAIRS = [{"prompt": f"é {i}?", "response": f"a\n{i}"} for i in range(3)]
NAMES = ["prompt", "response"]


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train.jsonl", "train"),
        ("training.jsonl", "train"),
        ("TRAIN.csv", "train"),
        ("my-train-set.jsonl", "train_set"),
        ("gsm8k_train.jsonl", "train"),
        ("train-00000-of-00002-b42a775f407cee45.parquet", "train"),
        ("train_sft-00000-of-00001.parquet", "train_sft"),
        ("train2.jsonl.gz", "train"),
        ("a.train.json", "train"),
        *[(f"{name}.jsonl", "validation") for name in ("validation", "valid", "dev", "val")],
        *[(f"x {name}.jsonl", "test") for name in ("test", "testing", "eval", "evaluation")],
        ("train/part-1.jsonl", "train"),
        ("data/train_gen/0.jsonl", "train_gen"),
        ("train/test.jsonl", "test"),
        ("retrained.jsonl", None),
        ("contest.jsonl", None),
        ("latest.jsonl", None),
        ("devices/value.jsonl", None),
    ],
)
def test_a_path_is_named_after_a_split(path: str, split: str | None) -> None:
    assert split_name(Path(path)) == split


def folder(path: Path, *names: str) -> Path:
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(json.dumps({"prompt": name, "response": "a"}) + "\n")
    return path


@pytest.mark.parametrize(
    ("names", "split", "read"),
    [
        (["training.jsonl", "testing.jsonl"], "train", ["training.jsonl"]),
        (["training.jsonl", "testing.jsonl"], "test", ["testing.jsonl"]),
        (["train.jsonl", "val.jsonl"], "dev", ["val.jsonl"]),
        (["train.jsonl", "eval.jsonl"], "test", ["eval.jsonl"]),
        (["train_sft.jsonl", "train_gen.jsonl"], "train_sft", ["train_sft.jsonl"]),
        (["train_sft.jsonl", "test_sft.jsonl"], "train", ["train_sft.jsonl"]),
        (["train.jsonl", "train_sft.jsonl"], "train", ["train.jsonl"]),
        (["a.jsonl", "b/c.jsonl"], "train", ["a.jsonl", "b/c.jsonl"]),
        (["gold.jsonl", "silver.jsonl"], "gold", ["gold.jsonl"]),
        (["train/a.jsonl", "train/b/c.jsonl", "test/a.jsonl"], "train", ["train/a.jsonl", "train/b/c.jsonl"]),
        ([".train.jsonl", "train.jsonl", "train.jsonl~", "#train.jsonl#", "~$train.csv"], "train", ["train.jsonl"]),
        ([".cache/train.jsonl", "__MACOSX/train.jsonl", "train.jsonl"], "train", ["train.jsonl"]),
        (["dataset_info.json", "a.jsonl"], "train", ["a.jsonl"]),
    ],
)
def test_a_split_is_read_from_its_own_files(names: list[str], split: str, read: list[str], tmp_path: Path) -> None:
    chosen = files_of_split(folder(tmp_path, *names), split)
    assert [str(p.relative_to(tmp_path)) for p in chosen] == read
    assert [row["prompt"] for row in read_files(tmp_path, split, NAMES)] == read


@pytest.mark.parametrize(
    ("names", "split", "listed"),
    [
        (
            ["train_sft.jsonl", "train_gen.jsonl"],
            "train",
            r"gen.jsonl \(train_gen\), train_sft.jsonl \(train_sft\)",
        ),
        (["testing.jsonl", "b.jsonl"], "train", r"b.jsonl \(no split\), testing.jsonl \(test\)"),
        (["a.jsonl"], "test", r"a.jsonl \(no split\)"),
        (["train_test.jsonl"], "train", r"train_test.jsonl \(train_test\)"),
        (["train_test.jsonl"], "test", r"train_test.jsonl \(train_test\)"),
        (
            [f"{i:02}.jsonl" for i in range(12)],
            "gold",
            r"09.jsonl \(no split\), …\. Set data.split to a name in",
        ),
    ],
)
def test_files_of_no_split_or_several_are_listed(names: list[str], split: str, listed: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"no file named after the split '{split}', but .*{listed}"):
        files_of_split(folder(tmp_path, *names), split)


def test_links_are_followed_alike_in_reading_and_in_fingerprints(tmp_path: Path) -> None:
    elsewhere, here = folder(tmp_path / "elsewhere", "train.jsonl", "more/train.jsonl"), tmp_path / "here"
    here.mkdir()
    (here / "train.jsonl").symlink_to(elsewhere / "train.jsonl")
    (here / "more").symlink_to(elsewhere / "more")
    assert len(list(read_files(here, "train", NAMES))) == 2
    assert fingerprint.of_path(here) == fingerprint.of_path(elsewhere)
    before = fingerprint.of_path(here)
    (here / ".hidden.jsonl").write_text("{}")
    assert fingerprint.of_path(here) == before
    (elsewhere / "more" / "train.jsonl").write_text('{"prompt": "b", "response": "b"}')
    assert fingerprint.of_path(here) != before
    (here / "again").symlink_to(here)
    with pytest.raises(UserError, match="again is a link to a folder above it"):
        files_of_split(here, "train")
    (here / "again").unlink()
    (here / "gone.jsonl").symlink_to(here / "nothing")
    with pytest.raises(UserError, match=r"gone.jsonl is a link to a file that is not there"):
        fingerprint.of_path(here)


def lines(pairs: list[dict[str, str]]) -> bytes:
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in pairs).encode()


def table(pairs: list[dict[str, str]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, NAMES)
    writer.writeheader()
    writer.writerows(pairs)
    return text.getvalue().encode()


UNUSUAL: dict[str, Callable[[], bytes]] = {
    "blank.jsonl": lambda: b"\n\n  \n" + lines(PAIRS),
    "mark.jsonl": lambda: b"\xef\xbb\xbf" + lines(PAIRS),
    "returns.jsonl": lambda: lines(PAIRS).replace(b"\n", b"\r\n"),
    "list.jsonl": lambda: b"\n" + json.dumps(PAIRS, indent=1).encode(),
    "list.json": lambda: b"\xef\xbb\xbf\n" + json.dumps(PAIRS).encode(),
    "lines.json": lambda: lines(PAIRS),
    "packed.jsonl.gz": lambda: gzip.compress(lines(PAIRS)),
    "twice.jsonl.gz": lambda: gzip.compress(lines(PAIRS[:1])) + gzip.compress(lines(PAIRS[1:])),
    "packed.json.bz2": lambda: bz2.compress(json.dumps(PAIRS).encode()),
    "packed.csv.zst": lambda: pa.compress(table(PAIRS), codec="zstd", asbytes=True),
    "blank.csv": lambda: b"\r\n\r\n" + table(PAIRS),
    "mark.CSV": lambda: b"\xef\xbb\xbf" + table(PAIRS),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_files_are_read(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(UNUSUAL[name]())
    rows = list(read_files(tmp_path / name, "train", NAMES))
    assert [row | {"response": row["response"].replace("\r\n", "\n")} for row in rows] == PAIRS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl.gz", gzip.compress(lines(PAIRS), mtime=0)[:-12], r"cannot be read as jsonl.gz .*Truncated"),
        ("a.jsonl.gz", b"no gzip", r"cannot be read as jsonl.gz"),
        ("a.parquet.gz", gzip.compress(b"PAR1", mtime=0), r"cannot be read as parquet.gz"),
        ("a.csv", b'prompt,response\na,"b\n', r"cannot be read as csv .*unexpected end of data"),
        ("a.jsonl", "ü".encode("utf-16"), r"cannot be read as jsonl \(texts in UTF-8\)"),
        ("a.json", b'{\n "prompt": "a"\n}', r"a.json, line 1 is not JSON"),
        ("a.zip", b"PK", r"a.zip: choose a file that ends in .jsonl"),
    ],
)
def test_files_that_are_damaged_or_of_another_kind_are_refused(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(read_files(tmp_path / name, "train", NAMES))


def checked(path: Path, size: int, split: str = "train") -> None:
    check_size({"source": "files", "split": split, "size": size}, {"path": str(path)})


def test_a_size_beyond_the_source_is_found_without_reading_it(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(lines(PAIRS))
    pq.write_table(pa.Table.from_pylist(PAIRS), tmp_path / "train_2.parquet")
    (tmp_path / "test.csv").write_bytes(table(PAIRS))
    assert (most_rows(tmp_path, "train"), most_rows(tmp_path, "test")) == (6, 7)
    checked(tmp_path, 6)
    with pytest.raises(UserError, match=r"at most 6 rows, fewer than the 7 of data.size. Choose a smaller data.size"):
        checked(tmp_path, 7)
    (tmp_path / "train_3.jsonl.gz").write_bytes(gzip.compress(lines(PAIRS)))
    assert most_rows(tmp_path, "train") is None
    checked(tmp_path, 7)
    generated = {"source": "generated", "split": "train", "size": 21, "generator": {"task": "chain_sum", "train": 20}}
    with pytest.raises(UserError, match=r"task 'chain_sum' has at most 20 rows, fewer than the 21"):
        check_size(generated, {})


def test_a_json_list_is_not_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(PAIRS))
    assert most_rows(tmp_path / "a.jsonl", "train") is None
