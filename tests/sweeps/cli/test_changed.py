"""What commands say and do about cached stages that other code has computed."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from iris.source import computed_by
from iris.store import Store, split_id
from sweeps.__main__ import COMMANDS, main
from sweeps.cli.arguments import parse
from sweeps.cli.changed import forget
from sweeps.cli.plan import plan_study
from sweeps.state.finished import Finished
from sweeps.state.records import Records
from sweeps.study.plan import Plan

TEXT = "iris/model/text.py"
COST = {"seconds": 10.0, "cpu_seconds": 10.0, "gpu_seconds": 0.0, "tokens": 0, "processes": 1}


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """A study of one experiment on an empty store."""
    return [
        "study=embedded",
        "method=spin",
        "seeds=[0]",
        "data.size=100",
        "iterations=1",
        f"store={tmp_path / 'store'}",
    ]


@pytest.fixture
def plan(words: Sequence[str]) -> Plan:
    """The study's plan; of its stages the base model is cached, computed by other code."""
    planned = plan_study(parse(words, COMMANDS["plan"]))
    plan, store = planned.plan, planned.store
    store.prepare()
    base = next(iter(plan.stages.values()))
    finish(store, base.id, dict(computed_by("base")) | {TEXT: "old"})
    plan.cached = {base.id}
    return plan


def finish(store: Store, stage: str, code: dict[str, str]) -> None:
    kind, key = split_id(stage)
    manifest = {"kind": kind, "key": key, "identity": {}, "inputs": {}, "results": {}, "cost": COST}
    with store.claim(kind, key) as claim:
        assert claim is not None
        store.commit(kind, key, claim, manifest | {"provenance": {"code": {"commit": "c" * 40}}, "computed_by": code})


def test_plan_says_it_and_why_shows_how(plan: Plan, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    base = next(iter(plan.stages.values()))
    assert main(["plan", *words]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"1 cached stage was computed by other code: {TEXT}: changed since. plan --why {base.key} ")
    assert main(["plan", *words, "--why", base.key]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "Other code has computed it:",
        base.id,
        f"  {TEXT}: changed since",
        f"  git diff cccccccccccc -- {TEXT}",
    ]


def test_plan_counts_it_as_missing_on_request(plan: Plan, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *words, "--recompute-changed"]) == 0
    out = capsys.readouterr().out
    assert "other code" not in out
    assert next(line for line in out.splitlines() if line.startswith("base ")).split()[1:4] == ["1", "0", "1"]
    plan.cached = set(plan.stages)
    forget(plan, {next(iter(plan.stages)): ("changed",)})
    assert plan.cached == set(), "what is made from a forgotten stage is forgotten too"


def test_status_says_it(plan: Plan, words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    Records(store).write_study("one", "", [{"name": "a", "overrides": [], "stages": list(plan.stages)}])
    assert main(["status", "one", f"store={store.root}"]) == 0
    assert f"1 cached stage was computed by other code: {TEXT}: changed since" in capsys.readouterr().out


def test_thousands_of_cached_stages_are_compared_in_a_moment(tmp_path: Path) -> None:
    store, count = Store(tmp_path), 3000
    code = dict(computed_by("score"))
    for n in range(count):
        folder = store.folder("score", f"one-{n}")
        folder.mkdir(parents=True)
        manifest = {"inputs": {}, "results": {}, "cost": COST, "provenance": {}, "computed_by": code}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    stages = [f"score/one-{n}" for n in range(count)]
    first = Finished(store)
    assert first.outdated(stages) == {}
    first.save()
    started = time.process_time()
    assert Finished(store).outdated(stages) == {}
    assert time.process_time() - started < 1, "each manifest is read once and for all"
