"""A finished study with known numbers, written by hand: three methods, two sizes, three seeds, two tasks."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iris.store import Store
from sweeps.search import file as search_file
from sweeps.search.file import Search
from sweeps.state.records import Launch, Records

METHODS, SIZES, SEEDS, ITERATIONS = ("sft", "spin", "iris"), (100, 200), (0, 1, 2), 2
TASKS = {"sums": 20, "words": 10}  # and their documents
STUDY = "toy"
COST = {"seconds": 10.0, "cpu_seconds": 8.0, "gpu_seconds": 6.0, "tokens": 100, "processes": 1}
SHARDS = {"seconds": 5.0, "cpu_seconds": 4.0, "gpu_seconds": 3.0, "tokens": 50}
COMMIT = "0123456789abcdef"
ROWS = [["base", 0, 0, 2, False], ["start", 3, 3, 4, False], ["t=1", 5, 6, 7, False], ["t=2", 8, 9, 10, False]]
_HASH = "0123456789ab"


def right(method: str, size: int, seed: int, t: int, task: str) -> int:
    """Return how many documents of a task a policy answers; t = −1 is `base`, 0 `start`."""
    whole = TASKS[task]
    if t < 0:
        return whole // 10
    gain = {"sft": 0, "spin": 1, "iris": 2}[method] * t if t else 0
    return whole * 3 // 10 + size // 100 + seed % 2 + gain


def score(method: str, size: int, seed: int, t: int, task: str) -> float:
    """Return the main metric of a task, or the average."""
    if task == "average":
        return sum(score(method, size, seed, t, each) for each in TASKS) / len(TASKS)
    return right(method, size, seed, t, task) / TASKS[task]


@dataclass(frozen=True)
class Made:
    """The store, and its points as the record of the study has them."""

    store: Store
    points: list[dict[str, Any]]

    def name(self, method: str, size: int, seed: int) -> str:
        """Return the experiment's name."""
        return f"method={method},data.size={size},seed={seed}"

    def evaluation(self, method: str, size: int, seed: int, t: int) -> str:
        """kind/key of the evaluation after iteration t ≥ 1."""
        return f"evaluate/{method}-{size}-s{seed}-t{t}-{_HASH}"

    def record(self, study: str = STUDY) -> None:
        """Write down the study as the points are now."""
        Records(self.store).write_study(study, "", self.points)

    def record_search(self, name: str) -> None:
        """Write down a search whose trials are the experiments of `iris` with 200 annotations; the last was pruned."""
        folder = search_file.folder_of(self.store, name)
        folder.mkdir(parents=True)
        (folder / search_file.DECLARATION).write_text(json.dumps({"search": Search(name, (), ()).to_json()}))
        mine = [p for p in self.points if (p["facts"]["method"], p["facts"]["size"]) == ("iris", 200)]
        points = [p | {"name": f"trial-{n}", "overrides": [f"schedule.alpha={n}"]} for n, p in enumerate(mine)]
        launch = Launch("s1", f"search-{name}", "local", [f"search={name}", "launcher=local"], [], None, "", 0.0, "h")
        Records(self.store).create(launch)
        Records(self.store).write_study(launch.study, launch.id, [*points[:-1], points[-1] | {"state": "pruned"}])

    def remove(self, stage: str) -> None:
        """Remove a stage, as `rm` does."""
        folder = self.store.root / stage
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        folder.rmdir()


def make(root: Path, commit: str = COMMIT, better: int = 0) -> Made:
    """Write the whole study; `better` more documents are answered after every iteration."""
    made = Made(Store(root), [])
    made.store.prepare()
    for method in METHODS:
        for size in SIZES:
            for seed in SEEDS:
                stages = list(_experiment(made.store, (method, size, seed), commit, better))
                facts = {"method": method, "model": "m", "data": "d", "size": size, "schedule": None, "seed": seed}
                facts |= {"iterations": ITERATIONS, "tasks": list(TASKS)}
                facts["schedule"] = "adaptive" if method == "iris" else None
                overrides = [f"method={method}", f"data.size={size}", f"seed={seed}", f"store={root}"]
                point = {"name": made.name(method, size, seed), "overrides": overrides, "stages": stages}
                made.points.append(point | {"facts": facts, "rows": ROWS})
    made.record()
    return made


