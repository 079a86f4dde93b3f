"""Optuna's side of a search: where trials are kept, what proposes them and what prunes them."""

import inspect
import os
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.storages.journal._file import BaseJournalFileLock
from optuna.study import StudyDirection

from iris.errors import UserError, nearest
from iris.store import storage_errors
from sweeps.search.file import Search

JOURNAL = "journal.log"
STORAGE = "IRIS_SEARCH_STORAGE"  # the variable that hands a database's address to workers, out of sight of ps

_DRIVERS = {"postgresql://": "psycopg2-binary", "mysql://": "mysqlclient", "mysql+pymysql://": "pymysql"}

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


class Exhaustive(optuna.samplers.BruteForceSampler):
    """Every point of a finite space once. When to stop is not its business: the search counts trials."""

    def __init__(self, seed: int | None = None) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            super().__init__(seed)

    def after_trial(self, *_: Any) -> None:
        """Nothing: BruteForceSampler would stop a loop that there is not."""


def _cmaes(**settings: Any) -> BaseSampler:
    settings = {"warn_independent_sampling": False} | settings
    return optuna.samplers.CmaEsSampler(**settings)


SAMPLERS: dict[str, tuple[Callable[..., BaseSampler], type]] = {
    "tpe": (optuna.samplers.TPESampler, optuna.samplers.TPESampler),
    "cmaes": (_cmaes, optuna.samplers.CmaEsSampler),
    "random": (optuna.samplers.RandomSampler, optuna.samplers.RandomSampler),
    "grid": (Exhaustive, Exhaustive),
    "nsga2": (optuna.samplers.NSGAIISampler, optuna.samplers.NSGAIISampler),
}
PRUNERS: dict[str, tuple[type, dict[str, Any]]] = {
    "asha": (optuna.pruners.SuccessiveHalvingPruner, {"min_resource": 1, "reduction_factor": 3}),
    "hyperband": (optuna.pruners.HyperbandPruner, {"min_resource": 1, "reduction_factor": 3}),
    "median": (optuna.pruners.MedianPruner, {"n_startup_trials": 4}),
    "none": (optuna.pruners.NopPruner, {}),
}


def make_sampler(search: Search, seed: int) -> BaseSampler:
    """The sampler a search names. `seed` tells its workers apart, unless the search fixes it. Raises UserError."""
    name, settings = _chosen("sampler", search.sampler, SAMPLERS)
    make, kind = SAMPLERS[name]
    _check_settings("sampler", name, kind, settings)
    if name == "grid" and (free := [p.key for p in search.space if not p.finite]):
        raise UserError(f"sampler=grid: {free[0]} has no step: set space.{free[0]}.step, or use another sampler.")
    sampler: BaseSampler = _made("sampler", name, lambda: make(**{"seed": seed} | settings))
    return sampler


def make_pruner(search: Search, rungs: int) -> BasePruner:
    """The pruner a search names, for trials of so many rungs. Raises UserError."""
    name, settings = _chosen("pruner", search.pruner, PRUNERS)
    kind, defaults = PRUNERS[name]
    _check_settings("pruner", name, kind, settings)
    if name == "hyperband":
        defaults = defaults | {"max_resource": rungs}
    pruner: BasePruner = _made("pruner", name, lambda: kind(**defaults | settings))
    return pruner


def _chosen(what: str, declared: Mapping[str, Any], known: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    settings = dict(declared)
    name = str(settings.pop("name", None))
    if name not in known:
        raise UserError(f"{what}={name}: choose one of {', '.join(known)}.{nearest(name, known)}")
    return name, settings


def _check_settings(what: str, name: str, kind: type, settings: Mapping[str, Any]) -> None:
    taken = [p for p in inspect.signature(kind).parameters if p not in ("self", "args", "kwargs")]
    for key in settings:
        if key not in taken:
            raise UserError(
                f"{what}.{key}: '{name}' has no such setting.{nearest(key, taken)} It has: {', '.join(taken)}."
            )


def _made(what: str, name: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except ImportError as error:
        raise UserError(f"{what}={name} needs a package that is not installed: pip install {error.name}") from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{what}={name}: {error}") from error


# --- where trials are kept


class _Lock(BaseJournalFileLock):
    """The kernel frees it when its holder dies; and the line that such a holder left unfinished is taken off."""

    def __init__(self, journal: Path) -> None:
        self.journal, self.lock = journal, FileLock(f"{journal}.lock", thread_local=False)

    def acquire(self) -> bool:
        """Wait for it."""
        self.lock.acquire()
        _mend(self.journal)
        return True

    def release(self) -> None:
        """Let the next one write."""
        self.lock.release()


def _mend(journal: Path) -> None:
    with journal.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        start = max(0, size - (1 << 20))
        file.seek(start)
        tail = file.read()
        if tail and not tail.endswith(b"\n"):
            file.truncate(start + tail.rfind(b"\n") + 1)


def database() -> str | None:
    """The address of the database that keeps the trials, None for a journal in the store."""
    return os.environ.get(STORAGE) or None


def open_storage(folder: Path, url: str | None) -> BaseStorage:
    """The journal in the search's folder, or a database. Raises UserError, which never shows a password."""
    if url is None:
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            journal = folder / JOURNAL
            journal.touch()
            return JournalStorage(JournalFileBackend(str(journal), _Lock(journal)))
    try:
        return optuna.storages.RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
    except ImportError as error:
        driver = next((install for start, install in _DRIVERS.items() if url.startswith(start)), "its driver")
        raise UserError(f"storage={shown(url)} needs a driver that is not installed: pip install {driver}") from error
    except Exception as error:  # of SQLAlchemy, or of a driver that it loads
        text = hidden(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}", url)
        raise UserError(f"storage={shown(url)} cannot be opened: {text}") from None


def shown(url: str) -> str:
    """An address without its password and without its query."""
    return re.sub(r"(://[^:/@]*):[^/]*@", r"\1:…@", url.partition("?")[0])


def hidden(text: str, url: str) -> str:
    """A text without what `shown` leaves out of an address."""
    secrets = [url, *re.findall(r"://[^:/@]*:([^/]*)@", url), *re.findall(r"=([^&]{3,})", url.partition("?")[2])]
    for secret in secrets:
        text = text.replace(secret, "…")
    return text


def open_study(search: Search, storage: BaseStorage, sampler: BaseSampler, pruner: BasePruner) -> optuna.Study:
    """The study of a search, begun if it is not there. Raises UserError if it has other objectives."""
    directions = [StudyDirection[d.upper()] for d in (search.direction, *(["minimize"] if search.cost else []))]
    study = optuna.create_study(
        study_name=search.name,
        storage=storage,
        sampler=sampler,
        pruner=pruner,
        directions=directions,
        load_if_exists=True,
    )
    if study.directions != directions:
        raise UserError(f"The storage holds a study '{search.name}' with other objectives: choose another name=….")
    return study
