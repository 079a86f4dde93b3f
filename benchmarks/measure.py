"""Shared by all benchmarks: clock, memory, operation counts, and taking turns with other processes."""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from iris.model.packing import Row
from workload import SHAPES, Shape


@dataclass(frozen=True)
class Options:
    """The command line of a measured process."""

    model: str
    variant: str
    rounds: int
    window: int
    batch: int
    driven: bool
    vocabulary: int
    length: int
    distributed: str

    @property
    def shape(self) -> Shape:
        """The model's shape, with `vocabulary` if it is given."""
        named = SHAPES[self.model]
        return Shape(**{**vars(named), "vocabulary": self.vocabulary or named.vocabulary})

    @property
    def batches(self) -> int:
        """The number of batches: a warm-up and all windows."""
        return 1 + self.rounds * self.window


def options(description: str | None, variants: Iterable[str]) -> Options:
    """Parse the command line of a process that measures one of the variants."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--variant", choices=list(variants), required=True)
    parser.add_argument("--model", choices=list(SHAPES), default="v4k")
    parser.add_argument("--rounds", type=int, default=5, help="measured windows")
    parser.add_argument("--window", type=int, default=1, help="steps in a window")
    parser.add_argument("--batch", type=int, default=8, help="pairs in a batch")
    parser.add_argument("--driven", action="store_true", help="begin a window when a line arrives on standard input")
    parser.add_argument("--vocabulary", type=int, default=0, help="another one than the model's")
    parser.add_argument("--length", type=int, default=0, help="packed tokens of every pair; 0: the mix of lengths")
    parser.add_argument("--distributed", choices=("ddp", "fsdp2"), default="ddp", help="of several processes")
    return Options(**vars(parser.parse_args()))


class Meter:
    """Prints a JSON line after a warm-up step and after every window of steps.

    Time is CPU time, which other processes disturb least; on a GPU wall time. Memory is the peak so far: the resident
    set, on a GPU the tensors. Of several cooperating processes the first one measures.
    """

    def __init__(self, window: int, driven: bool = False) -> None:
        self.window, self.driven, self.steps = window, driven, 0
        # The protocol owns standard output; what libraries print there goes to standard error.
        self.output = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._begin()

    def mark(self, units: float, flops: float = 0.0, **facts: Any) -> None:
        """Count a finished step: `units` of work that need at least `flops` operations."""
        self.steps += 1
        self.units += units
        self.flops += flops
        if (self.steps - 1) % self.window == 0 and os.environ.get("RANK", "0") == "0":
            seconds = clock() - self.start
            line = {"seconds": seconds, "units": self.units, "flops": self.flops, "memory": peak_memory()}
            line["warm"] = self.steps > 1
            print(json.dumps(line | facts), file=self.output, flush=True)
            if self.driven and not sys.stdin.readline():
                raise SystemExit
            self._begin()

    def _begin(self) -> None:
        self.units = self.flops = 0.0
        self.start = clock()


class StepMeter(Meter):
    """A meter of training steps on batches of a pool, in pairs.

    A batch counts as its operations in average pairs of the pool, so that batches of different lengths are comparable.
    """

    def __init__(self, run: Options, pool: Sequence[Row]) -> None:
        self.shape = run.shape
        self.pair = train_flops(self.shape, pool) / len(pool)
        super().__init__(run.window, run.driven)

    def step(self, batch: Iterable[Row], loss: float) -> None:
        """Count a finished step on a batch."""
        flops = train_flops(self.shape, batch)
        self.mark(flops / self.pair, flops, loss=loss)


def clock() -> float:
    """Return seconds of CPU time; on a GPU synchronise and return wall time."""
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def peak_memory() -> int:
    """Return bytes; from /proc, since `ru_maxrss` includes the parent's memory before exec."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status["VmHWM"].split()[0])


def forward_flops(shape: Shape, rows: Iterable[Row]) -> float:
    """Return the minimum of floating-point operations for log π(response | prompt) of some rows.

    Two per weight and token, with the prompt once for its responses, the output projection at predicted response tokens
    only, and attention to visible tokens only.
    """
    total = 0.0
    for row in rows:
        lengths = [len(response) for response in row.responses]
        visible = _triangle(len(row.prompt)) + sum(len(row.prompt) * n + _triangle(n) for n in lengths)
        total += 2 * shape.layer_weights * row.tokens + 2 * shape.vocabulary * shape.hidden * sum(lengths)
        total += 4 * shape.layers * shape.hidden * visible
    return total


def train_flops(shape: Shape, rows: Iterable[Row]) -> float:
    """Return the operations with the gradient: three times the forward pass."""
    return 3 * forward_flops(shape, rows)


def _triangle(length: int) -> float:
    return length * (length + 1) / 2
