"""The report: a study on one page, with missing results at the top."""

import html
import random
import re
import shlex
from pathlib import Path

import pytest

import analysis
from analysis.__main__ import main
from analysis.show.report import report
from iris.store import Store
from sweeps.state.records import Launch, Records
from tests.analysis import stores
from tests.analysis.browser import browser
from tests.analysis.stores import Made

SECTIONS = [
    *("Scores", "Differences from sft", "Iterations", "Data efficiency", "Training", "Cost"),
    *("Completeness", "Provenance", "Reproduce"),
]


def test_the_report_of_a_whole_study(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "toy.html"
    assert main(["report", f"study={stores.STUDY}", f"store={made.store.root}", f"out={file}"]) == 0
    with browser(tmp_path) as tab:
        tab.open(file)
        assert tab.run("[...document.querySelectorAll('h2')].map(e => e.textContent)") == SECTIONS
        assert tab.run("document.querySelectorAll('table').length") >= 9
        images = "[...document.querySelectorAll('img')].map(e => e.naturalWidth > 0)"
        assert tab.run(images) == [True] * 6, "all figures are drawn"
        assert tab.requests() == [file.as_uri()], "nothing is fetched"
        assert not tab.complaints()


def test_a_store_with_a_fifth_missing_failed_and_damaged(copy: Made) -> None:
    """The remaining results are reported as for a store that never had the others."""
    dice = random.Random(0)
    hurt = dice.sample(copy.points, 4)
    for n, point in enumerate(hurt):
        stage = point["stages"][-1]
        if n == 0:
            (copy.store.root / stage / "scores.json").write_text("{}")
        else:
            copy.remove(stage)
        if n == 1:
            point |= {"state": "failed", "error": "out of memory"}
    copy.record()
    frames = analysis.load(stores.STUDY, copy.store)
    page = report(frames)
    assert (
        "4 of 18 experiments are not finished" in page
        and "Stages left out because they do not match their checksums: 1." in page
    )
    assert "failed (out of memory)" in page and "damaged" in page
    lost = {point["name"] for point in hurt}
    for point in copy.points:
        facts, finals = point["facts"], frames.scores[frames.scores["final"] & (frames.scores["task"] == "average")]
        value = finals.set_index("experiment")["value"][point["name"]]
        expected = stores.score(facts["method"], facts["size"], facts["seed"], 2, "average")
        assert (value != value) if point["name"] in lost else value == pytest.approx(expected)


def given_again(page: str) -> list[str]:
    """Run the commands of a report that make tables, and return the names of all."""
    found = [shlex.split(html.unescape(c)) for c in re.findall(r"python -m analysis ([^<]+)", page)]
    assert [main(words) for words in found if words[0] != "figures"] == [0] * (len(found) - 1)
    return [words[0] for words in found]


def test_provenance_and_commands(copy: Made) -> None:
    words = [f"study={stores.STUDY}", "launcher=local"]
    launch = Launch("l1", stores.STUDY, "local", words, [], None, "", 0.0, "h")
    Records(copy.store).create(launch)
    Records(copy.store).write_study(stores.STUDY, launch.id, copy.points)
    page = report(analysis.load(stores.STUDY, copy.store))
    assert "python -m sweeps launch study=toy launcher=local<" in page, "as it can be given"
    cells = " ".join(re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", page))
    stages = len({stage for point in copy.points for stage in point["stages"]})
    assert f"commit {stores.COMMIT} {stages} " in cells and f"torch 1 {stages} " in cells
    evaluations = len({s for point in copy.points for s in point["stages"] if s.startswith("evaluate/")})
    assert f"lm-eval 1 {evaluations} " in cells and f"task sums documents 20, version 1 {evaluations} " in cells
    assert "f" * 40 in page, "the commit of the model"
    assert given_again(page) == ["table"] * 5 + ["differences", "efficiency", "figures"]


def test_the_report_of_a_search(copy: Made, capsys: pytest.CaptureFixture[str]) -> None:
    copy.record_search("toy")
    page = report(analysis.load("search-toy", copy.store))
    titles = ["Trials", "Cost", "Provenance", "Reproduce"]
    assert re.findall(r"<h2.*?>([^<]+)</a></h2>", page) == titles
    assert "python -m sweeps search search=toy launcher=local<" in page and page.count("<img") == 1
    assert given_again(page) == ["table", "table", "figures"]
    best, score = 1, 100 * stores.score("iris", 200, 1, 2, "average")
    assert f"Best: trial {best} with {score:.1f} %. As the best of 2 complete trials" in page
    assert "not finished" not in page, "pruning is what a search is for"
    capsys.readouterr()
    assert main(["table", "study=search-toy", f"store={copy.store.root}"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "Trials of the search toy"


EVERY = ["table", "table by=iteration", "table by=size", "table by=cost", "table by=state", "differences", "report"]


@pytest.mark.parametrize("command", [*EVERY, f"compare {stores.STUDY} {stores.STUDY}"])
@pytest.mark.parametrize("state", ["nothing has run", "no iterations", "size unknown", "base alone"])
def test_a_study_in_any_state_can_be_looked_at(
    copy: Made, state: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if state == "no iterations":
        copy.points[:] = [p | {"stages": p["stages"][:5], "rows": p["rows"][:2]} for p in copy.points]
    elif state == "size unknown":
        copy.points[:] = [p | {"facts": p["facts"] | {"size": None}} for p in copy.points if p["facts"]["size"] == 100]
    made = copy if state != "nothing has run" else Made(Store(tmp_path / "empty"), copy.points)
    made.store.prepare()
    if state in ("size unknown", "base alone"):
        for stage in {s for p in made.points for s in p["stages"][1 if state == "size unknown" else 3 :]}:
            if state == "base alone" or stage.startswith("data/"):
                made.remove(stage)
    made.record()
    name, *words = command.split()
    study = [] if name == "compare" else [f"study={stores.STUDY}"]
    out = [f"out={tmp_path / 'x.html'}"] if name == "report" else []
    status = main([name, *study, *words, f"store={made.store.root}", *out])
    err = capsys.readouterr().err
    nothing = name == "compare" and state == "nothing has run"
    assert (status, err) == (0, "") if not nothing else (status == 2 and err.count("\n") == 1), err
