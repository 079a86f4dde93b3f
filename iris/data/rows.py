"""Tokenized rows of a finished `data` stage, their shards, and the order that nested subsets follow."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from iris.store import Artifact

ROWS = "rows.parquet"


@dataclass(frozen=True)
class Rows:
    """N ids in subset order, and N prompts and responses as int32 arrays of token ids."""

    file: Path
    ids: list[str]
    prompt_tokens: list[np.ndarray]
    response_tokens: list[np.ndarray]

    @cached_property
    def prompts(self) -> list[str]:
        """Return the prompts without the template, [N]."""
        return self._texts("prompt")

    @cached_property
    def responses(self) -> list[str]:
        """Return the annotated responses as the source holds them, not truncated, [N]."""
        return self._texts("response")

    def _texts(self, column: str) -> list[str]:
        texts: list[str] = pq.read_table(self.file, columns=[column])[column].to_pylist()
        return texts


def read_rows(artifact: Artifact) -> Rows:
    """Read the rows that a `data` stage has written."""
    file = artifact.folder / ROWS
    table = pq.read_table(file, columns=["id", "prompt_tokens", "response_tokens"])
    return Rows(file, table["id"].to_pylist(), lists(table, "prompt_tokens"), lists(table, "response_tokens"))


def slices(rows: Rows, size: int) -> list[slice]:
    """Split rows into consecutive slices of at most `size`; nested subsets share all but the last."""
    return [slice(start, min(start + size, len(rows.ids))) for start in range(0, len(rows.ids), size)]


def shard_digest(rows: Rows, part: slice) -> str:
    """Hash the ids and tokens of one slice: all that a shard of responses to it depends on."""
    digest = hashlib.sha256()
    for i, prompt, response in zip(rows.ids[part], rows.prompt_tokens[part], rows.response_tokens[part], strict=True):
        digest.update(f"{i}:{len(prompt)}:{len(response)}:".encode())
        digest.update(np.concatenate([prompt, response]).astype("<i4").tobytes())
    return digest.hexdigest()[:16]


def subset_order(ids: Sequence[str], seed: int) -> list[int]:
    """Sort positions of unique ids by SHA-256(`seed:id`): subsets are prefixes, whatever the order of the source."""
    return sorted(range(len(ids)), key=lambda i: hashlib.sha256(f"{seed}:{ids[i]}".encode()).digest())


def lists(table: pa.Table, column: str) -> list[np.ndarray]:
    """Return a column of lists as arrays that share one buffer."""
    values = table[column].combine_chunks()
    flat, offsets = values.flatten().to_numpy(), values.offsets.to_numpy()
    return np.split(flat, (offsets - offsets[0])[1:-1]) if len(values) else []
