"""`status`: every state as it is, from files; what a terminal and a pipe show."""

import contextlib
import dataclasses
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sweeps import __main__ as command_line
from sweeps.cli.status import View
from sweeps.state.finished import Finished
from sweeps.state.records import CANCELLED, Folder, State
from sweeps.state.study_status import Experiment, StudyStatus
from tests.sweeps.by_hand import ByHand, failed, running

SHARED = ["base/m", "data/d", "sft/s"]
FIRST = ["generate/y0", "score/r0", "train/a1", "evaluate/a1"]
SECOND = ["generate/y1", "score/r1", "train/a2", "evaluate/a2"]
CHAIN = [*SHARED, *FIRST, *SECOND]


@contextlib.contextmanager
def held(folder: Folder, *names: str) -> Iterator[None]:
    """Hold the locks of local processes."""
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(folder.lock(name).acquire(timeout=0))
        yield


def one(hand: ByHand) -> Experiment:
    (experiment,) = StudyStatus(hand.store).experiments("study")
    return experiment


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert command_line.main(["status", *words]) == 0
    return capsys.readouterr().out


def test_never_submitted_is_planned(hand: ByHand) -> None:
    hand.study("study", {"a": CHAIN})
    assert (one(hand).state, one(hand).where) == ("planned", "base")


def test_all_artifacts_there_is_done_whoever_made_them(hand: ByHand) -> None:
    hand.finish(*CHAIN)
    hand.study("study", {"a": CHAIN})
    assert one(hand).state == "done"


def test_running_names_the_stage_and_its_progress(hand: ByHand, capsys: pytest.CaptureFixture[str]) -> None:
    hand.finish(*SHARED, *FIRST, "generate/y1")
    folder = hand.launch("study", [{"stages": SECOND[:3]}, {"stages": SECOND[3:], "needs": [0]}])
    hand.study("study", {"a": CHAIN}, folder)
    folder.write_state(0, running("train/a2"))
    with held(folder, "scheduler", "0"):
        experiment = one(hand)
        assert (experiment.state, experiment.stage, experiment.where) == ("running", "train/a2", "train t=2/2")
        out = shown(capsys, "study", hand.store_setting)
    assert "\na  running  train t=2/2  120/400 steps, 2/s, 2 min left\n" in out
    assert "1 running" in out and "jobs: 1 running, 1 waiting" in out


def test_a_job_between_two_stages_is_at_the_next_one(hand: ByHand) -> None:
    hand.finish(*SHARED, *FIRST[:1])
    folder = hand.launch("study", [{"stages": [*SHARED, *FIRST]}])
    hand.study("study", {"a": [*SHARED, *FIRST]}, folder)
    folder.write_state(0, running("generate/y0"))
    with held(folder, "scheduler", "0"):
        assert (one(hand).state, one(hand).stage) == ("running", "score/r0")


def test_a_job_whose_process_died_is_not_running(hand: ByHand) -> None:
    hand.finish(*SHARED)
    folder = hand.launch("study", [{"stages": FIRST}])
    hand.study("study", {"a": [*SHARED, *FIRST]}, folder)
    folder.write_state(0, running("train/a1"))
    with held(folder, "scheduler", "0"):
        assert one(hand).state == "running"
    assert one(hand).state == "failed"
    assert "killed before it could record an error" in one(hand).error


def test_a_vanished_job_tells_the_end_of_its_log(hand: ByHand) -> None:
    folder = hand.launch("study", [{"stages": SHARED}])
    hand.study("study", {"a": SHARED}, folder)
    folder.write_state(0, running("base/m"))
    (folder.logs / "0_0_log.err").write_text("loading\nFatal Python error: Segmentation fault\n\n")
    assert "Fatal Python error: Segmentation fault" in one(hand).error


def test_an_evaluation_beside_it_does_not_hide_where_an_experiment_is(hand: ByHand) -> None:
    hand.finish("base/m")
    folder = hand.launch("study", [{"stages": ["evaluate/m"]}, {"stages": ["sft/s"]}])
    hand.study("study", {"a": ["base/m", "evaluate/m", "sft/s"]}, folder)
    with held(folder, "0", "1"):
        assert (one(hand).state, one(hand).stage) == ("running", "sft/s")


