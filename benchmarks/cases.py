"""Groups of processes to measure, ours first, and the bars: by how much ours should beat each peer."""

from dataclasses import dataclass, replace

CEILING = "largest matrix products"


@dataclass(frozen=True)
class Case:
    """A process: label, command and bars.

    The first case of the group should be at least `rate` times as fast (`most`: at most), with at most `memory` times
    the memory.
    """

    label: str
    script: str
    variant: str
    arguments: tuple[str, ...] = ()
    rate: float | None = None
    most: float | None = None
    memory: float | None = None
    share: float | None = None  # of the ceiling, at least
    same_loss: bool = False  # computes the loss of the first case on the same batches
    processes: int = 1  # one a GPU, started by torchrun


@dataclass(frozen=True)
class Group:
    """Processes compared with the first; `per_flop` compares rates per operation instead of per unit of work."""

    name: str
    title: str
    unit: str
    cases: tuple[Case, ...]
    arguments: tuple[str, ...] = ()
    per_flop: bool = False


def _steps(
    label: str,
    model: str,
    bars: tuple[float | None, ...],
    *,
    batch: int = 8,
    share: float | None = None,
) -> Group:
    """Compare our step with TRL's and the plain loop."""
    default, cached, best, memory = bars
    cases = [
        Case("iris (spin)", "step", "spin", share=share),
        Case("TRL DPOTrainer, defaults", "step", "trl", rate=default, memory=memory, same_loss=True),
        Case("TRL, cached references", "step", "trl-cached", rate=cached, memory=memory, same_loss=True),
        Case("TRL, best: sorted by 12", "step", "trl-best", rate=best, memory=memory),
        Case("TRL, best: sorted by 128", "step", "trl-longest", memory=memory),
        Case("padded loop", "step", "plain", same_loss=True),
        Case("padded loop, cached refs", "step", "plain-cached", same_loss=True),
    ]
    matmul = Case(CEILING, "ceiling", "matmul")
    return Group(f"step-{model}", f"training step, {label}", "pairs", (*cases, matmul), _arguments(model, batch))


def _methods(model: str) -> Group:
    """Compare all methods on the same prompts, per operation."""
    names = ("spin", "sft", "space", "spif", "t_spin", "tpaw", "iris")
    cases = tuple(Case(name, "step", name, most=None if name == "spin" else 1.1) for name in names)
    return Group(
        f"methods-{model}", "methods, for as many operations", "pairs", cases, _arguments(model, 8), per_flop=True
    )


def _rollouts(model: str, prompts: int, bar: float | None) -> Group:
    cases = (
        Case("iris (slots)", "rollouts", "slots"),
        Case("generate, dataset order", "rollouts", "generate", rate=bar),
        Case("generate, sorted", "rollouts", "generate-sorted", rate=bar),
        Case("generate, sorted, static", "rollouts", "generate-static", rate=bar),
        Case("continuous batching", "rollouts", "continuous", rate=bar),
    )
    return Group(f"rollouts-{model}", f"rollouts, {prompts} prompts", "tokens", cases, _arguments(model, prompts))


def _scoring(model: str) -> Group:
    cases = (
        Case("iris (packed)", "scoring", "packed"),
        Case("padded, sorted", "scoring", "padded"),
        Case("unpadded, one by one", "scoring", "one-by-one", rate=1.0),
        Case(CEILING, "ceiling", "matmul"),
    )
    return Group(f"scoring-{model}", "scoring without gradient", "pairs", cases, _arguments(model, 4))


def _scaling(model: str, lengths: tuple[int, ...], vocabularies: tuple[int, ...], sizes: tuple[int, ...]) -> Group:
    """Vary one dimension of our step at a time, from 512 packed tokens a pair and the smallest vocabulary."""
    points = [(length, vocabularies[0], 8) for length in lengths]
    points += [(512, vocabulary, 8) for vocabulary in vocabularies[1:]]
    points += [(512, vocabularies[0], batch) for batch in sizes]
    cases = [
        Case(
            f"{batch} × {length}, {vocabulary / 1000:.0f}k",
            "step",
            "spin",
            ("--length", str(length), "--vocabulary", str(vocabulary), "--batch", str(batch)),
        )
        for length, vocabulary, batch in points
    ]
    ceiling = Case(CEILING, "ceiling", "matmul")
    title = "scaling of our step, batch × length, vocabulary"
    return Group(f"scaling-{model}", title, "pairs", (*cases, ceiling), ("--model", model))


def sharded(model: str, gpus: int) -> Group:
    """Compare our step on all GPUs, replicated and sharded, with one GPU, at equal pairs per GPU."""
    cases = [Case("one GPU", "step", "spin", ("--batch", "16"))]
    for kind in ("ddp", "fsdp2"):
        arguments = ("--batch", str(16 * gpus), "--distributed", kind)
        cases.append(Case(f"{kind}, {gpus} GPUs", "step", "spin", arguments, processes=gpus))
    return Group(f"gpus-{model}", f"training step, {gpus} GPUs together", "pairs", tuple(cases), ("--model", model))


def _only(group: Group, *variants: str) -> Group:
    return replace(group, cases=tuple(case for case in group.cases if case.variant in variants))


def _arguments(model: str, batch: int) -> tuple[str, ...]:
    return ("--model", model, "--batch", str(batch))


BARELESS = (None, None, None, None)
_STEPS = ("spin", "trl", "trl-cached", "trl-best", "plain-cached", "matmul")
CPU = (
    _steps("vocabulary 4k", "v4k", (4.0, 2.8, 1.7, 0.55)),
    # The loop with an online reference is slow and adds nothing here.
    _only(_steps("vocabulary 32k", "v32k", (6.0, 4.5, 2.5, 1 / 3)), *_STEPS),
    _only(_steps("vocabulary 152k", "v152k", BARELESS, batch=2), "spin", "trl", "trl-best", "matmul"),
    _methods("v4k"),
    # Sorted with a dynamic cache `generate` is slower than with a static one.
    _only(_rollouts("v4k", 64, 2.0), "slots", "generate", "generate-static", "continuous"),
    _scoring("v4k"),
    _scaling("v4k", (128, 512, 2048), (4096, 32768, 151936), (2, 32)),
)
MORE = (_steps("8 × 512, vocabulary 16k", "m16k", BARELESS),)
GPU = (
    _steps("Qwen2.5-0.5B", "qwen2.5-0.5b", (None, None, 1.6, None), batch=16),
    _steps("Qwen2.5-3B", "qwen2.5-3b", (None, None, 1.6, 0.5), batch=16, share=0.45),
    _rollouts("qwen2.5-0.5b", 512, 3.0),
    _scoring("qwen2.5-0.5b"),
    _scaling("qwen2.5-0.5b", (128, 512, 2048), (32768, 151936), (2, 32)),
)
QUICK = (
    _only(_steps("tiny model", "tiny", BARELESS, batch=4), "spin", "trl"),
    _only(_rollouts("tiny", 8, None), "slots", "continuous"),
)
