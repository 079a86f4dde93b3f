"""The final table of an experiment: one line per policy, read from manifests alone."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from iris.cost import cost
from iris.files import write_atomic
from iris.plan import Chain, Row
from iris.store import Artifact, Store


@dataclass(frozen=True)
class Line:
    """What the table says of one policy. `alpha` and `gap` are None for `base`, `start` and reference-free methods."""

    label: str
    score: float
    stderr: float | None
    alpha: float | None
    gap: float | None
    tokens: int
    seconds: float
    tasks: dict[str, float]


def lines(chain: Chain, store: Store) -> list[Line]:
    """Return the lines of a finished experiment. Cost is that of the policy's own stages, whoever computed them."""
    return [_line(row, store) for row in chain.rows]


def _line(row: Row, store: Store) -> Line:
    policy = _manifest(store, row.policy.kind, row.policy.key)
    evaluation = _manifest(store, "evaluate", row.evaluate.key)
    stages = [policy, evaluation, *_own_stages(row, store)]
    results = evaluation.results
    return Line(
        row.label,
        results["average"],
        results["stderr"],
        policy.results.get("alpha"),
        policy.results.get("gap"),
        int(policy.results.get("packed_tokens", 0)),
        sum(cost(a.manifest, whole=True).seconds for a in stages),
        results["main"],
    )


def _own_stages(row: Row, store: Store) -> list[Artifact]:
    """Return the generation and scoring of the iteration that led to the policy."""
    stages = [*row.scores, *([row.policy.many("generate")[-1]] if row.policy.many("generate") else [])]
    return [_manifest(store, s.kind, s.key) for s in stages]


def _manifest(store: Store, kind: str, key: str) -> Artifact:
    return store.get(kind, key, check=False)


def render(chain: Chain, table: list[Line]) -> Table:
    """Return the table for a terminal, 80 columns wide at most."""
    view = Table(title=chain.name, title_style="bold", title_justify="left")
    for name in ("policy", "score", "α", "gap", "tokens", "seconds"):
        view.add_column(name, justify="left" if name == "policy" else "right", no_wrap=True)
    for line in table:
        view.add_row(
            line.label,
            f"{100 * line.score:.1f}" + (f" ± {100 * line.stderr:.1f}" if line.stderr is not None else ""),
            _number(line.alpha),
            _number(line.gap),
            f"{line.tokens:,}" if line.tokens else "–",
            f"{line.seconds:.0f}",
        )
    return view


def markdown(chain: Chain, table: list[Line]) -> str:
    """Return the table as Markdown, with a column per task."""
    tasks = list(table[0].tasks)
    head = ["policy", "score", "standard error", *tasks, "α", "gap", "tokens", "seconds"]
    rows = [head, ["---"] * len(head)]
    for line in table:
        scores = [f"{100 * line.tasks[t]:.2f}" for t in tasks]
        error = "–" if line.stderr is None else f"{100 * line.stderr:.2f}"
        numbers = [_number(line.alpha), _number(line.gap), str(line.tokens), f"{line.seconds:.1f}"]
        rows.append([line.label, f"{100 * line.score:.2f}", error, *scores, *numbers])
    return f"# {chain.name}\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def write(folder: Path, chain: Chain, table: list[Line], facts: dict[str, Any]) -> None:
    """Leave the table in the run's folder as Markdown and JSON."""
    write_atomic(folder / "table.md", markdown(chain, table))
    content = {"experiment": chain.name, "rows": [vars(line) for line in table]} | facts
    content["stages"] = [{"kind": s.kind, "key": s.key} for s in chain.stages]
    write_atomic(folder / "table.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def contamination(chain: Chain, store: Store) -> tuple[int, int]:
    """Return the numbers of evaluation documents whose prompt is a training prompt, and of all."""
    evaluation = store.get("evaluate", chain.rows[-1].evaluate.key, check=["prompts.json"])
    data = store.get("data", chain.data.key, check=["prompts.txt"])
    training = set((data.folder / "prompts.txt").read_text().split())
    documents = evaluation.read_json("prompts.json")
    return sum(not training.isdisjoint(hashes) for hashes in documents), len(documents)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
