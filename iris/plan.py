"""The stages of one experiment: a graph whose keys follow from the identity half of the configuration alone."""

import hashlib
import json
from collections.abc import Callable, Hashable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from iris import content, fingerprint
from iris.config import Data, Experiment, Model, Optimization, Train, at_iteration
from iris.errors import UserError
from iris.method import registry, schedules

VERSIONS = {"base": 1, "data": 2, "sft": 1, "generate": 1, "score": 2, "train": 2, "evaluate": 2}
# Equal values, equal texts.
canonical = json.JSONEncoder(sort_keys=True, ensure_ascii=False, check_circular=False).encode
T = TypeVar("T")
SHARE = 0.15  # of an evaluation's documents that `part` takes unless told otherwise
Inputs = Mapping[str, "Stage | tuple[Stage, ...]"]
Describe = Callable[[], tuple[str, Mapping[str, Any]]]  # a stage's name and identity


@dataclass(frozen=True, eq=False, slots=True)
class Stage:
    """One unit of work. `key` follows from kind, name, identity, version and the keys of the inputs; `id` is kind/key.

    `location` tells where to find what the identity names; it is not part of the key.
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
        """Return the single input of a role."""
        stage = self.inputs[role]
        assert isinstance(stage, Stage)
        return stage

    def many(self, role: str) -> tuple["Stage", ...]:
        """Return the inputs of a role that holds several."""
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
    """Return `<readable name>-<hash>` over the full resolved identity, the input keys and the stage's version."""
    text = canonical([kind, VERSIONS[kind], name, identity, inputs])
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


class Known:
    """Findings of one experiment that hold for the next one with the same sections of configuration and inputs.

    The same means the same objects, which nobody may change meanwhile.
    """

    def __init__(self) -> None:
        self._found: dict[Hashable, Any] = {}
        self._by_key: dict[str, Stage] = {}
        self._kept: list[Any] = []

    def keep(self, experiment: Experiment) -> None:
        """Keep an experiment's sections in memory, so that no other section gets the id of one of them."""
        self._kept.append(experiment)

    def one(self, stage: Stage) -> Stage:
        """Return the one object for all stages of a key, under which what it leads to is found again."""
        return self._by_key.setdefault(stage.key, stage)

    def once(self, key: Hashable, find: Callable[[], T]) -> T:
        """Call `find` once for a key that holds everything its result depends on.

        A UserError is raised again without another try: a hub that does not answer costs seconds.
        """
        if key not in self._found:
            try:
                self._found[key] = find()
            except UserError as error:
                self._found[key] = error
        found: T | UserError = self._found[key]
        if isinstance(found, UserError):
            raise UserError(str(found))
        return found


def chain(experiment: Experiment, known: Known | None = None) -> Chain:
    """Return the stages of one experiment; `known` is for many. Raises UserError for content that cannot be found."""
    return _Builder(experiment, known or Known()).build()


