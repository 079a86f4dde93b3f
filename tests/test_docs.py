"""Every command in the documents and at the top of each configuration file is one that the product accepts."""

import re
import shlex
from pathlib import Path

import pytest

from analysis.__main__ import main as analysis_main
from iris import compose
from iris.config import Config
from sweeps.__main__ import COMMANDS
from sweeps.cli.arguments import parse
from sweeps.launch.launchers import load_launcher
from sweeps.search.file import load_search
from sweeps.study.declare import points
from sweeps.study.experiments import Composer
from sweeps.study.file import load_study
from tests.analysis import stores

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CONFIGURATIONS = sorted((ROOT / "conf").glob("*/*.yaml"))
COMMAND = re.compile(
    r"^[\s$#`]*(?:[A-Z_]+=\S+ )*python -m (?P<program>iris\.run|sweeps|analysis)(?P<arguments>[^`\n]*?)(?:  +#?.*)?$",
    re.MULTILINE,
)
PLACEHOLDERS = {"FILE_OR_FOLDER": "some/file.jsonl", "FOLDER_OR_NAME": "some/folder", "OWNER/NAME": "owner/name"}
PLACEHOLDERS |= {"my_cluster.yaml": "slurm", "COMMIT": "0" * 40}


def commands(path: Path) -> list[tuple[str, str]]:
    """(program, arguments) of each command in a document."""
    return [(m["program"], m["arguments"].strip()) for m in COMMAND.finditer(path.read_text())]


def check(program: str, arguments: str) -> None:
    for placeholder, value in PLACEHOLDERS.items():
        arguments = arguments.replace(placeholder, value)
    words = shlex.split(arguments)
    if program == "analysis":
        return  # run, below
    if program == "sweeps":
        check_sweep(*words)
        return
    if any(word.startswith("--") for word in words):
        words = [word.split(",")[0] for word in words if "=" in word]
    if words:
        compose.load(words)


def check_sweep(command: str, *words: str) -> None:
    given = parse(words, COMMANDS[command])
    overrides = given.rest if COMMANDS[command].rest == "overrides" else []
    if "launcher" in given.settings:
        load_launcher(given.settings["launcher"], given.under("launcher"))
    if "search" in given.settings:
        load_search(given.settings["search"], overrides)
    if "study" in given.settings:
        first, *_ = points(load_study(given.settings["study"], overrides))
        Composer().config(first.overrides)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_commands_in_documents_compose(path: Path) -> None:
    if path.name == "add-a-method.md":
        return  # run, by test_add_a_method
    for program, arguments in commands(path):
        check(program, arguments)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_analysis_in_documents_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a small study that is called as theirs is and lies where they look for it."""
    if path.name == "add-a-method.md":
        return  # on what its own study has computed, by test_add_a_method
    found = [shlex.split(arguments) for program, arguments in commands(path) if program == "analysis"]
    blocks = [b for b in re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL) if "import analysis" in b]
    if found or blocks:
        monkeypatch.chdir(tmp_path)
        made = stores.make(tmp_path / Config.store)
        made.record("embedded")
        made.record_search("embedded")
    for words in found:
        assert analysis_main(words) == 0, capsys.readouterr().err
    for block in blocks:
        exec(compile(block, str(path), "exec"), {})


def test_the_documents_have_commands() -> None:
    assert len(commands(ROOT / "README.md")) >= 3
    assert len(commands(ROOT / "docs" / "guide.md")) >= 2
    assert len([1 for program, _ in commands(ROOT / "docs" / "analysis.md") if program == "analysis"]) >= 9


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_every_configuration_begins_with_its_command(path: Path) -> None:
    first = path.read_text().removeprefix("# @package _global_\n").splitlines()[0]
    found = COMMAND.match(first)
    assert found, first
    check(found["program"], found["arguments"])


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_links_to_files_hold(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), target
