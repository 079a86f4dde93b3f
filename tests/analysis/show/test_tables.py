"""Tables, comparisons and data efficiency: numbers worked out by hand from the stages of the study."""

import re
import shutil
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

import analysis
from analysis.compare.efficiency import Claim, Efficiency, read_claim
from analysis.compare.methods import Results, results
from analysis.show import efficiency, published, tables
from analysis.show.differences import differences
from analysis.show.table import Cell, Table
from iris.errors import UserError
from iris.store import split_id
from tests.analysis import stores
from tests.analysis.stores import METHODS, SEEDS, SIZES, TASKS, Made


@pytest.fixture
def study(made: Made) -> Results:
    return results(analysis.load(stores.STUDY, made.store))


def of(made: Made) -> Results:
    return results(analysis.load(stores.STUDY, made.store))


def scores(method: str, size: int, t: int = 2, task: str = "average") -> np.ndarray:
    return np.array([stores.score(method, size, seed, t, task) for seed in SEEDS])


def row(table: Table, *names: str) -> dict[str, Cell]:
    """Return the row with these first cells, by column."""
    (found,) = (r for r in table.rows if tuple(cell.text for cell in r[: len(names)]) == names)
    return dict(zip(table.columns, found, strict=True))


def test_scores_with_intervals(study: Results) -> None:
    table = tables.scores(study)
    assert list(table.columns) == ["method", "annotations", *TASKS, "average", "seeds"]
    assert len(table.rows) == len(SIZES) * (len(METHODS) + 2)
    for method in METHODS:
        for size in SIZES:
            cells = row(table, method, str(size))
            for task in [*TASKS, "average"]:
                values = 100 * scores(method, size, task=task)
                half = stats.t.interval(0.95, 2, values.mean(), stats.sem(values))[1] - values.mean()
                assert cells[task].text == f"{values.mean():.1f} ± {half:.1f}"
                assert cells[task].sort == pytest.approx(values.mean())
            assert cells["seeds"].text == "3"


def test_what_all_begin_with_is_counted_once(study: Results) -> None:
    cells = row(tables.scores(study), "base", "100")
    assert cells["average"].text == "10.0" and cells["seeds"].text == "3"
    assert study.select("base", 100).interval.n == 1, "one model, whatever the seed"
    assert study.select("start", 100).scores.tolist() == pytest.approx(scores("sft", 100, 0))


def test_the_best_is_bold_only_where_that_is_sure(made: Made) -> None:
    study = of(made)
    assert not [r for r in tables.scores(study).rows if r[-2].bold], "by the same amount for 3 seeds: p = 0.25"
    study.rows["value"] += np.random.default_rng(0).normal(0, 0.002, len(study.rows))
    assert [(r[0].text, r[1].text) for r in tables.scores(study).rows if r[-2].bold] == [
        ("iris", "100"),
        ("iris", "200"),
    ]


def test_change_by_iteration(study: Results) -> None:
    cells = row(tables.iterations(study), "iris", "200")
    means = [100 * scores("iris", 200, t).mean() for t in (-1, 0, 1, 2)]
    assert cells["base"].sort == pytest.approx(means[0])
    for name, before, mean in zip(("start", "t=1", "t=2"), means, means[1:], strict=False):
        assert cells[name].text == f"{mean:.1f} ({mean - before:+.1f})"


def test_cost_is_that_of_the_iterations(study: Results) -> None:
    cells = row(tables.cost(study), "spin", "100")
    assert cells["GPU-hours"].sort == pytest.approx(2 * (3 * 6 + 3) / 3600)
    assert cells["tokens"].text == "700"


def test_missing_results_are_shown(copy: Made) -> None:
    copy.remove(copy.evaluation("iris", 100, 0, 2))
    next(p for p in copy.points if p["name"] == copy.name("spin", 100, 1)).update(state="failed", error="out of memory")
    copy.remove(copy.evaluation("spin", 100, 1, 2))
    copy.record()
    study = of(copy)
    table = tables.scores(study)
    assert (
        row(table, "iris", "100")["average"].text.endswith("*") and row(table, "iris", "100")["seeds"].text == "2 of 3"
    )
    assert any("some seeds are missing" in note for note in table.notes)
    states = tables.states(study)
    assert [row(states, "spin", "100")[name].text for name in ("done", "failed", "planned")] == ["2", "1", "0"]
    assert any(note.endswith("failed (out of memory)") for note in states.notes)


