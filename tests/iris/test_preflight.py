"""All mistakes of an experiment at once, before anything is computed."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from iris import fingerprint, preflight, run
from iris.config import Config
from iris.errors import UserError
from iris.execution.trackers import MODULES
from iris.stages.base import character_tokenizer

Tiny = Callable[..., Config]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of its own: nothing has passed before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def refused(tiny: Tiny, tmp_path: Path) -> Callable[..., str]:
    """`refused({key: value})`: the message about the tiny experiment with these values."""

    def message(changes: Mapping[str, Any], **options: bool) -> str:
        with pytest.raises(UserError) as caught:
            preflight.check([tiny("spin", tmp_path / "store", changes)], torch=True, here=True)
        return str(caught.value)

    return message


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as save_pretrained leaves it."""
    folder = tmp_path_factory.mktemp("saved")
    tokenizer = character_tokenizer(" 0123456789+-=#:,\n")
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=256,
        **ids,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def copy(saved: Path, folder: Path) -> Path:
    folder.mkdir()
    for path in saved.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_a_sound_experiment_passes_and_is_looked_at_once(
    tiny: Tiny, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny("spin", tmp_path / "store")
    preflight.check([config], torch=True, here=True)
    assert len(list((cache / "iris-selfplay" / "passed").iterdir())) == 2, "its data and its model"
    for name in ("_check_model", "_read_rows"):
        monkeypatch.setattr(preflight, name, lambda *_: pytest.fail("looked at twice"))
    preflight.check([config], torch=True)


def test_every_mistake_is_named_at_once(refused: Callable[..., str], tmp_path: Path) -> None:
    wrong = {
        "data.prompt": "question",
        "evaluate.tasks": ["embeded"],
        "execution.tracking": ["tensorbord"],
        "execution.device": "tpu",
        "model.template": "chat",
        "store": "",
        "output": str(tmp_path / ("x" * 300)),
    }
    lines = refused(wrong).splitlines()
    assert lines[0] == "7 mistakes:" and len(lines) == 8
    for text in (
        "store is empty: name a folder, such as store=iris-store.",
        "output: the name xxxxxxxxxxxxxxxxxxxx… has 300 bytes; a folder's name has at most 255.",
        "execution.tracking: 'tensorbord' is none of",
        "There is no evaluation task 'embeded'. Did you mean 'embedded'?",
        "has no column 'question': it has prompt, response.",
        "model.template=chat, but this model's tokenizer has no chat template.",
        "execution.device=tpu: choose one of auto, cpu, cuda, mps.",
    ):
        assert any(text in line for line in lines), text


def test_mistakes_of_values_and_of_what_they_name_come_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["+method=iris", "sede=1", "train.weight_decay=-1", "data.size=10b", "evaluate.tasks=[embeded]", "store="]
    assert run.main([*words, f"output={tmp_path / 'out'}"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: 5 mistakes:" and len(lines) == 6
    for text in ("sede: ", "train.weight_decay=-1", "data.size=10b", "'embeded'", "store is empty"):
        assert any(text in line for line in lines), text


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "size": (
        {"data.size": "1k"},
        "rows.jsonl has at most 25 rows, fewer than the 1000 of data.size",
    ),
    "context": ({"data.max_prompt_tokens": 250}, "has 258 tokens, more than the model's context of 256"),
    "name": ({"model.name": "m" * 300}, "model.name is too long"),
    "no name": ({"data.name": "…"}, "data.name: give a name with letters or digits"),
    "home": ({"store": "~nobody-of-this-name/store"}, "store=~nobody-of-this-name/store: "),
    "architecture": ({"model.architecture.model_type": "bert"}, "bert"),
    "argument": ({"model.architecture.hiden_size": 1}, "model.architecture.hiden_size: 'llama' takes no such argument"),
    "alphabet": ({"model.alphabet": ""}, "model.alphabet is empty"),
    "data": ({"data.path": "nowhere"}, "data.path=nowhere: no such file or folder"),
    "tasks": ({"evaluate.include": ["nowhere"]}, "nowhere is no folder"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_one_mistake_is_one_message(name: str, refused: Callable[..., str]) -> None:
    changes, text = MISTAKES[name]
    assert text in refused(changes)
    assert "mistakes" not in refused(changes)


def test_folders(refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    (tmp_path / "file").touch()
    for key in ("store", "output"):
        assert f"{tmp_path / 'link'} is a link to {tmp_path / 'gone'}, which" in refused({key: f"{tmp_path}/link/x"})
        assert f"{tmp_path / 'file'} is a file, not a folder." in refused({key: f"{tmp_path}/file/x"})
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    assert f"{tmp_path} may not be written. Choose another folder with store=FOLDER" in refused({})


def test_a_home_that_may_not_be_written(
    tiny: Tiny, refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    (tmp_path / "home").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home" / ".cache"))
    monkeypatch.setattr(fingerprint, "_LARGE", 0)
    fingerprint._of_file.cache_clear()
    preflight.check([tiny("spin", tmp_path / "store")], torch=True, here=True)  # its own cache can be done without
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home" / "huggingface"))
    assert "HF_HOME=" in refused({}) and "is a file, not a folder" in refused({})


def test_model_folders_whose_files_disagree(refused: Callable[..., str], saved: Path, tmp_path: Path) -> None:
    def message(folder: Path) -> str:
        return refused({"model.source": "pretrained", "model.path": str(folder)})

    adapter = copy(saved, tmp_path / "adapter")
    (adapter / "adapter_config.json").write_text("{}")
    assert "holds a LoRA adapter (adapter_config.json)" in message(adapter)
    doubled = copy(saved, tmp_path / "doubled")
    content = json.dumps({"weight_map": {"lm_head.weight": "model-00001-of-00001.safetensors"}})
    (doubled / "model.safetensors.index.json").write_text(content)
    assert "holds two copies of weights, model.safetensors and those that model.safetensors.index" in message(doubled)
    (doubled / "model.safetensors").unlink()
    assert "lacks the weights model-00001-of-00001.safetensors" in message(doubled)
    bare = copy(saved, tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    (bare / "tokenizer_config.json").unlink()
    assert "holds no tokenizer that can be loaded" in message(bare)


def test_the_same_is_found_by_a_process_of_its_own(tiny: Tiny, tmp_path: Path) -> None:
    program = """if True:
        import pickle, sys
        from iris import preflight
        from iris.errors import UserError
        try:
            preflight.check(pickle.load(sys.stdin.buffer))
        except UserError as error:
            print(error)
        print({"torch", "transformers"} & set(sys.modules))"""
    config = tiny("spin", tmp_path / "store", {"model.template": "chat", "store": ""})
    done = subprocess.run(
        [sys.executable, "-c", program], input=pickle.dumps([config]), capture_output=True, check=True
    )
    lines = done.stdout.decode().splitlines()
    assert lines[0] == "2 mistakes:" and lines[-1] == "set()"
    assert "store is empty" in lines[1] and "no chat template" in lines[2]


def test_a_tracker_that_is_not_installed_is_refused_on_a_finished_run_too(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["+method=sft", *settings, "iterations=0", f"store={tmp_path / 'store'}", f"output={tmp_path / 'out'}"]
    assert run.main(words) == 0
    capsys.readouterr()
    assert run.main([*words, "execution.tracking=[clearml]"]) == 2
    assert capsys.readouterr().err == (
        "error: execution.tracking=clearml: its package is not installed: pip install clearml\n"
    )


def test_trackers_are_those_of_accelerate() -> None:
    from accelerate.utils import LoggerType

    assert set(MODULES) == {tracker.value for tracker in LoggerType} - {"all"}
