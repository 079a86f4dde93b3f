"""The stages of a trial: shared prefixes, rungs of other kinds, and the scores that a search looks at."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from iris.errors import UserError
from iris.store import Artifact, Store
from sweeps.search.file import Search
from sweeps.search.space import read_space
from sweeps.search.trial import Trial, make_trial, score
from tests.sweeps.tiny import write_study

SPACE = read_space({"schedule.levels": {"low": 0.25, "high": 1.5, "step": 0.25, "per": "iteration"}}, "space")


@pytest.fixture
def search(tmp_path: Path) -> Search:
    base = yaml.safe_load(write_study(tmp_path).read_text())["base"]
    base |= {"method": "iris", "schedule": "levels", "iterations": 3}
    return tiny(base)


def tiny(base: dict[str, Any], **settings: Any) -> Search:
    from sweeps.study.settings import of_value

    return Search("tiny", tuple(of_value(key, value).text for key, value in base.items()), SPACE, **settings)


def trial(search: Search, *levels: float, words: tuple[str, ...] = ()) -> Trial:
    return make_trial(search, [f"schedule.levels={list(levels)}".replace(" ", ""), *words])


def kinds(trial: Trial) -> list[list[str]]:
    return [[stage.kind for stage in rung.stages] for rung in trial.rungs]


def test_a_trial_runs_its_rungs_in_order_and_no_evaluation_it_does_not_need(search: Search) -> None:
    found = trial(search, 1.0, 0.5, 0.25)
    iteration = ["generate", "score", "score", "train"]
    assert kinds(found) == [["base", "data", "sft", *iteration], iteration, iteration]
    assert [rung.label for rung in found.rungs] == ["t=1", "t=2", "t=3"]
    assert [stage.kind for stage in found.path] == [kind for rung in kinds(found) for kind in rung]
    assert [rung.part.identity["share"] for rung in found.rungs] == [0.15] * 3
    assert found.whole.one("policy").key == found.rungs[-1].part.one("policy").key
    assert "share" not in found.whole.identity
    done: set[str] = set()
    for stage in found.path:
        assert done.issuperset(parent.id for parent in stage.parents), "inputs first"
        done.add(stage.id)


def test_trials_share_the_iterations_in_which_their_levels_agree(search: Search) -> None:
    one, two = trial(search, 1.0, 0.5, 0.25), trial(search, 1.0, 0.5, 1.5)
    shared = {s.id for s in one.path} & {s.id for s in two.path}
    assert shared == {s.id for rung in one.rungs[:2] for s in rung.stages} | {
        s.id for s in one.rungs[2].stages if s.kind != "train"
    }
    assert [a.part.key == b.part.key for a, b in zip(one.rungs, two.rungs, strict=True)] == [True, True, False]
    assert one.whole.key != two.whole.key


def test_a_trial_of_more_iterations_goes_on_where_a_shorter_one_ended(search: Search) -> None:
    short, long = trial(search, 1.0, 0.5, words=("iterations=2",)), trial(search, 1.0, 0.5, 0.25)
    assert kinds(long)[:2] == kinds(short)
    assert [s.id for s in long.path[: len(short.path)]] == [s.id for s in short.path]


def test_rungs_can_be_experiments_of_their_own(search: Search) -> None:
    """A small subset first, then the whole data: the larger one asks only for what the smaller has not."""
    from dataclasses import replace

    own = replace(search, rungs=(("data.size=10", "iterations=1"), ("data.size=20", "iterations=2")))
    found = trial(own, 1.0, 0.5)
    assert [stage.name for stage in found.rungs[0].stages if stage.kind == "data"] == ["sums-10"]
    assert "base" not in kinds(found)[1] and kinds(found)[1][:2] == ["data", "sft"]
    assert [stage.kind for stage in found.path].count("train") == 2
    assert {"sums-10"}.isdisjoint(stage.name for stage in found.path), "only the last one counts as the trial"
    assert found.whole.one("policy").key == found.path[-1].key
    record = found.record()
    assert set(record["path"]) < {name for rung in record["rungs"] for name in rung["stages"]}


def test_a_share_of_one_is_the_whole_evaluation(search: Search) -> None:
    from dataclasses import replace

    found = trial(replace(search, share=1.0), 1.0, 0.5, 0.25)
    assert found.rungs[-1].part.key == found.whole.key
    assert found.record()["rungs"][-1]["part"] == found.whole.id


def test_without_iterations_a_trial_is_its_supervised_stage(search: Search) -> None:
    found = trial(search, 1.0, words=("iterations=0",))
    assert kinds(found) == [["base", "data", "sft"]] and found.rungs[0].label == "start"


def test_a_metric_that_is_nan_is_an_error(tmp_path: Path) -> None:
    manifest = {"key": "e-0", "results": {"average": float("nan"), "main": {"a": 0.75}}}
    found = Artifact(tmp_path, manifest)
    assert score(found, "a") == 0.75
    with pytest.raises(UserError, match="objective=average is NaN in evaluate/e-0"):
        score(found, "average")


def test_scores(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.prepare()
    with store.claim("evaluate", "e-0") as claim:
        assert claim is not None
        (claim.new / "scores.json").write_text('{"tasks": {"a": {"acc,none": 0.25, "acc_stderr,none": 0.1}}}')
        manifest = {"kind": "evaluate", "key": "e-0", "results": {"average": 0.5, "main": {"a": 0.75}}}
        found = store.commit("evaluate", "e-0", claim, manifest)
    assert [score(found, name) for name in ("average", "a", "a:acc,none")] == [0.5, 0.75, 0.25]
    for name, message in (("b", "no 'b'.* It has: a"), ("a:ac,none", "no 'ac,none'.*Did you mean 'acc,none'")):
        with pytest.raises(UserError, match=message):
            score(found, name)
