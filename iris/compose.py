"""From command-line overrides to a checked configuration, and one clear message for whatever is wrong with them."""

import contextlib
import functools
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from iris.config import Config, Optimization, parse_size
from iris.errors import UserError, nearest
from iris.method import schedules
from iris.method.registry import METHODS, check_loss, needs

_CHOICES = {
    "train.optimizer": ("adamw", "rmsprop"),
    "train.sft.optimizer": ("adamw", "rmsprop"),
    "train.decay": ("linear", "cosine", "constant"),
    "train.sft.decay": ("linear", "cosine", "constant"),
    "train.precision": ("float32", "bfloat16"),
    "schedule.per": ("iteration", "step"),
    "generate.engine": ("slots", "vllm"),
    "execution.distributed": ("ddp", "fsdp2"),
    "execution.device": ("auto", "cpu", "cuda", "mps"),
}


def conf_dir() -> Path:
    """The folder of the shipped configuration: inside the installed package, or beside it in a source tree."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "conf"


def groups() -> dict[str, list[str]]:
    """The groups of an experiment's configuration and their options."""
    sections = {f.name for f in fields(Config)}
    return {
        folder.name: sorted(p.stem for p in folder.glob("*.yaml"))
        for folder in sorted(conf_dir().iterdir())
        if folder.is_dir() and folder.name in sections
    }


def register() -> None:
    """Make the dataclasses the schema that Hydra checks names and types against."""
    ConfigStore.instance().store(name="schema", node=Config)


def normalize(overrides: Sequence[str]) -> list[str]:
    """`method=iris` means `+method=iris`: the method has no default, but nobody should have to know that."""
    return [f"+{o}" if o.startswith("method=") else o for o in overrides]


def load(overrides: Sequence[str]) -> Config:
    """The checked configuration of one experiment. Raises UserError with one message."""
    return to_config(compose_named(overrides))


def compose_named(overrides: Sequence[str]) -> DictConfig:
    """What Hydra composes of overrides whose groups, options and keys all exist. Raises UserError with one message."""
    register()
    overrides = normalize(overrides)
    parsed = [parse(o) for o in overrides]
    _check_groups(parsed)
    known = groups()
    chosen = [o for o, p in zip(overrides, parsed, strict=True) if p.key_or_group in known]
    with explained(), initialize_config_dir(str(conf_dir()), version_base="1.3"):
        composed = compose("config", chosen)  # whose keys are those that other overrides may name
        check_keys(parsed, keys(composed), known)
        return composed if chosen == overrides else compose("config", overrides)


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn what Hydra and OmegaConf raise into one message."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_one_line(error)) from error


def to_config(composed: DictConfig) -> Config:
    """The dataclass of a composed configuration, its values checked."""
    check_method_named(composed)
    with explained():
        config = OmegaConf.to_object(typed(composed))
    assert isinstance(config, Config)
    check(config)
    return config


def typed(composed: DictConfig) -> DictConfig:
    """A composed configuration whose nodes convert what they are given as the schema says."""
    merged = OmegaConf.merge(OmegaConf.structured(Config), composed)
    assert isinstance(merged, DictConfig)
    return merged


def check_method_named(composed: DictConfig) -> None:
    """Refuse a composed configuration without a method."""
    if OmegaConf.is_missing(composed.method, "name"):
        raise UserError(f"No method given. Add one of: {' '.join(f'+method={m}' for m in METHODS)}")


def check(config: Config) -> None:
    """Refuse values that cannot work, before anything is spent."""
    needed = needs(config.method.name)
    check_loss(config.method.name, config.method.loss)
    if needed.alpha:
        schedules.check(config.schedule.name, config.schedule.params, config.schedule.levels)
    parse_size(config.data.size)
    for key, choices in _CHOICES.items():
        value: Any = functools.reduce(getattr, key.split("."), cast(Any, config))
        if value not in choices:
            raise UserError(f"{key}={value}: choose one of {', '.join(choices)}.{nearest(str(value), choices)}")
    if config.model.template != "chat" and "{prompt}" not in config.model.template:
        raise UserError("model.template: expected 'chat' or a text that contains {prompt}.")
    _check_numbers(config)


@dataclass(frozen=True)
class _Range:
    key: str
    value: Any
    low: float
    high: float = float("inf")
    open_low: bool = False

    def check(self) -> None:
        for number in self.value if isinstance(self.value, list) else [self.value]:
            number = float(number) if isinstance(number, int | float) else float("nan")
            if not (self.low < number if self.open_low else self.low <= number) or not number <= self.high:
                bounds = f"{'above' if self.open_low else 'at least'} {self.low:g}"
                bounds += "" if self.high == float("inf") else f" and at most {self.high:g}"
                raise UserError(f"{self.key}={self.value}: expected a number {bounds}.")