def test_stalled_after_two_minutes_of_silence(hand: ByHand, capsys: pytest.CaptureFixture[str]) -> None:
    folder = hand.launch("study", [{"stages": SHARED}])
    hand.study("study", {"a": SHARED}, folder)
    folder.write_state(0, running("sft/s", seconds_ago=300))
    with held(folder, "scheduler", "0"):
        assert one(hand).state == "stalled"
        assert "silent for 5 min on node1" in shown(capsys, "study", hand.store_setting)


def test_progress_of_an_earlier_run_is_not_shown(hand: ByHand, capsys: pytest.CaptureFixture[str]) -> None:
    folder = hand.launch("study", [{"stages": SHARED}])
    hand.study("study", {"a": SHARED}, folder)
    with held(folder, "scheduler", "0"):
        folder.write_state(0, dataclasses.replace(running("sft/s"), state="interrupted"))
        assert "a  running  sft  starts again\n" in shown(capsys, "study", hand.store_setting)
        folder.write_state(0, running("sft/s", seconds_ago=40))
        assert "a  running  sft  silent for 40 s\n" in shown(capsys, "study", hand.store_setting)


def test_alive_without_progress_is_told(hand: ByHand, capsys: pytest.CaptureFixture[str]) -> None:
    folder = hand.launch("study", [{"stages": SHARED}])
    hand.study("study", {"a": SHARED}, folder)
    folder.write_state(0, running("sft/s", advanced=3600))
    with held(folder, "scheduler", "0"):
        out = shown(capsys, "study", hand.store_setting)
    assert "120/400 steps, nothing new for 60 min" in out
    assert "left" not in out


def test_failed_shows_its_last_error_line_once_for_all(hand: ByHand, capsys: pytest.CaptureFixture[str]) -> None:
    folder = hand.launch("study", [{"stages": SHARED}, {"stages": FIRST, "needs": [0]}])
    hand.study("study", {f"seed={n}": [*SHARED, *FIRST] for n in range(50)}, folder)
    folder.write_state(0, failed("sft/s"))
    assert {e.state for e in StudyStatus(hand.store).experiments("study")} == {"failed"}
    out = shown(capsys, "study", hand.store_setting)
    assert out.count("ValueError: no such thing") == 1
    assert "seed=0 and 49 more" in out and "50 failed" in out


def test_cancelled_and_what_waited_for_it(hand: ByHand) -> None:
    folder = hand.launch("study", [{"stages": SHARED}, {"stages": FIRST, "needs": [0]}])
    hand.study("study", {"a": [*SHARED, *FIRST]}, folder)
    folder.mark(0, CANCELLED, "cancelled")
    assert (one(hand).state, one(hand).error) == ("cancelled", "cancelled")


def test_a_newer_job_counts_not_the_one_that_failed(hand: ByHand) -> None:
    old = hand.launch("study", [{"stages": SHARED}])
    old.write_state(0, failed("sft/s"))
    new = hand.launch("other", [{"stages": SHARED}])
    hand.study("study", {"a": SHARED}, old)
    with held(new, "scheduler"):
        assert one(hand).state == "queued"


def test_an_artifact_that_was_removed_is_planned_again(hand: ByHand) -> None:
    folder = hand.launch("study", [{"stages": SHARED}])
    hand.study("study", {"a": SHARED}, folder)
    hand.finish(*SHARED[:2])
    folder.write_state(0, State("done", time.time(), "sft/s"))
    assert (one(hand).state, one(hand).stage) == ("planned", "sft/s")


def point(name: str, stages: list[str], **more: Any) -> dict[str, Any]:
    return {"name": name, "overrides": [], "stages": stages} | more


def test_trials_of_a_search(hand: ByHand, capsys: pytest.CaptureFixture[str]) -> None:
    hand.finish(*SHARED, *FIRST)
    folder = hand.launch("search-x", [{"stages": ["search/x"]}, {"stages": ["search/x"]}])
    points = [
        point("trial-0", [*SHARED, *FIRST]),
        point("trial-1", CHAIN, state="pruned"),
        point("trial-2", CHAIN, state="failed", error="ValueError: bad α"),
        point("trial-3", CHAIN, job=f"{folder.id}/0"),
        point("trial-4", CHAIN, job=f"{folder.id}/1"),
    ]
    hand.records.write_study("search-x", folder.id, points)
    for n in (0, 1):
        folder.write_state(n, running("generate/y1"))
    with held(folder, "0"):
        out = shown(capsys, "search-x", hand.store_setting)
        states = [e.state for e in StudyStatus(hand.store).experiments("search-x")]
    assert states == ["done", "pruned", "failed", "running", "preempted"]
    assert "ValueError: bad α" in out and "waits for another worker" in out and "jobs: 1 running" in out
    states = [e.state for e in StudyStatus(hand.store).experiments("search-x")]
    assert states[3:] == ["cancelled", "cancelled"], "without workers nothing runs"


