"""`score`: log-probabilities of responses under a frozen policy, computed once and read by every method."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from iris.data.rows import read_rows, shard_digest, slices
from iris.execution.device import DTYPES, find_device
from iris.execution.runner import Context
from iris.model.logprobs import Policy
from iris.model.packing import Row, micro_batches, pack
from iris.model.policy import load_policy
from iris.plan import Stage
from iris.stages.responses import read_responses, write_scores
from iris.stages.shards import Advance, lazily, run_shards
from iris.store import Claim


def run(stage: Stage, context: Context, claim: Claim) -> dict[str, Any]:
    """Score the annotated responses (the input is `data`) or the synthetic ones (the input is `generate`)."""
    policy, source = stage.one("policy"), stage.one("responses")
    rows = read_rows(context.artifact(stage.one("data")))
    responses: Sequence[Sequence[Any]] = (
        [rows.response_tokens] if source.kind == "data" else read_responses(source, context)
    )
    parts = slices(rows, stage.identity["shard"])
    scorer = lazily(lambda: _scorer(stage, context))

    def work(n: int, claim: Claim, advance: Advance) -> dict[str, Any]:
        part = [Row(rows.prompt_tokens[i], [r[i] for r in responses]) for i in range(len(rows.ids))[parts[n]]]
        logps = _score(scorer(), part, context, advance)
        counts = np.array([[len(r) for r in row.responses] for row in part])
        write_scores(claim.new, logps.ravel(), counts.ravel())
        return {
            "responses": int(counts.size),
            "per_token_sum": float((logps / counts).sum()),
            "tokens": sum(row.tokens for row in part),
        }

    digests = [shard_digest(rows, s) for s in parts]
    if source.kind == "generate":
        digests = context.artifact(source).manifest["inputs"]["shards"]
    identity = {"precision": stage.identity["precision"]}
    shards = [
        Stage("score", f"{stage.name}-{n:04d}", identity | {"responses": digest}, {"policy": policy})
        for n, digest in enumerate(digests)
    ]
    sizes = [len(range(len(rows.ids))[s]) for s in parts]
    done, results = run_shards(shards, sizes, work, context, f"score {stage.name}", "prompts")
    total = sum(a.results["responses"] for a in done)
    return results | {
        "responses": total,
        "samples": len(responses),
        "per_token": sum(a.results["per_token_sum"] for a in done) / total,
    }


def _scorer(stage: Stage, context: Context) -> Policy:
    device = find_device(context.execution.device)
    policy = context.artifact(stage.one("policy"))
    precision = stage.identity["precision"]
    # As training loads it, so that the ratio of both begins at 0.
    model = load_policy(policy, context.store, precision=precision, device=device, trainable=True)
    return Policy(model, DTYPES[precision]).requires_grad_(False).eval()


def _score(policy: Policy, rows: list[Row], context: Context, advance: Advance) -> np.ndarray:
    """[n, R] float64 sums in nats."""
    result = np.empty((len(rows), len(rows[0].responses)))
    device = next(policy.parameters()).device
    order = sorted(range(len(rows)), key=lambda i: -rows[i].tokens)
    for part in micro_batches([rows[i].tokens for i in order], context.execution.micro_batch_tokens):
        chosen = [order[k] for k in part]
        with torch.inference_mode():
            logps, _ = policy(pack([rows[i] for i in chosen]).to(device))
        result[chosen] = logps.double().cpu().numpy().reshape(len(chosen), -1)
        advance(len(chosen))
    return result
