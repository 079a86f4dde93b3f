"""`evaluate`: score a policy with lm-eval, every sample kept."""

import json
import math
from pathlib import Path
from typing import Any

from iris import harness, models
from iris.plan import Stage, base_of
from iris.rollouts import SlotEngine
from iris.runner import Context
from iris.store import Claim


def run(stage: Stage, context: Context, claim: Claim) -> dict[str, Any]:
    """Leaves scores.json, samples/<task>.jsonl and prompts.json (hashes for the contamination check)."""
    settings, policy = stage.identity, context.artifact(stage.one("policy"))
    tokenizer = models.load_tokenizer(context.artifact(base_of(stage)))
    device = models.device(context.execution.device)
    model = models.load_policy(policy, context.store, precision=settings["precision"], device=device)
    scores = harness.evaluate(
        model,
        tokenizer,
        settings["tasks"],
        include=[Path(folder) for folder in stage.location["include"]],
        limit=settings["limit"],
        num_fewshot=settings["num_fewshot"],
        chat_template=settings["chat_template"],
        micro_batch_tokens=context.execution.micro_batch_tokens,
        engine=SlotEngine(model, models.eos_token_ids(model, tokenizer), context.execution.slots),
        world=context.world,
        progress=context.progress,
    )
    if context.world.main:
        _write(claim.new, scores)
    errors = [error for _, _, error in scores.main.values()]
    known = [e for e in errors if e is not None]
    return {
        "average": scores.average,
        "stderr": math.sqrt(sum(e * e for e in known)) / len(errors) if len(known) == len(errors) else None,
        "main": {task: value for task, (_, value, _) in scores.main.items()},
        "metrics": {task: metric for task, (metric, _, _) in scores.main.items()},
        "truncated": scores.truncated,
        "warnings": scores.warnings,
        "tokens": scores.tokens,
        "provenance": {"harness": scores.versions},
    }


def _write(folder: Path, scores: harness.Scores) -> None:
    content = {"tasks": scores.tasks, "main": scores.main, "average": scores.average, "versions": scores.versions}
    (folder / "scores.json").write_text(json.dumps(content, indent=1, ensure_ascii=False))
    (folder / "samples").mkdir()
    for task, samples in scores.samples.items():
        lines = (json.dumps(sample, ensure_ascii=False, default=str) + "\n" for sample in samples)
        (folder / "samples" / f"{task}.jsonl").write_text("".join(lines))
    hashes = [h for samples in scores.samples.values() for h in harness.prompt_hashes(samples)]
    (folder / "prompts.json").write_text(json.dumps(hashes))