class _Builder:
    def __init__(self, experiment: Experiment, known: Known) -> None:
        self.experiment, self.known = experiment, known
        known.keep(experiment)
        own = experiment.method
        self.method = known.once(("method", id(own)), lambda: registry.find(own.name, own.function, own.needs))
        model, data = experiment.model, experiment.data
        self.precision = experiment.train.precision
        seed = experiment.seed if model.source == "config" else 0
        self.base = known.once(("base", id(model), seed), lambda: known.one(base_stage(model, seed)))
        data_key = ("data", id(data), id(model), self.base)
        self.data = known.once(data_key, lambda: known.one(data_stage(data, model, self.base)))
        parts = ("evaluation", id(experiment.evaluate), id(model), id(data), self.precision)
        self.evaluation = known.once(parts, lambda: content.of_evaluation(experiment))
        self.name = f"{self.data.name}-{self.base.name}-s{experiment.seed}"
        self.policies: list[Stage] = []
        self.generates: list[Stage] = []
        self.stages = dict.fromkeys((self.base, self.data))  # in order
        self.rows: list[Row] = []

    def build(self) -> Chain:
        experiment = self.experiment
        if experiment.model.sft:
            self._row("base", self.base)
            self._row("start", self._sft())
        else:
            self._row("start", self.base)
        for t in range(experiment.iterations):
            self._iterate(t)
        name = f"{content.slug(experiment.method.name)}-{self.name}"
        digest = fingerprint.digest(json.dumps([row.evaluate.key for row in self.rows]))
        return Chain(f"{name}-{digest[:8]}", tuple(self.stages), tuple(self.rows), self.data)

    def _add(self, parts: tuple[Any, ...], inputs: Inputs, describe: Describe) -> Stage:
        """Add a stage; `parts` is its kind and all that its name, identity, location and roles depend on."""

        def make() -> Stage:
            name, identity = describe()
            return self.known.one(Stage(parts[0], name, identity, inputs, self._location(parts[0])))

        stage = self.known.once((*parts, *inputs.values()), make)
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
        key = ("training", id(run), id(train.lora), train.precision, t)
        return self.known.once(key, lambda: _training(train, run, t))

    def _row(self, label: str, policy: Stage, scores: tuple[Stage, ...] = ()) -> None:
        self.policies = [policy] if label in ("base", "start") else [*self.policies, policy]
        parts = ("evaluate", id(self.evaluation))
        evaluate = self._add(parts, {"policy": policy}, lambda: (policy.name, self.evaluation))
        self.rows.append(Row(label, policy, evaluate, scores))

    def _iterate(self, t: int) -> None:
        method, needed, policy = self.experiment.method, self.method.needs, self.policies[-1]
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
        name = f"{content.slug(experiment.method.name)}-{self.name}-t{t + 1}"
        return self._add((*parts, experiment.seed, t), inputs, lambda: (name, self._train_identity(t)))

    def _train_identity(self, t: int) -> dict[str, Any]:
        method, needed = self.experiment.method, self.method.needs
        identity = self._training(self.experiment.train, t) | {"seed": self.experiment.seed}
        identity |= {"method": method.name, "samples": method.samples, "needs": needed.declared()}
        identity["source"] = self.known.once(("source", self.method.reference), lambda: self.method.source)
        given = {k: at_iteration(v, t) for k, v in method.loss.items()}
        identity["loss"] = self.method.signature.defaults | given | (needed.first if t == 0 else {})
        if needed.alpha:
            key = ("alpha", id(self.experiment.schedule), self.experiment.iterations, t)
            identity["alpha"] = self.known.once(key, lambda: alpha(self.experiment, t))
        return identity

    def _generate(self, policy: Stage, t: int) -> Stage:
        generate, samples, seed = self.experiment.generate, self.experiment.method.samples, self.experiment.seed

        def describe() -> tuple[str, dict[str, Any]]:
            more = {"precision": self.precision, "samples": samples, "seed": seed, "iteration": t}
            return f"{policy.name}-y{t}", asdict(generate) | more

        parts = ("generate", id(generate), self.precision, samples, seed, t)
        return self._add(parts, {"policy": policy, "data": self.data}, describe)

    def _score(self, policy: Stage, responses: Stage) -> Stage:
        precision, shard = self.precision, self.experiment.generate.shard

        def describe() -> tuple[str, dict[str, Any]]:
            scored = "y" if responses is self.data else responses.name.rsplit("-", 1)[-1]
            return f"{policy.name}-on-{scored}", {"precision": precision, "shard": shard}

        return self._add(
            ("score", precision, shard), {"policy": policy, "responses": responses, "data": self.data}, describe
        )


def part(evaluate: Stage, share: float) -> Stage:
    """Return the evaluation of a fixed share of each task's documents, whose answers the whole one reuses."""
    identity = {**evaluate.identity, "share": share}
    return Stage("evaluate", f"{evaluate.name}-part", identity, evaluate.inputs, evaluate.location)


def base_of(policy: Stage) -> Stage:
    """Return the base stage that a policy goes back to."""
    while policy.kind != "base":
        policy = policy.one("policy")
    return policy


def alpha(experiment: Experiment, t: int) -> dict[str, Any]:
    """Return what determines α in iteration t: its value if the schedule fixes it, so that equal values share.

    Where α follows the gap or the step: the schedule's name, source and parameters, and [t, iterations] if it matters.
    """
    declared, iterations = experiment.schedule, experiment.iterations
    if declared.name == schedules.LEVELS and declared.function is None:
        return {"value": at_iteration(declared.levels, t)}
    schedule = schedules.find(declared.name, declared.function)
    if not schedule.needs_gap and not (schedule.needs_position and declared.per == "step"):
        return {"value": schedule.alpha(declared.params, schedules.position(t, iterations))}
    found: dict[str, Any] = {"schedule": declared.name, "source": schedule.source}
    found |= {"span": [t, iterations], "per": declared.per} if schedule.needs_position else {}
    return found | {"params": schedule.signature.defaults | declared.params}


def base_stage(model: Model, seed: int) -> Stage:
    """Return the stage that brings π₀'s weights and tokenizer into reach."""
    name, identity, location = content.of_base(model, seed)
    return Stage("base", name, identity, {}, location)


def data_stage(data: Data, model: Model, base: Stage) -> Stage:
    """Return the stage of tokenized rows; `base` brings the tokenizer."""
    name, identity, location = content.of_data(data, model)
    return Stage("data", name, identity, {"tokenizer": base}, location)


def _training(train: Train, run: Optimization, t: int) -> dict[str, Any]:
    values = {name: at_iteration(getattr(run, name), t) for name in Optimization.__dataclass_fields__}
    return values | {"precision": train.precision, "lora": asdict(train.lora) if train.lora.rank else None}
