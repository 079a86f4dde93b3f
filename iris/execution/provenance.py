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

from iris.config import Execution
from iris.files import write_atomic
from iris.plan import Stage

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
        "device": _device("cuda"),
        "command": sys.argv,
        "start": started.isoformat(timespec="seconds"),
        "end": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def bits_from(stage: Stage, execution: Execution, processes: int) -> dict[str, Any]:
    """Return what the last bits of a stage's numbers depend on beside its key: device, dtype, engine, order of sums."""
    if "precision" not in stage.identity:  # base models and data are the same everywhere
        return {}
    import torch

    from iris.execution.device import find_device

    device = find_device(execution.device)
    found: dict[str, Any] = {"device": _device(device.type), "dtype": stage.identity["precision"]}
    if device.type == "cpu":
        found["threads"] = torch.get_num_threads()
    if stage.kind == "generate":
        return found | {"engine": stage.identity["engine"], "slots": execution.slots}
    if stage.kind in ("sft", "train"):
        found |= {"processes": processes, "distributed": execution.distributed}
    return found | {"micro_batch_tokens": execution.micro_batch_tokens}


@functools.cache
def code(store: Path) -> dict[str, str | None]:
    """Return the commit of the running code, and the name of the file in the store that holds its uncommitted diff."""
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


def _device(kind: str) -> str:
    """Return the GPUs that this process sees, or else its processor and instruction set."""
    torch = sys.modules.get("torch")
    if torch is not None and kind == "cuda" and torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    processor = platform.processor() or platform.machine()
    return f"{processor} {torch.backends.cpu.get_cpu_capability()}" if torch is not None else processor