def test_score_cost_and_store(hand: ByHand, capsys: pytest.CaptureFixture[str]) -> None:
    hand.finish(*SHARED, *FIRST[1:])
    hand.finish("generate/y0-shard0", policy="s")
    hand.finish("generate/y0", shards=["y0-shard0"])
    hand.study("study", {"a": [*SHARED, *FIRST]})
    out = shown(capsys, "study=study", hand.store_setting)
    assert "score 43.2 ± 0.8" in out
    assert "7 of 7 stages done, cost so far 4 GPU-hours" in out, "what a stage has spent on shards stands in theirs"
    assert f"store {hand.store.root}" in out


def test_a_score_that_cannot_be_read_is_told(hand: ByHand, capsys: pytest.CaptureFixture[str]) -> None:
    hand.finish(*SHARED, *FIRST)
    last = FIRST[-1]
    manifest = hand.store.root / last / "manifest.json"
    content = json.loads(manifest.read_text())
    del content["cost"]["tokens"]
    manifest.write_text(json.dumps(content))
    hand.study("study", {"a": [*SHARED, *FIRST]})
    assert f"no score: the manifest of {last} cannot be read" in shown(capsys, "study=study", hand.store_setting)


def test_what_manifests_say_is_read_once(hand: ByHand) -> None:
    hand.finish("evaluate/a")
    first = Finished(hand.store)
    assert first.entry("evaluate/a") is not None
    (hand.store.root / ".sweeps").mkdir()
    first.save()
    manifest = hand.store.folder("evaluate", "a") / "manifest.json"
    before = manifest.stat()
    manifest.write_text("not read")
    os.utime(manifest, ns=(before.st_atime_ns, before.st_mtime_ns))
    again = Finished(hand.store).entry("evaluate/a")
    assert again is not None and again.score == 0.432
    manifest.touch()
    assert Finished(hand.store).entry("evaluate/a") is None, "a newer manifest is read anew"


def test_the_list_of_studies(hand: ByHand, capsys: pytest.CaptureFixture[str]) -> None:
    hand.finish(*SHARED)
    folder = hand.launch("one", [{"stages": FIRST}])
    folder.write_state(0, failed("train/a1"))
    hand.study("one", {"a": SHARED, "b": [*SHARED, *FIRST]}, folder)
    hand.study("two", {"c": SHARED})
    lines = shown(capsys, hand.store_setting).splitlines()
    assert lines[1].split() == ["one", "2", "1", "done", "1", "failed", "10", "min", "ago", "(local)"]
    assert lines[2].split()[:4] == ["two", "1", "1", "done"]


