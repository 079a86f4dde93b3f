"""One training run: optimizer steps on the exact gradient of the global batch, resumable at any step."""

import contextlib
import json
import logging
import math
import shutil
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import FullyShardedDataParallelPlugin
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from iris.errors import UserError
from iris.execution import interruption
from iris.execution.device import DTYPES, check_precision, find_device
from iris.execution.interruption import Interrupted
from iris.execution.progress import Line
from iris.execution.runner import Context
from iris.model.logprobs import Policy
from iris.model.policy import add_lora, load_policy, save_policy
from iris.model.text import load_tokenizer
from iris.plan import Stage, base_of
from iris.store import Claim
from iris.training import batching
from iris.training.gradient import Gradient, Objective, TrainingSet

# Bound on the ratio of the first step, √(Σ ratio² / Σ tokens) in nats: rounding alone, for batches of other shapes.
START_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.03}

# It warns at every checkpoint of a model with tied embeddings that it stores them once.
logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)


def run_steps(settings: Mapping[str, Any], samples: int) -> int:
    """Count the optimizer steps of a run with these settings."""
    return batching.steps(samples, float(settings["epochs"]), int(settings["batch"]))


def fit(stage: Stage, context: Context, claim: Claim, data: TrainingSet, objective: Objective) -> dict[str, Any]:
    """Train the stage's input policy and write the result and the record of every step to the claim's folder.

    Return what the manifest keeps. Raises UserError when the loss is not finite, Interrupted on request.
    """
    settings, parent = stage.identity, context.artifact(stage.one("policy"))
    device = find_device(context.execution.device)
    check_precision(settings["precision"], device)
    model: PreTrainedModel | PeftModel = load_policy(
        parent, context.store, precision=settings["precision"], device=device, trainable=True
    )
    if settings["lora"] and not isinstance(model, PeftModel):
        model = add_lora(model, **settings["lora"], seed=settings["seed"])
    run = Run(model, data, objective, settings, context, claim.work)
    label = f"{stage.kind} {stage.name}"
    with context.progress.line(label, run.steps, "steps") as line, run.tracked(stage.name):
        run.resume(line)
        while len(run.records) < run.steps:
            run.step(line)
            _check_start(run.records[0], settings["precision"])
    state = run.state()
    if context.world.main:
        save_policy(model, claim.new, settings["precision"], state)
        if (claim.new / "model").is_dir():  # so that transformers and vLLM load the folder as it is
            load_tokenizer(context.artifact(base_of(stage))).save_pretrained(claim.new / "model")
        (claim.new / "steps.jsonl").write_text("".join(json.dumps(r) + "\n" for r in run.records))
    last = run.records[-1]
    results: dict[str, Any] = {
        name: last[name] for name in ("loss", "alpha", "real_ratio", "synthetic_ratio") if name in last
    }
    results |= {"steps": run.steps, "samples": len(data), "first_loss": run.records[0]["loss"]}
    if isinstance(model, PeftModel):
        results["adapter_of"] = parent.results.get("adapter_of", [parent.manifest["kind"], parent.key])
    results["packed_tokens"] = sum(r["packed_tokens"] for r in run.records)
    return results | {"tokens": results["packed_tokens"] if context.world.main else 0}


