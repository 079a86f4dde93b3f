"""Search a space of experiments with Optuna.

python -m sweeps search search=NAME launcher=local workers=4    on this machine
python -m sweeps search search=NAME launcher=slurm workers=16   on a cluster
python -m sweeps search search=NAME --report                    results so far

  trials=50 objective=TASK share=0.3   the search; all keys: conf/search/*.yaml
  sampler=cmaes pruner=none            tpe, cmaes, random, grid or nsga2, and
                                       asha, hyperband, median or none
  sampler.KEY=VALUE pruner.KEY=VALUE   settings of Optuna's class of that name
  space.KEY={low: 1e-6, high: 1e-4, log: true}
                                       a parameter; null removes it
  space.KEY.step=null                  one field of a parameter
  name=NAME                            another search of the same declaration
  storage=postgresql://USER@HOST/DB    keep trials in a database
  launcher.KEY=VALUE                   as for launch

All else overrides every trial's experiment: seed=1, data.size=1k, store=FOLDER.
Rerun the same command to continue; a search with enough trials prints its
report. --report needs only name= and store=, where you gave them. Set a
password in the variable IRIS_SEARCH_STORAGE, not on the command line.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from iris import compose, preflight
from iris.config import Config
from iris.errors import UserError, nearest
from iris.plan import Stage
from sweeps.cli.arguments import Arguments
from sweeps.launch.launchers import Inline, Launcher, Local, load_launcher
from sweeps.search import space
from sweeps.search.file import DECLARED, Search, load_search
from sweeps.study.presets import names
from sweeps.study.settings import of_text

if TYPE_CHECKING:
    from sweeps.search.session import Session
    from sweeps.search.trial import Trial


def run(given: Arguments) -> int:
    """Search or report; return 1 if a worker in this process failed."""
    from sweeps.search.launch import Request, start
    from sweeps.search.session import Session

    url = _storage(given)
    name = given.get("search", f"search={' or search='.join(names('search'))}.")
    if "--report" in given.flags:
        print("\n".join(_declared(name, given.rest, url).report()))
        return 0
    launcher_name = given.get("launcher", "launcher=slurm, launcher=local or launcher=inline.")
    launcher = load_launcher(launcher_name, given.under("launcher"))
    workers = _workers(given, launcher)
    search = load_search(name, given.rest)
    config, common = _checked(search, given, inline=isinstance(launcher, Inline))
    session = Session(search, config.store, url)
    session.declare()
    if not session.left():
        print("\n".join(session.report()))
        return 0
    return start(session, Request(launcher, workers, config, common, given.given))


def _declared(name: str, overrides: Sequence[str], url: str | None) -> "Session":
    """Return a search as it was started; of the overrides, only those that name it and its store count."""
    from sweeps.search.session import Session

    search = load_search(name, [override for override in overrides if override.startswith(("name=", "store="))])
    _, values = next(space.corners(search.space, 1))
    return Session.declared(search.name, compose.load([*search.base, *space.overrides(values)]).store, url)


def _storage(given: Arguments) -> str | None:
    """Return the address of a database; hide it in the command line, which manifests and launches record."""
    from sweeps.search.optuna_study import STORAGE, database, shown

    address = given.settings.get("storage")
    if address:
        if "://" not in address:
            raise UserError(f"storage={address}: expected an address such as postgresql://USER@HOST/DATABASE.")
        os.environ[STORAGE] = address
        for arguments in (given.given, sys.argv):
            arguments[:] = [f"storage={shown(address)}" if a == f"storage={address}" else a for a in arguments]
    return database()


def _workers(given: Arguments, launcher: Launcher) -> int:
    text = given.settings.get("workers", str(launcher.workers) if isinstance(launcher, Local) else "1")
    if not text.isdigit() or int(text) < 1:
        raise UserError(f"workers={text}: expected a whole number of at least 1.")
    if isinstance(launcher, Inline) and text != "1":
        raise UserError(f"workers={text}: launcher=inline is one worker; use launcher=local.")
    return int(text)


def _checked(search: Search, given: Arguments, *, inline: bool) -> tuple[Config, list[Stage]]:
    """Plan a trial at every corner of the space; return a configuration and the stages that all trials begin with.

    Raises one UserError that lists all mistakes.
    """
    from sweeps.search.optuna_study import make_pruner, make_sampler
    from sweeps.search.trial import make_trial

    _check_overrides(search, given.command.settings)
    _, values = next(space.corners(search.space, 1))
    bare = compose.load([*search.base, *space.overrides(values)])
    make_sampler(search, 0)
    make_pruner(search, 1)
    _check_objective(search, bare)
    found: dict[str, list[Trial]] = {}
    errors: dict[str, str] = {}
    for parameter, values in space.corners(search.space, bare.iterations):
        words = space.overrides(values)
        try:
            found.setdefault(parameter.key, []).append(make_trial(search, words))
        except UserError as error:
            errors.setdefault(str(error), " ".join(words))
    trials = [trial for own in found.values() for trial in own]
    mistakes = [f"{where}: {message}" for message, where in errors.items()]
    preflight.check([trial.config for trial in trials], mistakes, torch=inline, here=inline)
    _check_difference(found)
    make_pruner(search, max(len(trial.rungs) for trial in trials))
    shared = [{stage.id for stage in trial.rungs[0].stages} for trial in trials]
    return bare, [stage for stage in trials[0].rungs[0].stages if all(stage.id in names for names in shared)]


def _check_difference(found: Mapping[str, Sequence["Trial"]]) -> None:
    """Raise UserError for a parameter that reaches no stage: all its values would be one experiment."""
    for key, trials in found.items():
        if len(trials) > 1 and len({trial.whole.key for trial in trials}) == 1:
            raise UserError(
                f"space: {key} makes no difference to these experiments (method={trials[0].config.method.name}): "
                f"remove it with space.{key}=null, or change the method."
            )


def _check_overrides(search: Search, settings: Sequence[str]) -> None:
    """Raise UserError for an override that neither the search nor the configuration has."""
    known = [*settings, "name", *(key for key in DECLARED if key != "base")]
    sections = {"hydra", *compose.groups(), *(f.split(".")[0] for f in Config.__dataclass_fields__)}
    for override in search.base:
        key = of_text(override).key
        if key.split(".")[0] not in sections:
            hint = nearest(key, [*known, *sections])
            raise UserError(
                f"{key}: neither the search nor the configuration has such a key.{hint} "
                f"Of the search: {', '.join(known)}."
            )


def _check_objective(search: Search, config: Config) -> None:
    """Raise UserError for a task that is not evaluated; its metrics are known only after the first evaluation."""
    from iris.evaluation.catalog import select

    task = search.objective.partition(":")[0]
    tasks = [
        *config.evaluate.tasks,
        *(d.name for d in select(config.evaluate.tasks, [Path(f) for f in config.evaluate.include]).tasks),
    ]
    if task != "average" and task not in tasks:
        known = list(dict.fromkeys(["average", *tasks]))
        raise UserError(
            f"objective={search.objective}: evaluate.tasks does not lead to a task '{task}'.{nearest(task, known)} "
            f"Choose from {', '.join(known)}, or TASK:METRIC,FILTER."
        )
