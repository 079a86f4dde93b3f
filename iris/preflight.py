"""Checks before anything is computed: all mistakes of some experiments at once, in seconds and without weights.

python -m iris.preflight    the checks that import torch, of pickled configurations on standard input, for a caller
                            that does without it
"""

import contextlib
import functools
import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from iris import content, fingerprint, plan, source, validate
from iris.compose import keys_of
from iris.config import Config, Experiment, identity
from iris.errors import UserError
from iris.execution.runner import missing
from iris.execution.trackers import check_trackers
from iris.files import write_atomic
from iris.plan import Stage
from iris.store import Store

_NAME = 255  # bytes of a file name
_NAMES = 160  # of the names that a stage's key is made of; suffixes of files and shards take the rest
_READING = 1.5  # seconds for the rows of a source
_ENOUGH = 100  # usable rows, where no size is asked for
Check = Callable[[], object]


def check(configs: Sequence[Config], mistakes: Sequence[str] = (), *, torch: bool = False, here: bool = False) -> None:
    """Raise one UserError that lists all mistakes of some experiments, beside those known already.

    Sections with known mistakes are left out, and equal ones that are one object checked once. `torch` says that the
    caller imports torch anyway; otherwise a process of its own does. `here` checks this machine's devices as well.
    """
    wrong = keys_of(mistakes)
    found = [*mistakes, *_failures(each for needed, each in _light(configs) if _sound(needed, wrong))]
    if _sound(("model", "data.max_prompt_tokens", "generate.max_new_tokens"), wrong):
        models, faults = _new_models(configs)
        found += faults + (_models(models) if torch or not models else _models_elsewhere(models))
    if here and _sound(("train.precision", "execution.device"), wrong) and (found or any(map(_has_missing, configs))):
        found += _failures([functools.partial(_check_device, config) for config in configs])
    validate.refuse(list(dict.fromkeys(found)))


def _sound(needed: Iterable[str], wrong: Iterable[str]) -> bool:
    """Return whether none of the needed keys, nor a section above or a key below one, is among the wrong ones."""
    return not any(
        f"{one}.".startswith(f"{key}.") or f"{key}.".startswith(f"{one}.") for key in needed for one in wrong
    )


def _failures(checks: Iterable[Check]) -> list[str]:
    found = []
    for each in checks:
        try:
            each()
        except UserError as error:
            found.append(str(error))
    return found


def _distinct(configs: Sequence[Config], key: Callable[[Config], Hashable]) -> Iterable[Config]:
    return {key(config): config for config in configs}.values()


# --- checks that take a moment


def _light(configs: Sequence[Config]) -> Iterator[tuple[Sequence[str], Check]]:
    """Yield checks, each with the keys that it needs."""
    for config in _distinct(configs, lambda c: (c.store, c.output)):
        yield ("store",), functools.partial(check_folder, "store", config.store)
        yield ("output",), functools.partial(check_folder, "output", config.output)
    yield (), _check_caches
    for config in _distinct(configs, lambda c: tuple(c.execution.tracking)):
        yield ("execution.tracking",), functools.partial(check_trackers, config.execution.tracking)
    for config in _distinct(configs, lambda c: id(c.evaluate)):
        yield ("evaluate.tasks", "evaluate.include"), functools.partial(_check_tasks, config)
    for config in _distinct(configs, lambda c: (c.method.name, c.model.name, c.data.name)):
        yield ("model.name", "data.name", "method.name"), functools.partial(_check_names, config)
    for config in _distinct(configs, lambda c: (id(c.model), id(c.data))):
        yield ("model", "data"), functools.partial(_check_data, config)
    for config in _distinct(configs, lambda c: (id(c.model), id(c.data), id(c.evaluate))):
        yield [f.name for f in fields(Experiment)], functools.partial(plan.chain, identity(config))


