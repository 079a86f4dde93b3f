"""One training run: the exact gradient of a loss on the global batch, resumable at any step.

Loss and gradient of a step do not depend on how the batch is split over micro-batches and processes (up to the order of
floating-point sums). A loss that is a mean over samples is summed part by part over the global count. A *coupled* loss
(IRIS) is one function of all log-probabilities of the batch: these are gathered first, the loss is differentiated with
respect to them, and each part is then driven back with its share of that gradient.
"""

import contextlib
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import FullyShardedDataParallelPlugin, LoggerType
from torch import Tensor

from iris import batching, models, objectives
from iris.errors import UserError, nearest
from iris.logprobs import Policy
from iris.methods import needs
from iris.packing import Row, Tokens, pack
from iris.plan import Stage, base_of
from iris.progress import Line
from iris.runner import Context
from iris.store import Claim

# It warns at every checkpoint of a model with tied embeddings that it stores them once.
logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)


@dataclass(frozen=True)
class TrainingSet:
    """N samples with R responses each: the annotated first, then the synthetic ones, then the proto one if any.

    `references` are log-probabilities [J, R, N] under J frozen references (float64).
    """

    prompts: Sequence[Tokens]  # [N]
    responses: Sequence[Sequence[Tokens]]  # [R][N]
    references: np.ndarray | None = None
    synthetic: int = 0

    def __len__(self) -> int:
        return len(self.prompts)

    def row(self, index: int) -> Row:
        """One sample for packing; −1 is a stand-in of weight zero."""
        return Row(self.prompts[index], [response[index] for response in self.responses])

    def lengths(self) -> list[int]:
        """Packed tokens of every sample."""
        return [len(p) + sum(len(r[i]) for r in self.responses) for i, p in enumerate(self.prompts)]


@dataclass(frozen=True)
class Objective:
    """A method's loss as a function of log-probabilities."""

    method: str
    parameters: Mapping[str, float]
    alpha: Callable[[int], float] | None = None  # the order of each step, for methods that have one

    def loss(self, logps: Tensor, references: Tensor | None, *, step: int, batch: int, tokens: int) -> Tensor:
        """The share of these samples in the loss of a global batch of `batch` samples and `tokens` response tokens.

        logps [b, R], references [J, b, R] → scalar. For a coupled loss the samples must be the whole batch.
        """
        needed = needs(self.method)
        function = getattr(objectives, self.method)
        parameters = dict(self.parameters)
        if not needed.synthetic:
            result: Tensor = function(logps[:, 0], tokens=tokens, **parameters).sum()
            return result
        if self.alpha is not None:
            parameters["alpha"] = self.alpha(step)
        values = logps if references is None else logps - references
        stop = logps.shape[1] - (1 if needed.proto else 0)
        real, synthetic = values[..., :1], values[..., 1:stop]
        terms = [real.expand_as(synthetic).flatten(-2), synthetic.flatten(-2)]
        if needed.proto:
            terms.append(values[..., stop:].expand_as(synthetic).flatten(-2))
        elif needed.players == 1:
            terms = [t.squeeze(0) for t in terms]
        value: Tensor = function(*terms, **parameters)
        return value if needed.coupled else value.sum() / (batch * synthetic.shape[-1])


def run_steps(settings: Mapping[str, Any], samples: int) -> int:
    """Optimizer steps of a run with these settings."""
    return batching.steps(samples, float(settings["epochs"]), int(settings["batch"]))


