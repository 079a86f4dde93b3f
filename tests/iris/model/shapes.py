"""Chat templates in the shapes of public ones, and small tokenizers of the kinds that public models have."""

import string
from collections.abc import Callable, Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
)
_HEADERS = (
    "{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + "
    "'<|eot_id|>' }}{% endfor %}"
)
_ALTERNATE = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
)


def _roles(user: str, assistant: str, prompt: str, system: str = "", start: str = "") -> str:
    """Write a template of one expression for each role."""
    return (
        f"{{{{ '{start}' }}}}{{% for m in messages %}}{{% if m['role'] == 'system' %}}{{{{ {system or user} }}}}"
        f"{{% elif m['role'] == 'user' %}}{{{{ {user} }}}}{{% else %}}{{{{ {assistant} }}}}{{% endif %}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{{{{ '{prompt}' }}}}{{% endif %}}"
    )


CHATML = _CHATML + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
# Each shape: its template, its control tokens and the one that ends a response.
SHAPES: dict[str, tuple[str, Sequence[str], str]] = {
    "chatml": (CHATML, ["<|im_start|>", "<|im_end|>"], "<|im_end|>"),
    "qwen2.5": (
        "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}"
        + CHATML,
        ["<|im_start|>", "<|im_end|>", "<|endoftext|>"],
        "<|im_end|>",
    ),
    "qwen3": (
        "{% for m in messages %}{% set content = m['content'] %}{% if m['role'] == 'assistant' %}"
        "{% set content = '<think>\n\n</think>\n\n' + content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
        "{{ '<|im_start|>' + m['role'] + '\n' + content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        ["<|im_start|>", "<|im_end|>"],
        "<|im_end|>",
    ),
    "qwen3 thinking": (
        "{% for m in messages %}{% set content = m['content'] %}{% if m['role'] == 'assistant' %}"
        "{% set content = '<think>\n\n</think>\n\n' + content %}{% endif %}"
        "{{ '<|im_start|>' + m['role'] + '\n' + content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}",
        ["<|im_start|>", "<|im_end|>"],
        "<|im_end|>",
    ),
    "llama 2": (
        _ALTERNATE + "{% if m['role'] == 'user' %}{{ '<s>' + '[INST] ' + m['content'].strip() + ' [/INST]' }}"
        "{% else %}{{ ' ' + m['content'].strip() + ' ' + '</s>' }}{% endif %}{% endfor %}",
        [],
        "</s>",
    ),
    "llama 3": (
        "{{ '<s>' }}"
        + _HEADERS
        + "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "<|eot_id|>",
    ),
    "llama 3.1": (
        "{{ '<s>' }}{% if strftime_now is defined %}{% set today = strftime_now('%d %b %Y') %}{% endif %}"
        "{{ '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + today + '\n\n<|eot_id|>' }}"
        + _HEADERS
        + "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "<|eot_id|>",
    ),
    "mistral": (
        "{{ '<s>' }}" + _ALTERNATE + "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
        "{% else %}{{ m['content'] + '</s>' }}{% endif %}{% endfor %}",
        [],
        "</s>",
    ),
    "mistral v3": (
        "{{ '<s>' }}" + _ALTERNATE + "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + '[/INST]' }}"
        "{% else %}{{ ' ' + m['content'] | trim + '</s>' }}{% endif %}{% endfor %}",
        ["[INST]", "[/INST]"],
        "</s>",
    ),
    "gemma": (
        "{{ '<s>' }}" + _ALTERNATE + "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
        "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
        ["<start_of_turn>", "<end_of_turn>"],
        "<end_of_turn>",
    ),
    "phi 3": (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ '</s>' }}{% endif %}",
        ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"],
        "<|end|>",
    ),
    "zephyr": (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '</s>' + '\n' }}"
        "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>' + '\n' }}{% endif %}{% endfor %}",
        [],
        "</s>",
    ),
    "vicuna": (
        _roles("'USER: ' + m['content'].strip() + ' '", "'ASSISTANT: ' + m['content'].strip() + '</s>'", "ASSISTANT:"),
        [],
        "</s>",
    ),
    "openchat": (
        "{{ '<s>' }}{% for m in messages %}{{ 'GPT4 Correct ' + m['role'].title() + ': ' + m['content'] + "
        "'<|end_of_turn|>' }}{% endfor %}{% if add_generation_prompt %}{{ 'GPT4 Correct Assistant:' }}{% endif %}",
        ["<|end_of_turn|>"],
        "<|end_of_turn|>",
    ),
    "granite": (
        "{% for m in messages %}{{ '<|start_of_role|>' + m['role'] + '<|end_of_role|>' + m['content'] + '</s>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}",
        ["<|start_of_role|>", "<|end_of_role|>"],
        "</s>",
    ),
    "alpaca": (
        _roles(
            "'### Instruction:\n' + m['content'].strip() + '\n\n'",
            "'### Response:\n' + m['content'].strip() + '</s>' + '\n\n'",
            "### Response:\n",
            start="<s>",
        ),
        [],
        "</s>",
    ),
    "alpaca with a wrong generation prompt": (
        _roles(
            "'### Instruction:\n' + m['content'].strip() + '\n\n'",
            "'### Response:\n' + m['content'].strip() + '</s>' + '\n\n'",
            "### Instruction:\n",
        ),
        [],
        "</s>",
    ),
    "deepseek r1": (
        "{{ '<s>' }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|User|>' + m['content'] }}{% else %}"
        "{{ '<|Assistant|>' + m['content'].split('</think>')[-1] + '</s>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}",
        ["<|User|>", "<|Assistant|>"],
        "</s>",
    ),
    "command r7b": (
        "{{ '<s>' }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|USER|>' + m['content'] + '<|END|>' }}"
        "{% else %}{{ '<|CHATBOT|><|RESPONSE|>' + m['content'] + '<|END_RESPONSE|><|END|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|CHATBOT|>' }}{% endif %}",
        ["<|USER|>", "<|CHATBOT|>", "<|RESPONSE|>", "<|END_RESPONSE|>", "<|END|>"],
        "<|END_RESPONSE|>",
    ),
    "no generation prompt": (_CHATML, ["<|im_start|>", "<|im_end|>"], "<|im_end|>"),
    "no generation prompt, plain header": (
        _roles("'Human: ' + m['content'] + '\n'", "'Bot: ' + m['content'] + '</s>\n'", ""),
        [],
        "</s>",
    ),
}
_TEXTS = [
    *("It is 5. is it Why? what hello iris assistant user system model Instruction Response ASSISTANT: USER: Human:",),
    *("[INST] hello [/INST] It is 5. ", "### Response:\nIt is", "<|im_start|>assistant\n<think>\n\n</think>\n\nIt is"),
]


