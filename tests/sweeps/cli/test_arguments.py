"""The words of a command line find their place, or one line says why not."""

import pytest

from iris.errors import UserError
from sweeps.cli.arguments import Arguments, parse

SETTINGS = ("study", "launcher", "store")
FLAGS = {"--why": "KEY", "--retry": ""}


def test_words_are_sorted() -> None:
    words = ["study=a", "--retry", "data.size=1k", "launcher.stages.train.gpus=8", "launcher=slurm", "~x", "--why", "k"]
    found = parse([*words, "+method.loss.scale=1"], settings=SETTINGS, flags=FLAGS)
    assert found == Arguments(
        {"--retry": "", "--why": "k"},
        {"study": "a", "launcher.stages.train.gpus": "8", "launcher": "slurm"},
        ["data.size=1k", "~x", "+method.loss.scale=1"],
    )
    assert found.under("launcher") == ["stages.train.gpus=8"]
    assert found.get("study", "") == "a"
    assert parse(["--why=a=b"], settings=(), flags=FLAGS).flags == {"--why": "a=b"}
    assert parse(["method=iris,*", "store=x"], settings=("store",), names=True).overrides == ["method=iris,*"]
    assert parse(["some*", "store=x"], settings=("store",), names=True).names == ["some*"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["study=a", "study=b"], r"study is given twice"),
        (["--retry", "--retry"], r"--retry is given twice"),
        (["--retry=1"], r"--retry takes no value"),
        (["--why"], r"--why needs a KEY"),
        (["--why", "study=a"], r"--why needs a KEY"),
        (["--why", "--retry"], r"--why needs a KEY"),
        (["--rety"], r"--rety: no such flag\. There are --why KEY, --retry\. Did you mean '--retry'"),
        (["-r"], r"-r: no such flag"),
        (["stuy=a"], r"stuy: no such setting\. Did you mean 'study'"),
        (["embedded"], r"'embedded': write settings as key=value"),
    ],
)
def test_a_wrong_word_is_one_line(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse(words, settings=SETTINGS, flags=FLAGS)
    assert "\n" not in str(caught.value)


def test_a_section_of_an_experiment_is_no_setting_mistyped() -> None:
    assert parse(["store=x", "seeds=[1]"], settings=("storage",)).overrides == ["store=x", "seeds=[1]"]


def test_a_setting_that_is_needed() -> None:
    with pytest.raises(UserError, match="No study is given: study=NAME"):
        parse([], settings=SETTINGS).get("study", "study=NAME")
