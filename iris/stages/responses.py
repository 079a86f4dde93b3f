"""Sampled responses and their log-probabilities as parquet tables, one file a shard."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from iris.data.rows import lists
from iris.execution.runner import Context
from iris.plan import Stage
from iris.store import Artifact

FILE = "responses.parquet"
SCORES = "scores.parquet"


def write_responses(
    folder: Path,
    ids: Sequence[str],
    tokens: Sequence[Sequence[Sequence[int]]],
    texts: Sequence[Sequence[str]],
    finished: Sequence[Sequence[bool]],
) -> None:
    """Write one row per response: [prompt][sample] flattened."""
    table = {
        "id": [i for i, samples in zip(ids, tokens, strict=True) for _ in samples],
        "sample": [k for samples in tokens for k in range(len(samples))],
        "tokens": pa.array([t for samples in tokens for t in samples], pa.list_(pa.int32())),
        "text": [t for samples in texts for t in samples],
        "finished": [f for samples in finished for f in samples],
    }
    pq.write_table(pa.table(table), folder / FILE)


def read_responses(stage: Stage, context: Context) -> list[list[np.ndarray]]:
    """Return the token ids of a `generate` stage as [sample][prompt], prompts in the order of the data."""
    samples = int(stage.identity["samples"])
    responses: list[list[np.ndarray]] = [[] for _ in range(samples)]
    for artifact in shards(stage, context):
        for n, tokens in enumerate(lists(pq.read_table(artifact.folder / FILE, columns=["tokens"]), "tokens")):
            responses[n % samples].append(tokens)
    return responses


def write_scores(folder: Path, logps: np.ndarray, counts: np.ndarray) -> None:
    """Write summed log-probabilities (float64, nats) and numbers of tokens, one row per response."""
    pq.write_table(pa.table({"logp": logps.astype(np.float64), "tokens": counts.astype(np.int32)}), folder / SCORES)


def read_scores(stage: Stage, context: Context) -> np.ndarray:
    """Return the log-probabilities of a `score` stage as [sample, prompt] (float64, nats)."""
    values = [pq.read_table(a.folder / SCORES)["logp"].to_numpy() for a in shards(stage, context)]
    return np.concatenate(values).reshape(-1, int(context.artifact(stage).results["samples"])).T


def shards(stage: Stage, context: Context) -> list[Artifact]:
    """Return the shards of a finished stage, in the order of the data."""
    return [context.load(stage.kind, key) for key in context.artifact(stage).manifest["inputs"]["shards"]]
