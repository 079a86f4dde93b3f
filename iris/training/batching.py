"""Which samples a step trains on, and how a global batch is split over processes and micro-batches.

Pure functions of the settings: every process computes the same split, and the position in training is one number.
"""

from collections.abc import Sequence

import numpy as np

from iris.model.packing import micro_batches


def steps(samples: int, epochs: float, batch: int) -> int:
    """Count the optimizer steps of a run; every global batch is full, so batches may cross from epoch to epoch."""
    return max(1, round(epochs * samples / min(batch, samples)))


def global_batch(step: int, samples: int, batch: int, seed: int) -> list[int]:
    """Return the sample indices of a step: a window of the epochs one after the other, each a permutation."""
    size = min(batch, samples)
    start = step * size
    return [_permutation(at // samples, samples, seed)[at % samples] for at in range(start, start + size)]


def split(indices: Sequence[int], lengths: Sequence[int], world: int, max_tokens: int) -> list[list[list[int]]]:
    """Return [rank][micro-batch] → sample indices: balanced in tokens, with equally many micro-batches on every rank.

    An index of −1 is a stand-in of weight zero, for a rank without samples.
    """
    ranks = _balance(indices, lengths, world)
    parts = [[[own[i] for i in part] for part in micro_batches([lengths[i] for i in own], max_tokens)] for own in ranks]
    most = max(map(len, parts))
    return [_stretch(part, most) for part in parts]


def _balance(indices: Sequence[int], lengths: Sequence[int], world: int) -> list[list[int]]:
    """Give the longest first, each to the rank with the fewest tokens so far."""
    ranks: list[list[int]] = [[] for _ in range(world)]
    load = [0] * world
    for index in sorted(indices, key=lambda i: (-lengths[i], i)) if world > 1 else indices:
        rank = min(range(world), key=lambda r: (load[r], len(ranks[r]), r))
        ranks[rank].append(index)
        load[rank] += int(lengths[index])
    return ranks


def _stretch(parts: list[list[int]], count: int) -> list[list[int]]:
    """Split the same samples into exactly `count` micro-batches."""
    parts = list(parts)
    while len(parts) < count:
        largest = max(range(len(parts)), key=lambda k: len(parts[k])) if parts else -1
        if largest < 0 or len(parts[largest]) < 2:
            parts.append([-1])
        else:
            half = len(parts[largest]) // 2
            parts[largest : largest + 1] = [parts[largest][:half], parts[largest][half:]]
    return parts


_cache: dict[tuple[int, int, int], list[int]] = {}


def _permutation(epoch: int, samples: int, seed: int) -> list[int]:
    key = (epoch, samples, seed)
    if key not in _cache:
        _cache.clear()
        generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
        _cache[key] = generator.permutation(samples).tolist()
    return _cache[key]