def test_a_whole_method_that_is_missing(copy: Made) -> None:
    for seed in SEEDS:
        copy.remove(copy.evaluation("iris", 100, seed, 2))
    cells = row(tables.scores(of(copy)), "iris", "100")
    assert cells["average"].missing and cells["average"].text == "–" and cells["seeds"].text == "0 of 3"


def test_differences_agree_with_scipy(made: Made) -> None:
    study = of(made)
    study.rows["value"] += np.random.default_rng(0).normal(0, 0.02, len(study.rows))
    found = study.compare("iris", "spin", 100, "sums")
    ours, theirs = (study.select(method, 100, "sums").scores for method in ("iris", "spin"))
    expected = stats.ttest_rel(ours, theirs)
    assert (found.p, found.difference) == pytest.approx((expected.pvalue, (ours - theirs).mean()))
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_differences_over_seeds_and_documents(study: Results) -> None:
    table = differences(study, "sft")
    assert len(table.rows) == len(SIZES) * 3 * (1 + 2 * len(TASKS)), "start, spin, iris: average, each task twice"
    by_seed, by_document = (r for r in table.rows if [c.text for c in r[:3]] == ["iris", "100", "sums"])
    gain = 100 * (stores.score("iris", 100, 0, 2, "sums") - stores.score("sft", 100, 0, 2, "sums"))
    assert by_seed[3].text == by_document[3].text == f"{gain:+.2f}"
    assert (by_seed[-2].missing, by_document[-2].text) == (True, "20")
    marks = {mark for r in table.rows for mark in r[-1].text.split()}
    assert marks == {note.partition(":")[0] for note in table.notes[2:]} and len(marks) == 3


def test_documents_that_are_not_the_same_are_not_compared(copy: Made) -> None:
    stage = copy.evaluation("iris", 100, 0, 2)
    path = copy.store.root / stage / "samples" / "sums.jsonl"
    manifest = copy.store.root / stage / "manifest.json"
    before = copy.store.manifest(*split_id(stage))
    path.write_text(path.read_text().replace("sums 3", "sums three"))
    copy.remove(stage)
    kind, key = split_id(stage)
    with copy.store.claim(kind, key) as claim:
        assert claim and before
        (claim.new / "samples").mkdir()
        source = Made(copy.store, []).store.root / copy.evaluation("iris", 100, 1, 2)
        for name in ("scores.json", "samples/sums.jsonl", "samples/words.jsonl"):
            (claim.new / name).write_text((source / name).read_text().replace("sums 3", "sums three"))
        copy.store.commit(kind, key, claim, before)
    assert manifest.exists()
    found = of(copy).compare_documents("iris", "spin", 100, "sums")
    gain = stores.score("iris", 100, 1, 2, "sums") - stores.score("spin", 100, 1, 2, "sums")
    assert (found.n, found.documents, found.difference) == (2, 20, pytest.approx(gain))
    assert found.note.startswith("1 of 3 seeds left out") and found.note.endswith("on other documents: 1 of 6")


def test_a_seed_whose_samples_are_damaged_is_left_out(copy: Made) -> None:
    (copy.store.root / copy.evaluation("iris", 100, 0, 2) / "samples" / "sums.jsonl").write_text("{}")
    study = of(copy)
    assert study.compare_documents("iris", "spin", 100, "sums").note.startswith("1 of 3 seeds left out")
    assert study.compare_documents("iris", "spin", 100, "words").n == study.compare("iris", "spin", 100, "sums").n == 3
    shutil.rmtree(copy.store.root / ".analysis")  # samples are read once
    for seed in (1, 2):
        (copy.store.root / copy.evaluation("iris", 100, seed, 2) / "samples" / "sums.jsonl").unlink()
    rows = [row for row in differences(of(copy), "spin").rows if [c.text for c in row[:3]] == ["iris", "100", "sums"]]
    assert [row[-3].text for row in rows] == ["3", "0"] and rows[1][3].missing, "shown, not left out"


def test_the_baseline(study: Results) -> None:
    assert study.baseline() == "sft" and study.baseline("spin") == "spin"
    with pytest.raises(UserError, match=r"baseline=iriss: choose one of base, .*Did you mean 'iris'"):
        study.baseline("iriss")


