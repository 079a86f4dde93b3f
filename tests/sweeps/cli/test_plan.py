"""`python -m sweeps plan`: what it prints, and one line for whatever is mistyped."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sweeps.__main__ import COMMANDS, main
from sweeps.study.presets import names

COMMIT = "0123456789" * 4
HUB = (f"model.revision={COMMIT}", f"data.revision={COMMIT}")
HEAVY = ("torch", "transformers", "datasets", "lm_eval", "optuna", "submitit", "pandas", "matplotlib")

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """`command(*words, width=80)`: exit status, output, errors; on an empty store."""

    def run(*words: str, width: int = 80) -> tuple[int, str, str]:
        monkeypatch.setenv("COLUMNS", str(width))
        status = main([*words, f"store={tmp_path / 'store'}"] if words[:1] == ("plan",) else list(words))
        return status, *capsys.readouterr()

    return run


@pytest.mark.parametrize("width", [80, 120])
def test_the_plan_fits_its_terminal(command: Command, width: int) -> None:
    status, out, err = command("plan", "study=data_efficiency", *HUB, width=width)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "study data_efficiency: 105 experiments"
    assert all(len(line) <= width for line in lines if not line.startswith("store "))
    head = next(n for n, line in enumerate(lines) if line.startswith("stage"))
    assert lines[head].split() == ["stage", "all", "cached", "missing", "shared", "GPU-hours", "disk", "one", "takes"]
    kinds = [line.split()[0] for line in lines[head + 1 : head + 9]]
    assert kinds == ["base", "data", "sft", "generate", "score", "train", "evaluate", "total"]
    assert lines[head + 8].split()[1:5] == ["1,792", "0", "1,792", "82"]
    assert not any("…" in line for line in lines), "nothing is cut off"
    facts = " ".join(out.split())
    assert "saved by sharing" in facts
    assert "for the longest chain of stages" in facts
    assert "H100" in facts
    assert "by prefix" not in facts, "no two methods have an iteration in common"


def test_a_plan_computes_nothing_and_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from sweeps.__main__ import main; status = main(sys.argv[1:]); "
        f"print([m for m in {HEAVY} if m in sys.modules]); sys.exit(status)"
    )
    words = ["plan", "study=embedded", "seeds=[0]", "method=iris,sft", f"store={tmp_path / 'store'}"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "study embedded: 6 experiments"
    assert done.stdout.splitlines()[-1] == "[]"
    assert not (tmp_path / "store").exists()


def test_toy_costs_are_in_minutes_of_the_processor(command: Command) -> None:
    status, out, _ = command("plan", "study=embedded", "seeds=[0]", "method=spin")
    assert status == 0
    assert "CPU-minutes" in out
    assert "GPU-hours" not in out


def test_the_budget(command: Command) -> None:
    words = ("plan", "study=methods", "seeds=[0]", "method=spin", *HUB)
    assert command(*words, "budget_gpu_hours=1000")[0] == 0
    status, out, err = command(*words, "budget_gpu_hours=3.5")
    assert status == 2
    assert out.startswith("study methods"), "the plan shows what costs that much"
    assert err.startswith("error: budget_gpu_hours=3.5: missing stages are estimated at ")
    assert err.count("\n") == 1


def test_the_launcher_gives_the_devices(command: Command) -> None:
    words = ("plan", "study=methods", "seeds=[0]", "method=spin", *HUB)

    def chain(*more: str) -> str:
        return next(line for line in command(*words, *more)[1].splitlines() if line.startswith("wall time"))

    one = chain()
    assert chain("launcher=slurm") == one
    assert chain("launcher=slurm", "launcher.resources.gpus=8") != one


def test_why(command: Command) -> None:
    words = ("plan", "study=embedded", "seeds=[0]", "method=spin", "data.size=50")
    out = " ".join(command(*words)[1].split())
    key = out.split("such as ")[1].split()[0]
    status, answer, _ = command(*words, "--why", key)
    assert status == 0
    assert answer.startswith(f"evaluate/{key} has not run yet.\nNo evaluate stage has finished in ")


def test_help_names_the_studies(command: Command) -> None:
    for words in (("plan", "--help"), ("plan", "study=embedded", "-h")):
        status, out, _ = command(*words)
        assert status == 0
        assert f"Studies: {', '.join(names('study'))}" in out
    status, out, _ = command("--help")
    assert status == 0
    assert all(name in out for name in COMMANDS)
    assert command() == (0, out, "")


MISTAKES = {
    "plna": r"error: 'plna' is no command. Choose from plan, launch, .* Did you mean 'plan'?",
    "plan": r"error: No study is given: study=NAME or study=FILE.yaml. Studies: ablations, ",
    "plan study=": r"error: No study is given",
    "plan study=embeded": r"error: study=embeded: choose one of .* Did you mean 'embedded'?",
    "plan studdy=embedded": r"error: studdy: no such setting. Did you mean 'study'?",
    "plan study=embedded study=alpha": r"error: study is given twice.",
    "plan study=embedded foo": r"error: 'foo': write settings as key=value",
    "plan study=embedded --wy=x": r"error: --wy: no such flag. Choose from --why KEY,.* Did you mean '--why'?",
    "plan study=embedded --why": r"error: --why needs a KEY: --why KEY",
    "plan study=embedded --why nothing": r"error: --why nothing: the study has no such stage.",
    "plan study=embedded method=irs": r"error: method=irs: choose one of .* Did you mean 'iris'?",
    "plan study=embedded method=iris,irs": r"error: method=irs: .*(6 of 12 experiments, first method=irs,data.size=50",
    "plan study=embedded methd=iris": r"error: methd: the configuration has no such key. Did you mean 'method'?",
    "plan study=embedded data.sise=1k": r"error: data.sise: .* no such key. Did you mean 'data.size'?",
    "plan study=embedded data.size=1q": r"error: data.size=1q: expected 'all' or a number of rows",
    "plan study=embedded seeds=[]": r"error: seeds: seed: the list is empty.",
    "plan study=embedded seeds=[x]": r"error: seed=x: expected a whole number at least 0",
    "plan study=embedded launcher=slrum": r"error: launcher=slrum: choose one of .* Did you mean 'slurm'?",
    "plan study=embedded launcher.resources.gpus=2": r"error: launcher.resources.gpus=2: no launcher is named",
    "plan study=embedded budget_gpu_hours=lots": r"error: budget_gpu_hours=lots: expected a number of hours",
    "plan study=embedded budget_gpu_hours=-1": r"error: budget_gpu_hours=-1: expected a number of hours",
    "plan study=embedded budget_gpu_hour=1": r"error: budget_gpu_hour: no such setting.*'budget_gpu_hours'",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_one_line_and_status_2(command: Command, words: str) -> None:
    status, out, err = command(*words.split())
    assert status == 2
    pattern = re.escape(MISTAKES[words]).replace(r"\.\*", ".*")
    assert re.match(pattern, err), err
    assert err.count("\n") == 1
    assert out == ""


def test_several_stores_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "study=embedded", "method=sft", "seeds=[0]", f"store={tmp_path}/a,{tmp_path}/b"]) == 2
    assert "its experiments name several stores" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "sweeps", "plan", "study=embedded", "method=sft", f"store={tmp_path}"]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"COLUMNS": "80"}
    )
    assert process.stdout and process.stderr
    process.stdout.close()
    assert process.wait(60) in (1, 141)  # of rich and of ours
    assert process.stderr.read() == b""
