"""The account of a search, against sums by hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from iris.store import Store, split_id
from sweeps.search.costs import Account, Done, account, of_record, unit_of

HOUR = 3600.0


def stage(
    store: Store, name: str, hours: float, *, shards: Sequence[str] = (), reused: Sequence[str] = (), gpu: float = 0.0
) -> str:
    kind, key = split_id(name)
    manifest: dict[str, Any] = {
        "kind": kind,
        "key": key,
        "inputs": {"shards": list(shards)} if shards else {},
        "cost": {"seconds": 0.0, "cpu_seconds": hours * HOUR, "gpu_seconds": gpu * HOUR, "tokens": 0, "processes": 1},
        "provenance": {"reused": dict.fromkeys(reused, 1)} if reused else {},
    }
    with store.claim(kind, key) as claim:
        assert claim is not None
        store.commit(kind, key, claim, manifest)
    return name


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path)
    store.prepare()
    return store


def record(rungs: Sequence[Sequence[str]], parts: Sequence[str], whole: str) -> dict[str, Any]:
    found = [{"label": "t", "stages": list(s), "part": p} for s, p in zip(rungs, parts, strict=True)]
    return {"rungs": found, "path": [name for stages in rungs for name in stages], "whole": whole}


def test_every_line_by_hand(store: Store) -> None:
    setup = [stage(store, "base/b", 0.5), stage(store, "data/d", 0.5), stage(store, "sft/s", 4.0)]
    # Trials a and b agree in the first iteration; b is pruned after it, and c, which agrees with nobody, after its own.
    first = stage(store, "train/a1", 2.0)
    second = stage(store, "train/a2", 3.0)
    other = stage(store, "train/c1", 2.5)
    parts = [stage(store, "evaluate/p1", 0.1), stage(store, "evaluate/p2", 0.2), stage(store, "evaluate/p3", 0.3)]
    whole = stage(store, "evaluate/a", 1.0, reused=["p2"])
    done = [
        Done(record([[*setup, first], [second]], [parts[0], parts[1]], whole), 2, True),
        Done(record([[*setup, first], ["train/b2"]], [parts[0], "evaluate/pb"], "evaluate/b"), 1, False),
        Done(record([[*setup, other], ["train/c2"]], [parts[2], "evaluate/pc"], "evaluate/c"), 1, False),
    ]
    evaluation, mean = 1.0 + 0.2, (2.0 + 3.0 + 2.5) / 3  # an evaluation by itself asks for its part too
    found = account(store, done, "cpu_hours")
    every = 3 * 5.0 + (2.0 + 3.0) + (2.0 + mean) + (2.5 + mean) + 3 * evaluation
    left_out = 2 * mean + 2 * evaluation
    executed = 5.0 + 2.0 + 3.0 + 2.5 + 1.0 + 0.1 + 0.2 + 0.3
    assert found == Account(
        "cpu_hours",
        3,
        pytest.approx(every),
        pytest.approx(5.0),
        pytest.approx(2 * 5.0),
        pytest.approx(2.0),
        pytest.approx(left_out),
        pytest.approx(0.1 + 0.3),
        pytest.approx(executed),
        pytest.approx(left_out / every),
    )
    assert found.whole - found.setup - found.prefixes - found.pruning + found.rungs == pytest.approx(found.executed)
    assert of_record(store, done[0].record, "cpu_hours") == pytest.approx(5.0 + 2.0 + 3.0 + evaluation)


def test_shards_are_counted_once(store: Store) -> None:
    for name in ("generate/x", "generate/y"):
        stage(store, name, 1.0)
    small = stage(store, "generate/small", 0.2, shards=["x"])
    large = stage(store, "generate/large", 0.1, shards=["x", "y"])
    policy = stage(store, "train/t", 0.0)
    whole = stage(store, "evaluate/e", 0.0)
    trial = record([[small], [large, policy]], ["evaluate/p", "evaluate/q"], whole) | {"path": [large, policy]}
    found = account(store, [Done(trial, 2, True)], "cpu_hours")
    assert found.whole == pytest.approx(2.1), "the last experiment by itself"
    assert found.executed == pytest.approx(2.1 + 0.2)
    assert found.rungs == pytest.approx(0.2), "what only the small subset needed"
    assert found.whole - found.setup - found.prefixes - found.pruning + found.rungs == pytest.approx(found.executed)


def test_the_unit_is_the_gpu_where_there_is_one(store: Store) -> None:
    trial = record([[stage(store, "train/t", 2.0)]], ["evaluate/p"], stage(store, "evaluate/e", 1.0))
    assert unit_of(store, [trial]) == "cpu_hours"
    on_gpu = record([[stage(store, "train/g", 2.0, gpu=1.5)]], ["evaluate/p"], "evaluate/e")
    assert unit_of(store, [trial, on_gpu]) == "gpu_hours"
    assert of_record(store, on_gpu, "gpu_hours") == pytest.approx(1.5)


def test_a_search_that_has_pruned_everything(store: Store) -> None:
    trial = record([[stage(store, "train/t", 2.0)]], [stage(store, "evaluate/p", 0.5)], "evaluate/e")
    found = account(store, [Done(trial, 1, False)], "cpu_hours")
    assert (found.executed, found.rungs, found.pruning) == (2.5, 0.5, 0.5), "an evaluation like the part's at least"
