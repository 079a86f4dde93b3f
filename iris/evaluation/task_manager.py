"""lm-eval's task manager for selected tasks: local data found, randomness fixed, errors that name the task."""

import functools
import inspect
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api import metrics  # noqa: F401 (fills the registry)
from lm_eval.api.registry import metric_registry
from lm_eval.tasks import TaskManager
from lm_eval.tasks._factory import TaskFactory

from iris.errors import UserError, nearest
from iris.evaluation.catalog import PACKAGED, Selection, data_files
from iris.evaluation.requirements import LOCAL_FORMATS, no_data

# What lm-eval's command line uses: seed 0 gives its few-shot examples.
FEWSHOT_SEED = 1234


class Tasks(TaskManager):  # type: ignore[misc]
    """lm-eval's task manager over the folders of a selection.

    `cache` is where `datasets` prepares local data files; `generator` the experiment's, for the tasks `embedded…`.
    """

    def __init__(
        self,
        selection: Selection,
        include: Sequence[Path],
        seed: int,
        cache: Path,
        generator: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(include_path=[*sorted(selection.harness), PACKAGED, *include], include_defaults=False)
        self._factory = _Factory(seed, cache, generator)
        self.seed = seed

    def build(self, names: Sequence[str], num_fewshot: int | None) -> dict[str, Any]:
        """Return lm-eval's {"tasks", "groups", "group_map"} for some names. Raises UserError that names the task."""
        try:
            loaded: dict[str, Any] = self.load(list(names))
        except ValueError as error:  # a task that two of the names lead to
            raise UserError(f"The evaluation tasks {', '.join(names)} do not go together: {error}") from error
        for task in loaded["tasks"].values():
            self._set_fewshot(task, num_fewshot)
        return loaded

    def expand(self, names: Sequence[str]) -> list[str]:
        """Return the names with each tag replaced by its tasks."""
        tags = set(self.all_tags)
        return [task for name in names for task in (sorted(self.task_index[name].tags) if name in tags else [name])]

    def _set_fewshot(self, task: Any, number: int | None) -> None:
        configured = task.get_config("num_fewshot")
        if configured is None or (number is not None and configured != 0):  # 0 shots are part of a task's definition
            task.set_config(key="num_fewshot", value=number or 0)
        task.set_fewshot_seed(seed=FEWSHOT_SEED + self.seed)


class _Factory(TaskFactory):  # type: ignore[misc]
    def __init__(self, seed: int, cache: Path, generator: Mapping[str, Any] | None) -> None:
        super().__init__()
        self.seed, self.cache, self.generator = seed, cache, generator

    def _load_full_config(self, entry: Any, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
        try:
            config: dict[str, Any] = super()._load_full_config(entry, overrides)
        except Exception as error:  # the task's own Python code runs here
            raise UserError(
                f"The evaluation task '{entry.name}' cannot be read from {entry.yaml_path}: {_cause(error)}"
            ) from error
        members = config.get("task")
        for part in [config, *(members if isinstance(members, list) else [])]:
            if isinstance(part, dict):
                self._prepare(part, Path(entry.yaml_path).parent)
        return config

    def _prepare(self, config: dict[str, Any], folder: Path) -> None:
        custom = config.get("custom_dataset")
        if callable(custom) and Path(inspect.getfile(custom)).parent == PACKAGED:
            config["dataset_kwargs"] = {"generator": self.generator}
        if files := data_files(config, folder):
            config["dataset_kwargs"] = config["dataset_kwargs"] | {"data_files": files}
            if config.get("dataset_path") in LOCAL_FORMATS:
                # The shared cache goes by a file's time stamp and would serve an older content under the same one.
                config["dataset_kwargs"]["cache_dir"] = str(self.cache)
        if callable(config.get("process_docs")):
            config["process_docs"] = _seeded(config["process_docs"], self.seed)

    def _build_task(self, entry: Any, overrides: dict[str, Any] | None) -> Any:
        config = self._load_full_config(entry, overrides)
        _check_metrics(entry.name, config)
        try:
            return super()._build_task(entry, overrides)
        except UserError:
            raise
        except Exception as error:
            raise UserError(_failure(entry.name, config, error)) from error


def _seeded(process: Callable[[Any], Any], seed: int) -> Callable[[Any], Any]:
    """Return a task's preparation of its documents, run once per data set and from a fixed seed.

    Some shuffle choices with the global generator: the order would depend on the tasks before, and differ between the
    prompt and its scoring where the first result is not cached.
    """
    results: dict[int, tuple[Any, Any]] = {}

    @functools.wraps(process)
    def run(documents: Any) -> Any:
        if id(documents) not in results:
            random.seed(seed)
            np.random.seed(FEWSHOT_SEED + seed)
            results[id(documents)] = documents, process(documents)
        return results[id(documents)][1]

    return run


def _check_metrics(name: str, config: Mapping[str, Any]) -> None:
    """Raise UserError for an unknown metric, which lm-eval would look up on the hub and then leave out."""
    for entry in config.get("metric_list") or []:
        metric = entry.get("metric")
        own = config.get("process_results") or callable(metric) or entry.get("hf_evaluate")
        if not own and metric not in metric_registry:
            known = sorted(metric_registry)
            raise UserError(
                f"The evaluation task '{name}' asks for the metric '{metric}', which lm-eval does not have."
                f"{nearest(str(metric), known)} It has: {', '.join(known)}."
            )


def _failure(name: str, config: Mapping[str, Any], error: Exception) -> str:
    path = config.get("dataset_path")
    if isinstance(error, OSError) and path not in LOCAL_FORMATS:
        return no_data(name, config, _cause(error))
    return f"The evaluation task '{name}' cannot be built from its data set '{path}': {_cause(error)}"


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]
