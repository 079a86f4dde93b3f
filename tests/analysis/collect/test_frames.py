"""Frames: a row for every result, missing ones included; the index is only a cache."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis.collect import index
from analysis.compare import methods
from iris.errors import UserError
from iris.store import Store, split_id
from tests.analysis import stores
from tests.analysis.stores import ITERATIONS, METHODS, SEEDS, SIZES, TASKS, Made

EXPERIMENTS = len(METHODS) * len(SIZES) * len(SEEDS)
POLICIES = ["base", "start", "t=1", "t=2"]


def load(made: Made) -> analysis.Frames:
    return analysis.load(stores.STUDY, made.store)


def test_a_row_per_experiment_policy_task_and_metric(made: Made) -> None:
    scores = load(made).scores
    assert len(scores) == EXPERIMENTS * len(POLICIES) * (1 + 2 * len(TASKS))
    main = scores[scores["main"]]
    assert len(main) == EXPERIMENTS * len(POLICIES) * (1 + len(TASKS)) and main["state"].eq("done").all()
    for row in main.itertuples():
        t = {"base": -1, "start": 0}.get(str(row.policy), row.iteration)
        assert row.value == pytest.approx(stores.score(row.method, int(row.size), row.seed, t, row.task))
    assert set(scores["metric"]) == {"average", "accuracy,none", "length,none"}
    assert scores.loc[scores["task"] == "sums", "documents"].eq(20).all()
    assert scores.groupby("policy", observed=True)["final"].unique().map(list).to_dict() == {
        "base": [False], "start": [False], "t=1": [False], "t=2": [True],
    }  # fmt: skip


def test_configuration_alpha_gap_and_cost(made: Made) -> None:
    frames = load(made)
    one = frames.experiments.set_index("experiment").loc[made.name("iris", 200, 1)]
    assert (one["method"], one["size"], one["annotations"], one["seed"], one["schedule"]) == (
        "iris",
        200,
        199,
        1,
        "adaptive",
    )
    assert frames.tasks == list(TASKS) and frames.varying == []
    policies = frames.policies().set_index(["experiment", "policy"])
    last = policies.loc[(made.name("iris", 200, 1), "t=2")]
    assert (last["alpha"], last["gap"]) == (1.0, 0.2)
    assert last["gpu_seconds"] == 3 * 6 + 3, "generate with its shards, train, evaluate"
    assert last["tokens"] == 3 * 100 + 50
    assert np.isnan(policies.loc[(made.name("spin", 200, 1), "t=2")]["alpha"])


def test_what_else_varies_is_a_column(copy: Made) -> None:
    for point in copy.points:
        point["overrides"].append(f"train.learning_rate={1e-4 if point['facts']['seed'] else 1e-5}")
    copy.record()
    frames = load(copy)
    assert frames.varying == ["train.learning_rate"]
    assert set(frames.experiments["train.learning_rate"]) == {"0.0001", "1e-05"}


def test_what_follows_the_seed_is_no_column(copy: Made) -> None:
    for point in copy.points:
        point["overrides"].append(f"data.subset_seed={point['facts']['seed']}")
        point["with_seed"] = ["data.subset_seed"]
    copy.record()
    frames = load(copy)
    assert frames.varying == []
    assert methods.method_names(frames).nunique() == len(METHODS), "replicates are of one method"


def test_missing_failed_pruned_and_damaged_results_are_rows(copy: Made) -> None:
    copy.remove(copy.evaluation("spin", 100, 0, 2))
    damaged, spoilt = copy.evaluation("iris", 100, 0, 2), copy.evaluation("iris", 100, 1, 2)
    manifest = copy.store.root / damaged / "manifest.json"
    manifest.write_text(manifest.read_text().replace("0.07", "0.08"))
    (copy.store.root / spoilt / "scores.json").write_text("{}")
    for seed, state in ((1, "failed"), (2, "pruned")):
        copy.remove(copy.evaluation("sft", 200, seed, 2))
        point = next(p for p in copy.points if p["name"] == copy.name("sft", 200, seed))
        point |= {"state": state, "error": "out of memory" if state == "failed" else ""}
    copy.record()
    frames = load(copy)
    states = frames.experiments.set_index("experiment")["state"]
    expected = {
        copy.name("spin", 100, 0): "planned",
        copy.name("iris", 100, 0): "damaged",
        copy.name("iris", 100, 1): "damaged",
        copy.name("sft", 200, 1): "failed",
        copy.name("sft", 200, 2): "pruned",
    }
    assert states[states != "done"].to_dict() == expected
    gone = frames.scores[frames.scores["value"].isna()]
    assert len(gone) == len(expected) * (1 + len(TASKS)) and gone["final"].all() and gone["main"].all()
    assert dict(zip(gone["experiment"], gone["state"], strict=True)) == expected
    assert frames.damaged == {damaged, spoilt}
    assert "out of memory" in set(frames.experiments["error"])
    assert not (copy.store.root / ".corrupt").exists(), "reading moves nothing"
    assert len(frames.scores[frames.scores["main"]]) == EXPERIMENTS * len(POLICIES) * (1 + len(TASKS))


def test_nothing_has_run(tmp_path: Path, made: Made) -> None:
    empty = Made(Store(tmp_path / "empty"), made.points)
    empty.store.prepare()
    empty.record()
    frames = load(empty)
    assert frames.scores["value"].isna().all() and set(frames.scores["state"]) == {"planned"}
    assert len(frames.scores) == EXPERIMENTS * len(POLICIES) * (1 + len(TASKS)) and frames.steps().empty


def test_training_curves(made: Made) -> None:
    frames = load(made)
    steps = frames.steps(frames.scores["method"] == "iris")
    assert len(steps) == len(SIZES) * len(SEEDS) * (2 + 3 * ITERATIONS)
    assert steps.loc[steps["policy"] == "t=1", "loss"].tolist()[:3] == [1.0, 0.9, 0.8]
    assert steps["batch"].eq(8).all() and steps.loc[steps["policy"] == "start", "real_ess"].isna().all()


def test_samples_of_every_document(made: Made) -> None:
    frames = load(made)
    final = frames.scores["final"] & (frames.scores["method"] == "iris") & (frames.scores["seed"] == 0)
    samples = frames.samples("sums", final)
    assert len(samples) == len(SIZES) * TASKS["sums"] and samples["text"].nunique() == TASKS["sums"]
    assert samples["value"].mean() == np.mean([stores.score("iris", size, 0, 2, "sums") for size in SIZES])


def test_a_study_that_was_never_launched(made: Made) -> None:
    with pytest.raises(UserError, match=r"study=toi: not launched on .* Did you mean 'toy'"):
        analysis.load("toi", made.store)


# --- the index


def frame(made: Made) -> pd.DataFrame:
    return load(made).scores


def test_manifests_are_read_once(copy: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    first, read = frame(copy), []
    manifest = Store.manifest
    monkeypatch.setattr(Store, "manifest", lambda self, *name: read.append(name) or manifest(self, *name))
    pd.testing.assert_frame_equal(frame(copy), first)
    assert read == []
    copy.remove(copy.evaluation("spin", 100, 0, 2))
    assert frame(copy)["value"].isna().sum() == 1 + len(TASKS), "what has been removed is not there"
    with copy.store.claim("evaluate", "new-0123456789ab") as claim:
        assert claim
    assert read == [("evaluate", "new-0123456789ab")]


def test_new_stages_are_added(copy: Made) -> None:
    aside = copy.store.root.parent / "aside"
    stage = copy.store.root / copy.evaluation("spin", 100, 0, 2)
    stage.rename(aside)
    assert frame(copy)["value"].isna().any()
    aside.rename(stage)
    assert not frame(copy)["value"].isna().any()
    known = pd.read_parquet(copy.store.root / ".analysis" / "stages.parquet")["stage"]
    assert known.is_unique and str(stage.relative_to(copy.store.root)) in set(known)


@pytest.mark.parametrize("spoil", ["text", "columns", "one", "gone"])
def test_an_index_that_does_not_fit_is_made_again(copy: Made, spoil: str) -> None:
    first = frame(copy)
    path = copy.store.root / ".analysis" / "scores.parquet"
    if spoil == "text":
        path.write_text("no parquet")
    elif spoil == "columns":
        pd.read_parquet(path).drop(columns="value").to_parquet(path)
    elif spoil == "one":  # of two processes that wrote at once
        before = path.read_bytes()
        analysis.load(stores.STUDY, copy.store, rebuild=True)
        path.write_bytes(before)
    else:
        path.unlink()
    pd.testing.assert_frame_equal(frame(copy), first)


def test_rebuild_reads_all_again(copy: Made) -> None:
    frame(copy)
    evaluation = copy.evaluation("spin", 100, 0, 2)
    (copy.store.root / evaluation / "scores.json").write_text("{}")
    assert not load(copy).damaged, "what was read once is not looked at again"
    assert analysis.load(stores.STUDY, copy.store, rebuild=True).damaged == {evaluation}


def test_a_store_that_may_not_be_written_is_read_each_time(copy: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(index.pq, "write_table", full)
    assert len(frame(copy)) == len(frame(copy)) and not (copy.store.root / ".analysis" / "stages.parquet").exists()


def test_many_stages_are_read_by_several_processes(copy: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    first = frame(copy)
    monkeypatch.setattr(index, "_FEW", 40)
    pd.testing.assert_frame_equal(analysis.load(stores.STUDY, copy.store, rebuild=True).scores, first)


def test_samples_are_read_once_and_again_when_their_index_is_spoilt(copy: Made) -> None:
    evaluation = copy.evaluation("iris", 100, 0, 2)
    first = load(copy).documents(evaluation, "sums")
    kept = copy.store.root / ".analysis" / "samples" / f"{split_id(evaluation)[1]}.parquet"
    source = copy.store.root / evaluation / "samples" / "sums.jsonl"
    assert first.sum() == stores.right("iris", 100, 0, 2, "sums") and [*kept.parent.iterdir()] == [kept]
    text = source.read_text()
    source.unlink()
    pd.testing.assert_series_equal(load(copy).documents(evaluation, "sums"), first)
    source.write_text(text)
    kept.write_text("no parquet")
    pd.testing.assert_series_equal(load(copy).documents(evaluation, "sums"), first)
    source.write_text(text.replace("1.0", "0.0"))
    assert analysis.load(stores.STUDY, copy.store, rebuild=True).documents(evaluation, "sums").empty, "checksum"
    assert not kept.exists(), "what is damaged is looked at again"


def test_an_index_keeps_nothing_of_a_damaged_evaluation(copy: Made) -> None:
    evaluation = copy.evaluation("iris", 100, 0, 2)
    kind, key = split_id(evaluation)
    manifest = copy.store.manifest(kind, key)
    source = copy.store.root / evaluation
    scores = (source / "scores.json").read_text()
    copy.remove(evaluation)
    with copy.store.claim(kind, key) as claim:
        assert claim and manifest
        (claim.new / "scores.json").write_text(scores)
        copy.store.commit(kind, key, claim, manifest | {"cost": {}})  # scores that can be read, and no cost
    assert load(copy).damaged == {evaluation} == load(copy).damaged
    scores = pd.read_parquet(copy.store.root / ".analysis" / "scores.parquet")
    assert scores.groupby("row").size().eq(1 + 2 * len(TASKS)).all()
