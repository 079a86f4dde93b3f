"""A search on its store: its folder, what it was begun as, and how far it is."""

import json
from dataclasses import dataclass
from pathlib import Path

import optuna
from filelock import FileLock
from optuna.trial import TrialState

from iris.errors import UserError
from iris.files import write_atomic
from iris.store import Store, storage_errors
from sweeps.search import optuna_study, records
from sweeps.search.file import DECLARATION, Search, changed, folder_of, read
from sweeps.search.trial_queue import EXHAUSTED, valid


@dataclass(frozen=True)
class Session:
    """A search on a store; its trials are kept in a journal there, or in the database at `url`."""

    search: Search
    root: str
    url: str | None = None

    @property
    def store(self) -> Store:
        """Where its stages go."""
        return Store(self.root)

    @property
    def folder(self) -> Path:
        """Its own folder."""
        return folder_of(self.store, self.search.name)

    @property
    def place(self) -> str:
        """Where its trials are kept, as may be shown."""
        return optuna_study.shown(self.url) if self.url else "a journal in the store"

    def declare(self) -> None:
        """Write down what is searched. Raises UserError if the name stands for another search, or other storage."""
        self.store.prepare()
        with storage_errors(self.store.root):
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / "gate.lock", thread_local=False):
                self._check_same()
                content = {"search": self.search.to_json(), "storage": self.place}
                write_atomic(self.folder / DECLARATION, json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    def _check_same(self) -> None:
        if not (self.folder / DECLARATION).exists():
            return
        name, place = self.search.name, json.loads((self.folder / DECLARATION).read_text())["storage"]
        if place != self.place:
            raise UserError(f"search {name} keeps its trials in {place}, not in {self.place}: give its storage=….")
        if different := changed(read(self.folder), self.search):
            raise UserError(
                f"search {name} was begun with another {' and another '.join(different)}: its trials cannot be "
                "compared with new ones. Give the new search a name of its own with name=…."
            )

    def study(self) -> optuna.Study:
        """Its trials."""
        storage = optuna_study.open_storage(self.folder, self.url)
        sampler, pruner = optuna_study.make_sampler(self.search, 0), optuna_study.make_pruner(self.search, 1)
        return optuna_study.open_study(self.search, storage, sampler, pruner)

    def report(self) -> list[str]:
        """Write the report; its lines."""
        if not (self.folder / DECLARATION).exists():
            raise UserError(f"search {self.search.name} has not been begun on the store {self.store.root}.")
        self._check_same()
        return records.report(self.search, self.study(), self.store, self.folder)

    def left(self) -> int:
        """How many trials are still to end."""
        study = self.study()
        trials = study.get_trials(deepcopy=False)
        running = sum(trial.state == TrialState.RUNNING for trial in trials)
        missing = 0 if study.user_attrs.get(EXHAUSTED) else self.search.trials - sum(map(valid, trials))
        return max(running, missing)
