"""A search: its trials, the best of them and what its score is worth, worked out by hand."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.collect.frames import Frames
from analysis.compare.trials import Trials, trials
from analysis.show import figures, search
from iris.store import Store
from sweeps.search import file
from sweeps.search.file import Search

# By trial: state, score, and the scores of its rungs.
TRIALS = {
    0: ("done", 0.5, [0.4, 0.45]),
    1: ("pruned", None, [0.3]),
    2: ("done", 0.6, [0.5, 0.55]),
    3: ("failed", None, []),
    10: ("done", 0.55, [0.4, 0.5]),
}
ERROR = 0.02


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = file.folder_of(Store(tmp_path), "toy")
    folder.mkdir(parents=True)
    return folder


def declare(folder: Path, **settings: str) -> None:
    content = Search("toy", (), (), **settings).to_json()  # type: ignore[arg-type]
    (folder / file.DECLARATION).write_text(json.dumps({"search": content}))


def frames(
    root: Path, study: str = "search-toy", trials: dict[int, tuple[str, float | None, list[float]]] = TRIALS
) -> Frames:
    experiments, scores = [], []
    for number, (state, final, rungs) in trials.items():
        error = "out of memory" if state == "failed" else ""
        experiments.append({"experiment": f"trial-{number}", "state": state, "error": error, "levels": f"[{number}]"})
        cells = [(value, True, False) for value in rungs] + [(np.nan if final is None else final, False, True)]
        for value, part, last in cells:
            about = {"experiment": f"trial-{number}", "part": part, "final": last, "stderr": ERROR}
            there = not np.isnan(value)
            scores.append(about | {"task": "average", "metric": "average" * there, "main": True, "value": value})
            scores.append(about | {"task": "sums", "metric": "acc" * there, "main": True, "value": value / 2})
            scores.append(about | {"task": "sums", "metric": "length" * there, "main": not there, "value": 1 - value})
    return Frames(
        study,
        Store(root),
        pd.DataFrame(experiments),
        pd.DataFrame(scores),
        ["sums"],
        ["levels"],
        pd.DataFrame(),
        frozenset(),
    )


def of(root: Path, **more: dict[int, tuple[str, float | None, list[float]]]) -> Trials:
    found = trials(frames(root, **more))  # type: ignore[arg-type]
    assert found is not None
    return found


def test_only_a_started_search_is_one(tmp_path: Path, folder: Path) -> None:
    assert trials(frames(tmp_path)) is None
    declare(folder)
    assert trials(frames(tmp_path, study="toy")) is None and search.figure(frames(tmp_path, study="toy")) is None
    assert (
        set(figures.of(frames(tmp_path))) == {"search"} and figures.of(frames(tmp_path, study="toy")) == figures.FIGURES
    )


@pytest.mark.parametrize(
    ("objective", "direction", "best", "score"),
    [
        ("average", "maximize", 2, 0.6),
        ("sums", "maximize", 2, 0.3),
        ("sums:length", "minimize", 2, 0.4),
        ("average", "minimize", 0, 0.5),
    ],
)
def test_the_best_trial(tmp_path: Path, folder: Path, objective: str, direction: str, best: int, score: float) -> None:
    declare(folder, objective=objective, direction=direction)
    found = of(tmp_path)
    assert found.rows["number"].tolist() == list(TRIALS), "10 comes after 3"
    assert found.complete["number"].tolist() == [0, 2, 10]
    assert (found.best["number"], found.best["score"]) == (best, pytest.approx(score))


def test_equal_trials_overstate_the_best_by_the_mean_of_the_highest_of_so_many_errors(
    tmp_path: Path, folder: Path
) -> None:
    declare(folder)
    found = of(tmp_path, trials={n: ("done", 0.5 + 1e-6 * n, []) for n in range(3)})
    expected = ERROR * 3 / (2 * np.sqrt(np.pi))  # of three standard normal numbers the highest is 3/(2√π) on average
    assert expected == pytest.approx(ERROR * stats.norm.expect(lambda x: 3 * x * stats.norm.cdf(x) ** 2))
    assert found.bias == pytest.approx(expected, rel=0.03)
    assert found.corrected == pytest.approx(0.500002 - found.bias)
    declare(folder, direction="minimize")
    lowest = of(tmp_path, trials={n: ("done", 0.5 + 1e-6 * n, []) for n in range(3)})
    assert lowest.corrected == pytest.approx(0.5 + lowest.bias), "the lowest one is too low"


def test_the_table_says_what_became_of_every_trial(tmp_path: Path, folder: Path) -> None:
    declare(folder)
    table = search.table(of(tmp_path))
    rows = [[cell.text for cell in row] for row in table.rows]
    assert rows[0] == ["2", "done", "60.0 ± 2.0", "55.0", "2", "[2]"]
    assert [row[0] for row in rows] == ["2", "10", "0", "1", "3"], "the best first, those without a score last"
    assert rows[3] == ["1", "pruned", "–", "30.0", "1", "[1]"] and rows[4] == ["3", "failed", "–", "–", "–", "[3]"]
    text = " ".join(table.notes)
    bias = 100 * of(tmp_path).bias
    assert "Trial 3 failed: out of memory." in text
    assert "Best: trial 2 with 60.0 %. As the best of 3 complete trials" in text
    assert f"it overstates itself by about {bias:.1f} points: {60 - bias:.1f} % is the better estimate" in text


def test_a_search_that_has_just_started(tmp_path: Path, folder: Path) -> None:
    declare(folder)
    waiting = of(tmp_path, trials={0: ("running", None, [])})
    assert "No trial is complete yet." in search.table(waiting).notes and search.figure(waiting.frames) is None
    first = of(tmp_path, trials={0: ("done", 0.5, [])})
    assert search.notes(first)[-1] == "Best: trial 0 with 50.0 %." and search.figure(first.frames) is not None


def test_the_figure(tmp_path: Path, folder: Path) -> None:
    declare(folder)
    drawn = search.figure(frames(tmp_path))
    assert drawn is not None
    left, right = drawn.axes
    lines = dict(zip([t.get_text() for t in drawn.legends[0].texts], drawn.legends[0].legend_handles, strict=True))
    assert list(lines) == ["pruned, at its last rung (number)", "complete", "best so far", "best, less selection bias"]
    by_style = {line.get_drawstyle(): line for line in left.lines}
    assert by_style["steps-post"].get_xydata().tolist() == pytest.approx(
        np.array([[0, 50], [2, 60], [10, 60], [10, 60]])
    )
    assert [line.get_xydata().tolist() for line in left.lines if line.get_marker() == "x"] == [[[1, 30]]]
    assert [t.get_text() for t in left.texts] == ["1"], "the rung at which it was pruned"
    assert sorted(len(line.get_xdata()) for line in right.lines) == [1, 2, 2, 2]
    thick = [line for line in right.lines if line.get_linewidth() == 2]
    assert [line.get_ydata().tolist() for line in thick] == [pytest.approx([50, 55])], "the best one stands out"
    assert "1 failed" in drawn.get_supxlabel()
