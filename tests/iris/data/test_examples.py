"""Every kind of source, the rules for rows that cannot be used, and nested subsets."""

import csv
import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from iris import compose
from iris.config import Data, Execution, Model
from iris.data.contamination import prompt_hash
from iris.data.examples import Example
from iris.data.rows import ROWS, Rows, read_rows, shard_digest, slices, subset_order
from iris.errors import UserError
from iris.execution.progress import Progress
from iris.execution.runner import Context, ensure
from iris.execution.world import World
from iris.model.template import Encoded, Template
from iris.model.text import load_tokenizer
from iris.plan import Stage, base_stage, data_stage
from iris.stages import data as stage_data
from iris.store import Artifact, Claim, Store

MODEL = Model(
    name="tiny",
    source="config",
    architecture={"model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    | {"num_attention_heads": 1, "num_key_value_heads": 1, "max_position_embeddings": 512},
    alphabet="abcdefghijklmnopqrstuvwxyz 0123456789?\n",
    template="{prompt}\n",
)
PAIRS = [{"prompt": f"question {i}?", "response": f"answer {i}"} for i in range(12)]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONF = Path(__file__).parents[3] / "conf" / "data"
Row = Mapping[str, Any]


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """A store that holds the base, whose tokenizer has one token a character."""
    store = Store(tmp_path_factory.mktemp("store"))
    store.prepare()
    context = Context(store, Execution(), Progress(quiet=True))
    ensure(base_stage(MODEL, 0), context)
    return context


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty hub cache, which is returned, and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "arrow")
    return tmp_path / "hub"


def of_files(path: Path, **changes: Any) -> Data:
    return replace(Data(name="d", source="files", path=str(path)), **changes)


def stage_of(config: Data) -> Stage:
    return data_stage(config, MODEL, base_stage(MODEL, 0))


def made(config: Data, context: Context) -> Artifact:
    """The artifact of a data stage, through the runner and the store."""
    stage = stage_of(config)
    ensure(stage, context)
    return context.artifact(stage)


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def as_json(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text(json.dumps(rows, indent=1))
    return path


def as_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return path


def as_parquet(path: Path, rows: list[dict[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([row | {"other": 1} for row in rows]), path)
    return path


def in_folder(path: Path, rows: list[dict[str, str]]) -> Path:
    jsonl(path / "b" / "2.jsonl", rows[:5])
    as_parquet(path / "1.parquet", rows[5:])
    (path / "README.md").write_text("no data")
    return path


def saved(path: Path, rows: list[dict[str, str]]) -> Path:
    Dataset.from_list(rows).save_to_disk(path)
    return path


def saved_splits(path: Path, rows: list[dict[str, str]]) -> Path:
    DatasetDict(test=Dataset.from_list(rows[:1]), train=Dataset.from_list(rows)).save_to_disk(path)
    return path


WRITERS: dict[str, Callable[[Path, list[dict[str, str]]], Path]] = {
    "d.jsonl": jsonl,
    "d.json": as_json,
    "d.csv": as_csv,
    "d.parquet": as_parquet,
    "folder": in_folder,
    "saved": saved,
    "splits": saved_splits,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_rows(name: str, context: Context, tmp_path: Path) -> None:
    source = WRITERS[name](tmp_path / name, PAIRS)
    artifact = made(of_files(source), context)
    rows = read_rows(artifact)
    reference = read_rows(made(of_files(jsonl(tmp_path / "reference.jsonl", PAIRS[::-1])), context))
    assert rows.ids == reference.ids
    assert sorted(zip(rows.prompts, rows.responses, strict=True)) == sorted((p["prompt"], p["response"]) for p in PAIRS)
    assert {
        "rows": 12,
        "source_rows": 12,
        "usable": 12,
        "examined": 12,
        "unusable": {},
    }.items() <= artifact.results.items()


def hub_repository(cache: Path) -> None:
    """A data set repository as the hub's cache keeps it, with two splits and a card that names them."""
    snapshot = cache / "datasets--owner--name" / "snapshots" / COMMIT
    as_parquet(snapshot / "data" / "train_sft-00000-of-00001.parquet", PAIRS)
    as_parquet(snapshot / "data" / "test_sft-00000-of-00001.parquet", PAIRS[:2])
    splits = "".join(f"  - split: {s}\n    path: data/{s}-*\n" for s in ("train_sft", "test_sft"))
    (snapshot / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{splits}---\n")
    refs = cache / "datasets--owner--name" / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)


def test_a_hub_repository_at_its_commit(context: Context, tmp_path: Path, offline: Path) -> None:
    hub_repository(offline)
    config = Data(name="d", source="hub", path="owner/name", split="train_sft")
    artifact = made(config, context)
    assert read_rows(artifact).ids == read_rows(made(of_files(jsonl(tmp_path / "d.jsonl", PAIRS)), context)).ids
    assert artifact.manifest["identity"]["commit"] == COMMIT
    assert made(replace(config, revision=COMMIT), context).key == artifact.key
    assert made(replace(config, split="test_sft"), context).results["rows"] == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"split": "train_sfd"},
            r"data.path=owner/name .*data.split=train_sfd: Unknown split.*'train_sft', 'test_sft'",
        ),
        ({"split": "train_sft", "config": "no"}, r"data.config=no.*'no' not found. Available: \['default'\]"),
        ({"split": "train_sft", "prompt": "promt"}, r"no column 'promt': it has other, prompt, response. Did you mean"),
        ({"revision": COMMIT[::-1]}, r"the cache does not hold all of it .*hf download owner/name --repo-type dataset"),
    ],
)
def test_what_a_hub_repository_lacks(changes: dict[str, Any], message: str, context: Context, offline: Path) -> None:
    hub_repository(offline)
    with pytest.raises(UserError, match=message):
        made(replace(Data(name="d", source="hub", path="owner/name"), **changes), context)


