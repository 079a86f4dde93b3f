"""Arguments of a command line: sorted, or refused in one line."""

import pytest

from iris.errors import UserError
from sweeps.cli.arguments import Command, parse

STUDY = Command("", ("study", "launcher", "store"), {"--why": "KEY", "--retry": ""}, "overrides")
NAMES = Command("", ("study", "store"), {"--all": ""}, "names")
PATTERNS = Command("", ("store",), rest="patterns")
NOTHING = Command("", ("by",))


def test_arguments_are_sorted() -> None:
    words = ["study=a", "--retry", "data.size=1k", "launcher.stages.train.gpus=8", "launcher=slurm", "~x", "--why", "k"]
    found = parse([*words, "+method.loss.scale=1"], STUDY)
    assert found.flags == {"--retry": "", "--why": "k"}
    assert found.settings == {"study": "a", "launcher.stages.train.gpus": "8", "launcher": "slurm"}
    assert found.rest == ["data.size=1k", "~x", "+method.loss.scale=1"]
    assert found.given == [*words, "+method.loss.scale=1"]
    assert found.under("launcher") == ["stages.train.gpus=8"]
    assert found.get("study", "") == "a"
    assert parse(["--why=a=b"], STUDY).flags == {"--why": "a=b"}
    assert parse(["method=iris,*", "store=x", "some*"], PATTERNS).rest == ["method=iris,*", "some*"]
    assert parse(["toy", "store=x"], NAMES).rest == ["toy"]


@pytest.mark.parametrize(
    ("words", "command", "message"),
    [
        (["study=a", "study=b"], STUDY, r"study is given twice"),
        (["--retry", "--retry"], STUDY, r"--retry is given twice"),
        (["--retry=1"], STUDY, r"--retry takes no value"),
        (["--why"], STUDY, r"--why needs a KEY"),
        (["--why", "study=a"], STUDY, r"--why needs a KEY"),
        (["--why", "--retry"], STUDY, r"--why needs a KEY"),
        (["--rety"], STUDY, r"--rety: no such flag\. Choose from --why KEY, --retry\. Did you mean '--retry'"),
        (["-r"], STUDY, r"-r: no such flag"),
        (["--all"], PATTERNS, r"--all: no such flag\.$"),
        (["stuy=a"], STUDY, r"stuy: no such setting\. Did you mean 'study'"),
        (["embedded"], STUDY, r"'embedded': write settings as key=value"),
        (["seed=1"], NAMES, r"'seed=1': no such argument\. Choose from --all, study=…, store=…\."),
        (["launcher.workers=4"], NAMES, r"'launcher.workers=4': no such argument"),
        (["toy"], NOTHING, r"'toy': no such argument\. Choose from by=…\."),
        (["be=task"], NOTHING, r"'be=task': no such argument\. Choose from by=…\."),
    ],
)
def test_a_wrong_argument_is_one_line(words: list[str], command: Command, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse(words, command)
    assert "\n" not in str(caught.value)


def test_a_section_of_an_experiment_is_no_setting_mistyped() -> None:
    command = Command("", ("storage",), rest="overrides")
    assert parse(["store=x", "seeds=[1]"], command).rest == ["store=x", "seeds=[1]"]


def test_a_setting_that_is_needed() -> None:
    with pytest.raises(UserError, match="No study is given: study=NAME"):
        parse([], STUDY).get("study", "study=NAME")
