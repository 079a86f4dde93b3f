"""Run the processes of a group in turns, so that disturbances of the machine affect all of them alike."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from cases import Case, Group

HERE = Path(__file__).parent
STARTING = 2  # processes that load and warm up at the same time
Lines = list[dict[str, float]]


class OutOfMemory(RuntimeError):
    """A case did not fit into the memory of the GPU."""


class Worker:
    """A process that measures one window per line that it receives."""

    def __init__(self, case: Case, arguments: Sequence[str]) -> None:
        self.case, self.errors = case, TemporaryFile("w+")  # noqa: SIM115
        environment = os.environ | {"PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
        several = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={case.processes}"]
        start = [sys.executable, *(several if case.processes > 1 else [])]
        self.command = [*start, str(HERE / f"{case.script}.py"), "--driven", "--variant", case.variant, *arguments]
        self.process = subprocess.Popen(
            self.command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True
        )
        assert self.process.stdin and self.process.stdout
        self.input, self.output = self.process.stdin, self.process.stdout

    def read(self) -> dict[str, Any]:
        """Return the next line of the process. Raises RuntimeError if it ends."""
        line = self.output.readline()
        if not line:
            self.process.wait()
            self.errors.seek(0)
            text = self.errors.read()
            kind = OutOfMemory if "OutOfMemoryError" in text else RuntimeError
            raise kind(f"{self.case.label} ({' '.join(self.command)}) failed:\n{text[-3000:]}")
        result: dict[str, Any] = json.loads(line)
        return result

    def measure(self) -> dict[str, Any]:
        """Measure one window."""
        self.input.write("\n")
        self.input.flush()
        return self.read()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.input.close()
        self.process.wait()
        self.output.close()
        self.errors.close()


def measure(group: Group, rounds: int, together: bool, say: Callable[[str], None]) -> dict[str, Lines]:
    """Return the windows of each case by label, the warm-up first.

    With `together` all processes stay alive and take turns. Otherwise (they would not fit into GPU memory together)
    each runs alone for half of the windows, and again in the opposite order; a case that does not fit has no lines.
    """
    if together:
        return _by_turns(group.cases, group.arguments, rounds, say)
    half = -(-rounds // 2)
    result: dict[str, Lines] = {}
    for cases in (group.cases, group.cases[::-1]):
        for case in cases:
            lines = result.setdefault(case.label, [])
            try:
                lines.extend(_by_turns([case], group.arguments, half, say)[case.label])
            except OutOfMemory:
                say(f"{case.label}: out of memory")
    return result


def _by_turns(
    cases: Sequence[Case], arguments: Sequence[str], rounds: int, say: Callable[[str], None]
) -> dict[str, Lines]:
    result: dict[str, Lines] = {}
    with ExitStack() as stack:
        workers: list[Worker] = []
        for start in range(0, len(cases), STARTING):  # nothing is measured yet
            for case in cases[start : start + STARTING]:
                say(f"start {case.label}")
                worker = Worker(case, ("--rounds", str(rounds), *arguments, *case.arguments))
                workers.append(stack.enter_context(worker))
            for worker in workers[start:]:
                result[worker.case.label] = [worker.read()]
        for n in range(rounds):
            for worker in workers:
                say(f"round {n + 1}/{rounds} {worker.case.label}")
                result[worker.case.label].append(worker.measure())
    return result
