"""Launchers: where jobs run and what each kind of stage asks for (conf/launcher/*.yaml)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from iris.errors import UserError, nearest
from iris.plan import VERSIONS
from sweeps.study import presets
from sweeps.study.presets import check_keys

# What the launcher sets itself, or another key is for.
_TAKEN = {
    "array": "max_parallel",
    "comment": "",
    "cpus-per-task": "resources.cpus",
    "dependency": "",
    "error": "",
    "gpus": "resources.gpus",
    "gpus-per-node": "resources.gpus",
    "job-name": "",
    "kill-on-invalid-dep": "",
    "mem": "resources.memory",
    "nodes": "resources.nodes",
    "no-requeue": "",
    "ntasks": "resources.gpus",
    "ntasks-per-node": "resources.gpus",
    "open-mode": "",
    "output": "",
    "requeue": "",
    "signal": "signal_seconds",
    "time": "resources.minutes",
    "wrap": "",
} | {name: f"resources.{name}" for name in ("account", "constraint", "gres", "partition", "qos")}


@dataclass
class Resources:
    """What one job asks for; `sbatch` holds further options of sbatch."""

    gpus: int = 0  # a node, one process each
    nodes: int = 1
    cpus: int | None = None  # a process
    memory: str | None = None  # a node
    minutes: int = 1440
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gres: str | None = None
    sbatch: dict[str, Any] = field(default_factory=dict)

    @property
    def processes(self) -> int:
        """Processes on each node."""
        return max(1, self.gpus)

    def same(self, other: "Resources") -> bool:
        """Whether stages that ask for these can share a job; whatever its time limit is, it goes on after it."""
        return all(getattr(self, f.name) == getattr(other, f.name) for f in fields(self) if f.name != "minutes")


@dataclass
class Launcher:
    """Where jobs run. `resources` hold for every stage, `stages` says what differs for a kind."""

    kind: str = ""
    resources: Resources = field(default_factory=Resources)
    stages: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._of: dict[str, Resources] = {}

    def of(self, kind: str) -> Resources:
        """What a stage of a kind asks for."""
        if kind not in self._of:
            own = OmegaConf.merge(OmegaConf.structured(self.resources), self.stages.get(kind, {}))
            resources = OmegaConf.to_object(own)
            assert isinstance(resources, Resources)
            self._of[kind] = resources
        return self._of[kind]


@dataclass
class Inline(Launcher):
    """This process."""


@dataclass
class Local(Launcher):
    """Processes of this machine."""

    workers: int = 2
    gpus: list[int] | None = None


@dataclass
class Slurm(Launcher):
    """A Slurm cluster."""

    max_parallel: int | None = None
    signal_seconds: int = 180
    setup: list[str] = field(default_factory=list)


_KINDS: dict[str, type[Launcher]] = {"inline": Inline, "local": Local, "slurm": Slurm}


def load_launcher(name_or_path: str, changes: Sequence[str] = ()) -> Launcher:
    """A shipped launcher by its name, or the one in a YAML file; `changes` are `key=value`, without `launcher.`.

    Raises UserError with one message.
    """
    content = _read(name_or_path)
    kind = str(content.get("kind"))
    if kind not in _KINDS:
        raise UserError(
            f"launcher={name_or_path}: kind={kind}: choose one of {', '.join(_KINDS)}.{nearest(kind, _KINDS)}"
        )
    schema = OmegaConf.structured(_KINDS[kind])
    check_keys("launcher.", content, list(schema))
    try:
        merged = OmegaConf.merge(schema, content)
        for change in changes:
            _change(merged, change)
        launcher = OmegaConf.to_object(merged)
        assert isinstance(launcher, Launcher)
        _check(launcher)
    except OmegaConfBaseException as error:
        where = f"launcher: {error.full_key}" if error.full_key else "launcher"
        raise UserError(f"{where}: {str(error).splitlines()[0]}") from error
    return launcher


def _read(name: str) -> dict[str, Any]:
    path = presets.find("launcher", name)
    content = presets.read(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping of the keys of a launcher.")
    return {str(key): value for key, value in content.items()}


def _change(merged: Any, change: str) -> None:
    key, sign, text = change.partition("=")
    if not sign:
        raise UserError(f"launcher.{change}: write launcher.{change}=VALUE.")
    *parents, name = key.split(".")
    if not parents or parents == ["resources"]:
        check_keys(".".join(["launcher", *parents, ""]), [name], list(merged[parents[0]] if parents else merged))
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"launcher.{key}={text}: {getattr(error, 'problem', error)}.") from error
    OmegaConf.update(merged, key, value, merge=True, force_add=True)


def _check(launcher: Launcher) -> None:
    for name in ("workers", "max_parallel", "signal_seconds"):
        value = getattr(launcher, name, None)
        if value is not None and value < 1:
            raise UserError(f"launcher.{name}={value}: expected at least 1.")
    check_keys("launcher.stages.", launcher.stages, VERSIONS)
    for stage, own in launcher.stages.items():
        check_keys(f"launcher.stages.{stage}.", own or {}, [f.name for f in fields(Resources)])
    for stage in VERSIONS:
        _check_resources(launcher, launcher.of(stage))


def _check_resources(launcher: Launcher, resources: Resources) -> None:
    for name, least in {"gpus": 0, "nodes": 1, "cpus": 1, "minutes": 1}.items():
        value = getattr(resources, name)
        if value is not None and value < least:
            raise UserError(f"launcher.resources.{name}={value}: expected at least {least}.")
    if isinstance(launcher, Local) and resources.nodes > 1:
        raise UserError("launcher.resources.nodes: launcher=local has one node; use launcher=slurm.")
    if isinstance(launcher, Slurm) and launcher.signal_seconds >= 60 * resources.minutes:
        raise UserError(
            f"launcher.signal_seconds={launcher.signal_seconds}: not below the time limit of a job, "
            f"launcher.resources.minutes={resources.minutes}."
        )
    texts = vars(resources) | resources.sbatch
    for name, value in texts.items():
        if isinstance(value, str) and len(value.splitlines()) > 1:  # it would become lines of a shell script
            raise UserError(f"launcher.resources.{name}: expected one line.")
    for option in resources.sbatch:
        name = str(option).replace("_", "-")
        if not re.fullmatch(r"[a-z][a-z-]+", name):
            raise UserError(f"launcher.resources.sbatch.{option}: expected the long name of an option of sbatch.")
        if name in _TAKEN:
            instead = f": set launcher.{_TAKEN[name]} instead" if _TAKEN[name] else ", which the launcher needs itself"
            raise UserError(f"launcher.resources.sbatch.{option}: sets --{name}{instead}.")
