"""Packed micro-batches: sequences end to end without padding, each prompt once for all of its responses."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

Tokens = Sequence[int] | np.ndarray[Any, np.dtype[Any]]  # token ids


@dataclass(frozen=True)
class Row:
    """A prompt and the responses that share it, as token ids; responses end with the end-of-sequence token."""

    prompt: Tokens
    responses: Sequence[Tokens]

    def __post_init__(self) -> None:
        if len(self.prompt) == 0:
            raise ValueError("empty prompt: the first response token is predicted from the last prompt token")
        if len(self.responses) == 0 or any(len(response) == 0 for response in self.responses):
            raise ValueError("a row needs at least one response, and every response at least one token")

    @property
    def tokens(self) -> int:
        """Packed length: the prompt once, and every response."""
        return len(self.prompt) + sum(len(response) for response in self.responses)


@dataclass(frozen=True)
class Packed:
    """One micro-batch: N tokens, R responses of together M tokens; all tensors on one device.

    A row is in the stream as prompt, response, response, … Each response is one attention *sequence*: its keys are its
    prompt and itself; its queries are itself and, for the first response of a row, the prompt. So the queries of
    sequence 0, 1, … one after the other are the stream, and within a sequence the last query sees the last key.

    Labels, and with them log-probabilities, come row by row in one block; or, packed by column, in two: the first
    response of every row, then all others row by row.
    """

    input_ids: Tensor  # [1, N]
    position_ids: Tensor  # [1, N], from the start of the prompt
    predict: Tensor  # [M], stream index of the hidden state that predicts each response token
    labels: Tensor  # [M], the response tokens
    owner: Tensor  # [M], the response (0 … R-1, in the order of the labels) of each label, ascending
    keys: Tensor  # [K], stream index of every key of sequence 0, 1, …
    query_offsets: Tensor  # [R + 1] int32, cumulative query lengths
    key_offsets: Tensor  # [R + 1] int32, cumulative key lengths
    query_lengths: tuple[int, ...]  # R lengths
    key_lengths: tuple[int, ...]  # R lengths
    response_lengths: tuple[int, ...]  # R numbers of labels
    units: tuple[int, ...]  # consecutive responses that a loss may take together: those of each row; by column, each
    blocks: tuple[int, ...]  # responses of each block

    def to(self, device: torch.device | str) -> "Packed":
        """Return the same micro-batch on `device`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)}
        return Packed(**{**values, **moved})


class _Sequence(NamedTuple):
    """A response in the stream, as ranges of stream indices."""

    prompt: range
    response: range
    first: bool

    @property
    def positions(self) -> range:
        return range(0 if self.first else len(self.prompt), len(self.prompt) + len(self.response))


def pack(rows: Sequence[Row], *, by_column: bool = False) -> Packed:
    """Pack `rows` on the CPU. Responses keep the order of the rows and their order within a row."""
    sequences = list(_sequences(rows))
    queries = [len(sequence.positions) for sequence in sequences]
    keys = [len(sequence.prompt) + len(sequence.response) for sequence in sequences]
    labelled = sorted(sequences, key=lambda sequence: not sequence.first) if by_column else sequences
    lengths = [len(sequence.response) for sequence in labelled]
    stream = np.concatenate([np.asarray(tokens) for row in rows for tokens in (row.prompt, *row.responses)])
    return Packed(
        input_ids=torch.from_numpy(stream.astype(np.int64))[None],
        position_ids=_indices(sequence.positions for sequence in sequences)[None],
        predict=_indices(
            part for s in labelled for part in (s.prompt[-1:], range(s.response.start, s.response.stop - 1))
        ),
        labels=torch.from_numpy(stream.astype(np.int64))[_indices(sequence.response for sequence in labelled)],
        owner=torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)),
        keys=_indices(part for sequence in sequences for part in (sequence.prompt, sequence.response)),
        query_offsets=torch.tensor([0, *accumulate(queries)], dtype=torch.int32),
        key_offsets=torch.tensor([0, *accumulate(keys)], dtype=torch.int32),
        query_lengths=tuple(queries),
        key_lengths=tuple(keys),
        response_lengths=tuple(lengths),
        units=(1,) * len(lengths) if by_column else tuple(len(row.responses) for row in rows),
        blocks=(len(rows), len(lengths) - len(rows)) if by_column else (len(lengths),),
    )


def _sequences(rows: Iterable[Row]) -> Iterator[_Sequence]:
    start = 0
    for row in rows:
        prompt = range(start, start + len(row.prompt))
        start = prompt.stop
        for number, response in enumerate(row.responses):
            yield _Sequence(prompt, range(start, start + len(response)), number == 0)
            start += len(response)


def _indices(parts: Iterable[range]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.arange(part.start, part.stop) for part in parts]))


def micro_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Group row indices into micro-batches of at most `max_tokens` packed tokens; a longer row is alone in its own.

    Rows go longest first (ties by index), so that rows of one micro-batch are alike in length and the first
    micro-batch is the one that needs most memory. Every index occurs once; the same input gives the same groups.
    """
    groups: list[list[int]] = []
    room = 0
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        if not groups or lengths[index] > room:
            groups.append([])
            room = max_tokens
        groups[-1].append(index)
        room -= lengths[index]
    return groups
