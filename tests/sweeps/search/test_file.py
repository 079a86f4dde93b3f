"""What a search is: the shipped ones, words that change one, a way through JSON, and what a mistake is told."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from iris import compose
from iris.errors import UserError
from sweeps.search.file import DECLARATION, Search, changed, load_search, read
from sweeps.search.space import corners, overrides
from sweeps.study.presets import names

LEVELS = {"schedule.levels": {"low": 0.25, "high": 1.5, "step": 0.25, "per": "iteration"}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path, base=["method=iris", "schedule=levels"], space=LEVELS)


def written(folder: Path, **content: Any) -> Path:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.mark.parametrize("name", names("search"))
def test_the_shipped_searches_are_experiments_in_every_corner(name: str) -> None:
    search = load_search(name, ["model=embedded", "data=embedded"])
    assert search.name == name and search.trials >= 30
    for _, values in corners(search.space, 4):
        config = compose.load([*search.base, *overrides(values)])
        assert len(config.schedule.levels) == config.iterations == 4


def test_the_papers_search_names_the_papers_model() -> None:
    search = load_search("alpha_schedule")
    assert {"model=qwen2_5_3b", "data=ultrachat", "data.size=26k"} <= set(search.base)
    assert search.share == 0.15 and search.pruner["name"] == "asha"
    (parameter,) = search.space
    assert parameter.step is not None and (parameter.high - parameter.low) / parameter.step == 5, "six levels"


def test_words_change_the_search_and_others_its_experiments(file: Path) -> None:
    words = ["trials=7", "sampler=cmaes", "sampler.sigma0=0.3", "pruner.reduction_factor=2", "pruner.name=asha"]
    words += ["space.schedule.levels.step=null", "share=0.3", "objective=tiny:exact_match,none", "name=other"]
    words += ["space.train.learning_rate={low: 1e-6, high: 1e-4, log: true}", "seed=3", "schedule=constant"]
    search = load_search(str(file), words)
    assert (search.name, search.trials, search.share) == ("other", 7, 0.3)
    assert search.sampler == {"name": "cmaes", "sigma0": 0.3}
    assert search.pruner == {"name": "asha", "reduction_factor": 2}
    assert search.objective == "tiny:exact_match,none"
    assert [(p.key, p.step, p.log) for p in search.space] == [
        ("schedule.levels", None, False),
        ("train.learning_rate", None, True),
    ]
    assert search.base == ["method=iris", "schedule=constant", "seed=3"], "the last of each key"
    gone = load_search(str(file), ["space.schedule.levels=null", "space.seed=[0,1]"])
    assert [p.key for p in gone.space] == ["seed"]


def test_a_search_survives_its_file(file: Path, tmp_path: Path) -> None:
    words = ["space.data={choices: [embedded, files]}", "space.seed={choices: [0, 1], when: {data: embedded}}"]
    search = load_search(str(file), [*words, "space.train.learning_rate=[[1e-4,1e-5],1e-3]"])
    (tmp_path / DECLARATION).write_text(json.dumps({"search": search.to_json()}))
    assert read(tmp_path) == search


def test_a_declaration_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    for content in ('{"search": {"name"', '{"search": {"name": "s", "base": [], "space": [{"kind": "int"}]}}', "{}"):
        (tmp_path / DECLARATION).write_text(content)
        with pytest.raises(UserError, match=r"search\.json cannot be read: .*name="):
            read(tmp_path)


def test_what_is_looked_at_is_told_from_how(file: Path) -> None:
    def load(*words: str) -> Search:
        return load_search(str(file), words)

    same = ["trials=99", "sampler=random", "pruner=median", "retries=0", "store=elsewhere", "execution.threads=2"]
    assert changed(load(), load(*same)) == []
    assert changed(load("seed=1", "data.size=1k"), load("data.size=1k", "seed=1")) == []
    others = ["seed=1", "share=0.3", "objective=tiny", "direction=minimize", "space.schedule.levels.high=1.25"]
    assert [changed(load(), load(word)) for word in others] == [
        ["base"],
        ["share"],
        ["objective"],
        ["direction"],
        ["space"],
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trials=0"], "trials=0: expected a whole number at least 1"),
        (["trials=many"], "trials=many: expected a whole number"),
        (["retries=-1"], "retries=-1"),
        (["share=0"], "share=0: expected a number above 0"),
        (["share=15"], "share=15"),
        (["direction=up"], "direction=up: choose one of maximize, minimize"),
        (["cost=gpu_hour"], "cost=gpu_hour: choose one of .*Did you mean 'gpu_hours'"),
        (["cost=gpu_hours"], "no trial can be pruned: set pruner=none"),
        (["objective=[a]"], "objective=.*expected a text"),
        (["trials.x=1"], "trials.x: no such key"),
        (
            ["space.schedule.level.step=null"],
            "schedule.level.step: .*no such parameter.*Did you mean 'schedule.levels'",
        ),
        (["space.schedule.levels.stepp=1"], "stepp: no such key.*Did you mean 'step'"),
        (["schedule.levels=[1]"], "schedule.levels is in the space and set for every trial"),
        (["sampler={name: tpe"], "sampler=.name: tpe: "),
        (["name=a/b"], "name=a/b: expected a name"),
        (["seed"], "'seed': expected key=value"),
    ],
)
def test_a_mistaken_word_is_told(file: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_search(str(file), words)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"space": LEVELS, "bases": []}, "bases: no such key.*Did you mean 'base'"),
        ({"base": ["seed"], "space": LEVELS}, "base: expected a mapping, or a list of key=value"),
        ({"base": {"seed": 1}}, "space: expected a mapping"),
        ({"space": LEVELS, "rungs": 3}, "rungs: expected a list"),
        ({"space": LEVELS, "sampler": 3}, "sampler: expected a name"),
    ],
)
def test_a_mistaken_file_is_told(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_search(str(written(tmp_path, **content)))


def test_a_search_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"search=embeded: choose one of alpha_schedule, embedded.*Did you mean 'embedded'"
    ):
        load_search("embeded")
    with pytest.raises(UserError, match="no such file"):
        load_search(str(tmp_path / "no.yaml"))
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"bad\.yaml"):
        load_search(str(tmp_path / "bad.yaml"))


def test_a_mapping_is_as_good_as_a_list(tmp_path: Path) -> None:
    path = written(
        tmp_path, base={"method": "iris", "evaluate.tasks": ["a", "b"]}, space=LEVELS, rungs=[{"iterations": 2}]
    )
    search = load_search(str(path))
    assert search.base == ["method=iris", "evaluate.tasks=[a,b]"] and search.rungs == [["iterations=2"]]
