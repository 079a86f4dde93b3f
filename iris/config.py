"""The configuration: what an experiment *is* (identity) and how it is *executed*, as two separate trees of dataclasses.

Identity determines content and is the only thing a key can see: `Experiment` is built from the identity half alone.
"""

import re
from dataclasses import dataclass, field, fields
from typing import Any

from omegaconf import MISSING

from iris.errors import UserError


@dataclass
class Model:
    """Where π₀'s weights and tokenizer come from and how a prompt is written for them."""

    name: str = MISSING
    source: str = MISSING  # config | pretrained | gguf
    path: str | None = None  # pretrained: hub repository or folder; gguf: the Python package that carries the file
    revision: str | None = None  # hub branch, tag or commit; resolved to a commit before it enters a key
    gguf_file: str | None = None
    architecture: dict[str, Any] = field(default_factory=dict)  # config: arguments of the transformers configuration
    alphabet: str | None = None  # config: the characters of the tokenizer, …
    words: list[str] = field(default_factory=list)  # … and the texts that are one token
    template: str = "chat"  # "chat": the tokenizer's chat template; otherwise a text with {prompt} in it
    sft: bool = True  # whether π₀ needs the supervised stage; False for checkpoints that have had it


@dataclass
class Data:
    """Annotated prompts and responses, and which nested subset of them."""

    name: str = MISSING
    source: str = MISSING  # generated | hub | files
    path: str | None = None
    config: str | None = None  # hub: the data set's configuration
    split: str = "train"
    revision: str | None = None
    size: str = "all"  # "all", or a number such as 26k
    subset_seed: int = 0
    messages: str | None = None  # the column of chat messages; or, if null, …
    prompt: str = "prompt"  # … the columns of prompt and response
    response: str = "response"
    max_prompt_tokens: int = 512
    max_response_tokens: int = 512
    generator: dict[str, Any] = field(default_factory=dict)  # generated: arguments of the task generator


@dataclass
class Method:
    """An objective with its parameters, and what it trains on."""

    name: str = MISSING
    loss: dict[str, Any] = field(default_factory=dict)  # keyword arguments of the objective; a list: one per iteration
    samples: int = 1  # synthetic responses per prompt
    rounds: int = 1  # how many of the latest rounds' pairs an iteration trains on


@dataclass
class Schedule:
    """The order α of each iteration (or step)."""

    name: str = MISSING
    per: str = "iteration"  # iteration | step
    params: dict[str, float] = field(default_factory=dict)
    levels: list[float] = field(default_factory=list)  # `levels`: α of each iteration; the last one goes on


@dataclass
class Optimization:
    """One training run. A list gives one value per iteration; its last value goes on."""

    epochs: Any = 1.0  # float, or list of floats
    batch: int = 64  # prompts (pairs) in a global batch
    learning_rate: Any = 5e-7  # float, or list of floats
    optimizer: str = "adamw"  # adamw | rmsprop
    weight_decay: float = 0.0
    warmup: float = 0.1  # fraction of the steps
    decay: str = "linear"  # linear | cosine | constant
    max_grad_norm: float = 1.0


@dataclass
class Lora:
    """Low-rank adapters instead of full weights, from rank 1 on."""

    rank: int = 0  # 0: full weights
    alpha: float = 32.0
    target_modules: Any = "all-linear"


@dataclass
class Train(Optimization):
    """Self-play training; `sft` holds the supervised stage's own settings."""

    precision: str = "float32"  # float32 | bfloat16 (autocast over float32 weights; weights are saved as bfloat16)
    lora: Lora = field(default_factory=Lora)
    sft: Optimization = field(default_factory=Optimization)


@dataclass
class Generate:
    """How synthetic responses are sampled."""

    engine: str = "slots"  # slots | vllm
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    shard: int = 1000  # prompts per shard, the unit that nested subsets share and that a killed run resumes at


@dataclass
class Evaluate:
    """Which lm-eval tasks score every checkpoint."""

    tasks: list[str] = field(default_factory=list)
    include: list[str] = field(default_factory=list)  # folders of local YAML tasks
    limit: int | None = None  # documents per task, for trials
    num_fewshot: int | None = None
    chat_template: str = "auto"  # auto: the chat template of model.template=chat | true: any model.template | false


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
    iterations: int = 3
    seed: int = 0


@dataclass
class Execution:
    """How stages run. Nothing here may change what they compute."""

    device: str = "auto"  # auto | cpu | cuda | mps
    processes: int = 1  # one per GPU; more than one starts them here, unless a launcher already has
    distributed: str = "ddp"  # ddp | fsdp2
    threads: int | None = None  # CPU threads of a process
    micro_batch_tokens: int = 16384  # packed tokens in one forward and backward pass
    gradient_checkpointing: bool = False
    slots: int = 64  # sequences sampled at once
    checkpoint_minutes: float = 5.0  # how much training a kill may cost
    tracking: list[str] = field(default_factory=lambda: ["tensorboard"])


@dataclass
class Config(Experiment):
    """The whole configuration as Hydra composes it: identity, execution and the two folders."""

    execution: Execution = field(default_factory=Execution)
    store: str = "iris-store"
    output: str = "outputs"


def identity(config: Config) -> Experiment:
    """The identity half of a composed configuration."""
    return Experiment(**{f.name: getattr(config, f.name) for f in fields(Experiment)})


def parse_size(size: str | int) -> int | None:
    """Rows of a subset: '26k' → 26000, '1.5m' → 1500000, '800' → 800, 'all' → None."""
    text = str(size).strip().lower()
    if text == "all":
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([km]?)", text)
    rows = float(match[1]) * {"": 1, "k": 1_000, "m": 1_000_000}[match[2]] if match else 0
    if rows < 1 or rows != int(rows):
        raise UserError(f"data.size={size}: expected 'all' or a number of rows such as 800, 26k or 1.5m.")
    return int(rows)


def at_iteration(value: Any, iteration: int) -> Any:
    """The value for one iteration: a list holds one per iteration and its last goes on; anything else holds always."""
    if isinstance(value, list):
        return value[min(iteration, len(value) - 1)]
    return value
