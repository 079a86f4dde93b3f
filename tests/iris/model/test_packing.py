"""The packed layout against its definition, and the grouping into micro-batches."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iris.model.packing import Packed, Row, micro_batches, pack

ROWS = [Row([11, 12], [[13, 14, 15], [16, 17], [18]]), Row([21], [[22]]), Row([31, 32, 33], [[34], [35, 36]])]

tokens = st.lists(st.integers(0, 99), min_size=1, max_size=6)
some_rows = st.lists(st.builds(Row, tokens, st.lists(tokens, min_size=1, max_size=3)), min_size=1, max_size=5)


def test_stream_of_a_worked_example() -> None:
    packed = pack(ROWS[:2])
    assert packed.input_ids.tolist() == [[11, 12, 13, 14, 15, 16, 17, 18, 21, 22]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 4, 2, 3, 2, 0, 1]]
    assert packed.labels.tolist() == [13, 14, 15, 16, 17, 18, 22]
    assert packed.predict.tolist() == [1, 2, 3, 1, 5, 1, 8]
    assert packed.owner.tolist() == [0, 0, 0, 1, 1, 2, 3]
    assert packed.query_lengths == (5, 2, 1, 2)
    assert packed.key_lengths == (5, 4, 3, 2)
    assert packed.response_lengths == (3, 2, 1, 1)
    assert packed.units == (3, 1)
    assert packed.query_offsets.tolist() == [0, 5, 7, 8, 10]
    assert packed.key_offsets.tolist() == [0, 5, 9, 12, 14]


def visible_by_layout(packed: Packed) -> torch.Tensor:
    """[N, N]: in each sequence, the last query sees every key, and each query before it one key less."""
    total = packed.input_ids.shape[1]
    seen = torch.zeros(total, total, dtype=torch.bool)
    queries, keys = pairwise(packed.query_offsets.tolist()), pairwise(packed.key_offsets.tolist())
    for (start, stop), (first, last) in zip(queries, keys, strict=True):
        for query in range(start, stop):
            seen[query, packed.keys[first : last - (stop - 1 - query)]] = True
    return seen


def visible_by_definition(rows: list[Row]) -> torch.Tensor:
    """[N, N]: a token sees what is not after it in its own prompt and response."""
    places = [
        (number, branch)
        for number, row in enumerate(rows)
        for branch, part in enumerate((row.prompt, *row.responses))
        for _ in part
    ]
    return torch.tensor(
        [
            [key <= query and row == other and branch in (0, own) for key, (other, branch) in enumerate(places)]
            for query, (row, own) in enumerate(places)
        ]
    )


@settings(deadline=None, max_examples=30)
@given(some_rows)
def test_each_response_sees_its_prompt_and_itself_only(rows: list[Row]) -> None:
    assert torch.equal(visible_by_layout(pack(rows)), visible_by_definition(rows))


@settings(deadline=None, max_examples=30)
@given(some_rows)
def test_every_label_is_predicted_from_the_position_before_it(rows: list[Row]) -> None:
    packed = pack(rows)
    stream, positions = packed.input_ids[0], packed.position_ids[0]
    assert len(stream) == sum(row.tokens for row in rows)
    responses = [(row, response) for row in rows for response in row.responses]
    for number, (row, response) in enumerate(responses):
        mine = packed.owner == number
        assert packed.labels[mine].tolist() == response
        assert stream[packed.predict[mine]].tolist() == [row.prompt[-1], *response[:-1]]
        start = len(row.prompt) - 1
        assert positions[packed.predict[mine]].tolist() == list(range(start, start + len(response)))


def test_to_moves_every_tensor() -> None:
    moved = pack(ROWS).to("meta")
    assert {value.device.type for value in vars(moved).values() if isinstance(value, torch.Tensor)} == {"meta"}
    assert moved.units == (3, 1, 2)


@pytest.mark.parametrize(("prompt", "responses"), [([], [[1]]), ([1], []), ([1], [[2], []])])
def test_empty_parts_are_rejected(prompt: list[int], responses: list[list[int]]) -> None:
    with pytest.raises(ValueError, match=r"at least one|empty prompt"):
        Row(prompt, responses)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 60))
def test_micro_batches_hold_every_row_once_within_the_limit(lengths: list[int], limit: int) -> None:
    groups = micro_batches(lengths, limit)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    assert all(len(group) == 1 or sum(lengths[index] for index in group) <= limit for group in groups)
    assert groups == micro_batches(lengths, limit)


def test_micro_batches_go_from_long_rows_to_short() -> None:
    assert micro_batches([3, 9, 4, 4, 1], 8) == [[1], [2, 3], [0, 4]]
