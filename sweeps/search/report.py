"""What a search has found: its best configuration as a study to launch, its trials, its cost and its pictures."""

import csv
import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import optuna
import yaml
from optuna.trial import FrozenTrial, TrialState

from iris.files import write_atomic
from iris.store import Store
from sweeps.search.costs import Account, Done, Record, account, of_record, unit_of
from sweeps.search.file import Search
from sweeps.search.trial_queue import EXHAUSTED, held, valid

_SHOWN = 3


def best(trials: Sequence[FrozenTrial], search: Search) -> list[FrozenTrial]:
    """The completed trials that no other beats: one, or with a cost the whole front, the best score first."""
    sign = -1 if search.direction == "maximize" else 1
    complete = sorted(
        (t for t in trials if t.state == TrialState.COMPLETE),
        key=lambda t: (sign * t.values[0], t.values[1:], t.number),
    )
    front: list[FrozenTrial] = []
    for trial in complete:
        if not front or (search.cost and trial.values[1] < front[-1].values[1]):
            front.append(trial)
    return front


def write_report(search: Search, study: optuna.Study, store: Store, folder: Path, output: Path) -> list[str]:
    """Write everything about the search in `folder` into `output`; returns the lines to show."""
    output.mkdir(parents=True, exist_ok=True)
    trials = [trial for trial in study.get_trials(deepcopy=False) if valid(trial)]
    lines = [_counts(search, study, folder), *_troubles(study)]
    if not trials:
        return lines
    from sweeps.search.plots import write_plots

    unit = unit_of(store, [_stages(trial) for trial in trials])
    costs = account(store, [_done(trial) for trial in trials], unit)
    hours = {t.number: of_record(store, _stages(t), unit) for t in trials if t.state == TrialState.COMPLETE}
    lines += ["", *_winners(search, best(trials, search), output), "", *cost_lines(costs)]
    pictures = write_plots(output, trials, study.directions, search.objective, hours, unit)
    _write_trials(output / "trials.csv", trials)
    write_atomic(output / "costs.json", json.dumps(asdict(costs), indent=1) + "\n")
    write_atomic(output / "report.md", _markdown(search, lines, pictures))
    return [*lines, "", f"report: {output / 'report.md'}"]


def _stages(trial: FrozenTrial) -> Record:
    record: Record = trial.user_attrs["stages"]
    return record


def _done(trial: FrozenTrial) -> Done:
    return Done(_stages(trial), len(trial.intermediate_values), trial.state == TrialState.COMPLETE)


def _line(trial: FrozenTrial, search: Search) -> str:
    values = " ".join(f"{value:.4f}" for value in trial.values)
    names = " ".join([search.objective, *([search.cost] if search.cost else [])])
    return f"trial {trial.number}: {values} {names}  {' '.join(trial.user_attrs['overrides'])}"


def _counts(search: Search, study: optuna.Study, folder: Path) -> str:
    trials, exhausted = study.get_trials(deepcopy=False), study.user_attrs.get(EXHAUSTED, False)
    running = [held(folder, t.number) for t in trials if t.state == TrialState.RUNNING]
    kinds = {
        "complete": sum(valid(t) and t.state == TrialState.COMPLETE for t in trials),
        "pruned": sum(valid(t) and t.state == TrialState.PRUNED for t in trials),
        "running": running.count(True),
        "left by its worker": running.count(False),
        "failed": sum(t.state == TrialState.FAIL and "duplicate_of" not in t.user_attrs for t in trials),
        "suggested again and answered from an earlier one": sum("duplicate_of" in t.user_attrs for t in trials),
    }
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
    ended = kinds["complete"] + kinds["pruned"]
    said = f"search {search.name}: {ended} of {max(ended, search.trials)} trials{f' ({counts})' if counts else ''}"
    return f"{said}; its space holds no others" if exhausted and ended < search.trials else said


def _troubles(study: optuna.Study) -> list[str]:
    """What went wrong last, with trials that failed or that a worker had to leave."""
    states = (TrialState.FAIL, TrialState.RUNNING)
    found = [t for t in study.get_trials(deepcopy=False, states=states) if "error" in t.user_attrs]
    return [f"  trial {trial.number}: {trial.user_attrs['error']}" for trial in found[-_SHOWN:]]


def _winners(search: Search, winners: Sequence[FrozenTrial], output: Path) -> list[str]:
    if not winners:
        return ["no trial has come to its end yet"]
    path = output / f"{search.name}-best.yaml"  # a study is called after its file
    write_atomic(path, study_text(search, winners, path))
    lines = [("best " if n == 0 else "and  ") + _line(trial, search) for n, trial in enumerate(winners)]
    return [*lines, f"launch it: python -m sweeps launch study={shlex.quote(str(path))}"]


def study_text(search: Search, winners: Sequence[FrozenTrial], path: Path) -> str:
    """A study file of the best trials."""
    points = [[*search.base, *trial.user_attrs["overrides"]] for trial in winners]
    content = {"base": points[0]} if len(points) == 1 else {"union": [{"base": point} for point in points]}
    head = [f"# python -m sweeps launch study={path}", *(f"# {_line(trial, search)}" for trial in winners)]
    return "\n".join(head) + "\n" + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=200)


def cost_lines(costs: Account) -> list[str]:
    """The account, a line each."""
    rows = [
        (f"{costs.trials} trials run whole, nothing shared", costs.whole, ""),
        ("model, data and supervised stage once", costs.setup, "−"),
        ("iterations that trials have in common once", costs.prefixes, "−"),
        ("what pruned trials have left out", costs.pruning, "−"),
        ("evaluations of rungs", costs.rungs, "+"),
        ("executed", costs.executed, "="),
    ]
    lines = [f"{costs.unit.replace('_', '-')} from manifests:"]
    lines += [f"  {sign:1} {text:<46}{hours:12.4f}" for text, hours, sign in rows]
    if costs.executed > costs.start:
        alone = (costs.whole - costs.setup - costs.start) / (costs.executed - costs.start)
        lines.append(
            f"  1/{costs.whole / costs.executed:.1f} of running all trials whole, 1/{alone:.1f} of their self-play"
        )
    if costs.estimated:
        lines.append(
            f"  ({100 * costs.estimated:.0f} % of the first line has never run and stands at the mean of its kind)"
        )
    return lines


def _markdown(search: Search, lines: Sequence[str], pictures: Sequence[Path]) -> str:
    shown = [f"![{path.stem}]({path.name})\n" for path in pictures]
    return "\n".join([f"# search {search.name}\n", "```", *lines, "```\n", *shown])


def _write_trials(path: Path, trials: Sequence[FrozenTrial]) -> None:
    names = sorted({name for trial in trials for name in trial.params})
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["trial", "state", "values", "rungs", *names])
        for trial in trials:
            rungs = " ".join(f"{value:.6f}" for _, value in sorted(trial.intermediate_values.items()))
            values = " ".join(f"{value:.6f}" for value in trial.values or [])
            row = [trial.number, trial.state.name.lower(), values, rungs]
            table.writerow([*row, *(trial.params.get(name, "") for name in names)])
