"""Show training examples and evaluation prompts as the model reads them, control tokens marked, in 80 columns."""

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from iris.data.rows import read_rows
from iris.errors import UserError
from iris.evaluation.harness import first_request
from iris.execution.runner import Context
from iris.model.text import load_tokenizer
from iris.plan import Chain, Stage

_WIDTH = 80
_LABEL = 10
_RULER = "⟦…⟧ control token, ↵ line break, ␣ space at the end of a line"


def examples(data: Stage, context: Context, count: int) -> list[str]:
    """Return the lines that show the first `count` rows of a finished `data` stage."""
    tokenizer, rows = load_tokenizer(context.artifact(data.one("tokenizer"))), read_rows(context.artifact(data))
    lines = [_RULER]
    for n, i in enumerate(rows.ids[:count]):
        prompt, response = rows.prompt_tokens[n].tolist(), rows.response_tokens[n].tolist()
        lines += [f"training example {n + 1} ({i}): {len(prompt)} + {len(response)} tokens"]
        start, whole = _pieces(tokenizer, prompt), _pieces(tokenizer, prompt + response)
        lines += [*_block("prompt", "".join(start)), *_block("response", "".join(whole[len(start) :]))]
    return lines


def evaluation_prompt(chain: Chain, context: Context) -> list[str]:
    """Return the lines that show the first request of the experiment's first evaluation task."""
    settings, include = chain.rows[0].evaluate.identity, chain.rows[0].evaluate.location["include"]
    task, tokenizer = settings["tasks"][0], load_tokenizer(context.artifact(chain.data.one("tokenizer")))
    names = ("num_fewshot", "template", "generator")
    try:
        prompt, answer = first_request(tokenizer, task, [Path(f) for f in include], **{n: settings[n] for n in names})
    except UserError as error:
        return [f"evaluation prompt of {task}: {error}"]
    ids = tokenizer.encode(prompt, add_special_tokens=settings["template"] != "chat")
    lines = [f"evaluation prompt of {task}: {len(ids)} tokens", *_block("prompt", "".join(_pieces(tokenizer, ids)))]
    return [*lines, *_block("likelihood", answer)] if answer else lines


def _pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """Return the text of each token as it adds to the ones before; an unfinished character's text comes later."""
    marked = {i: f"⟦{t.content}⟧" for i, t in tokenizer.added_tokens_decoder.items() if t.content.strip()}
    pieces, before = [], ""
    for end, i in enumerate(ids, start=1):
        text = str(tokenizer.decode(list(ids[:end])))
        whole = i in marked or not text.endswith("\ufffd")
        pieces.append(marked.get(i, text[len(before) :] if whole else ""))
        before = text if whole else before
    return pieces


def _block(label: str, text: str) -> Iterator[str]:
    for line in text.replace("\n", "↵\n").splitlines() or [""]:
        body = line.removesuffix("↵")
        shown = body.rstrip(" ") + "␣" * (len(body) - len(body.rstrip(" "))) + line[len(body) :]
        parts: Iterable[str] = textwrap.wrap(
            shown, _WIDTH - _LABEL - 3, drop_whitespace=False, replace_whitespace=False, expand_tabs=False
        )
        for part in parts or [""]:
            yield f"{label:>{_LABEL}} │ {part}".rstrip()
            label = ""
