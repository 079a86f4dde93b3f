"""Launchers (conf/launcher/*.yaml): where jobs run, and what each kind of stage requests."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from iris.errors import UserError, first_line, nearest
from iris.plan import VERSIONS
from iris.validate import build, ranged
from sweeps.study import presets
from sweeps.study.presets import check_keys

_PLAIN = ("account", "constraint", "gres", "partition", "qos")
# Options of sbatch that a key of the launcher sets, and those that the launcher sets itself.
_KEYS = {
    "array": "max_parallel",
    "cpus-per-task": "resources.cpus",
    "mem": "resources.memory",
    "nodes": "resources.nodes",
    "signal": "signal_seconds",
    "time": "resources.minutes",
    **dict.fromkeys(("gpus", "gpus-per-node", "ntasks", "ntasks-per-node"), "resources.gpus"),
    **{name: f"resources.{name}" for name in _PLAIN},
}
_OWN = {"comment", "dependency", "error", "job-name", "kill-on-invalid-dep", "no-requeue", "open-mode", "output"}
_OWN |= {"requeue", "wrap"}


@dataclass
class Resources:
    """What one job requests; `sbatch` holds further options of sbatch."""

    gpus: int = ranged(0, 0)  # per node, with one process each
    nodes: int = ranged(1, 1)
    cpus: int | None = ranged(None, 1)  # per process
    memory: str | None = None  # per node
    minutes: int = ranged(1440, 1)
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gres: str | None = None
    sbatch: dict[str, Any] = field(default_factory=dict)

    @property
    def processes(self) -> int:
        """Processes per node."""
        return max(1, self.gpus)

    def same(self, other: "Resources") -> bool:
        """Return whether stages with these requests can share a job; time limits may differ."""
        return all(getattr(self, f.name) == getattr(other, f.name) for f in fields(self) if f.name != "minutes")


@dataclass
class Launcher:
    """Where jobs run. `stages` maps kinds of stages to what differs from `resources`."""

    kind: str = ""
    resources: Resources = field(default_factory=Resources)
    stages: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._of: dict[str, Resources] = {}

    def of(self, kind: str) -> Resources:
        """Return what a stage of a kind requests. Raises UserError for a wrong value in `stages`."""
        if kind not in self._of:
            own = self.stages.get(kind) or {}
            changed = vars(build(Resources, own, f"launcher.stages.{kind}"))
            sbatch = self.resources.sbatch | changed["sbatch"]
            self._of[kind] = replace(self.resources, **{name: changed[name] for name in own} | {"sbatch": sbatch})
        return self._of[kind]


@dataclass
class Inline(Launcher):
    """This process."""


@dataclass
class Local(Launcher):
    """Processes of this machine."""

    workers: int = ranged(2, 1)
    gpus: list[int] | None = None


@dataclass
class Slurm(Launcher):
    """A Slurm cluster."""

    max_parallel: int | None = ranged(None, 1)
    signal_seconds: int = ranged(180, 1)
    setup: list[str] = field(default_factory=list)


_KINDS: dict[str, type[Launcher]] = {"inline": Inline, "local": Local, "slurm": Slurm}


def load_launcher(name_or_path: str, changes: Sequence[str] = ()) -> Launcher:
    """Return the launcher of a shipped name or a YAML file; `changes` are `key=value`, without `launcher.`.

    Raises UserError.
    """
    content = _read(name_or_path, changes)
    kind = str(content.get("kind"))
    if kind not in _KINDS:
        raise UserError(
            f"launcher={name_or_path}: kind={kind}: choose one of {', '.join(_KINDS)}.{nearest(kind, _KINDS)}"
        )
    launcher = build(_KINDS[kind], content, "launcher")
    check_keys("launcher.stages.", launcher.stages, VERSIONS)
    for stage in VERSIONS:
        _check(launcher, launcher.of(stage))
    return launcher


def _read(name: str, changes: Sequence[str]) -> dict[Any, Any]:
    path = presets.find("launcher", name)
    content = presets.read(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping of the keys of a launcher.")
    merged = OmegaConf.create(content)
    for change in changes:
        key, sign, text = change.partition("=")
        if not sign:
            raise UserError(f"launcher.{change}: write launcher.{change}=VALUE.")
        try:
            OmegaConf.update(merged, key, yaml.safe_load(text), merge=True, force_add=True)
        except yaml.YAMLError as error:
            raise UserError(f"launcher.{key}={text}: {getattr(error, 'problem', error)}.") from error
        except OmegaConfBaseException as error:
            raise UserError(f"launcher.{key}: {first_line(error)}") from error
    changed = OmegaConf.to_container(merged)
    assert isinstance(changed, dict)
    return changed


def _check(launcher: Launcher, resources: Resources) -> None:
    if isinstance(launcher, Local) and resources.nodes > 1:
        raise UserError("launcher.resources.nodes: launcher=local has one node; use launcher=slurm.")
    if isinstance(launcher, Slurm) and launcher.signal_seconds >= 60 * resources.minutes:
        raise UserError(
            f"launcher.signal_seconds={launcher.signal_seconds}: not below the time limit of a job, "
            f"launcher.resources.minutes={resources.minutes}."
        )
    for name, value in (vars(resources) | resources.sbatch).items():
        if isinstance(value, str) and len(value.splitlines()) > 1:  # it would become lines of a shell script
            raise UserError(f"launcher.resources.{name}: expected one line.")
    for option in resources.sbatch:
        name = str(option).replace("_", "-")
        if not re.fullmatch(r"[a-z][a-z-]+", name):
            raise UserError(f"launcher.resources.sbatch.{option}: expected the long name of an option of sbatch.")
        if name in _KEYS:
            raise UserError(f"launcher.resources.sbatch.{option}: sets --{name}: set launcher.{_KEYS[name]} instead.")
        if name in _OWN:
            raise UserError(f"launcher.resources.sbatch.{option}: sets --{name}, which the launcher needs itself.")
