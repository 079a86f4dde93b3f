"""The configuration: what an experiment *is* (identity) and how it is *executed*, as two separate trees of dataclasses.

Identity determines content and is the only thing a key can see: `Experiment` is built from the identity half alone.
Types, ranges and choices are declared here and checked by `iris.validate`.
"""

import re
from dataclasses import dataclass, field, fields
from typing import Any

from iris.errors import UserError
from iris.validate import MISSING, choice, converted, ranged

_LARGEST_SEED = 2**32 - 1  # NumPy's
_SUFFIXES = {"": 1, "k": 1_000, "m": 1_000_000}


def parse_size(size: str | float) -> int | None:
    """Return the rows of a subset: '26k' → 26000, '1.5m' → 1500000, '800' → 800, 'all' → None."""
    text = str(size).strip().lower()
    if text == "all":
        return None
    match = re.fullmatch(r"([\d_]+(?:\.\d+)?(?:e\+?\d+)?)\s*([km]?)", text)
    rows = float(match[1]) * _SUFFIXES[match[2]] if match and not isinstance(size, bool) else 0
    if rows < 1 or rows != round(rows):
        raise UserError(f"data.size={size}: expected 'all' or a number of rows such as 800, 26k or 1.5m.")
    return round(rows)


def _short_size(size: Any) -> str:
    """Return the one way in which a size is written: 26k for 26000, 26_000 and 2.6e4."""
    rows = parse_size(size)
    if rows is None:
        return "all"
    suffix = next(s for s in ("m", "k", "") if rows % _SUFFIXES[s] == 0)
    return f"{rows // _SUFFIXES[suffix]}{suffix}"


def _modules(names: Any) -> Any:
    """Return names of modules in one order, a single name as a list of one; 'all-linear' stands for all."""
    names = [names] if isinstance(names, str) and names != "all-linear" else names
    return sorted(set(names)) if isinstance(names, list) and all(isinstance(n, str) for n in names) else names


TEMPLATE_DATE = "2024-07-26"  # today, for a chat template that writes the date: the one that Llama 3's falls back to


@dataclass
class Model:
    """Source of π₀'s weights and tokenizer, and how a prompt is written for them."""

    name: str = MISSING
    source: str = choice(MISSING, "config", "pretrained", "gguf")
    path: str | None = None  # pretrained: hub repository or folder; gguf: the Python package that carries the file
    revision: str | None = None  # hub branch, tag or commit; resolved to a commit before it enters a key
    gguf_file: str | None = None
    architecture: dict[str, Any] = field(default_factory=dict)  # config: arguments of the transformers configuration
    alphabet: str | None = None  # config: the characters of the tokenizer, …
    words: list[str] = field(default_factory=list)  # … and the texts that are one token
    template: str = "chat"  # "chat": the tokenizer's chat template; otherwise a text with {prompt} in it
    sft: bool = True  # whether π₀ needs the supervised stage; False for checkpoints that have had it

    def __post_init__(self) -> None:
        self.template = self.template.replace("\\n", "\n").replace("\\t", "\t")  # as typed on a command line


@dataclass
class Data:
    """Annotated prompts and responses, and which nested subset of them."""

    name: str = MISSING
    source: str = choice(MISSING, "generated", "files", "hub")
    path: str | None = None
    config: str | None = None  # hub: the data set's configuration
    split: str = "train"
    revision: str | None = None
    size: str = converted("all", _short_size)  # "all", or a number such as 26k
    subset_seed: int = ranged(0, 0, _LARGEST_SEED)
    messages: str | None = None  # the column of chat messages; or, if null, …
    prompt: str = "prompt"  # … the columns of prompt and response
    response: str = "response"
    max_prompt_tokens: int = ranged(512, 1)
    max_response_tokens: int = ranged(512, 1)
    generator: dict[str, Any] = field(default_factory=dict)  # generated: arguments of the task generator


@dataclass
class Method:
    """An objective with its parameters, and what it trains on."""

    name: str = MISSING
    function: str | None = None  # a function of yours, package.module:name; null: the built-in one of this name
    needs: dict[str, Any] | None = None  # what it takes, in place of its decorator's (`iris.method.registry.Needs`)
    loss: dict[str, float | list[float]] = field(
        default_factory=dict
    )  # the objective's arguments; a list: by iteration
    samples: int = ranged(1, 1)  # synthetic responses per prompt
    rounds: int = ranged(1, 1)  # how many of the latest rounds' pairs an iteration trains on


