"""Figures: artists show the numbers computed by hand, missing results are counted, and nothing is cut off."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from PIL import Image

from analysis.collect.frames import Frames
from analysis.collect.index import AVERAGE
from analysis.show.curves import POINTS, pareto
from analysis.show.figures import FIGURES
from analysis.show.style import DOUBLE, SINGLE, label, save
from tests.analysis.figured import HALF, ITERATIONS, SIZES, TASKS, Made, grid, study, with_holes


def drawn(name: str, frames: Frames) -> Figure:
    figure = FIGURES[name](frames)
    assert figure is not None
    return figure


def panel(figure: Figure, title: str = "", row: int = 0) -> Axes:
    """Return the axes of a panel, the `row`th from above, of panels side by side."""
    titles = [axes.get_title() for axes in figure.axes]
    return figure.axes[titles.index(title) + row * max(1, len(titles) - titles.count(""))]


def bars(axes: Axes, name: str) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """x, y and intervals of a method drawn with bars."""
    container = next(c for c in axes.containers if c.get_label() == name)
    points, _, (segments,) = container
    x, y = (np.asarray(values, float) for values in points.get_data())
    return x, y, [ends[:, 1] if len(ends) else ends for ends in segments.get_segments()]


def line(axes: Axes, name: str) -> np.ndarray:
    """x and y of a line, [2, point]."""
    (found,) = [one for one in axes.lines if one.get_label() == name]
    return np.asarray(found.get_data(), float)


def said(figure: Figure) -> str:
    """Return the note below the panels on one line."""
    return figure.get_supxlabel().replace("\n", " ")


def names(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_iterations_show_means_and_t_intervals() -> None:
    figure = drawn("iterations", study(grid()))
    assert names(figure) == ["base", "start", "sft", "spin", "iris"]
    assert [axes.get_title() for axes in figure.axes] == ["14k annotations", "50k annotations", "200k annotations"]
    x, y, intervals = bars(panel(figure, "14k annotations"), "iris")
    assert np.round(x).tolist() == [1, 2, 3] and np.abs(x - np.round(x)).max() < 0.25
    assert y == pytest.approx([34, 36, 38])
    for mean, ends in zip(y, intervals, strict=True):
        assert ends == pytest.approx([mean - HALF, mean + HALF])
    assert bars(panel(figure, "200k annotations"), "spin")[1] == pytest.approx([37, 38, 39])
    assert said(figure) == "means over 3 seeds; bars: 95 % t-intervals"


def test_iterations_have_the_base_model_and_the_start_as_lines_across() -> None:
    figure = drawn("iterations", study(grid()))
    for title, start in (("14k annotations", 32), ("50k annotations", 34), ("200k annotations", 36)):
        assert line(panel(figure, title), "base")[1] == pytest.approx([30, 30])
        assert line(panel(figure, title), "start")[1] == pytest.approx([start, start])


def test_missing_results_are_not_drawn_but_counted() -> None:
    figure = drawn("iterations", study(grid(), with_holes))
    np.testing.assert_allclose(bars(panel(figure, "50k annotations"), "spin")[1], [35, np.nan, np.nan])
    assert bars(panel(figure, "200k annotations"), "iris")[1] == pytest.approx([38, 40, 42])
    assert all(np.isnan(bars(panel(figure, "200k annotations"), "sft")[1]))
    # iris on 14k, iteration 3: seeds 1 and 2 alone. Missing: 1 of iris, 2 iterations × 3 seeds of spin, 9 of sft
    assert bars(panel(figure, "14k annotations"), "iris")[1][2] == pytest.approx((38 + 39) / 2)
    assert said(figure) == "16 of 81 results missing (16 failed); means over 2–3 seeds; bars: 95 % t-intervals"


def test_one_seed_has_no_interval() -> None:
    figure = drawn("iterations", study(grid(seeds=[1])))
    _, y, intervals = bars(panel(figure, "14k annotations"), "iris")
    assert y == pytest.approx([34, 36, 38])
    assert not any(map(len, intervals))
    assert said(figure) == "one seed: no intervals"


def test_points_without_bar_are_explained() -> None:
    alone = study(grid(), lambda point: 2 if point["method"] == "iris" and point["seed"] else ITERATIONS)
    assert said(drawn("iterations", alone)).endswith(
        "means over 1–3 seeds; bars: 95 % t-intervals, none for one seed or equal scores"
    )


def test_efficiency_shows_the_last_policy_by_annotations() -> None:
    figure = drawn("efficiency", study(grid(), with_holes))
    axes = panel(figure)
    figure.draw_without_rendering()
    assert axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["14k", "50k", "200k"]
    x, y, intervals = bars(axes, "iris")
    assert np.abs(np.log(x / SIZES)).max() < 0.13
    assert y == pytest.approx([38.5, 40, 42])
    assert intervals[1] == pytest.approx([40 - HALF, 40 + HALF])
    np.testing.assert_allclose(bars(axes, "spin")[1], [35, np.nan, 39])
    assert line(axes, "start") == pytest.approx(np.array([SIZES, [32, 34, 36]]))
    assert line(axes, "base")[1] == pytest.approx([30, 30])
    assert said(figure).startswith("7 of 27 results missing (7 failed)")


def test_efficiency_needs_two_sizes() -> None:
    assert FIGURES["efficiency"](study(grid(sizes=[50_000.0]))) is None
    assert FIGURES["efficiency"](study(grid(), lambda point: ITERATIONS if point["size"] < 2e4 else 1)) is None


def test_one_iteration_is_a_whole_number() -> None:
    made = study(grid(sizes=SIZES[:1]))
    figure = FIGURES["iterations"](replace(made, scores=made.scores[made.scores["iteration"] < 2]))
    assert figure is not None
    figure.draw_without_rendering()
    shown = [label.get_text() for label in figure.axes[0].get_xticklabels() if label.get_text()]
    assert "1" in shown and all(float(text).is_integer() for text in shown)


def test_alpha_by_step_and_the_gap_by_iteration() -> None:
    figure = drawn("alpha", study(grid(), with_holes))
    assert names(figure) == ["iris"]
    x, y = line(panel(figure, "50k annotations"), "iris")
    np.testing.assert_allclose(x[:5], [0.625, 0.875, 1.125, 1.375, np.nan])  # the quarters of iteration 1, then a gap
    np.testing.assert_allclose(y, [2, 2, 2, 2, np.nan, 1, 1, 1, 1, np.nan, 2 / 3, 2 / 3, 2 / 3, 2 / 3, np.nan])
    x, y, intervals = bars(panel(figure, "50k annotations", row=1), "iris")
    assert x.tolist() == [1, 2, 3] and y == pytest.approx([0.3, 0.15, 0.1])
    assert not any(map(len, intervals))  # the seeds are equal
    assert said(figure).startswith("1 of 27 results missing (1 failed); means over 2–3 seeds")


def test_ratios_and_the_share_of_the_batch_that_counts() -> None:
    figure = drawn("ratios", study(grid()))
    assert names(figure) == ["spin", "iris"]
    _, real = line(panel(figure, "14k annotations"), "spin")
    np.testing.assert_allclose(real[:5], [0.1, 0.35, 0.6, 0.85, np.nan])  # the mean of seeds 0, 1, 2
    _, synthetic = line(panel(figure, "14k annotations", row=1), "iris")
    np.testing.assert_allclose(synthetic[5:10], [0, -2, -4, -6, np.nan])
    _, shares = line(panel(figure, "200k annotations", row=3), "iris")
    np.testing.assert_allclose(shares[:5], [1, 1 / 2, 1 / 3, 1 / 4, np.nan])
    assert said(figure) == ("no ratios: sft; means over 3 seeds; ESS: effective sample size of the weights")


def test_a_batch_is_no_larger_than_the_data() -> None:
    frames = study(grid(["iris"], [14_000.0]))
    frames.experiments["annotations"] = 32.0
    frames.curves["real_ess"] = 16.0
    _, shares = line(panel(drawn("ratios", frames), row=2), "iris")
    assert shares[0] == pytest.approx(0.5)


def test_many_steps_are_averaged() -> None:
    steps = 10 * POINTS
    _, y = line(panel(drawn("ratios", study(grid(["spin"], [14_000.0]), steps=steps))), "spin")
    assert len(y) == ITERATIONS * (POINTS + 1)
    assert y[1] == pytest.approx(0.1 + np.mean(np.arange(10, 20) / steps))


def test_a_study_without_ratios_or_alpha_has_no_such_figure() -> None:
    frames = study(grid(["sft"]))
    assert FIGURES["alpha"](frames) is None and FIGURES["ratios"](frames) is None
    rows = drawn("ratios", study(grid(["sft", "spin"], [14_000.0]))).axes
    assert [axes.get_ylabel() for axes in rows] == ["Log-ratio,\nannotated", "Log-ratio,\nsynthetic"]


@pytest.mark.parametrize("name", FIGURES)
def test_an_unfinished_study_has_no_figure(name: str) -> None:
    assert FIGURES[name](study(grid(), lambda point: -1)) is None


def test_cost_adds_up_from_the_start() -> None:
    figure = drawn("cost", study(grid(sizes=[14_000.0])))
    axes = panel(figure)
    assert axes.get_xlabel() == "Cost (GPU-hours)"
    assert line(axes, "iris") == pytest.approx(np.array([[1, 2, 3, 4], [32, 34, 36, 38]]))
    assert line(axes, "start") == pytest.approx(np.array([[1], [32]]))
    assert line(axes, "Pareto front") == pytest.approx(np.array([[1, 2, 3, 4], [32, 34, 36, 38]]))
    assert said(figure) == "means over 3 seeds, joined by iteration"


def test_cost_without_gpus_is_time() -> None:
    figure = drawn("cost", study(grid(), with_holes, gpus=False))
    assert panel(figure).get_xlabel() == "Cost (minutes, no GPU)"
    paths = [one for one in panel(figure).lines if one.get_label() == "spin"]  # one per size
    assert [np.asarray(one.get_xdata()).tolist() for one in paths] == [[1, 2, 3, 4], [1, 2], [1, 2, 3, 4]]
    assert said(figure).startswith("16 of 81 results missing (16 failed)")


def test_the_front_leaves_out_what_another_beats() -> None:
    points = pd.DataFrame({"cost": [3, 1, 2, 2, 5, 4], "score": [5, 1, 4, 3, 5, 9]})
    assert pareto(points).to_numpy().tolist() == [[1, 1], [2, 4], [3, 5], [4, 9]]


def cells(axes: Axes) -> list[list[str]]:
    """Return the texts of a heat map row by row."""
    columns = len(axes.get_xticklabels())
    texts = [text.get_text() for text in axes.texts]
    return [texts[at : at + columns] for at in range(0, len(texts), columns)]


def test_tasks_show_differences_to_the_start() -> None:
    figure = drawn("tasks", study(grid(), with_holes))
    axes = panel(figure, "50k annotations")
    assert [text.get_text() for text in axes.get_xticklabels()] == [*TASKS, AVERAGE]
    left = panel(figure, "14k annotations")
    assert [text.get_text() for text in left.get_yticklabels()] == ["sft", "spin", "iris"]
    assert cells(axes) == [["+0.6"] * 4, ["–"] * 4, ["+6.0"] * 4]
    mesh = axes.collections[0]
    assert np.asarray(mesh.get_array())[2] == pytest.approx([6] * 4)
    assert mesh.get_clim() == pytest.approx((-6, 6))  # no difference is in the middle of the colours
    assert figure.get_suptitle() == "Score minus that of start (points)"
    assert said(figure).startswith("28 of 108 results missing (28 failed)")


def test_tasks_without_a_start_show_scores() -> None:
    frames = study(grid(["iris"], [14_000.0]))
    frames.scores.loc[frames.scores["iteration"] == 0, "value"] = np.nan
    figure = drawn("tasks", frames)
    assert cells(panel(figure)) == [["38.0", "28.0", "48.0", "38.0"]]
    assert figure.get_suptitle() == "Score (%)"


def test_a_pretrained_model_is_a_start() -> None:
    frames = study(grid(["spin", "iris"], [14_000.0]), sft=False)
    assert line(panel(drawn("iterations", frames)), "start")[1] == pytest.approx([32, 32])
    assert cells(panel(drawn("tasks", frames)))[1] == ["+6.0"] * 4


def test_one_task_is_not_repeated_as_average() -> None:
    figure = drawn("tasks", study(grid(), tasks=["mmlu"]))
    assert cells(panel(figure, "14k annotations")) == [["+0.6"], ["+3.0"], ["+6.0"]]


def test_methods_look_the_same_in_all_figures() -> None:
    two = study(grid(["iris", "spin"], [14_000.0], [0]))
    few, many = label(two).styles, label(study(grid())).styles
    assert few["iris"] == many["iris"] and few["spin"] == many["spin"]
    for name in ("iterations", "cost", "alpha", "ratios"):
        for one in drawn(name, two).findobj(Line2D):
            if isinstance(one, Line2D) and (style := few.get(str(one.get_label()))):
                assert (one.get_color(), one.get_marker()) == (style.color, style.marker)


def variants(count: int) -> list[dict[str, Any]]:
    return [
        point | {"train.learning_rate": f"{k}e-7"} for k in range(1, count + 1) for point in grid(["iris"], seeds=[0])
    ]


def test_settings_that_vary_make_curves_of_their_own() -> None:
    labels = label(study(variants(20)))
    assert list(labels.styles)[:2] == ["iris learning_rate=1e-7", "iris learning_rate=2e-7"]
    looks = {(to_hex(s.color), s.marker, str(s.linestyle)) for s in labels.styles.values()}
    assert len(looks) == 20
    _, y, _ = bars(panel(drawn("iterations", study(variants(2))), "14k annotations"), "iris learning_rate=2e-7")
    assert y == pytest.approx([33, 35, 37])


def test_short_names_stay_distinct() -> None:
    points = [point | {"a.scale": "1"} for point in grid(["iris"])] + [
        point | {"b.scale": "1"} for point in grid(["iris"])
    ]
    assert list(label(study(points)).styles) == ["iris a.scale=1", "iris b.scale=1"]


def test_models_have_panels_and_lines_of_their_own() -> None:
    points = [point | {"model": model} for model in ("large", "small") for point in grid(sizes=[14_000.0])]
    figure = drawn("iterations", study(points))
    assert [axes.get_title() for axes in figure.axes] == ["large", "small"]
    assert names(figure) == ["base", "start", "sft", "spin", "iris"]


STUDIES: dict[str, Callable[[], Made]] = {
    "holes": lambda: study(grid(), with_holes),
    "one seed and size": lambda: study(grid(sizes=[14_000.0], seeds=[0])),
    "many settings": lambda: study(
        [p | {"generate.temperature": f"{p['size']}"} | {"size": SIZES[0]} for p in variants(6)]
    ),
}


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("kind", STUDIES)
def test_figures_fit_on_paper(name: str, kind: str) -> None:
    figure = FIGURES[name](STUDIES[kind]())
    if figure is None:
        assert name == "efficiency" and kind in ("one seed and size", "many settings")
        return
    assert figure.get_figwidth() in (SINGLE, DOUBLE)
    figure.draw_without_rendering()
    assert all(float(text.get_fontsize()) >= 7 for text in figure.findobj(Text) if isinstance(text, Text))
    whole = figure.get_tightbbox()
    assert whole.x0 >= 0 and whole.y0 >= 0
    assert whole.x1 <= figure.get_figwidth() and whole.y1 <= figure.get_figheight()
    legends = [found.get_window_extent() for found in figure.legends]
    for axes in figure.axes:
        assert axes.bbox.height > 0.4 * figure.dpi
        assert not any(axes.bbox.overlaps(box) for box in legends)
        for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
            level = [text for text in labels if text.get_text() and text.get_visible() and not text.get_rotation()]
            boxes = [text.get_window_extent() for text in level]
            assert not any(one.overlaps(other) for one, other in itertools.pairwise(boxes))


def saved(folder: Path) -> list[Path]:
    folder.mkdir()
    return save(drawn("iterations", study(grid(["iris"], [14_000.0]))), folder / "a")


def test_files_are_the_same_each_time(tmp_path: Path) -> None:
    first, second = (saved(tmp_path / name) for name in ("first", "second"))
    assert [path.name for path in first] == ["a.png", "a.svg", "a.pdf"]
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == ["a.pdf", "a.png", "a.svg"]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
        assert b"Date" not in one.read_bytes() and b"<dc:date>" not in one.read_bytes()
    assert Image.open(first[0]).info["dpi"] == pytest.approx((200, 200), abs=0.1)
    assert ">iris</text>" in first[1].read_text()
