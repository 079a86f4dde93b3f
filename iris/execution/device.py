"""Choose the device and check the precision."""

import os

import torch

from iris.errors import UserError, nearest

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_DEVICES = ("auto", "cpu", "cuda", "mps")


def find_device(name: str) -> torch.device:
    """Return the device of this process: `auto` takes the GPU of its local rank, else Apple's, else the CPU."""
    if name not in _DEVICES:
        raise UserError(f"execution.device={name}: choose one of {', '.join(_DEVICES)}.{nearest(name, _DEVICES)}")
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind in available if available[kind])
    if not available[name]:
        here = ", ".join(kind for kind in available if available[kind])
        raise UserError(
            f"execution.device={name}: torch {torch.__version__} sees no such device here; it sees: {here}."
        )
    if name != "cuda":
        return torch.device(name)
    rank, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if rank >= count:
        raise UserError(
            f"There are more processes on this machine than its {count} GPUs: set execution.processes={count}."
        )
    return torch.device("cuda", rank)


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse an unknown precision, and bfloat16 where the CPU emulates it (60 times slower than float32)."""
    if precision not in DTYPES:
        raise UserError(f"train.precision={precision}: choose one of {', '.join(DTYPES)}.{nearest(precision, DTYPES)}")
    if precision == "bfloat16" and device.type == "cpu" and not _cpu_has_bfloat16():
        raise UserError(
            "train.precision=bfloat16: this CPU only emulates it, some 60 times slower than float32. "
            "Set train.precision=float32, or run on a GPU (execution.device=cuda)."
        )


def _cpu_has_bfloat16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
