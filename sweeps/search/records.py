"""A search as `status`, `logs` and `cancel` see it: a study whose experiments are its trials."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.trial import FrozenTrial, TrialState

from iris import compose
from iris.store import Store
from sweeps.search.file import Search
from sweeps.state.records import Records
from sweeps.study.experiments import policy_row


def study_name(search: Search) -> str:
    """Return the name of a search among the studies."""
    return f"search-{search.name}"


def write_study(records: Records, launch: str, search: Search, study: optuna.Study, folder: Path) -> None:
    """Record the present trials of the search in `folder` as the experiments of a study."""
    with FileLock(folder / "gate.lock", thread_local=False):
        trials = [trial for trial in study.get_trials(deepcopy=False) if _shown(trial)]
        records.write_study(study_name(search), launch, [_point(search, trial) for trial in trials])


def _shown(trial: FrozenTrial) -> bool:
    return "stages" in trial.user_attrs and "duplicate_of" not in trial.user_attrs


def _point(search: Search, trial: FrozenTrial) -> dict[str, Any]:
    """Describe a trial; with `state` if the store cannot tell it, or `job` (launch/n) of the worker that runs it."""
    record, attributes = trial.user_attrs["stages"], trial.user_attrs
    stages = [name for rung in record["rungs"] for name in (*rung["stages"], rung["part"])]
    if search.pruner["name"] == "none":
        stages = list(record["path"])
    stages = list(dict.fromkeys([*stages, record["whole"]]))
    point = {
        "name": f"trial-{trial.number}",
        "overrides": [*search.base, *attributes["overrides"]],
        "stages": stages,
        "facts": record["facts"],
        "rows": _rows(search, record, stages),
    }
    if trial.state == TrialState.RUNNING:
        return point | {"job": attributes.get("job", "")}
    if trial.state == TrialState.FAIL:
        return point | {"state": "failed", "error": attributes.get("error", "")}
    return point | ({"state": "pruned"} if trial.state == TrialState.PRUNED else {})


def _rows(search: Search, record: Mapping[str, Any], stages: Sequence[str]) -> list[list[Any]]:
    """Return a row for the policy of each rung that is evaluated by itself, and one for the whole evaluation."""
    rungs = [rung for rung in record["rungs"] if rung["part"] in stages and rung["part"] != record["whole"]]
    last, part = record["rungs"][-1], search.share != 1
    rows = [policy_row(rung["label"], rung["policy"], rung["part"], stages, part) for rung in rungs]
    return [*rows, policy_row(last["label"], last["policy"], record["whole"], stages)]


def report(search: Search, study: optuna.Study, store: Store, folder: Path) -> list[str]:
    """Write the report on the search in `folder` into its output folder; return its lines."""
    from sweeps.search.report import write_report

    output = Path(compose.load(search.base).output).expanduser().absolute() / study_name(search)
    return write_report(search, study, store, folder, output)
