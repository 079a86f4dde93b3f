"""Every command in the documents and at the top of each configuration file is one that the product accepts."""

import re
import shlex
from pathlib import Path

import pytest

from iris import compose

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CONFIGURATIONS = sorted((ROOT / "conf").glob("*/*.yaml"))
COMMAND = re.compile(r"^[\s$#`]*(?:[A-Z_]+=\S+ )*python -m iris\.run(?P<arguments>[^`\n]*?)(?:  +#?.*)?$", re.MULTILINE)
PLACEHOLDERS = {"FILE_OR_FOLDER": "some/file.jsonl", "FOLDER_OR_NAME": "some/folder", "OWNER/NAME": "owner/name"}


def commands(path: Path) -> list[str]:
    return [m["arguments"].strip() for m in COMMAND.finditer(path.read_text())]


def check(arguments: str) -> None:
    for placeholder, value in PLACEHOLDERS.items():
        arguments = arguments.replace(placeholder, value)
    words = shlex.split(arguments)
    if any(word.startswith("--") for word in words):
        words = [word.split(",")[0] for word in words if "=" in word]
    if words:
        compose.load(words)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_commands_in_documents_compose(path: Path) -> None:
    for arguments in commands(path):
        check(arguments)


def test_the_documents_have_commands() -> None:
    assert len(commands(ROOT / "README.md")) >= 3
    assert len(commands(ROOT / "docs" / "guide.md")) >= 2


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_every_configuration_begins_with_its_command(path: Path) -> None:
    first = path.read_text().removeprefix("# @package _global_\n").splitlines()[0]
    found = COMMAND.match(first)
    assert found, first
    check(found["arguments"])


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_links_to_files_hold(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), target
