"""Render chat templates, with everything fixed that they take from outside the conversation."""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime

from transformers import PreTrainedTokenizerBase

from iris.config import TEMPLATE_DATE
from iris.errors import UserError, first_line

USER, ANSWER = "Why?", "iris"  # texts that templates leave as they are
REPLACED = "{% set opened = add_generation_prompt %}"  # how a template begins whose generation prompt is replaced
_NO_PROMPT = "{% set add_generation_prompt = false %}"
_DATE_MACRO = "{% macro strftime_now(form) %}"
_RANDOM = re.compile(r"(\{[{%][^{}]*\|\s*)random\b")


class Refused(Exception):
    """Reason why a template cannot write a conversation."""


def render(
    tokenizer: PreTrainedTokenizerBase, source: str, messages: Sequence[Mapping[str, str]], answer: str | None
) -> str:
    """Return messages with the generation prompt, or with the assistant's answer. Raises Refused."""
    reply = [] if answer is None else [{"role": "assistant", "content": answer}]
    try:
        text = tokenizer.apply_chat_template(
            [*map(dict, messages), *reply], chat_template=source, add_generation_prompt=answer is None, tokenize=False
        )
    except Exception as error:  # a template is a program and may raise anything
        raise Refused("refused by the chat template") from error
    return str(text)


def probe(tokenizer: PreTrainedTokenizerBase, source: str) -> list[dict[str, str]]:
    """Return a question that a chat template accepts, with a system message if it demands one. Raises UserError."""
    user = {"role": "user", "content": USER}
    for messages in ([user], [{"role": "system", "content": "Be kind."}, user]):
        try:
            render(tokenizer, source, messages, ANSWER)
            return messages
        except Refused as refused:
            error = refused.__cause__
    assert isinstance(error, Exception)
    where = f" in line {error.lineno}" if hasattr(error, "lineno") else ""
    raise UserError(
        f"The chat template of this model's tokenizer fails{where}: {first_line(error)}. Correct chat_template.jinja "
        "(or chat_template in tokenizer_config.json) beside the model, or set model.template to a text with {prompt} "
        "in it."
    )


def settled(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the chat template, dependent on the conversation alone, with a generation prompt that fits conversations.

    The date is TEMPLATE_DATE and a random choice the first. A missing generation prompt, or one that no answer follows
    in a conversation (an opened thinking block), is replaced by what a conversation has before an answer.
    Raises UserError without a chat template.
    """
    if not tokenizer.chat_template:
        raise UserError(
            "model.template=chat, but this model's tokenizer has no chat template. Save one with it, or set "
            "model.template to a text with {prompt} in it, as conf/model/qwen2_5_3b.yaml does."
        )
    try:
        source = _fixed(tokenizer.get_chat_template())
    except ValueError as error:  # several templates, and none of them is the default
        raise UserError(f"model.template=chat: {first_line(error)}") from error
    try:
        messages = probe(tokenizer, source)
        prompt, conversation = (render(tokenizer, source, messages, answer) for answer in (None, ANSWER))
        before = render(tokenizer, f"{_NO_PROMPT}{source}", messages, None)
    except (UserError, Refused):  # `Template` reports it where the chat template is used
        return source
    header = conversation.removeprefix(before).rpartition(ANSWER)[0].rstrip(" ")
    fits = conversation.startswith(prompt) and (prompt != before or not header)
    if fits or not header.strip() or not conversation.startswith(before):
        return source
    body = re.sub(r"\r?\n$", "", source)  # Jinja drops a last line break
    return f"{REPLACED}{_NO_PROMPT}{body}{{% if opened %}}{{{{ {header!r} }}}}{{% endif %}}"


def _fixed(source: str) -> str:
    """Replace the date, the time and random choices in a chat template by constants."""
    source = _RANDOM.sub(r"\1first", source)
    if "strftime_now" not in source or _DATE_MACRO in source:
        return source
    formats = re.findall(r"""["']([^"'{}]*%[^"'{}]*)["']""", source)
    texts = {form: datetime.fromisoformat(TEMPLATE_DATE).strftime(form) for form in formats}
    return f"{_DATE_MACRO}{{{{ {texts!r}.get(form, {TEMPLATE_DATE!r}) }}}}{{% endmacro %}}{source}"