def _check_start(first: Mapping[str, float], precision: str) -> None:
    ratio, tolerance = first.get("start_ratio", 0.0), START_TOLERANCE[precision]
    if not ratio <= tolerance:
        raise UserError(
            f"Before its first step this policy gives other log-probabilities than its scores say: {ratio:.3g} nats "
            f"per √token (root mean square), more than {tolerance}. The scores come from other weights, machines "
            "or other library versions: remove the score artifacts of this iteration and run again."
        )


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
        self.data, self.settings, self.context = data, settings, context
        self.lengths = data.lengths()
        self.batch = min(int(settings["batch"]), len(data))
        self.steps = run_steps(settings, len(data))
        self.work, self.saved = work, time.monotonic()
        self.records: list[dict[str, float]] = []
        self.accelerator = accelerator(context)
        if context.execution.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        policy = Policy(model, DTYPES[settings["precision"]])  # type: ignore[arg-type]
        self.policy, self.optimizer = self.accelerator.prepare(policy, _optimizer(policy, settings))
        self.policy.train()
        self.gradient = Gradient(self.policy, self.accelerator, context.world, data, objective)

    # --- one step

    def step(self, line: Line) -> None:
        """Take one optimizer step on one global batch."""
        step, world = len(self.records), self.context.world
        indices = batching.global_batch(step, len(self.data), self.batch, int(self.settings["seed"]))
        parts = batching.split(indices, self.lengths, world.size, self.context.execution.micro_batch_tokens)[world.rank]
        rate = self._learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss, statistics = self.gradient.accumulate(step, indices, parts)
        norm = self.accelerator.clip_grad_norm_(self.policy.parameters(), self.settings["max_grad_norm"])
        self._check(step, loss, norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        record = {"step": step, "loss": loss, "learning_rate": rate, "grad_norm": float(norm)} | statistics
        self.records.append(record)
        self.accelerator.log({k: v for k, v in record.items() if k != "step"}, step=step)
        line.advance(note=f"loss {loss:.4f}")
        self._maybe_save()

    def _learning_rate(self, step: int) -> float:
        """Return the rate: linear warm-up to the peak, then the named decay to zero."""
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
            f"The loss of step {step + 1}/{self.steps} is {loss} (gradient norm {float(norm)}): nothing was "
            f"stored. Lower the learning rate (now {self.settings['learning_rate']}) or the method's scale, or raise "
            "train.warmup; finished stages are kept."
        )

    # --- resuming

    def resume(self, line: Line) -> None:
        """Continue from the last complete checkpoint, if there is one."""
        checkpoints = sorted(self.work.glob("checkpoint-*"))
        if not checkpoints:
            return
        self.accelerator.load_state(str(checkpoints[-1] / "state"))
        self.records = json.loads((checkpoints[-1] / "records.json").read_text())
        line.resume(len(self.records))

    def _maybe_save(self) -> None:
        """Keep a checkpoint when one is due or a stop is requested (the main process decides); raises Interrupted."""
        due = time.monotonic() - self.saved >= 60 * self.context.execution.checkpoint_minutes
        stop = interruption.requested()
        if len(self.records) == self.steps:
            return
        due, stop = self.context.world.broadcast((due, stop))
        if due or stop:
            self._save()
        if stop:
            raise Interrupted(f"stopped after step {len(self.records)} of {self.steps}")

    def _save(self) -> None:
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
        """Return the full state dictionary of the model, on the CPU of the main process."""
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
            # Not end_training(): it ends the process group too, which the next stage needs.
            for tracker in self.accelerator.trackers:
                tracker.finish()


def accelerator(context: Context) -> Accelerator:
    """Return an Accelerator for the execution settings, whatever precision an earlier stage had."""
    AcceleratorState._reset_state()
    execution, cpu = context.execution, find_device(context.execution.device).type == "cpu"
    plugin = None
    if execution.distributed == "fsdp2" and context.world.size > 1:
        if cpu:  # accelerate would quietly replicate the model instead
            raise UserError("execution.distributed=fsdp2 needs GPUs; on a CPU use execution.distributed=ddp.")
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
    return Accelerator(
        cpu=cpu,
        mixed_precision="no",  # `Policy` sets the precision itself, the same for training and scoring
        fsdp_plugin=plugin,
        log_with=list(execution.tracking) or None,
        project_dir=str(context.folder),
    )


def _optimizer(policy: torch.nn.Module, settings: Mapping[str, Any]) -> torch.optim.Optimizer:
    parameters = [p for p in policy.parameters() if p.requires_grad]
    options = {"lr": float(settings["learning_rate"]), "weight_decay": settings["weight_decay"]}
    kinds: dict[str, Any] = {"adamw": partial(torch.optim.AdamW, fused=True), "rmsprop": torch.optim.RMSprop}
    optimizer: torch.optim.Optimizer = kinds[settings["optimizer"]](parameters, **options)
    return optimizer


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v if isinstance(v, int | float | str) else json.dumps(v) for k, v in settings.items()}
