"""What goes wrong: kills, crowds, damage, full disks, exploding losses. Nothing is lost and the next run recovers.

Runs that are killed, crowded or limited are children of a server process that has imported everything
(multiprocessing's `forkserver`), so that a start costs a tenth of a second and not the seconds that torch takes.
"""

import errno
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from glob import glob
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaModel

from iris import compose, run
from iris.config import Config
from iris.errors import UserError
from iris.model.logprobs import Policy
from iris.store import storage_errors

Tiny = Callable[..., Config]
Files = dict[tuple[str, str], dict[str, str]]
KILLS = 20
LONG = {"train.epochs": 3.0, "train.sft.epochs": 3.0}  # steps enough to be killed between …
SLOW = LONG | {"execution.checkpoint_minutes": 0.0}  # … with a checkpoint after each
SHARDED = ("generate", "score")  # their shards' manifests are read where something needs the shards
STAGES = ("base", "data", "sft", "generate", "score", "train", "evaluate")
LATE = ("iris.evaluation.lm", "lm_eval.evaluator", "transformers.models.llama.modeling_llama")

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["pytest", "iris.run", *(f"iris.stages.{kind}" for kind in STAGES), *LATE])


def command(config: Config, output: Path, limit: int) -> None:
    """The body of a child: the command with a configuration composed before; `limit` bounds the files it writes."""
    for name, stream in (("out", sys.stdout), ("err", sys.stderr)):
        os.dup2(os.open(f"{output}.{name}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), stream.fileno())
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    compose.read = lambda overrides: (config, [])
    sys.exit(run.main([]))


def start(config: Config, output: Path, limit: int = 0) -> BaseProcess:
    child = _server.Process(target=command, args=(config, output, limit))
    child.start()
    return child


def said(output: Path) -> str:
    """What a child wrote to its standard error."""
    return Path(f"{output}.err").read_text() if Path(f"{output}.err").exists() else ""


def finish(config: Config, output: Path, limit: int = 0) -> int | None:
    child = start(config, output, limit)
    child.join()
    return child.exitcode


def files(store: Path) -> Files:
    """The checksums of all files of all artifacts."""
    manifests = [json.loads(path.read_text()) for path in store.glob("[!.]*/[!.]*/manifest.json")]
    return {(m["kind"], m["key"]): m["files"] for m in manifests}


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.002)


@pytest.fixture(scope="module")
def undisturbed(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert finish(tiny("iris", folder / "store", SLOW), folder / "run") == 0
    return folder / "store"


# --- kills and signals


def test_killed_twenty_times_at_random_moments_ends_in_the_same_bytes(
    tiny: Tiny, tmp_path: Path, undisturbed: Path
) -> None:
    store, chance, hit = tmp_path / "store", random.Random(0), Counter[str]()
    config = tiny("iris", store, SLOW)
    while True:
        before, unfinished = finished(store), set(store.glob("*/.new-*"))
        child = start(config, tmp_path / "run")
        # After one more stage, shard or checkpoint, or none; then mostly at once, sometimes long into the next one.
        enough = chance.choice([0, 1, 1])
        while child.is_alive() and len(finished(store) - before) < enough:
            time.sleep(0.002)
        child.join(duration(undisturbed) / 30 * chance.random() ** 4)
        child.kill()
        child.join()
        if child.exitcode != -signal.SIGKILL:
            break
        hit.update({path.parent.name for path in set(store.glob("*/.new-*")) - unfinished} or {"between stages"})
    assert child.exitcode == 0, said(tmp_path / "run")
    print(hit, duration(undisturbed))
    assert hit.total() >= KILLS and len(hit) > 3, hit
    assert files(store) == files(undisturbed)
    assert not list(store.glob("*/.new-*")), "what a killed run had begun is cleared away"


def finished(store: Path) -> set[str]:
    """Stages, shards and checkpoints; `glob` minds no folder that vanishes meanwhile, `Path.glob` does."""
    return {*glob(f"{store}/[!.]*/[!.]*/manifest.json"), *glob(f"{store}/*/.work-*/checkpoint-*")}  # noqa: PTH207


def duration(store: Path) -> float:
    """Seconds that a run took after it had planned."""
    (folder,) = (store / "outputs").iterdir()
    return (folder / "run.log").stat().st_mtime - (folder / "config.yaml").stat().st_mtime


def test_a_stopped_run_says_so_and_continues_at_its_checkpoint(tiny: Tiny, tmp_path: Path) -> None:
    lora = {"train.lora.rank": 2, "train.optimizer": "rmsprop", "iterations": 1}
    stopped, undisturbed = (tiny("t_spin", tmp_path / name, SLOW | lora) for name in ("stopped", "undisturbed"))
    for stage, number in (("sft", signal.SIGINT), ("train", signal.SIGTERM)):
        child = start(stopped, tmp_path / "run")
        wait_for(lambda stage=stage: list((tmp_path / "stopped").glob(f"{stage}/.work-*/checkpoint-*")))  # type: ignore[misc]
        assert child.pid is not None
        os.kill(child.pid, number)
        child.join()
        assert child.exitcode == 128 + number
        assert said(tmp_path / "run").endswith("stopped: finished stages are kept and the same command continues.\n")
        assert "Traceback" not in said(tmp_path / "run")
    assert finish(stopped, tmp_path / "run") == 0
    assert "train t_spin-sums-20-tiny-s0-t1: 8/8 steps" in said(tmp_path / "run")
    assert finish(undisturbed, tmp_path / "run") == 0
    assert files(tmp_path / "stopped") == files(tmp_path / "undisturbed")


# --- many at once


def test_sixteen_at_once_compute_each_stage_once_and_print_the_same_table(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny("iris", tmp_path / "store", {"iterations": 1})
    children = [start(config, tmp_path / f"run{n}") for n in range(16)]
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 16, said(tmp_path / "run0")
    tables = {Path(f"{tmp_path / f'run{n}'}.out").read_text() for n in range(16)}
    assert len(tables) == 1 and "t=1" in tables.pop()
    (log,) = (tmp_path / "store" / "outputs").glob("*/run.log")
    done = Counter(line.split(" done ")[1].split()[1] for line in log.read_text().splitlines() if " done " in line)
    assert done == Counter(key for _, key in files(tmp_path / "store")), "all artifacts, each once"
    assert not list((tmp_path / "store" / ".locks").iterdir())
    assert not list((tmp_path / "store" / ".corrupt").glob("*"))


def test_a_waiting_run_takes_over_from_a_killed_one(tiny: Tiny, tmp_path: Path, undisturbed: Path) -> None:
    config = tiny("iris", tmp_path / "store", SLOW | {"iterations": 0})
    holder = start(config, tmp_path / "holder")
    wait_for(lambda: list((tmp_path / "store").glob("sft/.work-*/checkpoint-*")))
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGSTOP)
    before = finished(tmp_path / "store")
    waiting = start(config, tmp_path / "waiting")
    wait_for(lambda: "another run has it, waiting" in said(tmp_path / "waiting"))
    assert waiting.is_alive() and finished(tmp_path / "store") == before, "the lock is held"
    holder.kill()
    waiting.join()
    assert waiting.exitcode == 0, said(tmp_path / "waiting")
    assert files(tmp_path / "store").items() < files(undisturbed).items()


# --- damage


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


# What is damaged, and what is missing that needs it.
DAMAGE = {
    "base": ("base/*/model/model.safetensors", "evaluate"),
    "data": ("data/*/rows.parquet", "train"),
    "sft": ("sft/*/model/model.safetensors", "train"),
    "response shard": ("generate/*-y0-0001-*/responses.parquet", "train"),
    "score shard": ("score/*-y0-0000-*/scores.parquet", "train"),
    "policy": ("train/*-t1-*/model/model.safetensors", "generate"),
    "prompts of the evaluation": ("evaluate/*-t2-*/prompts.json", ""),
    "prompts of the data": ("data/*/prompts.txt", ""),
} | {f"manifest of {kind}": (f"{kind}/*/manifest.json", "train" if kind in SHARDED else "") for kind in STAGES}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_flipped_byte_is_found_and_computed_anew(tiny: Tiny, tmp_path: Path, undisturbed: Path, what: str) -> None:
    shutil.copytree(undisturbed, tmp_path / "store")
    pattern, missing = DAMAGE[what]
    if missing:
        shutil.rmtree(tmp_path / "store" / missing)
    damaged = sorted((tmp_path / "store").glob(pattern))[0]
    flip(damaged)
    config = tiny("iris", tmp_path / "store", LONG)
    with pytest.raises(UserError, match=rf"damaged: .*{damaged.name}.*Run the same command again"):
        run.run(config)
    assert len(list((tmp_path / "store" / ".corrupt").iterdir())) == 1, "nothing is deleted"
    lines = run.run(config)
    assert [line.label for line in lines] == ["base", "start", "t=1", "t=2"]
    assert files(tmp_path / "store") == files(undisturbed)


# --- disks


def test_a_disk_that_takes_no_more_ends_in_one_message_and_the_next_run_goes_on(
    tiny: Tiny, tmp_path: Path, undisturbed: Path
) -> None:
    """A limit on the size of files stands in for a full disk: the system refuses what each library in turn writes."""
    config = tiny("iris", tmp_path / "store", SLOW | {"iterations": 1})
    limit, messages = 1500, list[str]()
    while (status := finish(config, tmp_path / "run", limit)) != 0:
        assert status == 2, said(tmp_path / "run")
        assert "Traceback" not in said(tmp_path / "run")
        messages.append(said(tmp_path / "run").splitlines()[-1])
        limit = limit * 3 // 2
    for message in messages:
        assert re.match(r"error: The (store|output) /.* Free space or choose another folder with .*=FOLDER;", message)
    for writer in ("The output", "os error 27", "inline_container"):  # the reports, safetensors, torch.save
        assert [message for message in messages if writer in message], messages
    assert files(tmp_path / "store").items() < files(undisturbed).items()


@pytest.mark.parametrize("key", ["store", "output"])
def test_a_folder_that_cannot_be_made_is_one_message(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    (tmp_path / "file").touch()
    config = tiny("iris", tmp_path / "store", {key: str(tmp_path / "file" / "folder")})
    monkeypatch.setattr(compose, "read", lambda _: (config, []))
    assert run.main([]) == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert message == f"error: {key}={tmp_path / 'file' / 'folder'}: {tmp_path / 'file'} is a file, not a folder."


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_store_that_can_no_longer_be_written_keeps_what_it_has(
    tiny: Tiny, tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    shutil.copytree(undisturbed, tmp_path / "store")
    shutil.rmtree(tmp_path / "store" / "train")
    before = files(tmp_path / "store")

    def refuse(descriptor: int) -> None:
        if "outputs" not in Path(f"/proc/self/fd/{descriptor}").readlink().parts:
            raise OSError(number, os.strerror(number))

    config = tiny("iris", tmp_path / "store", LONG)
    with monkeypatch.context() as patch, pytest.raises(UserError, match=rf"The store .*{os.strerror(number)}"):
        patch.setattr(os, "fsync", refuse)
        run.run(config)
    assert files(tmp_path / "store") == before
    run.run(config)
    assert files(tmp_path / "store") == files(undisturbed)


def test_what_lies_outside_the_store_is_named_itself(tmp_path: Path) -> None:
    message = r"^/somewhere/rows\.jsonl may not be written .* give access to it"
    with pytest.raises(UserError, match=message), storage_errors(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied", "/somewhere/rows.jsonl")


# --- losses, memory, models


def test_an_exploding_loss_is_one_message_and_a_lower_rate_goes_on(tiny: Tiny, tmp_path: Path) -> None:
    store = tmp_path / "store"
    wild = {"train.learning_rate": 1e30, "train.max_grad_norm": 1e6, "iterations": 1}
    with pytest.raises(UserError, match=r"loss of step \d+/2 is .*Lower the learning rate \(now 1e\+30\)"):
        run.run(tiny("spin", store, wild))
    kept = files(store)
    assert {kind for kind, _ in kept} == {"base", "data", "sft", "evaluate", "generate", "score"}
    lines = run.run(tiny("spin", store, wild | {"train.learning_rate": 1e-4}))
    assert [line.label for line in lines] == ["base", "start", "t=1"]
    assert files(store).items() > kept.items()


KNOBS = {
    "sft": "micro_batch_tokens .or set execution.gradient_checkpointing=true",
    "generate": "execution.slots",
    "score": "execution.micro_batch_tokens",
    "train": "micro_batch_tokens .or set execution.gradient_checkpointing=true",
    "evaluate": "execution.slots and execution.micro_batch_tokens",
}


@pytest.mark.parametrize("kind", KNOBS)
def test_out_of_memory_names_the_knob(
    tiny: Tiny, tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    shutil.copytree(undisturbed, tmp_path / "store")
    shutil.rmtree(tmp_path / "store" / kind)

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    config = tiny("iris", tmp_path / "store", LONG)
    with monkeypatch.context() as patch, pytest.raises(UserError, match=rf"^Stage {kind} .* lower .*{KNOBS[kind]}"):
        patch.setattr(LlamaModel, "forward", full)
        run.run(config)
    run.run(tiny("iris", tmp_path / "store", LONG | {"execution.slots": 4, "execution.micro_batch_tokens": 100}))


def test_other_errors_pass_unchanged(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Policy, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run.run(tiny("iris", tmp_path / "store"))


def test_a_tokenizer_of_another_model_is_refused(tiny: Tiny, tmp_path: Path, undisturbed: Path) -> None:
    (model,) = undisturbed.glob("base/*/model")
    shutil.copytree(model, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens([f"token{n}" for n in range(100)])
    tokenizer.save_pretrained(tmp_path / "model")
    local = {"model.source": "pretrained", "model.path": str(tmp_path / "model"), "model.sft": False}
    with pytest.raises(UserError, match=r"do not fit: the tokenizer has 138 tokens, the model's embedding 38 rows"):
        run.run(tiny("iris", tmp_path / "store", local))
    assert files(tmp_path / "store") == {}
