"""Studies, searches and launchers: shipped ones by name (conf/<group>/*.yaml), others by the path of a YAML file."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from iris import compose
from iris.errors import UserError, nearest


def names(group: str) -> list[str]:
    """Return the names shipped for a group: study, search or launcher."""
    return sorted(path.stem for path in (compose.conf_dir() / group).glob("*.yaml"))


def find(group: str, name: str) -> Path:
    """Return the file of a shipped name or of a path. Raises UserError with the nearest name."""
    path = Path(name).expanduser()
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UserError(f"{group}={name}: no such file.")
        return path
    known = names(group)
    if name not in known:
        raise UserError(
            f"{group}={name}: choose one of {', '.join(known)}, or give the path of a YAML file.{nearest(name, known)}"
        )
    return compose.conf_dir() / group / f"{name}.yaml"


def check_keys(where: str, keys: Iterable[Any], known: Iterable[str]) -> None:
    """Raise UserError for an unknown key, with the nearest known one; the message begins with `where`."""
    known = list(known)
    for key in keys:
        if key not in known:
            raise UserError(f"{where}{key}: no such key. Choose from {', '.join(known)}.{nearest(str(key), known)}")


def read(path: Path) -> Any:
    """Read a YAML file. Raises UserError with one line."""
    try:
        return OmegaConf.to_container(OmegaConf.load(path))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise UserError(f"{path}{f', line {mark.line + 1}' if mark else ''}: {error.problem}.") from error
    except (OmegaConfBaseException, yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from error
