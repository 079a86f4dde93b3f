"""Score a model in memory with lm-eval (EleutherAI/lm-evaluation-harness) used as a library."""

import contextlib
import copy
import io
import logging
import random
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iris.data.contamination import prompt_hash
from iris.errors import UserError
from iris.evaluation.catalog import select
from iris.evaluation.subset import check_share, restrict
from iris.execution.progress import Progress
from iris.execution.world import World

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from iris.sampling.engine import Engine

# Resamplings for the standard error of a metric that is no mean.
_BOOTSTRAP = 1000


@dataclass(frozen=True)
class Scores:
    """Result of an evaluation; every value can be written as JSON."""

    tasks: dict[str, dict[str, float]]  # task or group → "metric,filter" or "metric_stderr,filter" → value
    main: dict[str, tuple[str, float, float | None]]  # benchmark → its main metric, value, standard error
    average: float  # the mean of the values in `main`
    samples: dict[str, list[dict[str, Any]]]  # task → documents with prompt, response, filtered responses and metrics
    versions: dict[str, Any]  # lm-eval's version; of each task the version, number of examples and of documents
    truncated: int  # requests whose prompt lost its beginning because it was longer than the model's context
    tokens: int  # tokens that this process has fed and sampled
    warnings: list[str]  # lm-eval's warnings, each once
    answers: dict[str, Any]  # request (`iris.evaluation.subset.request_keys`) → the model's answer
    reused: int  # requests whose answer was given in advance


def evaluate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    tasks: Sequence[str],
    *,
    include: Sequence[Path] = (),
    limit: int | None = None,
    num_fewshot: int | None = None,
    template: str | None = None,
    generator: Mapping[str, Any] | None = None,
    share: float | None = None,
    answers: Mapping[str, Any] | None = None,
    micro_batch_tokens: int = 16384,
    engine: "Engine | None" = None,
    slots: int = 64,
    seed: int = 0,
    world: World | None = None,
    progress: Progress | None = None,
) -> Scores:
    """Score `model` on lm-eval tasks, groups or tags: lm-eval's own, the group `papers`, or those of `include` folders.

    `limit` takes the first documents of every (sub)task; `num_fewshot` replaces the number of examples of tasks that
    have any. `template` is put around each prompt: "chat" (the tokenizer's) or a text with {prompt} in it. `generator`
    is the experiment's, whose held-out splits the tasks `embedded…` evaluate. Responses come from `engine`, by default
    the slot engine. With several processes each must hold the whole model; all get the same scores. Seed 0 draws the
    few-shot examples of lm-eval's command line. The model and all random states are as before afterwards.

    Raises UserError for an unknown task, missing data, a task without its main metric, or a too short context.
    """
    _check(tokenizer, limit, num_fewshot, template)
    check_share(share)
    selection, names = select(tasks, include), list(dict.fromkeys(tasks))
    from lm_eval.evaluator import evaluate as run

    from iris.evaluation.lm import PolicyLM
    from iris.evaluation.task_manager import Tasks
    from iris.model.text import eos_token_ids
    from iris.sampling.slots import SlotEngine

    with _restored(model), _quiet() as log, tempfile.TemporaryDirectory() as cache:
        manager = Tasks(selection, include, seed, Path(cache), generator)
        loaded = manager.build(names, num_fewshot)
        if share is not None:
            for task in loaded["tasks"].values():
                restrict(task, share, limit)
        lm = PolicyLM(
            model,
            copy.deepcopy(tokenizer),  # HFLM may give it a padding token
            engine or SlotEngine(model, eos_token_ids(model.generation_config, tokenizer), slots),
            template=template,
            micro_batch_tokens=micro_batch_tokens,
            seed=seed,
            world=world or World(),
            progress=progress or Progress(quiet=True),
            answers=answers,
        )
        log.buffer.clear()  # problems of loading have raised an error by now
        found = run(
            lm,
            loaded,
            limit=limit,
            bootstrap_iters=_BOOTSTRAP,
            apply_chat_template=template is not None,
            fewshot_as_multiturn=template == "chat",
        )
        warnings = list(dict.fromkeys(record.getMessage() for record in log.buffer))
        return _scores(found, loaded, manager.expand(names), lm, limit, share, warnings)