def test_a_generated_task(context: Context) -> None:
    generator = {"task": "chain_sum", "train": 20, "validation": 5, "test": 5}
    train = made(Data(name="g", source="generated", generator=generator), context)
    test = made(Data(name="g", source="generated", generator=generator, split="test"), context)
    assert (train.results["rows"], test.results["rows"]) == (20, 5)
    assert not set(read_rows(train).prompts) & set(read_rows(test).prompts)


def chat(*turns: tuple[str, Any]) -> dict[str, Any]:
    return {"chat": [{"role": role, "content": content} for role, content in turns]}


def test_of_chat_messages_the_first_round_counts(context: Context, tmp_path: Path) -> None:
    one, two = ("user", "question 0?"), ("assistant", "answer 0")
    rows = [
        chat(("system", "be kind"), ("user", "who?"), ("assistant", "me"), ("user", "why?")),
        chat(one, two, ("user", "and?"), ("assistant", "no")),
    ]
    config = of_files(jsonl(tmp_path / "d.jsonl", rows), messages="chat")
    read = read_rows(made(config, context))
    assert set(zip(read.prompts, read.responses, strict=True)) == {
        ("be kind\n\nwho?", "me"),
        ("question 0?", "answer 0"),
    }
    columns = read_rows(made(of_files(jsonl(tmp_path / "c.jsonl", PAIRS[:1])), context))
    assert columns.ids[0] in read.ids
    blank = jsonl(tmp_path / "blank.jsonl", [chat(("system", " "), one, two)])
    assert read_rows(made(replace(config, path=str(blank)), context)).ids == columns.ids


