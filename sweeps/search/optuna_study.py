"""Optuna's side of a search: where trials are kept, what proposes them and what prunes them."""

import inspect
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.study import StudyDirection

from iris.errors import UserError, nearest
from iris.store import storage_errors
from sweeps.search.file import Search
from sweeps.search.journal import open_journal, read_journal
from sweeps.study import presets

STORAGE = "IRIS_SEARCH_STORAGE"  # the variable that hands a database's address to workers, out of sight of ps

_DRIVERS = {"postgresql://": "psycopg2-binary", "mysql://": "mysqlclient", "mysql+pymysql://": "pymysql"}

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


class Exhaustive(optuna.samplers.BruteForceSampler):
    """Every point of a finite space once."""

    def after_trial(self, *_: Any) -> None:
        """Do nothing: BruteForceSampler would stop a loop of Optuna's, and the queue counts trials itself."""


Choices = Mapping[str, tuple[type, dict[str, Any]]]  # a class and its defaults by the name in a search

SAMPLERS: Choices = {
    "tpe": (optuna.samplers.TPESampler, {}),
    "cmaes": (optuna.samplers.CmaEsSampler, {"warn_independent_sampling": False}),
    "random": (optuna.samplers.RandomSampler, {}),
    "grid": (Exhaustive, {}),
    "nsga2": (optuna.samplers.NSGAIISampler, {}),
}
PRUNERS: Choices = {
    "asha": (optuna.pruners.SuccessiveHalvingPruner, {"min_resource": 1, "reduction_factor": 3}),
    "hyperband": (optuna.pruners.HyperbandPruner, {"min_resource": 1, "reduction_factor": 3}),
    "median": (optuna.pruners.MedianPruner, {"n_startup_trials": 4}),
    "none": (optuna.pruners.NopPruner, {}),
}


def make_sampler(search: Search, seed: int) -> BaseSampler:
    """Return the sampler of a search; `seed` differs by worker, unless the search sets one. Raises UserError."""
    sampler: BaseSampler = _made("sampler", search.sampler, SAMPLERS, {"seed": seed})
    if isinstance(sampler, Exhaustive) and (free := [p.key for p in search.space if not p.finite]):
        raise UserError(f"sampler=grid: {free[0]} has no step: set space.{free[0]}.step, or use another sampler.")
    return sampler


def make_pruner(search: Search, rungs: int) -> BasePruner:
    """Return the pruner of a search, for trials of so many rungs. Raises UserError."""
    most = {"max_resource": rungs} if search.pruner.get("name") == "hyperband" else {}
    pruner: BasePruner = _made("pruner", search.pruner, PRUNERS, most)
    return pruner


def _made(what: str, declared: Mapping[str, Any], known: Choices, defaults: Mapping[str, Any]) -> Any:
    """Make the class that a search names, with the search's settings over the defaults."""
    settings = dict(declared)
    name = str(settings.pop("name", None))
    if name not in known:
        raise UserError(f"{what}={name}: choose one of {', '.join(known)}.{nearest(name, known)}")
    kind, own = known[name]
    taken = [p for p in inspect.signature(kind).parameters if p not in ("args", "kwargs")]
    presets.check_keys(f"{what}={name}: ", settings, taken)
    try:
        return kind(**{**own, **defaults, **settings})
    except ImportError as error:
        raise UserError(f"{what}={name} needs a package that is not installed: pip install {error.name}") from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{what}={name}: {error}") from error


# --- where trials are kept


def database() -> str | None:
    """Return the address of the database that keeps the trials; None for a journal in the store."""
    return os.environ.get(STORAGE) or None


def open_storage(folder: Path, url: str | None, *, write: bool = True) -> BaseStorage:
    """Open the journal in the search's folder, or a database. Raises UserError, which never shows a password.

    A damaged journal is repaired, or without `write` read as far as it can be.
    """
    if url is None:
        with storage_errors(folder):
            return open_journal(folder) if write else read_journal(folder)
    try:
        return optuna.storages.RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
    except ImportError as error:
        driver = next((install for start, install in _DRIVERS.items() if url.startswith(start)), "its driver")
        raise UserError(f"storage={shown(url)} needs a driver that is not installed: pip install {driver}") from error
    except Exception as error:  # of SQLAlchemy, or of a driver that it loads
        text = hidden(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}", url)
        raise UserError(f"storage={shown(url)} cannot be opened: {text}") from None


def shown(url: str) -> str:
    """Return an address with … for its password and its query."""
    address, query, _ = url.partition("?")
    return re.sub(r"(://[^:/@]*):[^/]*@", r"\1:…@", address) + "?…" * bool(query)


def hidden(text: str, url: str) -> str:
    """Return a text with … for what `shown` hides of an address."""
    secrets = [url, *re.findall(r"://[^:/@]*:([^/]*)@", url), *re.findall(r"=([^&]{3,})", url.partition("?")[2])]
    for secret in secrets:
        text = text.replace(secret, "…")
    return text


def directions(search: Search) -> list[StudyDirection]:
    """Return the directions of a search's objectives."""
    return [StudyDirection[d.upper()] for d in (search.direction, *(["minimize"] if search.cost else []))]


def open_study(search: Search, storage: BaseStorage, sampler: BaseSampler, pruner: BasePruner) -> optuna.Study:
    """Load or create the study of a search. Raises UserError if it has other objectives."""
    wanted = directions(search)
    study = optuna.create_study(
        study_name=search.name,
        storage=storage,
        sampler=sampler,
        pruner=pruner,
        directions=wanted,
        load_if_exists=True,
    )
    if study.directions != wanted:
        raise UserError(f"The storage holds a study '{search.name}' with other objectives: choose another name=….")
    return study


def read_study(search: Search, folder: Path, url: str | None) -> optuna.Study:
    """Load the study of a search to read its trials; an empty one before its first worker."""
    try:
        return optuna.load_study(study_name=search.name, storage=open_storage(folder, url, write=False))
    except KeyError:
        return optuna.create_study(directions=directions(search))