def first_request(
    tokenizer: "PreTrainedTokenizerBase",
    task: str,
    include: Sequence[Path],
    *,
    num_fewshot: int | None,
    template: str | None,
    generator: Mapping[str, Any] | None,
) -> tuple[str, str]:
    """Return the prompt of a task's first document, and the continuation whose likelihood is asked, if it is.

    Raises UserError for an unknown task or missing data.
    """
    from iris.evaluation.lm import PolicyLM
    from iris.evaluation.task_manager import Tasks

    lm = PolicyLM.__new__(PolicyLM)  # writes prompts without a model
    lm.tokenizer, lm.template, lm.chat_template_args = tokenizer, template, {}
    with _quiet(), tempfile.TemporaryDirectory() as cache:
        loaded = Tasks(select([task], include), include, 0, Path(cache), generator).build([task], num_fewshot)
        first = next(iter(loaded["tasks"].values()))
        first.build_all_requests(
            limit=1,
            apply_chat_template=template is not None,
            fewshot_as_multiturn=template == "chat",
            chat_template=lm.apply_chat_template,
        )
    prompt, more = first.instances[0].args[:2]
    return str(prompt), more if isinstance(more, str) else ""


def prompt_hashes(samples: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return for each document the hashes (`iris.data.contamination.prompt_hash`) of its question and text fields."""
    return [
        sorted({prompt_hash(text) for text in (sample["text"], *_texts(sample["doc"])) if text.strip()})
        for sample in samples
    ]


def _texts(document: Any) -> Iterable[str]:
    return (value for value in document.values() if isinstance(value, str)) if isinstance(document, dict) else ()


def _check(tokenizer: Any, limit: int | None, num_fewshot: int | None, template: str | None) -> None:
    if limit is not None and limit < 1:
        raise UserError(f"evaluate.limit={limit}: give 1 or more documents, or null for all of them.")
    if num_fewshot is not None and num_fewshot < 0:
        raise UserError(
            f"evaluate.num_fewshot={num_fewshot}: give 0 or more examples, or null for each task's own number."
        )
    if template == "chat" and not tokenizer.chat_template:
        raise UserError(
            "The evaluation is to use the chat template, but the model's tokenizer has no chat template: set "
            "evaluate.chat_template=false."
        )


def _scores(
    found: Mapping[str, Any],
    loaded: Mapping[str, Any],
    names: list[str],
    lm: Any,
    limit: int | None,
    share: float | None,
    warnings: list[str],
) -> Scores:
    from iris.evaluation import scores

    scores.check_counts(found["n-samples"], limit, share)
    results = found["results"]
    rows = {getattr(item, "task_name", None) or item.name: item for item in scores.benchmarks(loaded, names)}
    main = {name: scores.main_metric(item, results) for name, item in rows.items()}
    return Scores(
        tasks={name: scores.metrics(values) for name, values in results.items()},
        main=main,
        average=sum(value for _, value, _ in main.values()) / len(main),
        samples={name: scores.records(loaded["tasks"][name], found["samples"][name]) for name in loaded["tasks"]},
        versions={"lm_eval": version("lm-eval"), "tasks": _versions(found)},
        truncated=sum(lm.world.gather(lm.truncated)),
        tokens=lm.tokens,
        warnings=warnings,
        answers=lm.answers,
        reused=lm.reused,
    )


def _versions(found: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "version": found["versions"][name],
            "num_fewshot": found["n-shot"][name],
            "documents": count["effective"],
        }
        for name, count in found["n-samples"].items()
    }


@contextlib.contextmanager
def _restored(model: "PreTrainedModel") -> Iterator[None]:
    """Restore training mode and the global random states (lm-eval sets them) after a block."""
    import numpy as np

    training = [module for module in model.modules() if module.training]
    states = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        for module in training:
            module.training = True


@contextlib.contextmanager
def _quiet() -> Iterator[MemoryHandler]:
    """Keep lm-eval and datasets off the terminal, collect lm-eval's warnings, and let data sets leave no caches."""
    import datasets
    from lm_eval.api import task

    logger, collector = logging.getLogger("lm_eval"), MemoryHandler(sys.maxsize, flushLevel=sys.maxsize)
    before = logger.propagate, logger.level, logger.handlers
    bars, caching, tqdm = datasets.are_progress_bars_disabled(), datasets.is_caching_enabled(), task.tqdm
    collector.setLevel(logging.WARNING)
    logger.propagate, logger.handlers = False, [collector]
    logger.setLevel(logging.WARNING)
    datasets.disable_progress_bars()
    datasets.disable_caching()
    task.tqdm = lambda items, **_: items
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield collector
    finally:
        task.tqdm = tqdm
        if caching:
            datasets.enable_caching()
        if not bars:
            datasets.enable_progress_bars()
        logger.propagate, level, logger.handlers = before
        logger.setLevel(level)