def test_messages_from_parquet_and_saved_data_sets(context: Context, tmp_path: Path) -> None:
    rows = [chat(("user", f"question {i}?"), ("assistant", f"answer {i}")) for i in range(3)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    ids = [read_rows(made(of_files(tmp_path / name, messages="chat"), context)).ids for name in ("d.parquet", "saved")]
    assert ids[0] == ids[1] and len(ids[0]) == 3


def test_tokens_and_hashes(context: Context, tmp_path: Path) -> None:
    artifact = made(of_files(jsonl(tmp_path / "d.jsonl", PAIRS)), context)
    rows, tokenizer = read_rows(artifact), load_tokenizer(context.artifact(base_stage(MODEL, 0)))
    table = pq.read_table(artifact.folder / ROWS)
    assert table.schema.field("prompt_tokens").type == pa.list_(pa.int32())
    for prompt, response, tokens, reply in zip(
        rows.prompts, rows.responses, rows.prompt_tokens, rows.response_tokens, strict=True
    ):
        assert tokenizer.decode(tokens) == f"{prompt}\n"
        assert tokenizer.decode(reply[:-1]) == response
        assert reply[-1] == tokenizer.eos_token_id
    assert artifact.results["prompt_tokens"] == sum(len(p["prompt"]) + 1 for p in PAIRS)
    assert artifact.results["response_tokens"] == sum(len(p["response"]) + 1 for p in PAIRS)
    hashes = (artifact.folder / artifact.results["prompt_hashes"]).read_text().split()
    assert hashes == [prompt_hash(prompt) for prompt in rows.prompts]


BAD: list[tuple[str, Any]] = [
    ("missing value", {"response": "a"}),
    ("missing value", {"prompt": None, "response": "a"}),
    ("not text", {"prompt": "a", "response": 3}),
    ("not text", {"prompt": ["a"], "response": "a"}),
    ("not text", {"prompt": "\ud83d", "response": "a"}),
    ("empty prompt", {"prompt": " \n", "response": "a"}),
    ("empty response", {"prompt": "a", "response": ""}),
    ("duplicate", PAIRS[0]),
    ("duplicate", PAIRS[0]),
    ("over-long prompt", {"prompt": "a" * 31, "response": "a"}),
]
BAD_CHATS: list[tuple[str, Any]] = [
    ("missing value", {"chat": None}),
    ("not chat messages", {"chat": "who?"}),
    ("not chat messages", {"chat": ["who?", "me"]}),
    ("not chat messages", {"chat": [{"from": "human", "value": "who?"}]}),
    ("wrong role order", {"chat": []}),
    ("wrong role order", chat(("user", "who?"))),
    ("wrong role order", chat(("system", "s"))),
    ("wrong role order", chat(("assistant", "me"), ("user", "who?"))),
    ("wrong role order", chat(("user", "who?"), ("system", "s"), ("assistant", "me"))),
    ("wrong role order", chat(("user", "who?"), ("user", "who?"), ("assistant", "me"))),
    ("missing value", chat(("user", None), ("assistant", "me"))),
    ("missing value", chat(("system", None), ("user", "who?"), ("assistant", "me"))),
    ("not text", chat(("system", 1), ("user", "who?"), ("assistant", "me"))),
    ("empty prompt", chat(("system", "s"), ("user", ""), ("assistant", "me"))),
    ("empty response", chat(("user", "who?"), ("assistant", "\t"))),
    ("over-long prompt", chat(("system", "s" * 20), ("user", "who knows that?"), ("assistant", "me"))),
]
GOOD_CHATS = [chat(("user", p["prompt"]), ("assistant", p["response"])) for p in PAIRS]


@pytest.mark.parametrize(("bad", "good", "column"), [(BAD, PAIRS, None), (BAD_CHATS, GOOD_CHATS, "chat")])
def test_every_unusable_row_is_counted_and_named(
    bad: list[tuple[str, Any]], good: list[Any], column: str | None, context: Context, tmp_path: Path
) -> None:
    source = jsonl(tmp_path / "d.jsonl", [*good, *(row for _, row in bad)])
    results = made(of_files(source, messages=column, max_prompt_tokens=30), context).results
    expected: dict[str, list[int]] = {}
    for number, (reason, _) in enumerate(bad, start=len(good)):
        expected.setdefault(reason, []).append(number)
    assert results["unusable"] == {r: {"count": len(n), "examples": n[:5]} for r, n in expected.items()}
    assert results["rows"] == results["usable"] == len(good)
    assert results["source_rows"] == len(good) + len(bad)
    assert results["examined"] == len(good) + 1


def test_the_one_line_says_how_many_rows_are_unusable_and_why(
    context: Context, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoken = replace(context, progress=Progress())
    few = [*PAIRS, *({"prompt": f"more {i}", "response": "a"} for i in range(30)), {"prompt": "a", "response": ""}]
    summary = "1 of 43 rows unusable: 1 × empty response"
    stage = stage_of(of_files(jsonl(tmp_path / "d.jsonl", few)))
    results_of(stage, spoken, tmp_path / "1")
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("data d-all: 42/42 rows") and error.rstrip().endswith(summary)
    assert "warning" not in error
    many = [*few, {"prompt": "b", "response": " "}, {"prompt": "a" * 40, "response": "a"}]
    stage = stage_of(of_files(jsonl(tmp_path / "e.jsonl", many), max_prompt_tokens=30))
    results_of(stage, spoken, tmp_path / "2")
    summary = "3 of 45 rows unusable: 2 × empty response, 1 × over-long prompt"
    assert f"warning: data d-all: {summary}" in capsys.readouterr().err


def test_control_tokens_in_the_texts_are_counted_in_every_row(context: Context, tmp_path: Path) -> None:
    rows = [*PAIRS, {"prompt": "is </s> an end?", "response": "</s> and </s>"}]
    artifact = made(of_files(jsonl(tmp_path / "d.jsonl", rows)), context)
    assert (artifact.results["control_rows"], artifact.results["control_tokens"]) == (1, 3)
    table = pq.read_table(artifact.folder / ROWS).to_pylist()
    assert {row["response"]: row["control_tokens"] for row in table if row["control_tokens"]} == {"</s> and </s>": 3}
    end = load_tokenizer(context.artifact(base_stage(MODEL, 0))).eos_token_id
    assert all(row["prompt_tokens"].count(end) == 0 and row["response_tokens"].count(end) == 1 for row in table)


def test_a_prompt_may_have_exactly_the_longest_length(context: Context, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "d.jsonl", [{"prompt": "a" * n, "response": "a"} for n in (28, 29, 30)])
    results = made(of_files(source, max_prompt_tokens=30), context).results  # the template adds one
    assert results["unusable"] == {"over-long prompt": {"count": 1, "examples": [2]}}


def test_no_row_exceeds_the_context_of_the_model(context: Context, tmp_path: Path) -> None:
    rows = [("a" * 500, "b" * 40), ("c" * 511, "d"), ("e", "f")]  # of 512 positions; the template adds one token
    source = jsonl(tmp_path / "d.jsonl", [{"prompt": p, "response": r} for p, r in rows])
    artifact = made(of_files(source, max_prompt_tokens=1000), context)
    table = pq.read_table(artifact.folder / ROWS).to_pylist()
    found = {row["prompt"][0]: (len(row["prompt_tokens"]), len(row["response_tokens"])) for row in table}
    assert found == {"a": (501, 11), "e": (2, 2)}
    assert artifact.results["unusable"] == {"over-long prompt": {"count": 1, "examples": [1]}}
    assert artifact.results["truncated"] == 1


def test_long_responses_are_cut_at_their_end_and_counted(context: Context, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "d.jsonl", [{"prompt": "p", "response": "abcdefgh"[:n]} for n in (6, 7, 8)])
    artifact = made(of_files(source, max_response_tokens=7), context)
    table = pq.read_table(artifact.folder / ROWS).to_pylist()
    tokenizer = load_tokenizer(context.artifact(base_stage(MODEL, 0)))
    ends = {row["response"]: tokenizer.decode(row["response_tokens"]) for row in table}
    assert ends == {"abcdef": "abcdef</s>", "abcdefg": "abcdefg", "abcdefgh": "abcdefg"}
    assert {row["response"] for row in table if row["truncated"]} == {"abcdefg", "abcdefgh"}
    assert artifact.results["truncated"] == 2


def test_what_the_chat_template_refuses_is_counted(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(context.artifact(base_stage(MODEL, 0)))
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ m.content }}{% if m.role == 'assistant' %}</s>{% endif %}\n{% endfor %}"
    )
    monkeypatch.setattr(stage_data, "read_tokenizer", lambda folder: tokenizer)
    rows = [*GOOD_CHATS[:2], chat(("system", "s"), ("user", "who?"), ("assistant", "me"))]
    stage = stage_of(of_files(jsonl(tmp_path / "d.jsonl", rows), messages="chat"))
    results = results_of(replace(stage, identity=stage.identity | {"template": "chat"}), context, tmp_path / "claim")
    assert results["unusable"] == {"refused by the chat template": {"count": 1, "examples": [2]}}
    assert (results["rows"], results["examined"]) == (2, 3)


