"""`evaluate`: score a policy with lm-eval, every sample kept."""

import json
import math
from pathlib import Path
from typing import Any

from iris.evaluation import harness
from iris.evaluation.subset import from_json
from iris.execution.device import find_device
from iris.execution.runner import Context
from iris.model.policy import load_policy
from iris.model.text import load_tokenizer
from iris.plan import SHARE, Stage, base_of, part
from iris.store import Artifact, Claim


def run(stage: Stage, context: Context, claim: Claim) -> dict[str, Any]:
    """Write scores.json, samples/<task>.jsonl and prompts.json (hashes for the contamination check).

    An evaluation of a share of the documents also writes answers.json, which the whole one reuses.
    """
    settings, policy = stage.identity, context.artifact(stage.one("policy"))
    known = _part(stage, context)
    tokenizer = load_tokenizer(context.artifact(base_of(stage)))
    device = find_device(context.execution.device)
    model = load_policy(policy, context.store, precision=settings["precision"], device=device)
    scores = harness.evaluate(
        model,
        tokenizer,
        settings["tasks"],
        include=[Path(folder) for folder in stage.location["include"]],
        limit=settings["limit"],
        num_fewshot=settings["num_fewshot"],
        template=settings["template"],
        generator=settings["generator"],
        share=settings.get("share"),
        answers=from_json(known.read_json("answers.json")) if known else None,
        micro_batch_tokens=context.execution.micro_batch_tokens,
        slots=context.execution.slots,
        world=context.world,
        progress=context.progress,
    )
    if context.world.main:
        _write(claim.new, scores)
        if "share" in settings:
            (claim.new / "answers.json").write_text(json.dumps(scores.answers, ensure_ascii=False))
    errors = [error for _, _, error in scores.main.values()]
    given = [e for e in errors if e is not None]
    return {
        "average": scores.average,
        "stderr": math.sqrt(sum(e * e for e in given)) / len(errors) if len(given) == len(errors) else None,
        "main": {task: value for task, (_, value, _) in scores.main.items()},
        "metrics": {task: metric for task, (metric, _, _) in scores.main.items()},
        "truncated": scores.truncated + (known.results["truncated"] if known else 0),
        "warnings": scores.warnings,
        "tokens": scores.tokens,
        "provenance": {"harness": scores.versions} | ({"reused": {known.key: scores.reused}} if known else {}),
    }


def _part(stage: Stage, context: Context) -> Artifact | None:
    """Return the finished evaluation of a share of the same documents, if there is one."""
    if "share" in stage.identity:
        return None
    share = part(stage, stage.location.get("share", SHARE))
    if not context.world.broadcast(context.world.main and context.store.find(share.kind, share.key) is not None):
        return None
    return context.artifact(share)


def _write(folder: Path, scores: harness.Scores) -> None:
    content = {"tasks": scores.tasks, "main": scores.main, "average": scores.average, "versions": scores.versions}
    (folder / "scores.json").write_text(json.dumps(content, indent=1, ensure_ascii=False))
    (folder / "samples").mkdir()
    for task, samples in scores.samples.items():
        lines = (json.dumps(sample, ensure_ascii=False, default=str) + "\n" for sample in samples)
        (folder / "samples" / f"{task}.jsonl").write_text("".join(lines))
    hashes = [h for samples in scores.samples.values() for h in harness.prompt_hashes(samples)]
    (folder / "prompts.json").write_text(json.dumps(hashes))
