"""The trials of a search: the best one, and by how much its score overstates itself."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from analysis.collect.frames import Frames
from analysis.compare import statistics
from sweeps.search import file
from sweeps.search.file import Search
from sweeps.state.records import DONE

_PREFIX = "search-"  # of the study whose experiments are the trials of a search


@dataclass(frozen=True)
class Trials:
    """The trials of a search: `rows` has number, state, error, score (the objective) and stderr of each.

    `rungs` has number, rung (from 1), state and score on the share of the documents that rungs use.
    """

    search: Search
    frames: Frames
    rows: pd.DataFrame
    rungs: pd.DataFrame

    @property
    def sign(self) -> int:
        """The factor that makes the best score the highest."""
        return -1 if self.search.direction == "minimize" else 1

    @property
    def complete(self) -> pd.DataFrame:
        """The trials with a final score, by number."""
        return self.rows[self.rows["score"].notna()]

    @property
    def best(self) -> Any:
        """The row of the best trial, the first of several; None if none is complete."""
        complete = self.complete
        return None if complete.empty else complete.iloc[int(np.argmax(self.sign * complete["score"].to_numpy()))]

    @cached_property
    def bias(self) -> float:
        """The selection bias of the best score; NaN where standard errors are unknown."""
        known = self.complete.dropna(subset="stderr")
        return statistics.selection_bias(self.sign * known["score"].to_numpy(), known["stderr"].to_numpy())

    @property
    def corrected(self) -> float:
        """The best score without its selection bias."""
        return float(self.best["score"]) - self.sign * self.bias


def trials(frames: Frames) -> Trials | None:
    """Return the trials, or None if the study is no search."""
    folder = file.folder_of(frames.store, frames.study.removeprefix(_PREFIX))
    if not frames.study.startswith(_PREFIX) or not (folder / file.DECLARATION).is_file():
        return None
    search = file.read(folder)
    number = frames.experiments["experiment"].str.removeprefix("trial-").astype(int)
    about = frames.experiments[["experiment", "state", "error"]].assign(number=number)
    scores = _objective(frames.scores, search.objective)
    last = scores[scores["final"] & ~scores["part"]].drop_duplicates("experiment", keep="last")
    last = last.set_index("experiment")[["value", "stderr"]].rename(columns={"value": "score"})
    rows = about.join(last, on="experiment").sort_values("number", ignore_index=True)
    rows.loc[rows["state"] != DONE, ["score", "stderr"]] = np.nan
    part = scores[scores["part"] & scores["value"].notna()]
    rung = part.groupby("experiment", observed=True).cumcount() + 1
    rungs = pd.DataFrame({"experiment": part["experiment"].astype(object), "rung": rung, "score": part["value"]})
    return Trials(search, frames, rows, rungs.join(about.set_index("experiment")[["number", "state"]], on="experiment"))


def _objective(scores: pd.DataFrame, objective: str) -> pd.DataFrame:
    """Select the rows of an objective: `average`, a task or `task:metric,filter`."""
    task, _, metric = objective.partition(":")
    chosen = scores["metric"] == metric if metric else scores["main"]
    return scores[(scores["task"] == task) & (chosen | scores["value"].isna())]