def results_of(stage: Stage, context: Context, folder: Path) -> dict[str, Any]:
    """What the stage's function returns; its files lie in `folder/new`."""
    claim = Claim(folder / "new", folder / "work")
    claim.new.mkdir(parents=True)
    claim.work.mkdir()
    return stage_data.run(stage, context, claim)


def written(folder: Path) -> Rows:
    return read_rows(Artifact(folder / "new", {}))


@st.composite
def nests(draw: st.DrawFn) -> tuple[list[Row], list[Row], int, int, int]:
    """Source rows, a permutation of them, two sizes n ≤ m, and the subset seed."""
    texts = st.text("ab ", max_size=6)
    rows = draw(st.lists(st.fixed_dictionaries({"prompt": texts, "response": texts}), min_size=1, max_size=30))
    unique = {(r["prompt"], r["response"]) for r in rows if r["prompt"].strip() and r["response"].strip()}
    usable = sum(len(p) < 5 for p, _ in unique)
    sizes = sorted(draw(st.lists(st.integers(1, max(usable, 1)), min_size=2, max_size=2)))
    rows = rows if usable else [*rows, {"prompt": "a", "response": "b"}]
    return rows, draw(st.permutations(rows)), sizes[0], sizes[1], draw(st.integers(0, 3))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(nests())
