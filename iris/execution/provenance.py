"""Where an artifact came from: code, versions, machine, command and time."""

import functools
import hashlib
import json
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from iris.files import write_atomic

ORIGIN = "code.json"  # beside this file in a copy of the code: what `code` found where it was copied from
_PACKAGES = ["iris-selfplay", "torch", "transformers", "accelerate", "datasets", "peft", "safetensors", "vllm", "numpy"]
_PACKAGES += ["lm-eval", "hydra-core", "reasoning-gym"]


def collect(store: Path, started: datetime) -> dict[str, Any]:
    """Git commit and diff, package versions, host, device, command, start and end (UTC)."""
    return {
        "code": code(store),
        "packages": _versions(),
        "python": platform.python_version(),
        "host": platform.node(),
        "platform": platform.platform(),
        "device": _device(),
        "command": sys.argv,
        "start": started.isoformat(timespec="seconds"),
        "end": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@functools.cache
def code(store: Path) -> dict[str, str | None]:
    """The commit of the running code, and the name of the file in the store that holds its uncommitted diff."""
    folder = Path(__file__).parent
    if (folder / ORIGIN).is_file():
        origin: dict[str, str | None] = json.loads((folder / ORIGIN).read_text())
        return origin
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None or _git(folder, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return {"commit": None, "diff": None}
    diff = _git(folder, "diff", "HEAD", "--", ".") or ""
    if not diff:
        return {"commit": commit.strip(), "diff": None}
    name = f".code/{hashlib.sha256(diff.encode()).hexdigest()[:16]}.diff"
    write_atomic(store / name, diff)
    return {"commit": commit.strip(), "diff": name}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


@functools.cache
def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _device() -> str:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return platform.processor() or platform.machine()
