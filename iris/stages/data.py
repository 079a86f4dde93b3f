"""`data`: a source becomes the tokenized, filtered, ordered rows of one nested subset.

The rules. A row cannot be used, and is counted under its reason with the numbers of the first few (from 0, in the
order of the source), when

- *missing value*: a column's value is absent or null; *not text*: a value is no (valid) text;
- *not chat messages*: the value is no list of {"role", "content"};
- *wrong role order*: the messages do not begin with an optional system message, then user, then assistant;
- *empty prompt*, *empty response*: nothing but white space;
- *duplicate*: an earlier row has the same system message, prompt and response;
- *refused by the chat template*: the template raises for these messages, for instance for a system message;
- *response with the token that ends it inside*: it is in the vocabulary as ordinary text;
- *over-long prompt*: more than `max_prompt_tokens` tokens, the template's included, or no room left in the model's
  context.

A response of more than `max_response_tokens` tokens, its end token included, or than the model's context holds after
the prompt, is cut at its end, has no end token then, and is counted as truncated. The usable rows are ordered by
SHA-256(`subset_seed:id`) and the first `size` are taken: 14k ⊂ 26k ⊂ 50k, whatever the order of the source. Rows are
tokenized in that order and no further than needed, so the last three reasons are counted among the `examined` rows
only; the others among all. Control tokens in the texts stay text and are counted in every row (`control_tokens`).
"""

import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from iris.data.contamination import prompt_hash
from iris.data.examples import Example
from iris.data.rows import ROWS, subset_order
from iris.data.sources import described, read_source
from iris.errors import UserError
from iris.execution.runner import Context
from iris.model.architecture import context_length
from iris.model.chat import REPLACED, Refused
from iris.model.policy import model_folder, read_config
from iris.model.template import Template
from iris.model.text import read_tokenizer
from iris.plan import Stage
from iris.store import Claim

_OVER_LONG = "over-long prompt"
_BATCH = 1000
_REPLACED = (
    "the model's chat template gives prompts without the assistant's header or with one that no answer in a "
    "conversation has; prompts now end as conversations do before an answer (look with --show 1)"
)
_WARN = 0.05  # share of unusable rows
log = logging.getLogger("iris")
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
        ("control_tokens", pa.int32()),
    ]
)


def run(stage: Stage, context: Context, claim: Claim) -> dict[str, Any]:
    """Write `rows.parquet` and `prompts.txt`, one hash of the user's message a row; report what was left out.

    Raises UserError for too few usable rows.
    """
    if not context.world.main:
        return {}
    identity, unusable = stage.identity, Unusable()
    encode = _Encoder.of(stage, context)
    pool = Pool.collect(read_source(identity, stage.location), claim.work / "source.arrow", unusable)
    order, malformed = subset_order(pool.ids, identity["subset_seed"]), unusable.total
    wanted = identity["size"] or len(order)
    with context.progress.line(f"data {stage.name}", min(wanted, len(order)), "rows") as line:
        totals = _write(itertools.islice(_encoded(pool, order, encode, unusable), wanted), claim.new, line.advance)
        line.advance(0, unusable.summary(pool.source_rows))
    if totals.rows < (identity["size"] or 1):
        raise _too_few(stage, totals.rows, pool.source_rows, unusable)
    examined = totals.rows + unusable.total - malformed
    if max(unusable.total / pool.source_rows, 1 - totals.rows / examined) >= _WARN:
        _warn(context, f"data {stage.name}: {unusable.summary(pool.source_rows)}")
    if totals.control_rows:
        _warn(context, f"data {stage.name}: {totals.control_rows} rows hold control tokens, which stay text")
    return vars(totals) | {
        "usable": pool.source_rows - unusable.total,
        "source_rows": pool.source_rows,
        "examined": examined,
        "unusable": unusable.reasons,
        "prompt_hashes": "prompts.txt",
    }


def _warn(context: Context, text: str) -> None:
    context.progress.say(f"warning: {text}")
    log.info("warning: %s", text)  # the level warning would print it again where no log is open


@dataclass
class Unusable:
    """Unusable rows: for each reason their count and the numbers of the first few."""

    reasons: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, reason: str, row: int) -> None:
        entry = self.reasons.setdefault(reason, {"count": 0, "examples": []})
        entry["count"] += 1
        if len(entry["examples"]) < _EXAMPLES:
            entry["examples"].append(row)

    @property
    def total(self) -> int:
        """Return the number of rows."""
        return sum(entry["count"] for entry in self.reasons.values())

    def summary(self, source_rows: int) -> str:
        """Return how many rows are unusable and why, in one line; empty if all are usable."""
        counts = ", ".join(f"{entry['count']} × {reason}" for reason, entry in self.reasons.items())
        return f"{self.total} of {source_rows} rows unusable: {counts}" if counts else ""

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
    """Yield lists of _BATCH consecutive items; the last one may be shorter."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, _BATCH)):
        yield batch


@dataclass
class _Totals:
    rows: int = 0
    truncated: int = 0
    prompt_tokens: int = 0
    response_tokens: int = 0
    control_rows: int = 0
    control_tokens: int = 0

    def add(self, row: dict[str, Any]) -> None:
        self.rows += 1
        self.truncated += row["truncated"]
        self.prompt_tokens += len(row["prompt_tokens"])
        self.response_tokens += len(row["response_tokens"])
        self.control_rows += row["control_tokens"] > 0
        self.control_tokens += row["control_tokens"]


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
    template: Template
    max_prompt: int
    max_response: int
    context: float

    @classmethod
    def of(cls, stage: Stage, context: Context) -> "_Encoder":
        identity = stage.identity
        folder = model_folder(context.artifact(stage.one("tokenizer")))
        template = Template(read_tokenizer(folder), identity["template"])
        if template.source.startswith(REPLACED):
            _warn(context, f"data {stage.name}: {_REPLACED}")
        length = context_length(read_config(folder)) or math.inf
        return cls(template, identity["max_prompt_tokens"], identity["max_response_tokens"], length)

    def __call__(self, example: Example) -> dict[str, Any]:
        """Return the row of an example. Raises Refused."""
        encoded = self.template.encode(example.messages, example.response)
        room = min(self.max_response, self.context - len(encoded.prompt))
        if len(encoded.prompt) > self.max_prompt or room < 1:
            raise Refused(_OVER_LONG)
        return {
            "hash": prompt_hash(example.user),
            "id": example.id,
            "prompt": example.prompt,
            "response": example.response,
            "prompt_tokens": encoded.prompt,
            "response_tokens": encoded.response[: int(room)],
            "truncated": len(encoded.response) > room,
            "control_tokens": encoded.controls,
        }


def _encoded(pool: Pool, order: list[int], encode: _Encoder, unusable: Unusable) -> Iterator[dict[str, Any]]:
    for position in order:
        example = pool[position]
        try:
            yield encode(example)
        except Refused as reason:
            unusable.add(str(reason), example.row)


def _too_few(stage: Stage, rows: int, source_rows: int, unusable: Unusable) -> UserError:
    where = described(stage.identity, stage.location)
    wanted = (
        f"fewer than the {stage.identity['size']} of data.size"
        if stage.identity["size"]
        else "so there is nothing to do"
    )
    return UserError(
        f"{where} has {rows} usable rows of {source_rows}, {wanted}. Not usable: {str(unusable) or 'none'}. "
        "Choose a smaller data.size or 'all', raise data.max_prompt_tokens, or correct the rows."
    )