def test_smaller_subsets_are_prefixes_of_larger_ones_in_any_order_of_the_source(
    context: Context, tmp_path_factory: pytest.TempPathFactory, nest: tuple[list[Row], list[Row], int, int, int]
) -> None:
    rows, permuted, small, large, seed = nest
    folder = tmp_path_factory.mktemp("nest")
    limits = {"max_prompt_tokens": 5, "subset_seed": seed}  # the template adds one token
    first = stage_of(of_files(jsonl(folder / "d.jsonl", list(rows)), size=str(small), **limits))
    second = stage_of(of_files(jsonl(folder / "e.jsonl", list(permuted)), size=str(large), **limits))
    assert results_of(first, context, folder / "1")["rows"] == small
    assert results_of(second, context, folder / "2")["rows"] == large
    one, two = written(folder / "1"), written(folder / "2")
    assert one.ids == two.ids[:small]
    for a, b in zip(one.response_tokens, two.response_tokens, strict=False):
        assert np.array_equal(a, b)
    for part in slices(one, 2)[: small // 2]:
        assert shard_digest(one, part) == shard_digest(two, part)


def test_ids_and_order_are_those_of_every_machine() -> None:
    """Values computed apart, with a shell's sha256sum."""
    example = Example(0, "question 0?", "answer 0")
    assert example.id == "99ab0f687c364d67"
    assert subset_order(["a", "b", "c", "d"], 0) == [3, 0, 2, 1]


def test_another_subset_seed_gives_another_order(context: Context, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "d.jsonl", PAIRS)
    orders = [read_rows(made(of_files(source, subset_seed=seed), context)).ids for seed in range(2)]
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])


def test_only_the_rows_that_are_needed_are_tokenized(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": f"{i:04d}" + "x" * (i % 2), "response": "r"} for i in range(2000)]
    stage = stage_of(of_files(jsonl(tmp_path / "d.jsonl", rows), size="100", max_prompt_tokens=5))
    encoded: list[str] = []
    encode = Template.encode

    def counted(template: Template, messages: Any, answer: str) -> Encoded:
        encoded.append(answer)
        return encode(template, messages, answer)

    monkeypatch.setattr(Template, "encode", counted)
    results = results_of(stage, context, tmp_path / "claim")
    assert results["rows"] == 100
    assert len(encoded) == results["examined"] == 100 + results["unusable"]["over-long prompt"]["count"] < 300
    assert results["usable"] == 2000 - results["unusable"]["over-long prompt"]["count"]


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        (PAIRS, {"size": "13"}, "has 12 usable rows of 12, fewer than the 13 of data.size. Not usable: none"),
        (
            [*PAIRS, *PAIRS],
            {"size": "13"},
            r"12 usable rows of 24, .*12 × duplicate \(rows 12, 13, 14, 15, 16, …\)",
        ),
        (
            PAIRS[:2],
            {"max_prompt_tokens": 3},
            r"0 usable rows of 2.*2 × over-long prompt \(rows [01], [01]\)\. .*raise",
        ),
        ([], {}, "d.jsonl holds no rows"),
    ],
)
def test_too_few_rows(rows: list[Row], changes: dict[str, Any], message: str, context: Context, tmp_path: Path) -> None:
    source = tmp_path / "d.jsonl"
    jsonl(source, list(rows))
    with pytest.raises(UserError, match=message):
        made(of_files(source, **changes), context)


