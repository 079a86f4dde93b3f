"""python -m sweeps search search=NAME launcher=local workers=4      search a space of experiments
python -m sweeps search search=NAME launcher=slurm workers=16     the same on a cluster: submits its workers and returns
python -m sweeps search search=NAME --report                      what it has found so far

    trials=50 sampler=cmaes pruner=none share=0.3 objective=TASK      the search (conf/search/*.yaml has the keys)
    sampler.KEY=VALUE pruner.KEY=VALUE                                settings of Optuna's sampler and pruner
    space.KEY.step=null space.KEY={low: 1e-6, high: 1e-4, log: true}  the space; space.KEY=null takes a key out
    name=NAME                                                         another search of the same declaration
    storage=postgresql://USER@HOST/DB                                 where trials are kept: not in a file of the store
    launcher.KEY=VALUE                                                as for launch

Samplers: tpe, cmaes, random, grid, nsga2. Pruners: asha, hyperband, median, none. Everything else is an override of
every trial's experiment: seed=1, data.size=1k, store=FOLDER. The same command again goes on where things are; a search
that has ended gives its report. A password belongs into the variable IRIS_SEARCH_STORAGE, not onto the command line.
"""

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iris import compose
from iris.config import Config
from iris.errors import UserError, nearest
from iris.plan import Stage
from sweeps.cli.arguments import Arguments, parse
from sweeps.launch.launchers import Inline, Launcher, Local, load_launcher
from sweeps.search import space
from sweeps.search.file import DECLARED, Search, load_search
from sweeps.study.presets import names
from sweeps.study.settings import of_text

if TYPE_CHECKING:
    from sweeps.search.trial import Trial

_SETTINGS = ("search", "launcher", "workers", "storage")


def main(arguments: Sequence[str]) -> int:
    """The command. Exit status 1: a worker in this process has failed."""
    parsed = parse(arguments, settings=_SETTINGS, flags={"--report": "", "--help": ""})
    if "--help" in parsed.flags:
        print(__doc__)
        return 0
    from sweeps.search.launch import Workers, start
    from sweeps.search.session import Session

    signal.signal(signal.SIGTERM, _terminate)
    url = _storage(parsed)
    search = load_search(parsed.get("search", f"search={' or search='.join(names('search'))}."), parsed.overrides)
    config, common = _checked(search)
    begun = Session(search, config.store, url)
    if "--report" in parsed.flags:
        print("\n".join(begun.report()))
        return 0
    launcher = load_launcher(
        parsed.get("launcher", "launcher=slurm, launcher=local or launcher=inline."), parsed.under("launcher")
    )
    workers = _workers(parsed, launcher)
    begun.declare()
    if not begun.left():
        print("\n".join(begun.report()))
        return 0
    return start(begun, Workers(launcher, workers, config, common, _shown(arguments, url)))


def _terminate(*_: Any) -> None:
    raise KeyboardInterrupt


def _storage(parsed: Arguments) -> str | None:
    """The address of a database, from now on in the environment alone: manifests hold the words of the command."""
    from sweeps.search.optuna_study import STORAGE, database, shown

    given = parsed.settings.get("storage")
    if given:
        if "://" not in given:
            raise UserError(f"storage={given}: expected an address such as postgresql://USER@HOST/DATABASE.")
        os.environ[STORAGE] = given
        sys.argv[:] = [f"storage={shown(given)}" if word == f"storage={given}" else word for word in sys.argv]
    return database()


def _shown(arguments: Sequence[str], url: str | None) -> list[str]:
    from sweeps.search.optuna_study import shown

    return [f"storage={shown(url)}" if url and word == f"storage={url}" else word for word in arguments]


def _workers(parsed: Arguments, launcher: Launcher) -> int:
    text = parsed.settings.get("workers", str(launcher.workers) if isinstance(launcher, Local) else "1")
    if not text.isdigit() or int(text) < 1:
        raise UserError(f"workers={text}: expected a whole number of at least 1.")
    if isinstance(launcher, Inline) and text != "1":
        raise UserError(f"workers={text}: launcher=inline is one worker; use launcher=local.")
    return int(text)


def _checked(search: Search) -> tuple[Config, list[Stage]]:
    """A trial's configuration, and the stages that all begin with, once every corner of the space can be planned.

    Raises one UserError that lists all that is wrong.
    """
    from sweeps.search.optuna_study import make_pruner, make_sampler
    from sweeps.search.trial import make_trial

    _check_words(search)
    _, values = next(space.corners(search.space, 1))
    bare = compose.load([*search.base, *space.overrides(values)])
    found: dict[str, list[Trial]] = {}
    errors: dict[str, str] = {}
    for parameter, values in space.corners(search.space, bare.iterations):
        words = space.overrides(values)
        try:
            found.setdefault(parameter.key, []).append(make_trial(search, words))
        except UserError as error:
            errors.setdefault(str(error), " ".join(words))
    if errors:
        raise UserError("\n".join(f"{where}: {message}" for message, where in errors.items()))
    _check_difference(found)
    trials = [trial for own in found.values() for trial in own]
    make_sampler(search, 0)
    make_pruner(search, max(len(trial.rungs) for trial in trials))
    _check_objective(search, bare)
    shared = [{stage.id for stage in trial.rungs[0].stages} for trial in trials]
    return bare, [stage for stage in trials[0].rungs[0].stages if all(stage.id in names for names in shared)]


def _check_difference(found: Mapping[str, Sequence["Trial"]]) -> None:
    """Refuse a parameter that reaches no stage: all its values would be one experiment."""
    for key, trials in found.items():
        if len(trials) > 1 and len({trial.whole.key for trial in trials}) == 1:
            raise UserError(
                f"space: {key} makes no difference to these experiments (method={trials[0].config.method.name}): "
                f"take it out with space.{key}=null, or change what they are."
            )


def _check_words(search: Search) -> None:
    """A key that neither the experiment nor the search has may be a mistyped one of the search."""
    known = [*_SETTINGS, "name", *(key for key in DECLARED if key != "base")]
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
    """Refuse a task that is not evaluated, before anything is spent; its metrics are only known by then."""
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
