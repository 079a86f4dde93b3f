"""Optuna's plots of a search: history, importance, slices, rungs, and the Pareto front of score and cost."""

import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

matplotlib.use("Agg")  # files, no window

from matplotlib import pyplot
from matplotlib.ticker import MaxNLocator
from optuna.visualization import matplotlib as draw

from iris.files import write_atomic

Hours = dict[int, float]  # of each complete trial, by its number


def write_plots(
    folder: Path, study: optuna.Study, trials: Sequence[FrozenTrial], objective: str, hours: Hours, unit: str
) -> list[Path]:
    """Plot the trials of a search, which `study` holds; return the files, none where there are too few trials."""
    settings: dict[str, Any] = {"target_name": objective}
    if len(study.directions) > 1:
        settings["target"] = lambda trial: trial.values[0]
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    made = []
    if complete:
        made += [
            _save(folder / "history.png", lambda: draw.plot_optimization_history(study, **settings)),
            _save(folder / "slice.png", lambda: draw.plot_slice(study, **settings)),
            _save(folder / "pareto.png", lambda: _front(complete, study.directions[0], objective, hours, unit)),
        ]
    if any(trial.intermediate_values for trial in trials):
        made.append(_save(folder / "rungs.png", lambda: _rungs(study)))
    if len({trial.values[0] for trial in complete}) > 1:
        made.append(_save(folder / "importance.png", lambda: draw.plot_param_importances(study, **settings)))
    return made


def _rungs(study: optuna.Study) -> Any:
    axes = draw.plot_intermediate_values(study)
    axes.set(title="Rungs", xlabel="Rung", ylabel="Score on the share of the documents")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if legend := axes.get_legend():
        legend.remove()  # a line a trial
    return axes


def _front(complete: Sequence[FrozenTrial], direction: StudyDirection, objective: str, hours: Hours, unit: str) -> Any:
    study = optuna.create_study(directions=[direction, StudyDirection.MINIMIZE])
    for trial in complete:
        values = [trial.values[0], hours[trial.number]]
        study.add_trial(
            optuna.trial.create_trial(params=trial.params, distributions=trial.distributions, values=values)
        )
    return draw.plot_pareto_front(study, target_names=[objective, f"{unit.replace('_', '-')} of the trial by itself"])


def _save(path: Path, plot: Callable[[], Any]) -> Path:
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes = plot()
        figure = axes.flat[0].figure if hasattr(axes, "flat") else axes.figure
        figure.savefig(content, dpi=150, bbox_inches="tight")
    pyplot.close(figure)
    write_atomic(path, content.getvalue())
    return path
