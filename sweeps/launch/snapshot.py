"""Copies of the running code, so that pending jobs do not see later edits.

<store>/.sweeps/code/<digest>/   iris/ sweeps/ … conf/   as Python would import them now
                                 iris/code.json          commit and diff, for the provenance of artifacts
Launches of the same code share a copy.
"""

import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from iris import compose
from iris.execution import provenance
from iris.store import Store, storage_errors

_PACKAGES = ("iris", "sweeps", "analysis")


def take(store: Store) -> Path:
    """Copy the packages and the configuration into the store; return the folder, to be put first in PYTHONPATH."""
    with storage_errors(store.root):
        files = dict(_files())
        origin = json.dumps(provenance.code(store.root), indent=1)
        folder = store.root / ".sweeps" / "code" / _digest(files, origin)
        if not folder.is_dir():
            _copy(files, origin, folder)
        return folder


def environment(code: str, python_path: str | None) -> dict[str, str]:
    """Return variables that make Python import the copy, whatever is in the working folder."""
    return {"PYTHONPATH": f"{code}:{python_path}" if python_path else code, "PYTHONSAFEPATH": "1"}


def _files() -> Iterator[tuple[str, Path]]:
    packages = {name: find_spec(name) for name in _PACKAGES}
    folders = {name: Path(spec.origin).parent for name, spec in packages.items() if spec and spec.origin}
    if not compose.conf_dir().is_relative_to(folders["iris"]):
        folders["conf"] = compose.conf_dir()
    for name, folder in folders.items():
        for path in sorted(folder.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield f"{name}/{path.relative_to(folder)}", path


def _digest(files: dict[str, Path], origin: str) -> str:
    digest = hashlib.sha256(origin.encode())
    for name, path in files.items():
        digest.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\0".encode())
    return digest.hexdigest()[:16]


def _copy(files: dict[str, Path], origin: str, folder: Path) -> None:
    new = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
    for name, path in files.items():
        (new / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, new / name)
    (new / "iris" / provenance.ORIGIN).write_text(origin)
    try:
        new.rename(folder)
    except OSError:
        shutil.rmtree(new)
        if not folder.is_dir():  # else another launch was faster
            raise