def _experiment(store: Store, point: tuple[str, int, int], commit: str, better: int) -> Iterator[str]:
    method, size, seed = point
    base, start = "m", f"{size}-s{seed}-sft"
    yield _stage(store, commit, "base", base, {"commit": "f" * 40})
    yield _stage(store, commit, "data", f"d-{size}", {}, {"rows": size - 1})
    yield _evaluate(store, commit, base, (method, size, seed, -1), 0)
    yield _stage(store, commit, "sft", start, {"batch": 8}, files={"steps.jsonl": _steps(2)})
    yield _evaluate(store, commit, start, (method, size, seed, 0), 0)
    before = start
    for t in range(1, ITERATIONS + 1):
        policy = f"{method}-{size}-s{seed}-t{t}"
        yield _stage(store, commit, "generate", f"{before}-y{t - 1}", {}, cost=COST | {"shards": SHARDS})
        results = {"alpha": 0.5 * t, "gap": 0.1 * t} if method == "iris" else {}
        more = {"real_ess": 6.0, "alpha": 0.5} if method == "iris" else {}
        yield _stage(store, commit, "train", policy, {"batch": 8}, results, {"steps.jsonl": _steps(3, **more)})
        yield _evaluate(store, commit, policy, (method, size, seed, t), better)
        before = policy


def _steps(count: int, **more: float) -> str:
    return "".join(
        json.dumps({"step": n, "loss": 1.0 - n / 10, "real_ratio": n / 10} | more) + "\n" for n in range(count)
    )


def _evaluate(store: Store, commit: str, policy: str, point: tuple[str, int, int, int], better: int) -> str:
    known = {task: right(*point, task) + better for task in TASKS}
    scores = {task: n / TASKS[task] for task, n in known.items()}
    tasks = {task: {"accuracy,none": s, "accuracy_stderr,none": 0.1, "length,none": 7.0} for task, s in scores.items()}
    average = sum(scores.values()) / len(scores)
    content = {
        "tasks": tasks,
        "main": {task: ["accuracy,none", s, 0.1] for task, s in scores.items()},
        "average": average,
        "versions": {"lm_eval": "1", "tasks": {task: {"version": 1, "documents": n} for task, n in TASKS.items()}},
    }
    files = {"scores.json": json.dumps(content)}
    for task, count in TASKS.items():
        samples = [
            {"doc_id": n, "text": f"{task} {n}", "metrics": {"accuracy,none": float(n < known[task])}}
            for n in range(count)
        ]
        files[f"samples/{task}.jsonl"] = "".join(json.dumps(sample) + "\n" for sample in samples)
    results = {"average": average, "stderr": 0.07, "main": scores}
    return _stage(store, commit, "evaluate", policy, {}, results, files, provenance={"harness": content["versions"]})


def _stage(
    store: Store,
    commit: str,
    kind: str,
    name: str,
    identity: Mapping[str, Any],
    results: Mapping[str, Any] | None = None,
    files: Mapping[str, str] | None = None,
    cost: Mapping[str, Any] = COST,
    provenance: Mapping[str, Any] | None = None,
) -> str:
    key = f"{name}-{_HASH}"
    with store.claim(kind, key) as claim:
        if claim is not None:
            for file, text in (files or {}).items():
                (claim.new / file).parent.mkdir(exist_ok=True)
                (claim.new / file).write_text(text)
            about = {
                "code": {"commit": commit},
                "packages": {"torch": "1"},
                "python": "3",
                "device": "cpu",
                "host": "h",
            }
            manifest = {"kind": kind, "key": key, "name": name, "identity": dict(identity), "inputs": {}}
            manifest |= {"results": dict(results or {}), "cost": dict(cost)}
            manifest["provenance"] = about | {"platform": "p", "start": "2026-01-01"} | dict(provenance or {})
            store.commit(kind, key, claim, manifest)
    return f"{kind}/{key}"
