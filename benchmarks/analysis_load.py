"""python benchmarks/analysis_load.py [experiments]     time `analysis.load`, cold and warm

Writes a store of 10,000 experiments × 5 iterations × 10 tasks in a temporary folder (1 GB) and reads it: without an
index, with one, and after one more experiment has finished. Wall and CPU seconds, children included.
"""

import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import analysis
from iris.store import Store
from sweeps.state.records import Records

TASKS = [f"task{n}" for n in range(10)]
ITERATIONS, METHODS, SIZES = (
    5,
    ("sft", "spin", "space", "spif", "tpaw", "t_spin", "iris"),
    (14_000, 26_000, 50_000, 100_000, 200_000),
)
COST = {"seconds": 10.0, "cpu_seconds": 8.0, "gpu_seconds": 6.0, "tokens": 100, "processes": 1}
PROVENANCE = {
    "code": {"commit": "0" * 40, "diff": None},
    "packages": {f"package{n}": "1.2.3" for n in range(11)},
    **dict.fromkeys(("python", "host", "platform", "device"), "somewhere"),
    "command": ["python", "-m", "sweeps", "launch", "study=data_efficiency"],
    "start": "2026-01-01T00:00:00+00:00",
    "end": "2026-01-01T00:10:00+00:00",
}


def stage(root: Path, kind: str, name: str, results: dict[str, Any], files: dict[str, str] | None = None) -> str:
    """Write one finished stage, once."""
    key = f"{name}-0123456789ab"
    folder = root / kind / key
    if not folder.exists():
        folder.mkdir(parents=True)
        sums = {file: hashlib.sha256(text.encode()).hexdigest() for file, text in (files or {}).items()}
        for file, text in (files or {}).items():
            (folder / file).write_text(text)
        manifest = {"kind": kind, "key": key, "name": name, "identity": {"batch": 64}, "inputs": {}, "results": results}
        manifest |= {"cost": COST, "provenance": PROVENANCE, "files": sums}
        digest = hashlib.sha256(json.dumps(manifest, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
        (folder / "manifest.json").write_text(json.dumps(manifest | {"sha256": digest}, indent=1))
    return f"{kind}/{key}"


def evaluate(root: Path, name: str, seed: int) -> str:
    """Write an evaluation of ten tasks with one metric each."""
    values = {task: (hash((name, task, seed)) % 1000) / 1000 for task in TASKS}
    content = {
        "tasks": {task: {"acc,none": value, "acc_stderr,none": 0.01} for task, value in values.items()},
        "main": {task: ["acc,none", value, 0.01] for task, value in values.items()},
        "average": sum(values.values()) / len(values),
        "versions": {"lm_eval": "1", "tasks": {task: {"version": 1, "documents": 1000} for task in TASKS}},
    }
    results = {"average": content["average"], "stderr": 0.003, "main": values}
    return stage(root, "evaluate", name, results, {"scores.json": json.dumps(content)})


def experiment(root: Path, number: int) -> Iterator[str]:
    """Write the stages of one experiment; base, data and SFT are shared."""
    method, rest = METHODS[number % 7], number // 7
    size, seed = SIZES[rest % len(SIZES)], rest // len(SIZES)
    yield stage(root, "base", "model", {})
    yield stage(root, "data", f"data-{size}", {"rows": size})
    yield evaluate(root, "model", 0)
    before = f"{size}-s{seed}"
    yield stage(root, "sft", before, {})
    yield evaluate(root, before, seed)
    for t in range(ITERATIONS):
        name = f"{method}-{size}-s{seed}-t{t + 1}"
        for kind, suffix in (("generate", "y"), ("score", "on-y"), ("score", "on-y0")):
            yield stage(root, kind, f"{before}-{method}-{suffix}{t}", {"responses": size})
        yield stage(root, "train", name, {"alpha": 0.5, "gap": 0.1, "loss": 0.3})
        yield evaluate(root, name, seed)
        before = name


def point(root: Path, number: int) -> dict[str, Any]:
    """Return one experiment of a study's record."""
    method, rest = METHODS[number % 7], number // 7
    facts = {"method": method, "model": "model", "data": "data", "size": SIZES[rest % len(SIZES)], "schedule": None}
    facts |= {"seed": rest // len(SIZES), "iterations": ITERATIONS, "tasks": TASKS}
    overrides = [
        f"method={method}",
        f"data.size={SIZES[rest % len(SIZES)]}",
        f"seed={rest // len(SIZES)}",
        "iterations=5",
    ]
    rows: list[list[Any]] = [["base", 0, 0, 2, False], ["start", 3, 3, 4, False]]
    rows += [[f"t={t + 1}", 5 + 5 * t, 8 + 5 * t, 9 + 5 * t, False] for t in range(ITERATIONS)]
    stages = list(experiment(root, number))
    return {"name": f"e{number}", "overrides": overrides, "stages": stages, "facts": facts, "rows": rows}


def timed(store: Store, what: str) -> None:
    """Load once and print the time."""
    wall, before = time.perf_counter(), os.times()
    frames = analysis.load("big", store)
    after = os.times()
    cpu = sum(after[:4]) - sum(before[:4])
    rows = f"{len(frames.scores):,} rows, {len(frames.stages):,} stages"
    print(f"{what:32s} {time.perf_counter() - wall:6.2f} s wall {cpu:6.2f} CPU-s   {rows}", flush=True)


def main() -> None:
    """Write, then load three times."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "store"
        points = [point(root, number) for number in range(count)]
        store = Store(root)
        store.prepare()
        Records(store).write_study("big", "", points)
        timed(store, "no index")
        timed(store, "index")
        timed(store, "index")
        Records(store).write_study("big", "", [*points, point(root, count)])
        timed(store, "index, one experiment more")


if __name__ == "__main__":
    main()