@dataclass
class Schedule:
    """The order α of each iteration (or step)."""

    name: str = MISSING
    function: str | None = None  # a function of yours, package.module:name; null: the built-in one of this name
    per: str = choice("iteration", "step")
    params: dict[str, float] = field(default_factory=dict)
    levels: list[float] = field(default_factory=list)  # `levels`: α of each iteration; the last one holds from there on


@dataclass
class Optimization:
    """One training run. A list gives one value per iteration; its last value holds from there on."""

    epochs: float | list[float] = ranged(1.0, above=0)
    batch: int = ranged(64, 1)  # prompts (pairs) in a global batch
    learning_rate: float | list[float] = ranged(5e-7, above=0)
    optimizer: str = choice("adamw", "rmsprop")
    weight_decay: float = ranged(0.0, 0)
    warmup: float = ranged(0.1, 0, 1)  # fraction of the steps
    decay: str = choice("linear", "cosine", "constant")
    max_grad_norm: float = ranged(1.0, above=0, infinite=True)


@dataclass
class Lora:
    """Low-rank adapters instead of full weights, from rank 1 on."""

    rank: int = ranged(0, 0)  # 0: full weights
    alpha: float = ranged(32.0, above=0)
    target_modules: str | list[str] = converted("all-linear", _modules)


@dataclass
class Train(Optimization):
    """Self-play training; `sft` holds the supervised stage's own settings."""

    precision: str = choice("float32", "bfloat16")  # bfloat16: autocast over float32 weights, saved as bfloat16
    lora: Lora = field(default_factory=Lora)
    sft: Optimization = field(default_factory=Optimization)


@dataclass
class Generate:
    """How synthetic responses are sampled."""

    engine: str = choice("slots", "vllm")
    temperature: float = ranged(1.0, 0)
    top_p: float = ranged(1.0, above=0, high=1)
    max_new_tokens: int = ranged(256, 1)
    shard: int = ranged(1000, 1)  # prompts per shard, the unit that nested subsets share and a killed run resumes at


@dataclass
class Evaluate:
    """The lm-eval tasks that score every checkpoint."""

    tasks: list[str] = field(default_factory=list)
    include: list[str] = field(default_factory=list)  # folders of local YAML tasks
    limit: int | None = ranged(None, 1)  # documents per task, for trials
    num_fewshot: int | None = ranged(None, 0)
    chat_template: str = choice("auto", "true", "false")  # auto: of model.template=chat; true: any model.template

    def __post_init__(self) -> None:
        self.tasks = list(dict.fromkeys(self.tasks))  # a task counts once


@dataclass
class Experiment:
    """The identity half: everything that determines content, and nothing else."""

    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    method: Method = field(default_factory=Method)
    schedule: Schedule = field(default_factory=Schedule)
    train: Train = field(default_factory=Train)
    generate: Generate = field(default_factory=Generate)
    evaluate: Evaluate = field(default_factory=Evaluate)
    iterations: int = ranged(3, 0)
    seed: int = ranged(0, 0, _LARGEST_SEED)


@dataclass
class Execution:
    """How stages run. Nothing here may change what they compute."""

    device: str = choice("auto", "cpu", "cuda", "mps")
    processes: int = ranged(1, 1)  # one per GPU; more than one starts them here, unless a launcher already has
    distributed: str = choice("ddp", "fsdp2")
    threads: int | None = ranged(None, 1)  # CPU threads of a process
    micro_batch_tokens: int = ranged(16384, 1)  # packed tokens in one forward and backward pass
    gradient_checkpointing: bool = False
    slots: int = ranged(64, 1)  # sequences sampled at once
    checkpoint_minutes: float = ranged(5.0, 0)  # how much training a kill may cost
    tracking: list[str] = field(default_factory=lambda: ["tensorboard"])


@dataclass
class Config(Experiment):
    """The whole configuration as Hydra composes it: identity, execution and the two folders."""

    execution: Execution = field(default_factory=Execution)
    store: str = "iris-store"
    output: str = "outputs"


def identity(config: Config) -> Experiment:
    """Return the identity half of a configuration."""
    return Experiment(**{f.name: getattr(config, f.name) for f in fields(Experiment)})


def at_iteration(value: Any, iteration: int) -> Any:
    """Return the value for one iteration: a list holds one per iteration, its last from there on."""
    if isinstance(value, list):
        return value[min(iteration, len(value) - 1)]
    return value
