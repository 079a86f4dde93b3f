"""A search on its store: its declaration, its trials and its report."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import optuna
from filelock import FileLock
from optuna.trial import TrialState

from iris.errors import UserError
from iris.files import write_atomic
from iris.store import Store, storage_errors
from sweeps.search import optuna_study, records
from sweeps.search.file import DECLARATION, Search, changed, folder_of, read
from sweeps.search.journal import scan
from sweeps.search.trial_queue import EXHAUSTED, valid


@dataclass(frozen=True)
class Session:
    """A search on a store; its trials are in a journal there, or in the database at `url`."""

    search: Search
    root: str
    url: str | None = None

    @classmethod
    def declared(cls, name: str, root: str, url: str | None) -> Self:
        """Return a search as it was last started on a store. Raises UserError if it never was."""
        folder = folder_of(Store(root), name)
        if not (folder / DECLARATION).exists():
            known = sorted(path.parent.name for path in folder.parent.glob(f"*/{DECLARATION}"))
            raise UserError(
                f"search {name} was never started on the store {Store(root).root}. "
                f"Searches there: {', '.join(known) or 'none'}; name=NAME or store=FOLDER chooses another."
            )
        place = _place(folder)
        if "://" not in place:
            return cls(read(folder), root)
        if url and optuna_study.shown(url) == place:
            return cls(read(folder), root, url)
        if "…" in place:
            raise UserError(f"search {name} keeps its trials in {place}: give its storage=….")
        return cls(read(folder), root, place)

    @property
    def store(self) -> Store:
        """The store of its stages."""
        return Store(self.root)

    @property
    def folder(self) -> Path:
        """The folder of its declaration and trials."""
        return folder_of(self.store, self.search.name)

    @property
    def place(self) -> str:
        """Where its trials are kept, without a password."""
        return optuna_study.shown(self.url) if self.url else "a journal in the store"

    def declare(self) -> None:
        """Write the declaration. Raises UserError if the name belongs to another search, or to other storage."""
        self.store.prepare()
        with storage_errors(self.store.root):
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / "gate.lock", thread_local=False):
                if (self.folder / DECLARATION).exists():
                    self._check_same()
                content = {"search": self.search.to_json(), "storage": self.place}
                write_atomic(self.folder / DECLARATION, json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    def _check_same(self) -> None:
        name = self.search.name
        if (place := _place(self.folder)) != self.place:
            raise UserError(f"search {name} keeps its trials in {place}, not in {self.place}: give its storage=….")
        if different := changed(read(self.folder), self.search):
            raise UserError(
                f"search {name} was started with another {' and another '.join(different)}: its trials "
                "cannot be compared with new ones. Give the new search its own name with name=…."
            )

    def study(self) -> optuna.Study:
        """Return its trials as they are now, to read."""
        return optuna_study.read_study(self.search, self.folder, self.url)

    def report(self) -> list[str]:
        """Write the report; return its lines."""
        damage = "" if self.url else scan(self.folder).damage
        lines = records.report(self.search, self.study(), self.store, self.folder)
        return [damage, *lines] if damage else lines

    def left(self) -> int:
        """Return how many trials have still to end."""
        study = self.study()
        trials = study.get_trials(deepcopy=False)
        running = sum(trial.state == TrialState.RUNNING for trial in trials)
        missing = 0 if study.user_attrs.get(EXHAUSTED) else self.search.trials - sum(map(valid, trials))
        return max(running, missing)


def _place(folder: Path) -> str:
    place: str = json.loads((folder / DECLARATION).read_text())["storage"]
    return place
