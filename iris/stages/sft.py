"""`sft`: supervised fine-tuning of the base on the annotated responses; gives π_0."""

from typing import Any

from iris.data.rows import read_rows
from iris.execution.runner import Context
from iris.method.registry import find
from iris.plan import Stage
from iris.store import Claim
from iris.training.gradient import Objective, TrainingSet
from iris.training.loop import fit


def run(stage: Stage, context: Context, claim: Claim) -> dict[str, Any]:
    """Train on the token-mean negative log-likelihood of the responses."""
    rows = read_rows(context.artifact(stage.one("data")))
    training = TrainingSet(rows.prompt_tokens, [rows.response_tokens])
    return fit(stage, context, claim, training, Objective(find("sft"), {}))
