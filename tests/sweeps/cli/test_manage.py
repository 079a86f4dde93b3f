"""`logs`, `cancel`, `retry` and `rm`: which jobs and artifacts they touch, and which they leave to others."""

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from iris.execution.runner import Context
from iris.plan import VERSIONS, Stage
from iris.stages import train
from iris.store import Claim, Store
from sweeps import __main__ as command_line
from sweeps.state.records import Folder, Records, State
from sweeps.state.selection import matches
from sweeps.state.study_status import StudyStatus
from sweeps.study.declare import points
from sweeps.study.file import load_study
from tests.sweeps.by_hand import ByHand, failed, running
from tests.sweeps.tiny import write_study

SHARED = ["base/m", "data/d", "sft/s"]
A, B = ["train/a", "evaluate/of-a"], ["train/b", "evaluate/of-b"]


@pytest.fixture
def two(hand: ByHand) -> Iterator[Folder]:
    """Two experiments that share what comes first; a scheduler of this machine has all their jobs."""
    jobs: list[dict[str, Any]] = [
        {"stages": SHARED, "users": ["method=a", "method=b"]},
        {"stages": A, "needs": [0], "users": ["method=a"]},
        {"stages": B, "needs": [0], "users": ["method=b"]},
    ]
    folder = hand.launch("study", jobs)
    hand.study("study", {"method=a": [*SHARED, *A], "method=b": [*SHARED, *B]}, folder)
    with folder.lock("scheduler").acquire(timeout=0):
        yield folder


def run(*words: str, status: int = 0) -> None:
    assert command_line.main(words) == status


def states(hand: ByHand, study: str = "study") -> list[str]:
    return [e.state for e in StudyStatus(hand.store).experiments(study)]


def recorded(folder: Folder) -> list[str | None]:
    found = [folder.state(job.job) for job in folder.jobs()]
    return [state.state if state else None for state in found]


# --- selection


@pytest.mark.parametrize(
    ("name", "pattern", "found"),
    [
        ("method=a,seed=0", "method=a,*", True),
        ("method=a,seed=0", "method=a", False),
        ("method=a,seed=0", "*seed=[01]", True),
        ("tasks=[x,y]", "tasks=[x,y]", True),
        ("A", "a", False),
    ],
)
def test_patterns_match_whole_names(name: str, pattern: str, found: bool) -> None:
    assert matches(name, pattern) == found