def _check_numbers(config: Config) -> None:
    ranges = [
        _Range("iterations", config.iterations, 0),
        _Range("seed", config.seed, 0),
        _Range("method.samples", config.method.samples, 1),
        _Range("method.rounds", config.method.rounds, 1),
        _Range("generate.temperature", config.generate.temperature, 0),
        _Range("generate.top_p", config.generate.top_p, 0, 1, open_low=True),
        _Range("generate.max_new_tokens", config.generate.max_new_tokens, 1),
        _Range("generate.shard", config.generate.shard, 1),
        _Range("data.max_prompt_tokens", config.data.max_prompt_tokens, 1),
        _Range("data.max_response_tokens", config.data.max_response_tokens, 1),
        _Range("execution.processes", config.execution.processes, 1),
        _Range("execution.micro_batch_tokens", config.execution.micro_batch_tokens, 1),
        _Range("execution.slots", config.execution.slots, 1),
        _Range("execution.checkpoint_minutes", config.execution.checkpoint_minutes, 0),
    ]
    for item in [*ranges, *_training_ranges("train", config.train), *_training_ranges("train.sft", config.train.sft)]:
        item.check()


def _training_ranges(name: str, run: Optimization) -> list[_Range]:
    return [
        _Range(f"{name}.epochs", run.epochs, 0, open_low=True),
        _Range(f"{name}.learning_rate", run.learning_rate, 0, open_low=True),
        _Range(f"{name}.batch", run.batch, 1),
        _Range(f"{name}.warmup", run.warmup, 0, 1),
        _Range(f"{name}.max_grad_norm", run.max_grad_norm, 0, open_low=True),
    ]


# --- what Hydra would say in many lines


def parse(override: str) -> Override:
    """One override in Hydra's grammar. Raises UserError."""
    try:
        return OverridesParser.create().parse_override(override)
    except (HydraException, OverrideParseException) as error:
        raise UserError(
            f"'{override}' is no override: write key=value, for example seed=1 (quote texts with special signs: "
            f"'key=\"a b\"')."
        ) from error


def _check_groups(parsed: Sequence[Override]) -> None:
    known = groups()
    for override in parsed:
        name = override.key_or_group
        if name not in known or override.is_delete():
            continue
        value = override.value()
        for choice in value if isinstance(value, list) else [value]:
            if isinstance(choice, str) and choice not in known[name]:
                raise UserError(
                    f"{name}={choice}: choose one of {', '.join(known[name])}.{nearest(choice, known[name])}"
                )


def check_keys(parsed: Sequence[Override], keys: Collection[str], known: Collection[str]) -> None:
    """Refuse overrides of keys that are neither among those of the configuration nor groups."""
    for override in parsed:
        key = override.key_or_group
        if key in known or key.startswith("hydra"):
            continue
        if override.is_add() and any(key.startswith(p) for p in ("method.loss.", "schedule.params.", *_FREE)):
            continue
        if key not in keys:
            leaf = [k for k in keys if k.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
            hint = f" Did you mean '{leaf[0]}'?" if leaf else nearest(key, [*keys, *known])
            parent = key.rsplit(".", 1)[0] if "." in key else ""
            siblings = [k.removeprefix(f"{parent}.") for k in keys if k.startswith(f"{parent}.") or not parent]
            near = ", ".join(sorted({s.split(".")[0] for s in siblings})) or "none"
            where = f" Keys of '{parent}': {near}." if parent else f" Keys: {near}."
            raise UserError(f"{key}: the configuration has no such key.{hint}{where}")


_FREE = ("model.architecture.", "data.generator.")


def keys(composed: DictConfig) -> list[str]:
    """The dotted keys of a composed configuration, sections included."""
    return _keys(OmegaConf.to_container(composed))


def _keys(container: Any, prefix: str = "") -> list[str]:
    if not isinstance(container, dict):
        return []
    here = [f"{prefix}{key}" for key in container]
    return here + [k for key, value in container.items() for k in _keys(value, f"{prefix}{key}.")]


def _one_line(error: Exception) -> str:
    cause = error.__cause__ if isinstance(error, HydraException) and error.__cause__ else error
    lines = [line.strip() for line in str(cause).splitlines()]
    key = next((m[1] for m in (re.match(r"full_key: (.+)", line) for line in lines) if m), "")
    text = next((line for line in lines if line), type(error).__name__)
    if text.startswith("Ambiguous value"):
        text += ": one run takes one value. Add --multirun to run them all."
    return f"{key}: {text}" if key and key not in text else text
