"""python benchmarks/ceiling.py --variant matmul

Measure the rate of large matrix products in the precision of training: float32 on one CPU thread, bfloat16 on a GPU. It
bounds the rate of a training step.
"""

import torch

from measure import Meter, options
from workload import device


def main() -> None:
    """Measure windows of square products."""
    run = options(__doc__, ["matmul"])
    meter = Meter(run.window, run.driven)
    on_gpu = device().type == "cuda"
    size, repeats = (8192, 50) if on_gpu else (2048, 5)
    left, right = torch.randn(2, size, size, device=device(), dtype=torch.bfloat16 if on_gpu else torch.float32)
    out = torch.empty_like(left)
    for _ in range(run.batches):
        for _ in range(repeats):
            torch.mm(left, right, out=out)
        meter.mark(2.0 * size**3 * repeats, 2.0 * size**3 * repeats)


if __name__ == "__main__":
    main()
