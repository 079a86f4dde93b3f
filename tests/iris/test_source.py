"""Fingerprints of code: what changes them, and what does not."""

from pathlib import Path

import pytest

from iris import source

ONE = '''
def loss(real, fake, *, scale=1.0):
    """The loss."""
    # why
    return scale * (real - fake)
'''
SAME = "def loss(real,\n  fake, *, scale=1.0):\n  'Other words.'\n  return (scale *\n (real-fake))\n"


def test_comments_docstrings_and_formatting_do_not_count() -> None:
    assert source.source_digest(ONE) == source.source_digest(SAME)


@pytest.mark.parametrize(("old", "new"), [("1.0", "2.0"), ("real - fake", "fake - real"), ("scale *", "scale +")])
def test_anything_else_counts(old: str, new: str) -> None:
    assert source.source_digest(ONE) != source.source_digest(ONE.replace(old, new))


def test_a_text_that_is_no_docstring_counts() -> None:
    assert source.source_digest("x = 'a'") != source.source_digest("x = 'b'")
    assert source.source_digest("f('a')") != source.source_digest("f('b')")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that stands for ours."""
    files = {
        "stages/train.py": "from iris.training import loop\nfrom iris.execution import runner\nimport torch\n",
        "training/loop.py": "def fit():\n    from iris.model.head import loss\n    return loss\n",
        "model/head.py": "def loss(): return 1\n",
        "model/other.py": "x = 1\n",
        "execution/runner.py": "y = 1\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(source, "_ROOT", tmp_path)
    forget()
    yield tmp_path
    forget()


def forget() -> None:
    source.computed_by.cache_clear()
    source._module.cache_clear()


def test_a_stage_depends_on_the_modules_it_imports_and_on_libraries(package: Path) -> None:
    code = source.computed_by("train")
    assert list(code) == [
        *(f"iris/{x}.py" for x in ("model/head", "stages/train", "training/loop")),
        *source._LIBRARIES,
    ]
    assert source.computed_by("train")["torch"].startswith("2.")


def test_an_edit_anywhere_below_is_named(package: Path) -> None:
    then = source.computed_by("train")
    assert source.differences("train", then) == []
    (package / "model/head.py").write_text("def loss(): return 2\n")
    (package / "model/other.py").write_text("x = 2\n")
    (package / "execution/runner.py").write_text("y = 2\n")
    (package / "training/loop.py").write_text("# A comment.\n" + (package / "training/loop.py").read_text())
    forget()
    assert source.differences("train", then) == ["iris/model/head.py: changed since"]
    assert source.differences("train", then | {"torch": "2.0.0"})[1].startswith("torch 2.0.0, now 2.")
    assert source.combined(then) != source.combined(source.computed_by("train"))


def test_the_gap_counts_and_a_new_schedule_does_not(package: Path) -> None:
    schedules = package / "method" / "schedules.py"
    schedules.parent.mkdir()
    schedules.write_text("def gap(): return 1\ndef cosine(): return 1\n")
    (package / "stages/train.py").write_text("from iris.method import schedules\n")
    then = source.computed_by("train")
    schedules.write_text("def gap(): return 1\ndef cosine(): return 2\ndef new(): return 1\n")
    forget()
    assert source.differences("train", then) == []
    schedules.write_text("def gap(): return 2\n")
    forget()
    assert source.differences("train", then) == ["iris/method/schedules.py: changed since"]


def test_every_kind_of_stage_has_its_own_modules() -> None:
    kinds = ("base", "data", "sft", "generate", "score", "train", "evaluate")
    for kind in kinds:
        assert f"iris/stages/{kind}.py" in source.computed_by(kind)
        assert not any("execution" in name for name in source.computed_by(kind))
    assert "lm-eval" in source.computed_by("evaluate") and "lm-eval" not in source.computed_by("train")
