"""A request to stop: every stage that takes long is left where it can go on, and ends in the same bytes."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from iris import plan, run
from iris.config import Config, identity
from iris.execution import interruption, runner
from iris.execution.interruption import Interrupted
from iris.execution.progress import Line
from iris.store import Store

Tiny = Callable[..., Config]


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    interruption.clear()


def files(store: Path) -> dict[str, dict[str, str]]:
    manifests = [json.loads(path.read_text()) for path in store.glob("[!.]*/[!.]*/manifest.json")]
    return {f"{m['kind']}/{m['key']}": m["files"] for m in manifests}


def test_asked_again_and_again_a_run_ends_in_the_same_bytes(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = tiny("iris", tmp_path / "undisturbed", {"iterations": 1})
    run.run(undisturbed)
    config = tiny("iris", tmp_path / "store", {"iterations": 1})
    stops = list[str]()
    advance = Line.advance

    def ask(line: Line, units: int = 1, note: str = "") -> None:
        interruption.request()
        advance(line, units, note)

    monkeypatch.setattr(Line, "advance", ask)
    while True:
        try:
            run.run(config)
        except Interrupted as stop:
            stops.append(str(stop))
            interruption.clear()
        else:
            break
    # A training is left after the first of its two steps, a stage in two shards before and after the first.
    shards = ["generate", "generate", "score", "score", "score", "score"]
    assert [stop.split()[0] for stop in stops] == ["stopped", *shards, "stopped"]
    assert stops.count("stopped after step 1 of 2") == 2
    assert files(tmp_path / "store") == files(tmp_path / "undisturbed")


def test_who_is_asked_before_the_first_shard_computes_none(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny("spin", tmp_path / "store", {"iterations": 1})
    chain = plan.chain(identity(config))
    store = Store(config.store)
    store.prepare()
    context = runner.Context(store, config.execution)
    generate = next(stage for stage in chain.stages if stage.kind == "generate")
    for stage in chain.stages[: chain.stages.index(generate)]:
        runner.ensure(stage, context)
    interruption.request()
    with pytest.raises(Interrupted, match="between two shards"):
        runner.ensure(generate, context)
    assert store.keys("generate") == set()