@pytest.mark.parametrize("name", WRITERS)
def test_a_missing_column_is_named_with_those_there_are(name: str, context: Context, tmp_path: Path) -> None:
    source = WRITERS[name](tmp_path / name, PAIRS)
    with pytest.raises(
        UserError, match=r"has no column 'respond': it has .*prompt, response. Did you mean 'response'\?"
    ):
        made(of_files(source, response="respond"), context)
    with pytest.raises(UserError, match=r"has no column 'messages'.*data.messages=COLUMN"):
        made(of_files(source, messages="messages"), context)


def test_a_folder_gives_the_files_named_after_the_split(context: Context, tmp_path: Path) -> None:
    jsonl(tmp_path / "in" / "train-00000.jsonl", PAIRS[:3])
    jsonl(tmp_path / "in" / "deeper" / "my_train.jsonl", PAIRS[3:5])
    jsonl(tmp_path / "in" / "test.jsonl", PAIRS[5:])
    jsonl(tmp_path / "in" / "retrained.jsonl", PAIRS[7:])
    config = of_files(tmp_path / "in")
    assert made(config, context).results["source_rows"] == 5
    assert made(replace(config, split="test"), context).results["source_rows"] == 7
    with pytest.raises(UserError, match=r"no file named after the split 'dev', but .*test.jsonl.*Set data.split"):
        made(replace(config, split="dev"), context)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.jsonl", b'{"prompt": "a"}\n{"prompt"', r"d.jsonl, line 2 is not JSON: .*One object a line"),
        ("d.json", b'[{"prompt": "a"},', "d.json is not JSON"),
        ("d.jsonl", b'"a"\n', "d.jsonl, line 1: expected an object with named columns, found str"),
        ("d.json", b"[1]", "d.json, entry 0: expected an object with named columns, found int"),
        ("d.jsonl", b'{"prompt": "\xe9"}\n', "d.jsonl cannot be read as jsonl"),
        ("d.csv", b'prompt,response\na,"b\xff"\n', "d.csv cannot be read as csv"),
        ("d.parquet", b"PAR1 and nothing more", "d.parquet cannot be read as parquet"),
        ("d.txt", b"a\n", r"d.txt: choose a file that ends in .jsonl, .json, .csv, each .* or .parquet, or a folder"),
        ("in/d.txt", b"a\n", r"in holds no file that ends in .jsonl"),
    ],
)
def test_files_that_cannot_be_read(name: str, content: bytes, message: str, context: Context, tmp_path: Path) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    with pytest.raises(UserError, match=message):
        made(of_files(file if file.parent == tmp_path else file.parent), context)


def test_a_split_that_was_not_saved(context: Context, tmp_path: Path) -> None:
    source = saved_splits(tmp_path / "saved", PAIRS)
    with pytest.raises(UserError, match=r"has no split 'val': set data.split to one of test, train"):
        made(of_files(source, split="val"), context)


def test_marks_and_blank_lines_in_text_files(context: Context, tmp_path: Path) -> None:
    table, lines = tmp_path / "d.csv", tmp_path / "d.jsonl"
    table.write_bytes(b'\xef\xbb\xbfprompt,response\r\n"who, or ""what""?\nhere","a\nb"\r\nx,y,z\r\n')
    lines.write_bytes(b'\xef\xbb\xbf{"prompt": "x", "response": "y"}\n\n{"prompt": "x", "response": "\\u00fc"}')
    rows = read_rows(made(of_files(table), context))
    assert set(zip(rows.prompts, rows.responses, strict=True)) == {('who, or "what"?\nhere', "a\nb"), ("x", "y")}
    assert set(read_rows(made(of_files(lines), context)).responses) == {"y", "ü"}


def rows_of(count: int) -> Rows:
    ids = [f"{i:016x}" for i in range(count)]
    tokens = [np.arange(i + 1, dtype=np.int32) for i in range(count)]
    return Rows(Path("none"), ids, tokens, [t[::-1] for t in tokens])