def fit(stage: Stage, context: Context, claim: Claim, data: TrainingSet, objective: Objective) -> dict[str, Any]:
    """Train the stage's input policy and leave the result and the record of every step in the claim's folder.

    Returns what the manifest keeps. Raises UserError when the loss is not finite.
    """
    settings, parent = stage.identity, context.artifact(stage.one("policy"))
    device = models.device(context.execution.device)
    models.check_precision(settings["precision"], device)
    model = models.load_policy(parent, context.store, precision=settings["precision"], device=device, trainable=True)
    if settings["lora"] and not models.is_adapted(model):
        model = models.add_lora(model, **settings["lora"], seed=settings["seed"])
    run = Run(model, data, objective, settings, context, claim.work)
    label = f"{stage.kind} {stage.name}"
    with context.progress.line(label, run.steps, "steps") as line, run.tracked(stage.name):
        run.resume(line)
        while len(run.records) < run.steps:
            run.step(line)
    state = run.state()
    if context.world.main:
        models.save_policy(model, claim.new, settings["precision"], state)
        if (claim.new / "model").is_dir():  # so that transformers and vLLM load the folder as it is
            models.load_tokenizer(context.artifact(base_of(stage))).save_pretrained(claim.new / "model")
        (claim.new / "steps.jsonl").write_text("".join(json.dumps(r) + "\n" for r in run.records))
    last = run.records[-1]
    results: dict[str, Any] = {
        name: last[name] for name in ("loss", "alpha", "real_ratio", "synthetic_ratio") if name in last
    }
    results |= {"steps": run.steps, "samples": len(data), "first_loss": run.records[0]["loss"]}
    if models.is_adapted(model):
        results["adapter_of"] = parent.results.get("adapter_of", [parent.manifest["kind"], parent.key])
    results["packed_tokens"] = sum(r["packed_tokens"] for r in run.records)
    return results | {"tokens": results["packed_tokens"] if context.world.main else 0}


