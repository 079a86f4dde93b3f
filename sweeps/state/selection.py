"""Select the experiments of a command by store, study and patterns of names."""

import shlex
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path

from iris.config import Config
from iris.errors import UserError, nearest
from iris.store import Store
from sweeps.state.records import Records
from sweeps.state.study_status import Experiment, StudyStatus

_DEFAULT = str(Config.__dataclass_fields__["store"].default)


def follow(study: str, store: Store) -> str:
    """Return a line with the command that shows a study's progress."""
    elsewhere = [] if store.root == Store(_DEFAULT).root else [f"store={store.root}"]
    return f"follow it: {shlex.join(['python', '-m', 'sweeps', 'status', f'study={study}', *elsewhere])}"


def open_store(folder: str | None) -> Store:
    """Open the store in a folder, or the default one. Raises UserError if nothing was ever launched on it."""
    folder = folder or _DEFAULT
    store = Store(folder)
    if not Records(store).root.is_dir():
        raise UserError(f"store={folder}: nothing was launched on {store.root}. Give another store=FOLDER.")
    return store


def study_name(name_or_path: str) -> str:
    """Return a study's name, given as such or by the path of its file."""
    return Path(name_or_path).stem if name_or_path.endswith((".yaml", ".yml")) else name_or_path


def check_study(name: str, store: Store) -> None:
    """Raise UserError, with the nearest name, if no study of this name was launched on the store."""
    records = Records(store)
    if records.study(name) is None:
        known = ", ".join(records.studies()) or "none"
        hint = nearest(name, records.studies())
        raise UserError(f"study={name}: not launched on {store.root}.{hint} Launched: {known}.")


def select(study_status: StudyStatus, patterns: Sequence[str], study: str | None) -> list[Experiment]:
    """Return the experiments of a study, or of all studies, that match any pattern; all of them without patterns.

    Raises UserError for a pattern without a match.
    """
    if study is not None:
        check_study(study, study_status.store)
    every = study_status.experiments(study)
    for pattern in patterns:
        if not any(matches(e.name, pattern) for e in every):
            if study is None and study_name(pattern) in study_status.records.studies():
                raise UserError(f"'{pattern}' is a study, not an experiment: use study={study_name(pattern)}.")
            raise UserError(_no_match(pattern, study, [e.name for e in every]))
    return [e for e in every if not patterns or any(matches(e.name, pattern) for pattern in patterns)]


def matches(name: str, pattern: str) -> bool:
    """Return whether a pattern with *, ? and [] matches a whole name, or is the name itself."""
    return name == pattern or fnmatchcase(name, pattern)


def _no_match(pattern: str, study: str | None, names: Iterable[str]) -> str:
    where = f"study {study}" if study is not None else "any study"
    close = get_close_matches(pattern, sorted(set(names)), n=3, cutoff=0.4)
    hint = f" The nearest: {', '.join(close)}." if close else f" `status{f' {study}' if study else ''}` lists them."
    return f"'{pattern}': no experiment of {where} has this name.{hint}"
