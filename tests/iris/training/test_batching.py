"""Order and split of batches: full batches, every sample once an epoch, the same for any number of processes."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from iris.training import batching


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 50), st.integers(1, 20), st.integers(0, 5))
def test_an_epoch_sees_every_sample_once(samples: int, batch: int, seed: int) -> None:
    epochs = min(batch, samples)  # after which the batches end where an epoch does
    count = batching.steps(samples, epochs, batch)
    seen = [i for step in range(count) for i in batching.global_batch(step, samples, batch, seed)]
    assert Counter(seen) == dict.fromkeys(range(samples), epochs)
    assert all(len(set(seen[k * samples : (k + 1) * samples])) == samples for k in range(epochs))


def test_batches_are_a_function_of_the_step() -> None:
    forward = [batching.global_batch(s, 30, 8, 1) for s in range(12)]
    assert [batching.global_batch(s, 30, 8, 1) for s in reversed(range(12))] == forward[::-1]
    assert batching.global_batch(0, 30, 8, 2) != forward[0]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=40), st.integers(1, 5), st.integers(1, 600))
def test_split_covers_the_batch_with_equal_counts(lengths: list[int], world: int, most: int) -> None:
    ranks = batching.split(range(len(lengths)), lengths, world, most)
    assert len({len(parts) for parts in ranks}) == 1, "every rank does as many passes"
    assert all(part for parts in ranks for part in parts), "no empty pass"
    samples = sorted(i for parts in ranks for part in parts for i in part if i >= 0)
    assert samples == list(range(len(lengths)))
    for part in (part for parts in ranks for part in parts):
        assert len(part) == 1 or sum(lengths[i] for i in part) <= most


def test_ranks_are_balanced_in_tokens() -> None:
    lengths = [100, 90, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10]
    loads = [sum(lengths[i] for part in parts for i in part) for parts in batching.split(range(12), lengths, 2, 10_000)]
    assert max(loads) - min(loads) <= 10
