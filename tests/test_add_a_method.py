"""docs/add-a-method.md, done as a stranger would: from a folder of his own, in the order of the page."""

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from analysis.__main__ import main as analysis
from iris import run
from iris.store import Store
from sweeps.__main__ import main as sweeps
from tests import sums

PAGE = (Path(__file__).parent.parent / "docs" / "add-a-method.md").read_text()
BLOCK = re.compile(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", re.DOTALL)
COMMAND = re.compile(r"^\$ python -m (\S+) (.*)$|`python -m (iris\.run) (.*?)`", re.MULTILINE)
PROGRAMS = {"iris.run": run.main, "sweeps": sweeps, "analysis": analysis}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name, text in BLOCK.findall(PAGE):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("my_package")]:
        del sys.modules[name]


def test_the_page(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = [f"{key}={json.dumps(value)}" for key, value in {**sums.SETTINGS, **sums.write(folder)}.items()]
    small += ["iterations=2"]
    printed = []
    for program, arguments, inline, inline_arguments in COMMAND.findall(PAGE):
        words = shlex.split(arguments or inline_arguments)
        extra = [] if program == "analysis" else [w for w in small if w.partition("=")[0] not in str(words)]
        assert PROGRAMS[program or inline]([*words, *extra]) == 0, capsys.readouterr().err
        printed.append(capsys.readouterr().out)
    table, plan, _, compared, bare, falling = printed
    assert table.startswith("ipo-sums-20-tiny") and "t=2" in table
    assert "2 experiments" in plan
    assert re.search(r"ipo", compared) and re.search(r"spin", compared)
    assert bare == table and "t=2" in falling
    trained = [json.loads(path.read_text()) for path in Path("iris-store/train").glob("*/manifest.json")]
    assert {m["identity"]["method"] for m in trained} == {"ipo", "spin", "iris"}
    assert [m for m in trained if m["identity"]["method"] == "ipo"] and Store("iris-store").keys("train")


def test_the_formula(folder: Path) -> None:
    import torch
    from my_package.losses import ipo  # type: ignore[import-not-found]

    loss = ipo(torch.tensor([2.0, 0.0]), torch.tensor([1.0, 0.0]), scale=0.25)
    assert loss.tolist() == [0.0625, 0.25]
