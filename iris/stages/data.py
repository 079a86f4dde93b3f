"""`data`: a source becomes the tokenized, filtered, ordered rows of one nested subset.

The rules. A row cannot be used, and is counted under its reason with the numbers of the first few (from 0, in the
order of the source), when

- *missing value*: a column's value is absent or null; *not text*: a value is no (valid) text;
- *not chat messages*: the value is no list of {"role", "content"};
- *wrong role order*: the messages do not begin with an optional system message, then user, then assistant;
- *empty prompt*, *empty response*: nothing but white space;
- *duplicate*: an earlier row has the same system message, prompt and response;
- *refused by the chat template*: the tokenizer's template raises for these messages, for instance a system message;
- *over-long prompt*: more than `max_prompt_tokens` tokens, the template's included, or no room left in the model's
  context.

A response of more than `max_response_tokens` tokens, its end token included, or than the model's context holds after
the prompt, is cut at its end, has no end token then, and is counted as truncated. The usable rows are ordered by
SHA-256(`subset_seed:id`) and the first `size` are taken: 14k ⊂ 26k ⊂ 50k, whatever the order of the source. Rows are
tokenized in that order and no further than needed, so over-long and refused prompts are counted among the `examined`
rows only; the other reasons among all.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa
import pyarrow.parquet as pq

from iris.data.contamination import prompt_hash
from iris.data.examples import Example
from iris.data.rows import ROWS, subset_order
from iris.data.sources import described, read_source
from iris.errors import UserError
from iris.execution.runner import Context
from iris.model.architecture import context_length
from iris.model.policy import model_folder, read_config
from iris.model.text import check_template, encode_prompt, encode_response, read_tokenizer
from iris.plan import Stage
from iris.store import Claim

_REFUSED, _OVER_LONG = "refused by the chat template", "over-long prompt"
_BATCH = 1000
_EXAMPLES = 5  # row numbers named per reason
_POOL = pa.schema([("row", pa.int64()), ("system", pa.string()), ("user", pa.string()), ("response", pa.string())])
_ROWS = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("response", pa.string()),
        ("prompt_tokens", pa.list_(pa.int32())),
        ("response_tokens", pa.list_(pa.int32())),
        ("truncated", pa.bool_()),
    ]
)


def run(stage: Stage, context: Context, claim: Claim) -> dict[str, Any]:
    """Write `rows.parquet` and `prompts.txt`, one hash of the user's message a row; report what was left out.

    Raises UserError for too few usable rows.
    """
    if not context.world.main:
        return {}
    identity, unusable = stage.identity, Unusable()
    pool = Pool.collect(read_source(identity, stage.location), claim.work / "source.arrow", unusable)
    order = subset_order(pool.ids, identity["subset_seed"])
    wanted = identity["size"] or len(order)
    rows = itertools.islice(_encoded(pool, order, _Encoder.of(stage, context), unusable), wanted)
    with context.progress.line(f"data {stage.name}", min(wanted, len(order)), "rows") as line:
        totals = _write(rows, claim.new, line.advance)
    if totals.rows < (identity["size"] or 1):
        raise _too_few(stage, totals.rows, pool.source_rows, unusable)
    return vars(totals) | {
        "usable": pool.source_rows - unusable.total,
        "source_rows": pool.source_rows,
        "examined": totals.rows + unusable.among([_REFUSED, _OVER_LONG]),
        "unusable": unusable.reasons,
        "prompt_hashes": "prompts.txt",
    }


@dataclass
class Unusable:
    """Rows that cannot be used: for every reason how many, and the numbers of the first few."""

    reasons: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, reason: str, row: int) -> None:
        """Count one row."""
        entry = self.reasons.setdefault(reason, {"count": 0, "examples": []})
        entry["count"] += 1
        if len(entry["examples"]) < _EXAMPLES:
            entry["examples"].append(row)

    @property
    def total(self) -> int:
        """How many rows, for whatever reason."""
        return self.among(self.reasons)

    def among(self, reasons: Iterable[str]) -> int:
        """How many rows for these reasons."""
        return sum(self.reasons[reason]["count"] for reason in reasons if reason in self.reasons)

    def __str__(self) -> str:
        return "; ".join(
            f"{entry['count']} × {reason} (rows {', '.join(map(str, entry['examples']))}"
            f"{', …' if entry['count'] > len(entry['examples']) else ''})"
            for reason, entry in self.reasons.items()
        )


@dataclass
class Pool:
    """The unique well-formed examples of a source, on disk: only their ids are kept in memory."""

    ids: list[str]
    source_rows: int
    batches: list[pa.RecordBatch]  # of _BATCH examples, mapped from the file

    @classmethod
    def collect(cls, examples: Iterable[Example], file: Path, unusable: Unusable) -> "Pool":
        """Read a source once, to its end, into `file`."""
        ids: dict[str, None] = {}

        def unique() -> Iterator[Example]:
            for example in examples:
                problem = example.problem or ("duplicate" if (identifier := example.id) in ids else None)
                if problem:
                    unusable.add(problem, example.row)
                else:
                    ids[identifier] = None
                    yield example

        with pa.ipc.new_file(file, _POOL) as sink:
            for batch in batches(unique()):
                columns = {name: [getattr(example, name) for example in batch] for name in _POOL.names}
                sink.write_batch(pa.RecordBatch.from_pydict(columns, _POOL))
        reader = pa.ipc.open_file(pa.memory_map(str(file)))
        return cls(
            list(ids), len(ids) + unusable.total, [reader.get_batch(k) for k in range(reader.num_record_batches)]
        )

    def __getitem__(self, position: int) -> Example:
        batch, offset = divmod(position, _BATCH)
        return Example(**{name: self.batches[batch][name][offset].as_py() for name in _POOL.names})


def batches(items: Iterable[Any]) -> Iterator[list[Any]]:
    """Lists of _BATCH consecutive items, the last one perhaps shorter."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, _BATCH)):
        yield batch


