"""`generate`: synthetic responses y' ~ π_t(·|x) to every prompt, in shards that nested subsets share."""

import hashlib
from typing import Any

from iris.data.rows import read_rows, shard_digest, slices
from iris.execution.device import find_device
from iris.execution.runner import Context
from iris.model.policy import load_policy, model_folder
from iris.model.text import eos_token_ids, load_tokenizer
from iris.plan import Stage, base_of
from iris.sampling.engine import Engine, Request, Sampling
from iris.sampling.slots import SlotEngine
from iris.sampling.vllm_engine import VllmEngine, generation_config
from iris.stages.responses import write_responses
from iris.stages.shards import Advance, lazily, run_shards
from iris.store import Claim


def run(stage: Stage, context: Context, claim: Claim) -> dict[str, Any]:
    """Sample with a seed of its own for every prompt, so that a response depends on no other prompt."""
    identity, policy = stage.identity, stage.one("policy")
    rows = read_rows(context.artifact(stage.one("data")))
    parts = slices(rows, identity["shard"])
    sampling = Sampling(identity["temperature"], identity["top_p"], identity["max_new_tokens"])
    tokenizer = load_tokenizer(context.artifact(base_of(stage)))
    sampler = lazily(lambda: _engine(stage, context))

    def work(n: int, claim: Claim, advance: Advance) -> dict[str, Any]:
        part = range(len(rows.ids))[parts[n]]
        requests = [
            Request(
                rows.prompt_tokens[i].tolist(),
                seed(identity, rows.ids[i]),
                identity["samples"],
                len(rows.response_tokens[i]),
            )
            for i in part
        ]
        rollouts = sampler().generate(requests, sampling, advance)
        tokens = [[r.tokens for r in samples] for samples in rollouts]
        texts = [[str(tokenizer.decode(t, skip_special_tokens=True)) for t in samples] for samples in tokens]
        finished = [[r.finished for r in samples] for samples in rollouts]
        write_responses(claim.new, [rows.ids[i] for i in part], tokens, texts, finished)
        flat = [r for samples in rollouts for r in samples]
        return {
            "responses": len(flat),
            "unfinished": sum(not r.finished for r in flat),
            "tokens": sum(len(r.tokens) for r in flat),
            "provenance": {"engine": {"name": sampler().name, "version": sampler().version}},
        }

    shards = [
        Stage("generate", f"{stage.name}-{n:04d}", _part(identity, shard_digest(rows, s)), {"policy": policy})
        for n, s in enumerate(parts)
    ]
    sizes = [len(range(len(rows.ids))[s]) * identity["samples"] for s in parts]
    done, results = run_shards(shards, sizes, work, context, f"generate {stage.name}", "responses")
    return results | {
        "responses": sum(a.results["responses"] for a in done),
        "unfinished": sum(a.results["unfinished"] for a in done),
    }


def seed(identity: Any, prompt_id: str) -> int:
    """Return the seed of one prompt; another prompt, iteration or experiment seed gives an unrelated one."""
    text = f"{identity['seed']}:{identity['iteration']}:{prompt_id}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _part(identity: Any, digest: str) -> dict[str, Any]:
    return {k: v for k, v in identity.items() if k != "shard"} | {"rows": digest}


def _engine(stage: Stage, context: Context) -> Engine:
    policy, precision = context.artifact(stage.one("policy")), stage.identity["precision"]
    tokenizer = load_tokenizer(context.artifact(base_of(stage)))
    if stage.identity["engine"] == "vllm":
        folder = model_folder(policy)
        return VllmEngine(folder, eos_token_ids(generation_config(folder), tokenizer), precision)
    device = find_device(context.execution.device)
    model = load_policy(policy, context.store, precision=precision, device=device)
    return SlotEngine(model, eos_token_ids(model.generation_config, tokenizer), context.execution.slots)