def check_folder(key: str, value: str) -> None:
    """Raise UserError for a folder that can be neither used nor made."""
    if not value.strip():
        raise UserError(f"{key} is empty: name a folder, such as {key}=iris-{key}.")
    try:
        path = Path(value).expanduser().absolute()
    except RuntimeError as error:  # ~nobody
        raise UserError(f"{key}={value}: {error}") from error
    if long := [part for part in path.parts if len(os.fsencode(part)) > _NAME]:
        size = len(os.fsencode(long[0]))
        raise UserError(f"{key}: the name {long[0][:20]}… has {size} bytes; a folder's name has at most {_NAME}.")
    place = next(p for p in (path, *path.parents) if p.is_symlink() or p.exists())
    if not place.exists():
        raise UserError(f"{key}={value}: {place} is a link to {place.readlink()}, which does not exist.")
    if not place.is_dir():
        raise UserError(f"{key}={value}: {place} is a file, not a folder.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"{key}={value}: {place} may not be written. Choose another folder with {key}=FOLDER.")


def _check_caches() -> None:
    from huggingface_hub import constants

    try:
        check_folder("HF_HOME", constants.HF_HOME)
    except UserError as error:
        raise UserError(f"{error} The libraries of Hugging Face keep their caches there.") from error


def _check_tasks(config: Config) -> None:
    from iris.evaluation.catalog import select

    select(config.evaluate.tasks, [Path(folder).expanduser().absolute() for folder in config.evaluate.include])


def _check_names(config: Config) -> None:
    names = {"model.name": content.slug(config.model.name), "data.name": content.slug(config.data.name)}
    if missing := [key for key, name in names.items() if not name]:
        raise UserError(f"{missing[0]}: give a name with letters or digits; the names of artifacts contain it.")
    size = sum(len(os.fsencode(name)) for name in (*names.values(), config.method.name))
    if size > _NAMES:
        longest = max(names, key=lambda key: len(names[key]))
        raise UserError(f"{longest} is too long: the names of model, data and method have {size} bytes of {_NAMES}.")


def _check_data(config: Config) -> None:
    """Read the first rows of the source, or all of them where that takes a moment."""
    stage = plan.data_stage(config.data, config.model, Stage("base", "any", {}))
    _once(("data", stage.key), functools.partial(_read_rows, stage))


def _read_rows(stage: Stage) -> None:
    from iris.data.sources import check_size, read_source

    if stage.identity["source"] == "hub":  # to be downloaded first
        return
    check_size(stage.identity, stage.location)
    wanted, started, usable, problem = stage.identity["size"], time.monotonic(), 0, ""
    for number, example in enumerate(read_source(stage.identity, stage.location)):
        usable += example.problem is None
        problem = example.problem or problem
        late = time.monotonic() - started > _READING
        if late and not usable:
            raise UserError(f"data.path={stage.location.get('path')}: of {number + 1} rows none is usable: {problem}.")
        if late or usable >= (wanted or _ENOUGH):
            return
    if usable < (wanted or 1):
        raise UserError(
            f"data.size={wanted or 'all'}: the source has {usable} usable rows{f' ({problem})' if problem else ''}. "
            "Choose a smaller data.size or 'all'."
        )


# --- checks of models and templates, which need torch


def _new_models(configs: Sequence[Config]) -> tuple[list[Config], list[str]]:
    """Return one configuration for each model, template and length that has not passed, and what is not found."""
    new, faults = [], []
    for config in _distinct(configs, lambda c: (id(c.model), id(c.data), id(c.generate))):
        try:
            if not _passed(_model_key(config)).exists():
                new.append(config)
        except UserError as error:
            faults.append(str(error))
    return new, faults


def _model_key(config: Config) -> tuple[Any, ...]:
    return "model", plan.base_stage(config.model, 0).key, config.model.template, _tokens(config)


def _tokens(config: Config) -> int:
    return config.data.max_prompt_tokens + config.generate.max_new_tokens


def _check_model(config: Config) -> None:
    from iris.model.architecture import check_length
    from iris.model.template import Template
    from iris.stages.base import inspect

    if found := inspect(plan.base_stage(config.model, 0)):
        tokenizer, architecture = found
        Template(tokenizer, config.model.template)
        check_length(architecture, _tokens(config), "The longest prompt with generate.max_new_tokens")


def _models(configs: Iterable[Config]) -> list[str]:
    return _failures(functools.partial(_once, _model_key(c), functools.partial(_check_model, c)) for c in configs)


def _models_elsewhere(configs: Sequence[Config]) -> list[str]:
    done = subprocess.run([sys.executable, "-m", "iris.preflight"], input=pickle.dumps(configs), stdout=subprocess.PIPE)
    found: list[str] = json.loads(done.stdout)
    return found


def _has_missing(config: Config) -> bool:
    return bool(missing(plan.chain(identity(config)), Store(config.store)))


def _check_device(config: Config) -> None:
    from iris.execution.device import check_precision, find_device

    check_precision(config.train.precision, find_device(config.execution.device))


# --- checks that need not be repeated


def _once(of: Any, look: Check) -> None:
    """Run a check unless it has passed before, here or in an earlier process, with the same code."""
    passed = _passed(of)
    if not passed.exists():
        look()
        with contextlib.suppress(OSError):  # checked again next time
            write_atomic(passed, "")


def _passed(of: Any) -> Path:
    code = [source.combined(source.computed_by(kind)) for kind in ("base", "data")]
    return fingerprint.cache_folder() / "passed" / fingerprint.digest(repr(of), *code)


if __name__ == "__main__":
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as answer:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print
        json.dump(_models(pickle.load(sys.stdin.buffer)), answer)