@pytest.mark.parametrize("columns", [80, 120])
def test_lines_fit(
    hand: ByHand, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    names = ["method=t_spin,data.size=200k,seed=0", "method=iris,data.size=26k,train.learning_rate=0.000001,seed=1"]
    folder = hand.launch("study", [{"stages": SHARED}, {"stages": ["train/b"]}, {"stages": ["evaluate/c"]}])
    hand.study("study", dict(zip([*names, "c"], [SHARED, ["train/b"], ["evaluate/c"]], strict=True)), folder)
    folder.write_state(0, running("sft/s"))
    folder.write_state(1, failed("train/b", "UserError: " + "a long explanation with a remedy; " * 8))
    with held(folder, "0", "scheduler"):
        out = shown(capsys, "study", hand.store_setting)
    lines = out.replace(str(hand.store.root), "").splitlines()
    assert max(map(len, lines)) <= columns
    assert all(part in out for name in names for part in name.split(",")), "names are broken after commas only"
    assert ("120/400 steps, 2/s, 2 min left" if columns == 120 else "30 %, 2 min left") in out
    assert "\x1b" not in out


def test_of_hundreds_only_what_is_telling(hand: ByHand, capsys: pytest.CaptureFixture[str]) -> None:
    hand.finish(*SHARED)
    folder = hand.launch("study", [{"stages": ["train/x"]}])
    many = {f"seed={n}": SHARED for n in range(300)}
    hand.study("study", many | {"x": [*SHARED, "train/x"]}, folder)
    folder.write_state(0, failed("train/x"))
    out = shown(capsys, "study", hand.store_setting)
    assert "300 done  1 failed" in out and "300 more are done or waiting" in out
    assert len(out.splitlines()) < 12
    assert "seed=299" in shown(capsys, "study", "--all", hand.store_setting)


def test_watch_ends_when_nothing_runs(
    hand: ByHand, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = hand.launch("study", [{"stages": SHARED}])
    hand.study("study", {"a": SHARED}, folder)
    folder.write_state(0, running("sft/s"))
    lock = folder.lock("0")
    lock.acquire(timeout=0)

    def finish(seconds: float) -> None:
        assert seconds == 5.0
        hand.finish(*SHARED)
        lock.release()

    monkeypatch.setattr(time, "sleep", finish)
    lines = shown(capsys, "study", "--watch", hand.store_setting).splitlines()
    assert lines[0].split(maxsplit=1)[1] == "1 running"
    assert lines[1].split(maxsplit=1)[1] == "1 done"


def test_watch_ends_cleanly_at_ctrl_c(
    hand: ByHand, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = hand.launch("study", [{"stages": SHARED}])
    hand.study("study", {"a": SHARED}, folder)

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    with held(folder, "scheduler"):
        out = shown(capsys, "study", "--watch", hand.store_setting)
    assert out.count("1 queued") == 2, "the line, and the whole at the end"


def test_slurm_that_does_not_answer_leaves_states_unknown(
    hand: ByHand, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine without Slurm's programs, with a store that a cluster works on."""
    hand.finish("train/z")
    jobs = [{"stages": ["sft/s"], "slurm": "7"}, {"stages": ["train/f"], "slurm": "8"}]
    folder = hand.launch("study", jobs, launcher="slurm")
    hand.study("study", {"a": ["sft/s"], "b": ["train/f"], "c": ["train/z"]}, folder)
    folder.write_state(0, running("sft/s"))
    folder.write_state(1, failed("train/f"))
    monkeypatch.setenv("PATH", str(tmp_path))
    out = shown(capsys, "study", hand.store_setting)
    assert "1 done  1 unknown  1 failed" in out
    assert "squeue: no such program here" in out


def test_a_live_view_has_colours_and_a_pipe_has_none(
    hand: ByHand, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hand.finish(*SHARED)
    hand.study("study", {"a": SHARED})
    monkeypatch.setenv("FORCE_COLOR", "1")
    View(hand.store, "study", False).show()
    assert "\x1b[32m1 done" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["studdy"], "Did you mean 'study'? Launched: study."),
        (["study=studdy"], "Did you mean 'study'"),
        (["--wach"], "--watch"),
        (["seed=1"], "seed=1"),
        (["a", "b"], "one study"),
        (["store=nowhere"], "nothing was launched"),
    ],
)
def test_bad_input_is_one_line(
    hand: ByHand, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hand.study("study", {"a": SHARED})
    store = [] if "store=nowhere" in words else [hand.store_setting]
    assert command_line.main(["status", *words, *store]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_path_of_a_study_file_stands_for_its_name(hand: ByHand, capsys: pytest.CaptureFixture[str]) -> None:
    hand.study("study", {"a": SHARED})
    assert "1 planned" in shown(capsys, "study=studies/study.yaml", hand.store_setting)


def test_a_launch_whose_records_were_removed_is_no_traceback(hand: ByHand, capsys: pytest.CaptureFixture[str]) -> None:
    folder = hand.launch("study", [{"stages": SHARED}])
    hand.study("study", {"a": SHARED}, folder)
    shutil.rmtree(folder.path)
    assert "1 planned" in shown(capsys, "study", hand.store_setting)


def test_help_needs_no_store() -> None:
    assert command_line.main(["status", "--help"]) == 0


def test_a_torn_record_is_no_traceback(hand: ByHand) -> None:
    folder = hand.launch("study", [{"stages": SHARED}])
    with (folder.path / "jobs.jsonl").open("a") as file:
        file.write('{"job": 1, "name": "ha')
    hand.study("study", {"a": SHARED}, folder)
    with held(folder, "scheduler"):
        assert one(hand).state == "queued"
