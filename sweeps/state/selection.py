"""Which experiments a command is about: patterns of their names, studies, and the store they were launched on."""

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
    """The command that shows how a study gets on."""
    elsewhere = [] if store.root == Store(_DEFAULT).root else [f"store={store.root}"]
    return f"follow it: {shlex.join(['python', '-m', 'sweeps', 'status', f'study={study}', *elsewhere])}"


def open_store(folder: str | None) -> Store:
    """The store in a folder, or the default one. Raises UserError if nothing was ever launched on it."""
    folder = folder or _DEFAULT
    store = Store(folder)
    if not Records(store).root.is_dir():
        raise UserError(f"store={folder}: nothing was launched on {store.root}. Give another store=FOLDER.")
    return store


def study_name(word: str) -> str:
    """The name of a study that is called by its name or by the path of its file."""
    return Path(word).stem if word.endswith((".yaml", ".yml")) else word


def check_study(name: str, store: Store) -> None:
    """Raises UserError, with the nearest name, if no study of this name was launched on the store."""
    records = Records(store)
    if records.study(name) is None:
        known = ", ".join(records.studies()) or "none"
        hint = nearest(name, records.studies())
        raise UserError(f"study={name}: not launched on {store.root}.{hint} Launched: {known}.")


def select(study_status: StudyStatus, patterns: Sequence[str], study: str | None) -> list[Experiment]:
    """The experiments that some pattern matches, all without one. Raises UserError for a pattern without a match.

    They are of one study, if it is given, or of all.
    """
    if study is not None:
        check_study(study, study_status.store)
    studies = [study] if study is not None else study_status.records.studies()
    every = [experiment for name in studies for experiment in study_status.experiments(name)]
    for pattern in patterns:
        if not any(matches(e.name, pattern) for e in every):
            if study is None and study_name(pattern) in studies:
                raise UserError(
                    f"'{pattern}' is a study, not an experiment: study={study_name(pattern)} means all of it."
                )
            raise UserError(_no_match(pattern, study, [e.name for e in every]))
    return [e for e in every if not patterns or any(matches(e.name, pattern) for pattern in patterns)]


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern with *, ? and [] matches a whole name; a name matches itself, whatever signs are in it."""
    return name == pattern or fnmatchcase(name, pattern)


def _no_match(pattern: str, study: str | None, names: Iterable[str]) -> str:
    where = f"study {study}" if study is not None else "any study"
    close = get_close_matches(pattern, sorted(set(names)), n=3, cutoff=0.4)
    hint = f" The nearest: {', '.join(close)}." if close else f" `status{f' {study}' if study else ''}` lists them."
    return f"'{pattern}': no experiment of {where} is called so.{hint}"
