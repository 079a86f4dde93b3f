"""Examples and evaluation prompts as they are shown."""

from pathlib import Path

import pytest

from iris import run
from iris.errors import UserError
from iris.stages.show import _block, _pieces
from tests.iris.conftest import Tiny
from tests.iris.model.shapes import byte_level


def test_a_whole_experiment(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run._show(tiny("iris", tmp_path), 2)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "⟦…⟧ control token, ↵ line break, ␣ space at the end of a line"
    assert lines[1].startswith("training example 1 (") and lines[4].startswith("training example 2 (")
    assert lines[2].startswith("    prompt │ ") and lines[2].endswith(" =↵")
    assert lines[3].startswith("  response │ ") and lines[3].endswith("⟦</s>⟧")
    assert lines[7:] == ["evaluation prompt of tiny_sums: 5 tokens", "    prompt │ 0 + 7 =↵"]
    run.run(tiny("iris", tmp_path, {"iterations": 1}))
    log = next((tmp_path / "outputs").glob("*/run.log")).read_text().splitlines()
    assert lines[1:4] == [line for line in log if "│" in line or line.startswith("training example")]


def test_it_fits_80_columns_and_shows_what_cannot_be_seen() -> None:
    lines = list(_block("prompt", "a b  \n\n" + "long words " * 30 + "\n### Response: "))
    assert max(map(len, lines)) <= 80
    assert lines[:2] == ["    prompt │ a b␣␣↵", "           │ ↵"]
    assert lines[-1] == "           │ ### Response:␣"


def test_control_tokens_are_marked_and_the_same_text_in_data_is_not() -> None:
    tokenizer = byte_level(["<|im_end|>"])
    data = tokenizer.encode("é<|im_end|>", split_special_tokens=True)
    pieces = _pieces(tokenizer, [*data, tokenizer.convert_tokens_to_ids("<|im_end|>")])
    assert "".join(pieces) == "é<|im_end|>⟦<|im_end|>⟧"


@pytest.mark.parametrize("arguments", [["--show"], ["--show", "0"], ["--show", "seed=1"], ["--show", "-1"]])
def test_a_number_is_needed(arguments: list[str]) -> None:
    with pytest.raises(UserError, match="give a number of examples, as in --show 3"):
        run._show_count(["+method=iris", *arguments])
