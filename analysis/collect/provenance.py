"""The provenance of a study's stages: code, packages, machines and harness."""

import json
from collections import Counter
from typing import Any

from analysis.collect.frames import Frames


def provenance(frames: Frames) -> dict[str, Counter[str]]:
    """Count the stages by the values of each part of their provenance."""
    counts: dict[str, Counter[str]] = {}
    for text, number in frames.stages["provenance"].value_counts().items():
        for part, value in _parts(json.loads(str(text))).items():
            counts.setdefault(part, Counter())[value] += int(number)
    return counts


def commit(provenance: str) -> str:
    """Return the commit in the provenance (JSON) of a stage; '' if it has none."""
    return _parts(json.loads(provenance)).get("commit", "")


def _parts(given: dict[str, Any]) -> dict[str, str]:
    code, harness = given.get("code", {}), given.get("harness", {})
    changes = f" with changes ({code['diff']})" if code.get("diff") else ""
    parts: dict[str, Any] = {"commit": f"{code.get('commit') or ''}{changes}"}
    parts |= {key: given.get(key) for key in ("python", "device", "platform", "host")}
    parts |= {**given.get("packages", {}), "lm-eval": harness.get("lm_eval")}
    for task, about in harness.get("tasks", {}).items():
        parts[f"task {task}"] = ", ".join(f"{key} {value}" for key, value in about.items())
    return {part: str(value) for part, value in parts.items() if value}
