"""The command line: help, configuration, several runs, several processes, terminals, exit statuses."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from iris import compose, run
from iris.config import Config
from iris.errors import UserError
from iris.execution import processes
from iris.method.registry import METHODS

Tiny = Callable[..., Config]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for the runs of this file that need no fresh one."""
    return tmp_path_factory.mktemp("cli") / "store"


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder the command is typed in; Hydra's changes to arguments and environment end with the test."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["iris"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    return folder


def folders(store: Path) -> list[str]:
    return [f"store={store}", f"output={store / 'outputs'}"]


def test_help_lists_the_groups_and_imports_nothing_heavy() -> None:
    program = """if True:
        import json, sys
        from iris import run
        status = run.main(["--help"])
        print(json.dumps([status, sorted(sys.modules)]))"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    text, result = done.stdout.rstrip().rsplit("\n", 1)
    status, modules = json.loads(result)
    assert status == 0 and done.stderr == ""
    assert not {"torch", "transformers", "datasets", "lm_eval", "peft", "accelerate", "pandas"} & set(modules)
    assert f"method={'|'.join(METHODS)}" in text
    for group, options in compose.groups().items():
        assert f"{group}=" in text and all(option in text for option in options)
    for key in ("store=FOLDER", "output=FOLDER", "--cfg job", "--multirun"):
        assert key in text


@pytest.mark.parametrize(
    "order", [["--cfg", "job", "method=spin", "seed=7"], ["+method=spin", "--cfg", "job", "seed=7"]]
)
def test_the_resolved_configuration_is_printed(order: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(order) == 0
    printed = capsys.readouterr().out
    assert "seed: 7\n" in printed and "name: spin\n" in printed
    assert "hydra" not in printed


ERRORS = {
    "": f"No method given. Add one of: {' '.join(f'+method={m}' for m in METHODS)}",
    "+method=irs": f"method=irs: choose one of {', '.join(sorted(METHODS))}. Options of your own: "
    "hydra.searchpath=[FOLDER]. Did you mean 'iris'?",
    "--cfg job +method=irs": "method=irs: choose one of",
    "--multirun +method=irs,spin": "irs",
    "--multirun seed=0,1": "No method given",
    "+method=iris sede=1": "Did you mean 'seed'?",
    "+method=iris --seed 1": "--seed: no such flag. There are --cfg job, --multirun,",
    "+method=iris data=files data.path=nowhere": "data.path=nowhere: no such file or folder",
    "+method=iris evaluate.tasks=[embeded]": "embedded",
    "+method=iris execution.device=cuda": "execution.device=cuda",
    "+method=iris train.precision=float16": "choose one of float32, bfloat16",
}


@pytest.mark.parametrize("arguments", [a for a in ERRORS if "cuda" not in a or not torch.cuda.is_available()])
def test_a_mistake_is_one_line_and_exit_status_2(
    arguments: str, somewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main([*arguments.split(), "store=store", "output=outputs"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    if "--multirun" in arguments and lines[0].startswith("Error executing job with overrides: ["):
        del lines[0]  # which of the runs it was
    assert lines[0].startswith("error: ") and any(ERRORS[arguments] in line for line in lines)
    assert len(lines) == 1 or lines[0] == f"error: {len(lines) - 1} mistakes:"
    assert not list(somewhere.glob("store/*/*/manifest.json"))


def test_several_runs_share_one_store_and_leave_nothing_here(
    settings: list[str], tmp_path: Path, somewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    arguments = ["--multirun", "+method=spin,sft", "seed=0,1", *settings, "iterations=1", *folders(store)]
    assert run.main(arguments) == 0
    tables = [line for line in capsys.readouterr().out.splitlines() if re.fullmatch(r"\S+-s[01]-[0-9a-f]{8}", line)]
    assert [table.split("-20-")[0] for table in tables] == ["spin-sums", "spin-sums", "sft-sums", "sft-sums"]
    assert len(list(store.glob("sft/*"))) == 2, "one of each seed, shared by the methods"
    assert len(list(store.glob("train/*"))) == 4
    assert list(somewhere.iterdir()) == []


def test_rows_of_the_table_fit_in_80_columns(
    tiny: Tiny, shared: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny("iris", shared, {"data.name": "a-data-set-with-quite-a-long-name-that-fills-a-line", "iterations": 1})
    monkeypatch.setenv("COLUMNS", "80")
    run.run(config)
    rows = [line for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert [row.split("│")[1].strip() for row in rows] == ["base", "start", "t=1"]
    assert all(row.count("│") == 7 and len(row) == len(rows[0]) <= 80 and "…" not in row for row in rows)


PLAIN = re.compile(
    r"(base|data|sft|generate|score|train|evaluate) [\w.= -]+: (\d+)/\2 \w+, [\d,.]+/s, \d+ s( loss .*)?"
)


def test_progress_without_a_terminal_is_plain_lines(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run.run(tiny("spin", tmp_path / "store", {"iterations": 1}))
    lines = capsys.readouterr().err.splitlines()
    kinds = ["base", "data", "evaluate", "sft", "evaluate", "generate", "score", "score", "train", "evaluate"]
    assert [line.split()[0] for line in lines] == kinds
    assert all(PLAIN.fullmatch(line) for line in lines), lines


def test_progress_in_a_terminal_is_a_live_bar(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    master, slave = pty.openpty()
    shown: list[bytes] = []
    reader = threading.Thread(target=lambda: shown.extend(chunks(master)), daemon=True)
    reader.start()
    with os.fdopen(slave, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        run.run(tiny("spin", tmp_path / "store", {"iterations": 1}))
    reader.join(10)
    text = b"".join(shown).decode()
    assert "\x1b[" in text, "drawn anew in place"
    for label in ("base tiny", "train spin-sums-20-tiny-s0-t1", "score sums-20-tiny-s0-sft-on-y0"):
        assert label in text
    assert "5/20" in text or "20/20" in text


def chunks(descriptor: int) -> list[bytes]:
    """What a terminal is sent until its last writer has closed it."""
    found = []
    while True:
        try:
            chunk = os.read(descriptor, 65536)
        except OSError:
            break
        if not chunk:
            break
        found.append(chunk)
    os.close(descriptor)
    return found


# --- several processes


def test_two_processes_give_the_table_of_one(
    settings: list[str], tiny: Tiny, shared: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def printed() -> list[str]:
        rows = [line for line in capfd.readouterr().out.splitlines() if "│" in line]
        return [row.rpartition("│")[0].rpartition("│")[0] for row in rows]  # without seconds

    run.run(tiny("iris", shared))
    one, store = printed(), tmp_path / "store"
    assert run.main(["+method=iris", *settings, *folders(store), "execution.processes=2"]) == 0
    assert printed() == one, "once"
    for path in shared.glob("train/iris-sums-*/model/model.safetensors"):
        mine, theirs = load_file(path), load_file(store / path.relative_to(shared))
        torch.testing.assert_close(theirs, mine, rtol=1e-3, atol=1e-5)
    manifests = [json.loads(path.read_text()) for path in store.glob("train/*/manifest.json")]
    assert [m["cost"]["processes"] for m in manifests] == [2, 2]


def test_what_the_first_process_says_is_said_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_GRACE", 300)  # however slow the machine: the second ends by itself
    with pytest.raises(SystemExit) as stop:
        processes.start(2, ["+method=irs"], tmp_path)
    assert stop.value.code == 2
    assert capfd.readouterr().err.count("error: method=irs") == 1
    assert "error: method=irs" in (tmp_path / "process-1.log").read_text()


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The processes of `processes.start`: of three the second fails, the others would go on for long."""
    found: list[subprocess.Popen[bytes]] = []

    def fake(rank: int, *_: Any) -> subprocess.Popen[bytes]:
        program = "import time; time.sleep(600)" if rank != 1 else "print('error: no memory'); raise SystemExit(3)"
        with (tmp_path / f"process-{rank}.log").open("wb") as log:
            found.append(subprocess.Popen([sys.executable, "-c", program], stdout=log))
        return found[-1]

    monkeypatch.setattr(processes, "_open", fake)
    monkeypatch.setattr(processes, "_GRACE", 0.2)
    return found


def test_a_failure_of_another_process_is_reported_and_ends_all(
    tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    with pytest.raises(UserError, match=r"Process 1 of 3 failed \(exit status 3\)\. error: no memory .*process-1\.log"):
        processes.start(3, [], tmp_path)
    assert all(process.returncode is not None for process in started)


def test_stopping_the_command_ends_its_processes(
    tmp_path: Path, started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(processes, "_wait", interrupt)
    monkeypatch.setattr(processes, "_GRACE", 10)
    with pytest.raises(SystemExit) as stop:
        processes.start(1, [], tmp_path)
    assert stop.value.code == 130
    assert [process.returncode for process in started] == [-signal.SIGTERM]