@dataclass
class _Totals:
    rows: int = 0
    truncated: int = 0
    prompt_tokens: int = 0
    response_tokens: int = 0

    def add(self, row: dict[str, Any]) -> None:
        self.rows += 1
        self.truncated += row["truncated"]
        self.prompt_tokens += len(row["prompt_tokens"])
        self.response_tokens += len(row["response_tokens"])


def _write(rows: Iterable[dict[str, Any]], folder: Path, advance: Callable[[int], None]) -> _Totals:
    totals = _Totals()
    with pq.ParquetWriter(folder / ROWS, _ROWS) as table, (folder / "prompts.txt").open("w") as hashes:
        for batch in batches(rows):
            hashes.writelines(f"{row.pop('hash')}\n" for row in batch)
            table.write_table(pa.Table.from_pylist(batch, _ROWS))
            for row in batch:
                totals.add(row)
            advance(len(batch))
    return totals


@dataclass(frozen=True)
class _Encoder:
    tokenizer: Any
    template: str
    max_prompt: int
    max_response: int
    context: float

    @classmethod
    def of(cls, stage: Stage, context: Context) -> "_Encoder":
        identity = stage.identity
        folder = model_folder(context.artifact(stage.one("tokenizer")))
        tokenizer = read_tokenizer(folder)
        check_template(tokenizer, identity["template"])
        length = context_length(read_config(folder)) or math.inf
        limits = identity["max_prompt_tokens"], identity["max_response_tokens"]
        return cls(tokenizer, identity["template"], *limits, length)

    def __call__(self, example: Example) -> dict[str, Any] | str:
        """The row of an example, or why it has none."""
        try:
            prompt = encode_prompt(self.tokenizer, self.template, example.messages)
        except jinja2.TemplateError:
            return _REFUSED
        room = min(self.max_response, self.context - len(prompt))
        if len(prompt) > self.max_prompt or room < 1:
            return _OVER_LONG
        response = encode_response(self.tokenizer, self.template, example.response)
        return {
            "hash": prompt_hash(example.user),
            "id": example.id,
            "prompt": example.prompt,
            "response": example.response,
            "prompt_tokens": prompt,
            "response_tokens": response[: int(room)],
            "truncated": len(response) > room,
        }


def _encoded(pool: Pool, order: list[int], encode: _Encoder, unusable: Unusable) -> Iterator[dict[str, Any]]:
    for position in order:
        example = pool[position]
        row = encode(example)
        if isinstance(row, str):
            unusable.add(row, example.row)
        else:
            yield row


def _too_few(stage: Stage, rows: int, source_rows: int, unusable: Unusable) -> UserError:
    where = described(stage.identity, stage.location)
    wanted = (
        f"fewer than the {stage.identity['size']} of data.size"
        if stage.identity["size"]
        else "so there is nothing to do"
    )
    return UserError(
        f"{where} has {rows} usable rows of {source_rows}, {wanted}. Not usable: {str(unusable) or 'none'}. "
        "Choose a smaller data.size or 'all', raise data.max_prompt_tokens, or mend the rows."
    )
