"""What each method needs.

An entry has the name of its function in `iris.method.objectives` and of its YAML.
"""

import math
from dataclasses import dataclass
from typing import Any

from iris.errors import UserError, nearest

_POSITIVE = ("mu", "scale")


@dataclass(frozen=True)
class Needs:
    """The responses and references a method's objective takes.

    `players` is how many of the latest checkpoints serve as reference (0: reference-free); `coupled` says that the loss
    is one value of the whole batch and no mean over samples; `alpha` that a schedule gives it its order.
    """

    parameters: tuple[str, ...] = ("scale",)
    synthetic: bool = True
    proto: bool = False
    players: int = 1
    coupled: bool = False
    alpha: bool = False


METHODS = {
    "sft": Needs(parameters=(), synthetic=False, players=0),
    "spin": Needs(),
    "space": Needs(parameters=("mu",)),
    "spif": Needs(parameters=("scale", "c")),
    "t_spin": Needs(parameters=("alpha", "beta"), proto=True, players=0),
    "tpaw": Needs(parameters=("scale", "eta", "gamma"), players=3),
    "iris": Needs(coupled=True, alpha=True),
}


def needs(name: str) -> Needs:
    """The needs of a method, or one error that names the choices."""
    if name not in METHODS:
        raise UserError(f"method.name={name}: choose one of {', '.join(METHODS)}.{nearest(name, METHODS)}")
    return METHODS[name]


def check_loss(name: str, loss: dict[str, Any]) -> None:
    """Refuse parameters that the method's objective does not take, or values that are not numbers."""
    known = needs(name).parameters
    for key, value in loss.items():
        if key not in known:
            choices = ", ".join(f"method.loss.{k}" for k in known) or "none"
            raise UserError(f"method.loss.{key}: '{name}' takes {choices}.{nearest(key, known)}")
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, bool) or not isinstance(number, int | float):
                raise UserError(f"method.loss.{key}={value}: expected a number, or a list of one number per iteration.")
            if not math.isfinite(number) or number < 0 or (key in _POSITIVE and number == 0):
                raise UserError(
                    f"method.loss.{key}={value}: expected a number {'above' if key in _POSITIVE else 'from'} 0."
                )
