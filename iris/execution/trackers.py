"""Experiment trackers that accelerate can log to."""

from collections.abc import Sequence
from importlib.util import find_spec

from iris.errors import UserError, nearest

# Names that accelerate knows and the modules they need, one of which suffices.
MODULES: dict[str, tuple[str, ...]] = {
    name: (name,) for name in ("aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "trackio", "wandb")
}
MODULES["tensorboard"] = ("tensorboard", "tensorboardX")


def check_trackers(names: Sequence[str]) -> None:
    """Raise UserError for trackers that accelerate does not know or whose package is not installed."""
    for name in names:
        if name not in MODULES:
            known = ", ".join(sorted(MODULES))
            raise UserError(f"execution.tracking: '{name}' is none of {known}.{nearest(name, MODULES)}")
        if not any(find_spec(module) for module in MODULES[name]):
            package = name.replace("_", "-")
            raise UserError(f"execution.tracking={name}: its package is not installed: pip install {package}")
