"""Load tokenizers, and encode prompts and responses."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerBase,
)

from iris.errors import UserError, first_line
from iris.model.policy import model_folder
from iris.store import Artifact

Messages = Sequence[Mapping[str, str]]
_PROBE = "iris"  # an assistant's answer that templates leave as it is


def load_tokenizer(base: Artifact) -> PreTrainedTokenizerBase:
    """The tokenizer of a base artifact; every policy that goes back to it uses this one."""
    return read_tokenizer(model_folder(base))


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, decoding without cosmetic changes to spaces. Raises UserError when there is none."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True, clean_up_tokenization_spaces=False
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(
            f"{folder} holds no tokenizer that can be loaded ({first_line(error)}). Save one beside the model: "
            "tokenizer.save_pretrained(FOLDER)."
        ) from error
    return tokenizer


def check_template(tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    """Refuse `model.template` where the tokenizer cannot write it, or where it has no place for the prompt."""
    if template != "chat" and "{prompt}" not in template:
        raise UserError(f"model.template={template!r}: expected 'chat', or a text with {{prompt}} in it.")
    if template == "chat" and not tokenizer.chat_template:
        raise UserError(
            "model.template=chat, but this model's tokenizer has no chat template. Save one with it, or set "
            "model.template to a text with {prompt} in it, as conf/model/qwen2_5_3b.yaml does."
        )
    if template == "chat":
        response_end(tokenizer, template)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, template: str, prompt: Messages | str) -> list[int]:
    """Token ids of a prompt as the model sees it, up to where its response begins.

    In a text template messages are joined by blank lines; the beginning-of-sequence token comes first if the
    tokenizer adds one. Raises `jinja2.TemplateError` for messages that the chat template refuses.
    """
    if template == "chat":
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(m) for m in prompt]
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return list(tokenizer.encode(str(text), add_special_tokens=False))
    content = prompt if isinstance(prompt, str) else "\n\n".join(message["content"] for message in prompt)
    return _beginning(tokenizer) + _plain(tokenizer, template.replace("{prompt}", content))


def encode_response(tokenizer: PreTrainedTokenizerBase, template: str, text: str) -> list[int]:
    """Token ids of a response with the id that ends it; what follows `encode_prompt` in training and in sampling.

    Special tokens written out in the text stay text, so that the one end is the last id.
    """
    return [*_plain(tokenizer, text), response_end(tokenizer, template)]


@lru_cache(maxsize=8)
def response_end(tokenizer: PreTrainedTokenizerBase, template: str) -> int:
    """The id that ends a response: the first special token after it in a chat template, otherwise the eos token."""
    eos: int = tokenizer.eos_token_id
    if template != "chat":
        return eos
    turns = [{"role": "user", "content": _PROBE}, {"role": "assistant", "content": _PROBE}]
    _, found, tail = str(tokenizer.apply_chat_template(turns, tokenize=False)).rpartition(_PROBE)
    if not found:
        raise UserError("The chat template of this model's tokenizer leaves out what the assistant says.")
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return next((i for i in tokenizer.encode(tail, add_special_tokens=False) if i in special), eos)


def eos_token_ids(generation: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """All ids at which sampling stops: the tokenizer's, the generation configuration's and the chat template's."""
    configured = generation.eos_token_id if generation else None
    ids = {tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])}
    if tokenizer.chat_template:
        ids.add(response_end(tokenizer, "chat"))
    return sorted(ids - {None})


def _beginning(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    first = tokenizer.encode("")[:1]
    return list(first) if first and first[0] == tokenizer.bos_token_id else []


def _plain(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))
