"""python benchmarks/embedded_table.py results.jsonl          the table of docs/embedded-default.md

Means over seeds; differences are paired by seed, with 95 % intervals of Student's t.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from scipy import stats

COLUMNS = ("greedy", "sampled", "gap", "nll", "any_order")


def interval(values: np.ndarray) -> str:
    """Mean ± half the width of the 95 % interval."""
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():+.1f} ± {half:.1f}"


def main() -> None:
    """Print Markdown."""
    rows = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
    runs: dict[str, dict[int, dict[str, float]]] = defaultdict(dict)
    for row in rows:
        runs[row["run"]][row["seed"]] = row["last"]
        runs["start (a)"][row["seed"]] = row["start"]
    seeds = sorted(runs["start (a)"])
    start = runs.pop("start (a)")
    order = sorted(runs, key=lambda name: -np.mean([runs[name][s]["greedy"] for s in seeds]))
    head = ["policy", "greedy", "− (a)", "− (b)", "sampled", "− (a)", "− (b)", "gap", "NLL", "any order", "tokens"]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for name, values in [("start (a)", start), *((name, runs[name]) for name in order)]:
        table = {c: np.array([values[s][c] for s in seeds]) for c in COLUMNS}
        cells = ["sft (b)" if name == "sft" else name]
        for column in ("greedy", "sampled"):
            own = 100 * table[column]
            cells.append(f"{own.mean():.1f}")
            for base in (start, runs["sft"]):
                same = base is values
                other = 100 * np.array([base[s][column] for s in seeds])
                cells.append("" if same else interval(own - other))
        cells += [f"{table[c].mean():.3f}" for c in ("gap", "nll")] + [f"{table['any_order'].mean():.2f}"]
        cells.append(f"{np.mean([values[s].get('tokens', 0) for s in seeds]) / 1000:.0f}k" if name in runs else "")
        print(f"| {' | '.join(cells)} |")
    print(f"\nSeeds {', '.join(map(str, seeds))}.")


if __name__ == "__main__":
    main()
