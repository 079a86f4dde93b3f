"""The skeleton of both programs: help, signals and exit statuses."""

import os
import signal
import sys
from types import ModuleType

import pytest

from analysis import __main__ as analysis
from sweeps import __main__ as sweeps
from sweeps.cli import command_line
from sweeps.cli.arguments import Arguments, Command

PROGRAMS = {"sweeps": sweeps, "analysis": analysis}
COMMANDS = [(program, name) for program, module in PROGRAMS.items() for name in module.COMMANDS]


@pytest.mark.parametrize(("program", "command"), [*COMMANDS, *((program, "") for program in PROGRAMS)])
def test_help_fits_80_columns(program: str, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert PROGRAMS[program].main([*([command] if command else []), "--help"]) == 0
    out, err = capsys.readouterr()
    assert f"python -m {program} " in out and err == ""
    assert max(map(len, out.splitlines())) <= 80
    for key in PROGRAMS[program].COMMANDS[command].settings if command else []:
        assert f"{key}=" in out
    for flag in PROGRAMS[program].COMMANDS[command].flags if command else []:
        assert flag in out


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_command_is_in_the_help_of_its_program(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert PROGRAMS[program].main([]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in PROGRAMS[program].COMMANDS)


def test_sigterm_ends_a_command_as_ctrl_c_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_: Arguments) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
        return 0

    module = ModuleType("endless")
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "endless", module)
    assert command_line.main("", {"wait": Command("endless:run")}, ["wait"]) == 130
    assert capsys.readouterr().err == "\nstopped.\n"