def byte_level(special: Sequence[str] = (), plain: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer (GPT-2, Llama 3, Qwen); `plain` tokens are added but not special."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return _trained(backend, pre_tokenizers.ByteLevel.alphabet(), special, plain)


def sentencepiece(special: Sequence[str] = (), plain: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Return a BPE tokenizer that marks spaces, one before every piece of text too (Llama 2, Mistral, Phi 3)."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(parts)
    return _trained(backend, sorted({*string.printable, *"▁é你好😀"}), special, plain)


def metaspace(special: Sequence[str] = (), plain: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Return a BPE tokenizer that marks spaces, one before the first piece of text too (newer Llama 2, Mistral)."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    parts = [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(parts)
    return _trained(backend, sorted({*string.printable, *"▁é你好😀"}), special, plain)


def _trained(
    backend: Tokenizer, alphabet: Sequence[str], special: Sequence[str], plain: Sequence[str]
) -> PreTrainedTokenizerFast:
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        show_progress=False,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=list(alphabet),
    )
    used = backend.pre_tokenizer
    if len(alphabet) < 256:  # as sentencepiece learns: no token holds a space behind its beginning, or a line break
        apart = [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Metaspace(prepend_scheme="never")]
        backend.pre_tokenizer = pre_tokenizers.Sequence(apart)
    backend.train_from_iterator(_TEXTS * 5, trainer)
    backend.pre_tokenizer = used
    return finished(backend, special, plain)


def finished(backend: Tokenizer, special: Sequence[str], plain: Sequence[str]) -> PreTrainedTokenizerFast:
    """Return the transformers tokenizer of a backend, with more tokens."""
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    return tokenizer


TOKENIZERS: dict[str, Callable[..., PreTrainedTokenizerFast]] = {
    "byte level": byte_level,
    "sentencepiece": sentencepiece,
    "metaspace": metaspace,
}
