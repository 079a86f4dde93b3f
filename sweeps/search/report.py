"""The results of a search: its best trials as a study to launch, its costs and its plots."""

import csv
import io
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
from sweeps.search.lease import held
from sweeps.search.trial_queue import EXHAUSTED, valid

_SHOWN = 3


def write_report(search: Search, study: optuna.Study, store: Store, folder: Path, output: Path) -> list[str]:
    """Write the report on the search in `folder` into `output`; return the lines to show."""
    output.mkdir(parents=True, exist_ok=True)
    trials = [trial for trial in study.get_trials(deepcopy=False) if valid(trial)]
    lines = [_counts(search, study, folder), *_errors(study)]
    if not trials:
        return lines
    from sweeps.search.plots import write_plots

    counted = optuna.create_study(directions=study.directions)  # in memory, without failures and duplicates
    counted.add_trials(trials)
    front = [trials[trial.number] for trial in counted.best_trials]  # it numbers them anew
    unit = unit_of(store, [_stages(trial) for trial in trials])
    costs = account(store, [_done(trial) for trial in trials], unit)
    hours = {t.number: of_record(store, _stages(t), unit) for t in trials if t.state == TrialState.COMPLETE}
    lines += ["", *_best_lines(search, trials, front, output), "", *cost_lines(costs)]
    plots = write_plots(output, counted, trials, search.objective, hours, unit)
    write_atomic(output / "trials.csv", _table(trials))
    write_atomic(output / "costs.json", json.dumps(asdict(costs), indent=1) + "\n")
    write_atomic(output / "report.md", _markdown(search, lines, plots))
    return [*lines, "", f"report: {output / 'report.md'}"]


def _stages(trial: FrozenTrial) -> Record:
    record: Record = trial.user_attrs["stages"]
    return record


def _done(trial: FrozenTrial) -> Done:
    return Done(_stages(trial), len(trial.intermediate_values), trial.state == TrialState.COMPLETE)


def _counts(search: Search, study: optuna.Study, folder: Path) -> str:
    trials, exhausted = study.get_trials(deepcopy=False), study.user_attrs.get(EXHAUSTED, False)
    running = [held(folder, t.number) for t in trials if t.state == TrialState.RUNNING]
    kinds = {
        "complete": sum(valid(t) and t.state == TrialState.COMPLETE for t in trials),
        "pruned": sum(valid(t) and t.state == TrialState.PRUNED for t in trials),
        "running": running.count(True),
        "left by a worker": running.count(False),
        "failed": sum(t.state == TrialState.FAIL and "duplicate_of" not in t.user_attrs for t in trials),
        "duplicates": sum("duplicate_of" in t.user_attrs for t in trials),
    }
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
    ended = kinds["complete"] + kinds["pruned"]
    line = f"search {search.name}: {ended} of {max(ended, search.trials)} trials{f' ({counts})' if counts else ''}"
    return f"{line}; the space holds no others" if exhausted and ended < search.trials else line


def _errors(study: optuna.Study) -> list[str]:
    """Return the last errors of trials that failed or that a worker left."""
    states = (TrialState.FAIL, TrialState.RUNNING)
    found = [t for t in study.get_trials(deepcopy=False, states=states) if "error" in t.user_attrs]
    return [f"  trial {trial.number}: {trial.user_attrs['error']}" for trial in found[-_SHOWN:]]


def _best_lines(search: Search, trials: Sequence[FrozenTrial], front: Sequence[FrozenTrial], output: Path) -> list[str]:
    """Write the study of the best trials, if there are any; return what to say of them."""
    path = output / f"{search.name}-best.yaml"  # a study is called after its file
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if len(complete) > 1 and len({tuple(trial.values) for trial in complete}) == 1:
        path.unlink(missing_ok=True)  # of an earlier report
        values = " ".join(f"{value:.4f}" for value in complete[0].values)
        return [f"all {len(complete)} complete trials are equal ({values} {search.objective}): none is the best"]
    if not front:
        return ["no trial is complete yet"]
    winners = best(front)
    write_atomic(path, study_text(search, winners, path))
    lines = [("best " if n == 0 else "and  ") + _line(trial, search) for n, trial in enumerate(winners)]
    if equal := [str(trial.number) for trial in front if trial not in winners]:
        lines.append(f"equal to it: trial {', '.join(equal)}")
    return [*lines, f"launch it: python -m sweeps launch study={shlex.quote(str(path))}"]


def best(front: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the first trial of each pair of values on a Pareto front, the best score first."""
    first = {tuple(trial.values): trial for trial in sorted(front, key=lambda trial: -trial.number)}
    return sorted(first.values(), key=lambda trial: trial.values[1:], reverse=True)


def _line(trial: FrozenTrial, search: Search) -> str:
    values = " ".join(f"{value:.4f}" for value in trial.values)
    names = " ".join([search.objective, *([search.cost] if search.cost else [])])
    return f"trial {trial.number}: {values} {names}  {' '.join(trial.user_attrs['overrides'])}"


def study_text(search: Search, winners: Sequence[FrozenTrial], path: Path) -> str:
    """Return a study file of the best trials."""
    points = [[*search.base, *trial.user_attrs["overrides"]] for trial in winners]
    content = {"base": points[0]} if len(points) == 1 else {"union": [{"base": point} for point in points]}
    head = [f"# python -m sweeps launch study={path}", *(f"# {_line(trial, search)}" for trial in winners)]
    return "\n".join(head) + "\n" + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=200)


def cost_lines(costs: Account) -> list[str]:
    """Return the account of costs as a table."""
    rows = [
        (f"{costs.trials} trials run whole, nothing shared", costs.whole, ""),
        ("model, data and supervised stage once", costs.setup, "−"),
        ("iterations that trials share once", costs.prefixes, "−"),
        ("left out by pruning", costs.pruning, "−"),
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
        lines.append(f"  ({100 * costs.estimated:.0f} % of the first line never ran: the mean of its kind of stage)")
    return lines


def _markdown(search: Search, lines: Sequence[str], plots: Sequence[Path]) -> str:
    shown = [f"![{path.stem}]({path.name})\n" for path in plots]
    return "\n".join([f"# search {search.name}\n", "```", *lines, "```\n", *shown])


def _table(trials: Sequence[FrozenTrial]) -> str:
    names = sorted({name for trial in trials for name in trial.params})
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["trial", "state", "values", "rungs", *names])
    for trial in trials:
        rungs = " ".join(f"{value:.6f}" for _, value in sorted(trial.intermediate_values.items()))
        values = " ".join(f"{value:.6f}" for value in trial.values or [])
        params = (trial.params.get(name, "") for name in names)
        table.writerow([trial.number, trial.state.name.lower(), values, rungs, *params])
    return text.getvalue()