@pytest.mark.parametrize("command", ["logs", "cancel", "retry", "rm"])
def test_no_match_names_the_nearest(hand: ByHand, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    hand.study("study", {"method=spin,seed=0": SHARED, "method=iris,seed=0": SHARED})
    run(command, "method=spn,seed=0", hand.store_setting, status=2)
    error = capsys.readouterr().err
    assert "The nearest: method=spin,seed=0" in error and error.count("\n") == 1
    run(command, "study", hand.store_setting, status=2)
    assert "'study' is a study, not an experiment: use study=study" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cancel"], "Which experiments?"),
        (["rm", "study=studdy"], "Did you mean 'study'"),
        (["cancel", "x", "--yes"], "--yes: no such flag"),
        (["logs", "x", "stage=trian"], "choose one of base, data"),
        (["rm", "x", "store=nowhere"], "nothing was launched"),
    ],
)
def test_bad_input_is_one_line(
    hand: ByHand, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hand.study("study", {"x": SHARED})
    run(*words, *([] if "store=nowhere" in words else [hand.store_setting]), status=2)
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


# --- cancel


def test_cancel_leaves_what_another_experiment_needs(
    hand: ByHand, two: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    run("cancel", "method=a", hand.store_setting)
    out = capsys.readouterr().out
    assert "cancelled 1 job of method=a" in out
    assert "left: sft job0, which is also for method=b" in out
    assert recorded(two) == [None, "cancelled", None]
    assert states(hand) == ["cancelled", "queued"]


def test_the_last_one_that_needs_a_job_takes_it_along(
    hand: ByHand, two: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    run("cancel", "method=a", hand.store_setting)
    run("cancel", "method=b", hand.store_setting)
    assert recorded(two) == ["cancelled"] * 3
    run("cancel", "method=*", hand.store_setting)
    assert "nothing to cancel" in capsys.readouterr().out


def test_cancel_all_of_a_study_leaves_what_another_study_waits_for(hand: ByHand, two: Folder) -> None:
    later = hand.launch("other", [{"stages": ["train/c"], "after": [f"{two.id}/0"], "users": ["method=c"]}])
    hand.study("other", {"method=c": [*SHARED, "train/c"]}, later)
    with later.lock("scheduler").acquire(timeout=0):
        run("cancel", "study=study", hand.store_setting)
        assert recorded(two) == [None, "cancelled", "cancelled"]
        assert states(hand, "other") == ["queued"]


def test_a_job_that_only_a_forgotten_one_waits_for_is_left(
    hand: ByHand, two: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    """A job that left its study still runs: to cancel what it needs would end it too."""
    hand.study("study", {"method=a": [*SHARED, *A]}, two)
    run("cancel", "study=study", hand.store_setting)
    assert recorded(two) == [None, "cancelled", None]
    assert "left: sft job0, which is also for method=b" in capsys.readouterr().out


def test_some_trials_of_a_search_are_not_cancelled_but_all_are(
    hand: ByHand, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = hand.launch("search-x", [{"stages": ["search/x"]}])
    trials = [{"name": f"trial-{n}", "overrides": [], "stages": SHARED, "job": f"{folder.id}/0"} for n in range(2)]
    hand.records.write_study("search-x", folder.id, trials)
    folder.write_state(0, running("sft/s"))
    with folder.lock("0").acquire(timeout=0):
        run("cancel", "trial-0", hand.store_setting, status=2)
        assert "a search ends as a whole" in capsys.readouterr().err
        run("cancel", "study=search-x", hand.store_setting)
    assert recorded(folder) == ["cancelled"]


# --- logs


def test_the_log_of_where_it_is_with_its_path(hand: ByHand, two: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    hand.finish(*SHARED)
    two.write_state(1, running("train/a"))
    (two.logs / "0_0_log.err").write_text("of the shared job\n")
    (two.logs / "1_0_log.err").write_text("step 1\nstep 2\n")
    (two.logs / "1_0_log.out").write_text("")
    with two.lock("1").acquire(timeout=0):
        run("logs", "method=a", hand.store_setting)
        assert capsys.readouterr().out == f"==> {two.logs}/1_0_log.err <==\nstep 1\nstep 2\n"
        run("logs", "method=a", "stage=sft", hand.store_setting)
        assert "of the shared job" in capsys.readouterr().out
        run("logs", "method=a", "stage=generate", hand.store_setting)
        assert "no log: no job was for generate of method=a" in capsys.readouterr().out


def test_of_several_jobs_only_the_ends(hand: ByHand, two: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    hand.finish(*SHARED)
    for n in (1, 2):
        (two.logs / f"{n}_0_log.err").write_text("".join(f"line {k} of {n}\n" for k in range(100)))
    run("logs", "study=study", hand.store_setting)
    out = capsys.readouterr().out
    assert out.count("==>") == 2 and "line 99 of 1" in out and "line 99 of 2" in out and "line 79 of" not in out
    run("logs", "study=study", "--follow", hand.store_setting, status=2)
    assert "Name one experiment" in capsys.readouterr().err


def test_a_job_that_waits_has_no_log_yet(hand: ByHand, two: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    run("logs", "method=a", hand.store_setting)
    out = capsys.readouterr().out
    assert "no log of job 0 yet, it is queued" in out and str(two.logs) in out


def test_follow_prints_what_comes_until_the_end(
    hand: ByHand, two: Folder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hand.finish(*SHARED)
    two.write_state(1, running("train/a"))
    log, lock = two.logs / "1_0_log.err", two.lock("1")
    log.write_text("first\n")
    lock.acquire(timeout=0)
    monkeypatch.setattr("sweeps.state.logs._ASK", 0.1)

    def end() -> None:
        time.sleep(0.3)
        with log.open("a") as file:
            file.write("second\n")
        two.write_state(1, failed("train/a"))
        lock.release()

    thread = threading.Thread(target=end)
    thread.start()
    run("logs", "method=a", "--follow", hand.store_setting)
    thread.join()
    out = capsys.readouterr().out.splitlines()
    assert out == [f"==> {log} <==", "first", "second", "the job is failed: ValueError: no such thing"]


# --- rm


def artifacts(hand: ByHand) -> set[str]:
    return hand.store.finished(VERSIONS)


def test_rm_removes_what_no_other_experiment_needs(hand: ByHand, capsys: pytest.CaptureFixture[str]) -> None:
    hand.finish(*SHARED, *A, *B)
    hand.study("study", {"method=a": [*SHARED, *A], "method=b": [*SHARED, *B]})
    run("rm", "method=a", "--yes", hand.store_setting)
    out = capsys.readouterr().out
    assert artifacts(hand) == {*SHARED, *B}
    assert "train/a" in out and re.search(r"removed 2 folders, \d\.\d kB", out)
    assert states(hand) == ["planned", "done"]
    run("rm", "method=a", "--yes", hand.store_setting)
    assert "nothing to remove" in capsys.readouterr().out


def test_rm_leaves_what_another_study_needs(hand: ByHand) -> None:
    hand.finish(*SHARED, *A)
    hand.study("study", {"method=a": [*SHARED, *A]})
    hand.study("other", {"x": SHARED})
    run("rm", "study=study", "--yes", hand.store_setting)
    assert artifacts(hand) == set(SHARED)


def test_rm_without_yes_asks_and_a_script_gets_an_error(
    hand: ByHand, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hand.finish(*SHARED)
    hand.study("study", {"x": SHARED})
    run("rm", "x", hand.store_setting, status=2)
    assert "--yes" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda _: "n")
    run("rm", "x", hand.store_setting)
    assert artifacts(hand) == set(SHARED)
    monkeypatch.setattr("builtins.input", lambda _: "y")
    run("rm", "x", hand.store_setting)
    assert artifacts(hand) == set()


def test_rm_refuses_while_a_job_is_live(hand: ByHand, two: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    hand.finish(*SHARED)
    run("rm", "method=a", "--yes", hand.store_setting, status=2)
    assert "wait or run" in capsys.readouterr().err
    assert artifacts(hand) == set(SHARED)


def test_rm_refuses_while_a_run_outside_of_studies_computes(hand: ByHand, capsys: pytest.CaptureFixture[str]) -> None:
    hand.finish(*SHARED)
    hand.study("study", {"method=a": [*SHARED, *A]})
    with hand.store.claim("train", "a"):
        run("rm", "method=a", "--yes", hand.store_setting, status=2)
    assert "train/a is being computed by another process" in capsys.readouterr().err


def test_rm_takes_shards_and_unfinished_work(hand: ByHand) -> None:
    hand.finish(*SHARED)
    hand.finish("train/a", policy="s")
    for shard in ("generate/ya-shard0", "generate/ya-shard1", "generate/left-shard0"):
        hand.finish(shard, policy="a")
    hand.finish("generate/ya", policy="a", shards=["ya-shard0", "ya-shard1"])
    hand.finish("generate/yb", policy="a", shards=["ya-shard1"])  # of a larger data set, in another study
    work = hand.store.root / "train" / ".work-a2"
    work.mkdir()
    hand.study("study", {"method=a": [*SHARED, "generate/ya", "train/a2"]})
    hand.study("other", {"b": [*SHARED, "train/a", "generate/yb"]})
    run("rm", "method=a", "--yes", hand.store_setting)
    assert artifacts(hand) == {*SHARED, "train/a", "generate/yb", "generate/ya-shard1", "generate/left-shard0"}
    assert not work.exists()
    run("rm", "study=other", "--yes", hand.store_setting)
    assert artifacts(hand) == set(SHARED), "with the policy go the shards of what was never finished"


def test_rm_leaves_shards_that_another_experiment_will_look_for(hand: ByHand) -> None:
    hand.finish("base/m")
    hand.finish("generate/y-shard0", policy="m")
    hand.finish("generate/y", policy="m", shards=["y-shard0"])
    hand.study("study", {"small": ["base/m", "generate/y"], "large": ["base/m", "generate/z"]})
    run("rm", "small", "--yes", hand.store_setting)
    assert artifacts(hand) == {"base/m", "generate/y-shard0"}


def test_rm_leaves_what_something_outside_of_studies_was_made_from(
    hand: ByHand, capsys: pytest.CaptureFixture[str]
) -> None:
    hand.finish("base/m")
    hand.finish("sft/s", policy="m")
    hand.finish("train/alone", policy="s")
    hand.study("study", {"x": ["base/m", "sft/s", "evaluate/x"]})
    hand.finish("evaluate/x", policy="s")
    run("rm", "x", "--yes", hand.store_setting)
    assert artifacts(hand) == {"base/m", "sft/s", "train/alone"}
    assert "2 artifacts kept" in capsys.readouterr().out


# --- retry


def test_retry_launches_only_what_failed_of_these(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = write_study(tmp_path, grid={"method": ["spin", "iris"]})
    store_setting, original = f"store={tmp_path / 'store'}", train.run

    def fail(*_: object) -> None:
        raise ValueError("no luck")

    monkeypatch.setattr(train, "run", fail)
    run("launch", f"study={study}", "launcher=inline", status=1)
    store = Store(tmp_path / "store")
    assert [e.state for e in StudyStatus(store).experiments("tiny")] == ["failed", "failed"]
    assert {e.error for e in StudyStatus(store).experiments("tiny")} == {"ValueError: no luck"}
    seen: list[str] = []

    def note(stage: Stage, context: Context, claim: Claim) -> dict[str, Any]:
        seen.append(stage.key)
        return original(stage, context, claim)

    monkeypatch.setattr(train, "run", note)
    capsys.readouterr()
    run("retry", "method=iris", store_setting)
    assert "for method=iris, logs:" in capsys.readouterr().out
    assert [e.state for e in StudyStatus(store).experiments("tiny")] == ["failed", "done"]
    assert len(seen) == 1 and seen[0].startswith("iris")
    run("retry", "method=iris", store_setting)
    assert "nothing to retry" in capsys.readouterr().out
    run("status", "tiny", store_setting)
    assert "score" in capsys.readouterr().out


def test_retry_of_what_is_not_the_same_any_more_is_refused(
    hand: ByHand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = hand.launch("study", [{"stages": ["train/a"]}])
    found = [{"name": "x", "overrides": _overrides(tmp_path), "stages": ["train/a"]}]
    Records(hand.store).write_study("study", folder.id, found)
    folder.write_state(0, State("failed", time.time(), "train/a", error="no luck"))
    run("retry", "x", hand.store_setting, status=2)
    assert "has changed since its launch" in capsys.readouterr().err


def _overrides(folder: Path) -> list[str]:
    (point,) = points(load_study(str(write_study(folder, grid={"method": ["spin"]}))))
    return list(point.overrides)