def test_methods_are_named_by_what_varies(copy: Made) -> None:
    for point in copy.points:
        if point["facts"]["method"] == "iris":
            scale = 0.1 if point["facts"]["seed"] else 0.2
            point["overrides"].append(f"method.loss.scale={scale}")
    copy.record()
    assert of(copy).methods[2:] == ["sft", "spin", "iris method.loss.scale=0.2", "iris method.loss.scale=0.1"]


def test_published_results_are_those_of_the_papers() -> None:
    table = published.table()
    assert [c.text for c in table.rows[2]][2:] == ["40.07", "39.84", "41.14", "40.92", "40.62"]
    assert {r[0].text: r[-1].sort for r in table.rows} == {
        "base": 38.56, "SFT": 42.01, "SPIN": 40.62, "T-SPIN": 43.47, "IRIS, best": 44.57,
    }  # fmt: skip


def test_two_models_are_not_taken_for_one(copy: Made) -> None:
    for point in copy.points:
        if point["facts"]["seed"] == 2:  # as if another model had been given the seed of the first
            point["facts"] |= {"model": "n", "seed": 0}
    copy.record()
    study = of(copy)
    assert study.initial == ["base", "start m d", "start n d"] and "iris n" in study.methods, "both began with one base"
    assert study.select("start n d", 100).scores.tolist() == [stores.score("sft", 100, 2, 0, "average")]
    assert len(differences(study, "sft m").rows) > 0


def test_what_is_computed_twice_counts_once(copy: Made) -> None:
    again = [{**point, "name": f"again {point['name']}"} for point in copy.points if point["facts"]["method"] == "spin"]
    copy.points.extend(again)
    copy.record()
    assert row(tables.scores(of(copy)), "spin", "100")["seeds"].text == "3"


def test_experiments_that_nothing_tells_apart_keep_their_names(copy: Made) -> None:
    for point in copy.points:
        if point["facts"]["method"] == "spin":
            point["facts"]["method"] = "iris"
    copy.record()
    named = [method for method in of(copy).trained if method.startswith("iris (method=")]
    assert len(named) == 2 * len(SIZES) * len(SEEDS)


# --- data efficiency


def test_a_claim_compares_two_points_on_the_same_seeds(study: Results) -> None:
    found = Efficiency(study).compare(Claim("iris", 100, "sft", 200))
    expected = scores("iris", 100) - scores("sft", 200)
    assert found.difference == pytest.approx(expected.mean()) and found.n == 3


def test_annotations_needed_lie_on_the_line_between_sizes(study: Results) -> None:
    curves = Efficiency(study)
    low, high = scores("spin", 100).mean(), scores("spin", 200).mean()
    middle = curves.need("spin", (low + high) / 2)
    assert middle.annotations == pytest.approx(np.sqrt(100 * 200)) and middle.low <= middle.annotations <= middle.high
    assert curves.need("spin", low - 0.1).annotations == 100
    beyond = curves.need("spin", high + 0.5)
    assert np.isnan(beyond.annotations) and np.isinf(beyond.high)


def test_what_is_saved(study: Results) -> None:
    table = efficiency.savings(Efficiency(study), "sft")
    assert row(table, "iris")["annotations needed"].text == "≤ 100" and row(table, "iris")["saved"].text == "100"
    assert "with 200 annotations" in table.title


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ("iris@100", "write METHOD@ANNOTATIONS:METHOD@ANNOTATIONS"),
        ("iris:sft", "write METHOD@ANNOTATIONS:METHOD@ANNOTATIONS"),
        ("iris@all:sft@200", "give numbers of annotations"),
        ("iris@many:sft@200", "expected 'all' or a number of rows"),
    ],
)
def test_a_claim_that_says_nothing(claim: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        read_claim(claim)


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        (("iriss", 100.0, "sft", 200.0), "'iriss' is no method of this study. Did you mean 'iris'"),
        (("iris", 150.0, "sft", 200.0), "iris has no score with 150 annotations. It has scores with: 100, 200"),
    ],
)
def test_a_claim_on_what_was_not_run(study: Results, claim: Sequence[object], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        Efficiency(study).compare(Claim(*claim))  # type: ignore[arg-type]


def test_one_size_has_no_curve(copy: Made) -> None:
    copy.points[:] = [point for point in copy.points if point["facts"]["size"] == 100]
    copy.record()
    with pytest.raises(UserError, match="two or more numbers of annotations"):
        Efficiency(of(copy))