@pytest.mark.parametrize(("count", "size"), [(0, 3), (1, 3), (6, 3), (7, 3), (7, 1), (2, 100)])
def test_shards_cover_all_rows_once(count: int, size: int) -> None:
    parts = slices(rows_of(count), size)
    assert [i for part in parts for i in range(count)[part]] == list(range(count))
    assert all(part.stop - part.start == size for part in parts[:-1])


def altered(rows: Rows) -> Iterator[Rows]:
    """Rows that differ from `rows` in one respect each, within the first three."""
    yield replace(rows, ids=["x", *rows.ids[1:]])
    yield replace(rows, prompt_tokens=[rows.prompt_tokens[0] + 1, *rows.prompt_tokens[1:]])
    yield replace(rows, response_tokens=[rows.response_tokens[0][:-1], *rows.response_tokens[1:]])
    moved = np.concatenate([rows.prompt_tokens[0], rows.response_tokens[0][:1]])
    yield replace(
        rows,
        prompt_tokens=[moved, *rows.prompt_tokens[1:]],
        response_tokens=[rows.response_tokens[0][1:], *rows.response_tokens[1:]],
    )


def test_a_shards_digest_depends_on_its_rows_alone() -> None:
    rows, part = rows_of(6), slice(0, 3)
    digest = shard_digest(rows, part)
    assert digest == shard_digest(rows_of(3), part) != shard_digest(rows, slice(3, 6))
    wide = replace(rows, prompt_tokens=[t.astype(np.int64) for t in rows.prompt_tokens])
    assert shard_digest(wide, part) == digest
    for other in altered(rows):
        assert shard_digest(other, part) != digest
        assert shard_digest(other, slice(3, 6)) == shard_digest(rows, slice(3, 6))


def test_only_the_main_process_writes(context: Context, tmp_path: Path) -> None:
    stage = stage_of(of_files(jsonl(tmp_path / "d.jsonl", PAIRS)))
    second = replace(context, world=World(1, 2))
    assert results_of(stage, second, tmp_path / "claim") == {}
    assert not list((tmp_path / "claim").rglob("*.*"))


def test_a_run_that_was_killed_begins_anew(context: Context, tmp_path: Path) -> None:
    stage = stage_of(of_files(jsonl(tmp_path / "d.jsonl", PAIRS)))
    whole = results_of(stage, context, tmp_path / "1")
    (tmp_path / "2" / "work").mkdir(parents=True)
    (tmp_path / "2" / "work" / "source.arrow").write_bytes(b"half")
    (tmp_path / "2" / "new").mkdir()
    again = stage_data.run(stage, context, Claim(tmp_path / "2" / "new", tmp_path / "2" / "work"))
    assert again == whole
    for name in (ROWS, "prompts.txt"):
        assert (tmp_path / "1" / "new" / name).read_bytes() == (tmp_path / "2" / "new" / name).read_bytes()


def test_ultrachat_composes() -> None:
    ultrachat = compose.load(["+method=iris", "data=ultrachat", "data.size=50k"]).data
    assert asdict(ultrachat) | {"generator": {}} == asdict(
        Data(
            name="ultrachat",
            source="hub",
            path="HuggingFaceH4/ultrachat_200k",
            split="train_sft",
            messages="messages",
            size="50k",
        )
    )


@pytest.mark.parametrize("source", ["files", "hub"])
def test_generic_configurations_need_a_path_only(source: str, context: Context) -> None:
    shipped = OmegaConf.load(CONF / f"{source}.yaml").data
    config = Data(**shipped)
    assert (config.source, config.size, config.messages) == (source, "all", None)
    with pytest.raises(UserError, match=r"data.path is empty"):
        stage_of(config)


@pytest.mark.parametrize("file", sorted(CONF.glob("*.yaml")), ids=lambda f: f.stem)
def test_a_configuration_opens_with_its_command(file: Path) -> None:
    command = next(line for line in file.read_text().splitlines() if line != "# @package _global_")
    assert command.startswith("# python -m iris.run +method=") and f"data={file.stem}" in command.split()


def test_any_seed_and_size_give_a_permutation() -> None:
    ids = [f"{random.Random(i).getrandbits(64):016x}" for i in range(500)]
    for seed in range(3):
        assert sorted(subset_order(ids, seed)) == list(range(500))
