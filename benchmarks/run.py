"""python benchmarks/run.py                          everything; prints the table and writes benchmarks/RESULTS.md
python benchmarks/run.py --only step-v32k           one group; RESULTS.md keeps the others as they were
python benchmarks/run.py --quick                    a tiny model and one round, as a check

Runs the groups for GPUs where there is one, else those for one CPU thread.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

import report
from cases import CPU, GPU, MORE, QUICK, Case, Group, sharded
from driver import HERE, measure

PACKAGES = ("torch", "transformers", "trl", "accelerate")
RAW = HERE / "results.json"


def machine() -> dict[str, str]:
    """Return processor, memory, GPU and versions."""
    import torch

    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpus = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    return {
        "processor": f"{found[1] if found else platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB",
        "GPU": ", ".join(gpus) or "none; one CPU thread",
        "Python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


def gather(groups: Iterable[Group], rounds: int, together: bool, console: Console) -> dict[str, Any]:
    """Measure the groups one after the other, saving each."""
    results: dict[str, Any] = {}
    about = machine()
    with console.status("") as status:
        for group in groups:
            console.print(f"{group.name}: {len(group.cases)} processes, {rounds} rounds")
            cases = measure(group, rounds, together, lambda text, name=group.name: status.update(f"{name}: {text}"))  # type: ignore[misc]
            date = f"{datetime.now(UTC):%Y-%m-%d}"
            results[group.name] = {"machine": about, "date": date, "group": asdict(group), "cases": cases}
    return results


def _group(values: Mapping[str, Any]) -> Group:
    cases = tuple(Case(**case | {"arguments": tuple(case["arguments"])}) for case in values["cases"])
    return Group(**{**values, "cases": cases, "arguments": tuple(values["arguments"])})


def clock(about: Mapping[str, str]) -> str:
    """Return the unit of time of a machine's results."""
    return "CPU-second" if about["GPU"].startswith("none") else "second"


def section(names: Sequence[str], results: Mapping[str, Any]) -> list[str]:
    """Return the table and the further results of one machine."""
    groups = [_group(results[name]["group"]) for name in names]
    cases = {name: results[name]["cases"] for name in names}
    lines = report.table(groups, cases, clock(results[names[0]]["machine"]))
    notes = []
    for group in groups:
        if (difference := report.disagreement(group, cases[group.name])) is not None:
            notes.append(f"{group.title}: losses on the same batches differ by {difference:.1e}.")
        if group.name.startswith("scaling"):
            total, each = report.growth(group, cases[group.name])
            notes.append(
                f"From the smallest to the largest vocabulary: {total / 1e9:.2f} GB more, {each:.1f} bytes for\n"
                "each new weight, of which 16 hold the weight, its gradient and Adam's two moments."
            )
    missed = list(report.misses(groups, cases))
    return [*lines, "", *notes, *(["", "Bars missed:", *missed] if missed else [])]


def document(results: Mapping[str, Any]) -> str:
    """Return RESULTS.md, a section per machine."""
    parts = [
        "# Results\n",
        "Written by `python benchmarks/run.py`; [README.md](README.md) says what is measured and how.\n",
    ]
    machines = {json.dumps(entry["machine"]): entry["machine"] for entry in results.values()}
    for key, about in machines.items():
        names = [name for name in results if json.dumps(results[name]["machine"]) == key]
        dates = sorted({results[name]["date"] for name in names})
        parts.append(f"## {about['processor']}; GPU: {about['GPU']}\n")
        parts.append(", ".join(f"{k} {v}" for k, v in about.items() if k not in ("processor", "GPU")))
        parts.append(f"; measured {' to '.join(dict.fromkeys((dates[0], dates[-1])))}.\n")
        parts += ["```text", *section(names, results), "```\n", "\n".join(report.NOTE.splitlines()) + "\n"]
    return "\n".join(parts)


def known(gpus: int) -> dict[str, Group]:
    """Return the groups for this machine: the default ones, and those that only `--only` runs."""
    groups = (*GPU, *((sharded("qwen2.5-3b", gpus),) if gpus > 1 else ())) if gpus else (*CPU, *MORE)
    return {group.name: group for group in groups}


def main() -> None:
    """Measure, print, write."""
    import torch

    gpus = torch.cuda.device_count()
    names = known(gpus)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(names), metavar="GROUP", help=", ".join(names))
    parser.add_argument("--rounds", type=int, default=5, help="measured windows of each process (default: 5)")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    if not gpus:
        os.environ["OMP_NUM_THREADS"] = "1"
    console = Console(stderr=True)
    if given.quick:
        results = gather(QUICK, 1, True, console)
        print("\n".join(section(list(results), results)))
        return
    chosen = given.only or [name for name in names if names[name] not in MORE]
    results = json.loads(RAW.read_text()) if RAW.exists() else {}
    for name in chosen:
        results |= gather([names[name]], given.rounds, not gpus, console)
        RAW.write_text(json.dumps(results, indent=1) + "\n")
    (HERE / "RESULTS.md").write_text(document(results))
    print("\n".join(section(chosen, results)))
    print("\n" + report.NOTE)


if __name__ == "__main__":
    main()
