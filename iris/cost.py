"""The cost of a finished stage, as its manifest states it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

UNITS = ("seconds", "cpu_seconds", "gpu_seconds", "tokens")


@dataclass(frozen=True)
class Cost:
    """Wall seconds, processor and GPU seconds of all processes, tokens, and the keys of the shards it is made of."""

    seconds: float
    cpu_seconds: float
    gpu_seconds: float
    tokens: float
    processes: int
    shards: tuple[str, ...]

    @property
    def device_seconds(self) -> float:
        """Seconds of GPUs where there were some, else of processes."""
        return self.gpu_seconds or self.seconds * self.processes


def cost(manifest: Mapping[str, Any], *, whole: bool = False) -> Cost:
    """Return a stage's own cost; `whole` adds its shards', which have manifests of their own and may be shared."""
    own, shards = manifest["cost"], manifest["cost"].get("shards", {}) if whole else {}
    amounts = {unit: float(own[unit] + shards.get(unit, 0.0)) for unit in UNITS}
    return Cost(**amounts, processes=own["processes"], shards=tuple(manifest["inputs"].get("shards", ())))
