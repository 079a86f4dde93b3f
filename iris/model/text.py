"""Load tokenizers, and find the tokens at which sampling stops."""

import contextlib
from pathlib import Path

from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from iris.errors import UserError, first_line
from iris.model.chat import settled
from iris.model.policy import model_folder
from iris.model.template import Template
from iris.store import Artifact


def load_tokenizer(base: Artifact) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a base artifact, which all policies trained from it share."""
    return read_tokenizer(model_folder(base))


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer in a folder, with a settled chat template and decoding without changes to spaces.

    Raises UserError if there is none.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True, clean_up_tokenization_spaces=False
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(
            f"{folder} holds no tokenizer that can be loaded ({first_line(error)}). Save one beside the model: "
            "tokenizer.save_pretrained(FOLDER)."
        ) from error
    with contextlib.suppress(UserError):  # without a chat template
        tokenizer.chat_template = settled(tokenizer)
    return tokenizer


def eos_token_ids(generation: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return all ids at which sampling stops: the tokenizer's, the generation configuration's, the chat template's."""
    configured = generation.eos_token_id if generation else None
    ids = {tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])}
    with contextlib.suppress(UserError):  # an unusable chat template matters only where it is chosen
        ids.add(Template(tokenizer, "chat").end)
    return sorted(ids - {None})