class Run:
    """A training run in progress: `records` holds one entry per finished step."""

    def __init__(
        self,
        model: torch.nn.Module,
        data: TrainingSet,
        objective: Objective,
        settings: Mapping[str, Any],
        context: Context,
        work: Path,
    ) -> None:
        self.data, self.objective, self.settings, self.context = data, objective, settings, context
        self.lengths = data.lengths()
        self.batch = min(int(settings["batch"]), len(data))
        self.steps = run_steps(settings, len(data))
        self.work, self.saved = work, time.monotonic()
        self.records: list[dict[str, float]] = []
        self.accelerator = accelerator(context, settings["precision"])
        if context.execution.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        policy = Policy(model)  # type: ignore[arg-type]
        self.policy, self.optimizer = self.accelerator.prepare(policy, _optimizer(policy, settings))
        self.policy.train()

    # --- one step

    def step(self, line: Line) -> None:
        """One optimizer step on one global batch."""
        step, world = len(self.records), self.context.world
        indices = batching.global_batch(step, len(self.data), self.batch, int(self.settings["seed"]))
        parts = batching.split(indices, self.lengths, world.size, self.context.execution.micro_batch_tokens)[world.rank]
        rate = self._learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss, statistics = self.backward(step, indices, parts)
        norm = self.accelerator.clip_grad_norm_(self.policy.parameters(), self.settings["max_grad_norm"])
        self._check(step, loss, norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        record = {"step": step, "loss": loss, "learning_rate": rate, "grad_norm": float(norm)} | statistics
        self.records.append(record)
        self.accelerator.log({k: v for k, v in record.items() if k != "step"}, step=step)
        line.advance(note=f"loss {loss:.4f}")
        self._maybe_save()

    def backward(self, step: int, indices: list[int], parts: list[list[int]]) -> tuple[float, dict[str, float]]:
        """Accumulate the gradient of this process's parts; returns the loss and statistics of the global batch."""
        count = {"step": step, "batch": len(indices), "tokens": int(self._tokens(indices)["response_tokens"])}
        coupled = needs(self.objective.method).coupled
        share: list[Tensor] = []
        values: list[Tensor] = []
        loss = 0.0
        if coupled and len(parts) > 1:
            with torch.no_grad():
                values = [self._logps(part) for part in parts]
            loss, share = self._shares(values, parts, count)
            values = []
        for k, part in enumerate(parts):
            with self._accumulating(last=k == len(parts) - 1):
                logps = self._logps(part)
                values.append(logps.detach())
                if coupled and not share:
                    loss, share = self._shares(values, parts, count)
                if coupled:
                    surrogate = (logps * share[k]).sum()
                else:
                    own = [n for n, i in enumerate(part) if i >= 0]
                    surrogate = self.objective.loss(logps[own], self._references([part[n] for n in own]), **count)
                    surrogate = surrogate + 0.0 * logps.sum()
                    loss += float(surrogate.detach())
                # DDP and FSDP average gradients over processes; ours add up to the global batch's.
                self.accelerator.backward(surrogate * self.context.world.size)
        if not coupled:
            loss = sum(self.context.world.gather(loss))
        return loss, self._statistics(step, values, parts) | {
            "response_tokens": count["tokens"],
            "packed_tokens": sum(self.lengths[i] for i in indices),
        }

    def _logps(self, part: list[int]) -> Tensor:
        """[b, R] float32 log-probabilities of a part's responses."""
        packed = pack([self.data.row(i) for i in part]).to(self.accelerator.device)
        logps: Tensor = self.policy(packed)
        return logps.view(len(part), -1)

    def _shares(
        self, values: list[Tensor], parts: list[list[int]], count: dict[str, int]
    ) -> tuple[float, list[Tensor]]:
        """The coupled loss of the global batch and its gradient with respect to this process's log-probabilities."""
        world = self.context.world
        own = [i for part in parts for i in part]
        gathered = world.gather((own, torch.cat(values).double().cpu().numpy()))
        everywhere = [i for ids, _ in gathered for i in ids]
        real = [n for n, i in enumerate(everywhere) if i >= 0]
        logps = torch.from_numpy(np.concatenate([v for _, v in gathered])[real]).requires_grad_()
        loss = self.objective.loss(logps, self._references([everywhere[n] for n in real], exact=True), **count)
        (gradient,) = torch.autograd.grad(loss, logps)
        full = torch.zeros(len(everywhere), logps.shape[1], dtype=torch.float64)
        full[real] = gradient
        start = sum(len(ids) for ids, _ in gathered[: world.rank])
        mine = full[start : start + len(own)].to(values[0])
        return float(loss.detach()), list(torch.split(mine, [len(part) for part in parts]))

    def _references(self, indices: list[int], *, exact: bool = False) -> Tensor | None:
        """[J, b, R], on the CPU in float64 if `exact`."""
        if self.data.references is None:
            return None
        values = torch.from_numpy(self.data.references[:, :, indices].transpose(0, 2, 1).copy())
        return values if exact else values.to(self.accelerator.device, torch.float32)

    def _tokens(self, indices: list[int]) -> dict[str, float]:
        """Annotated response tokens, and all tokens that the batch puts through the model."""
        real = sum(len(self.data.responses[0][i]) for i in indices)
        return {"response_tokens": real, "packed_tokens": sum(self.lengths[i] for i in indices)}

    def _statistics(self, step: int, values: list[Tensor], parts: list[list[int]]) -> dict[str, float]:
        """Means over the global batch that say how the policy moves, and the concentration of IRIS's weights."""
        own = [i for part in parts for i in part]
        gathered = self.context.world.gather((own, torch.cat(values).double().cpu().numpy()))
        pairs = sorted((i, tuple(v)) for ids, vs in gathered for i, v in zip(ids, vs, strict=True) if i >= 0)
        logps = torch.tensor([v for _, v in pairs], dtype=torch.float64)
        references = self._references([i for i, _ in pairs], exact=True)
        ratios = logps if references is None else logps - references[0]
        name = "logp" if references is None else "ratio"
        result = {f"real_{name}": float(ratios[:, 0].mean())}
        if not self.data.synthetic:
            return result
        synthetic = ratios[:, 1 : 1 + self.data.synthetic]
        result[f"synthetic_{name}"] = float(synthetic.mean())
        if self.objective.alpha is not None:
            alpha, scale = self.objective.alpha(step), self.objective.parameters.get("scale", 0.1)
            real = ratios[:, :1].expand_as(synthetic).flatten()
            w, v = objectives.iris_weights(real, synthetic.flatten(), alpha=alpha, scale=scale)
            result |= {"alpha": alpha, "real_ess": float(objectives.effective_sample_size(w))}
            result["synthetic_ess"] = float(objectives.effective_sample_size(v))
        return result

    def _accumulating(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if last else self.accelerator.no_sync(self.policy)

    def _learning_rate(self, step: int) -> float:
        """Linear warm-up to the peak, then the named decay to zero."""
        peak, warmup = float(self.settings["learning_rate"]), round(self.settings["warmup"] * self.steps)
        if step < warmup:
            return float(peak * (step + 1) / warmup)
        left = (self.steps - step) / max(1, self.steps - warmup)
        shapes = {"constant": 1.0, "linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2}
        return float(peak * shapes[self.settings["decay"]])

    def _check(self, step: int, loss: float, norm: Any) -> None:
        if math.isfinite(loss) and math.isfinite(float(norm)):
            return
        raise UserError(
            f"The loss of step {step + 1}/{self.steps} is {loss} (gradient norm {float(norm)}): nothing of it was "
            f"stored. Lower the learning rate (now {self.settings['learning_rate']}) or the method's scale, or raise "
            "train.warmup; finished stages are kept."
        )

    # --- resuming

    def resume(self, line: Line) -> None:
        """Go on from the last complete checkpoint, if there is one."""
        checkpoints = sorted(self.work.glob("checkpoint-*"))
        if not checkpoints:
            return
        self.accelerator.load_state(str(checkpoints[-1] / "state"))
        self.records = json.loads((checkpoints[-1] / "records.json").read_text())
        line.resume(len(self.records))

    def _maybe_save(self) -> None:
        due = time.monotonic() - self.saved >= 60 * self.context.execution.checkpoint_minutes
        if len(self.records) == self.steps or not self.context.world.broadcast(due):
            return
        new, world = self.work / "unfinished", self.context.world
        if world.main:
            shutil.rmtree(new, ignore_errors=True)
        world.barrier()
        self.accelerator.save_state(str(new / "state"), safe_serialization=True)
        world.barrier()
        if world.main:
            old = list(self.work.glob("checkpoint-*"))
            (new / "records.json").write_text(json.dumps(self.records))
            new.rename(self.work / f"checkpoint-{len(self.records):08d}")
            for folder in old:
                shutil.rmtree(folder)
        world.barrier()
        self.saved = time.monotonic()

    def state(self) -> dict[str, Tensor]:
        """The full state dictionary of the model, on the CPU of the main process."""
        state = self.accelerator.get_state_dict(self.policy)
        return {name.removeprefix("model."): value for name, value in state.items()} if state else {}

    @contextlib.contextmanager
    def tracked(self, name: str) -> Iterator[None]:
        """Send the records to the trackers named in the execution settings."""
        if self.context.execution.tracking:
            self.accelerator.init_trackers(name, _flat(self.settings))
        try:
            yield
        finally:
            if self.context.execution.tracking:
                self.accelerator.end_training()


def accelerator(context: Context, precision: str) -> Accelerator:
    """An Accelerator for the execution settings; one process may run stages of several precisions in turn."""
    AcceleratorState._reset_state()
    execution, cpu = context.execution, models.device(context.execution.device).type == "cpu"
    plugin = None
    if execution.distributed == "fsdp2" and context.world.size > 1:
        if cpu:  # accelerate would quietly replicate the model instead
            raise UserError("execution.distributed=fsdp2 needs GPUs; on a CPU use execution.distributed=ddp.")
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
    return Accelerator(
        cpu=cpu,
        mixed_precision="bf16" if precision == "bfloat16" else "no",
        fsdp_plugin=plugin,
        log_with=list(execution.tracking) or None,
        project_dir=str(context.folder),
    )


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that accelerate does not know or whose package is not installed."""
    known = sorted(tracker.value for tracker in LoggerType if tracker is not LoggerType.ALL)
    installed = {str(tracker) for tracker in get_available_trackers()}
    for name in names:
        if name not in known:
            raise UserError(f"execution.tracking: '{name}' is none of {', '.join(known)}.{nearest(name, known)}")
        if name not in installed:
            raise UserError(f"execution.tracking={name}: its package is not installed: pip install {name}")


def _optimizer(policy: torch.nn.Module, settings: Mapping[str, Any]) -> torch.optim.Optimizer:
    parameters = [p for p in policy.parameters() if p.requires_grad]
    options = {"lr": float(settings["learning_rate"]), "weight_decay": settings["weight_decay"]}
    kinds: dict[str, Any] = {"adamw": partial(torch.optim.AdamW, fused=True), "rmsprop": torch.optim.RMSprop}
    optimizer: torch.optim.Optimizer = kinds[settings["optimizer"]](parameters, **options)
    return optimizer


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v if isinstance(v, int | float | str) else json.dumps(v) for k, v in settings.items()}
