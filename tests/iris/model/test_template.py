"""What is trained on is what the template writes, in text and in tokens."""

import re
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from iris.errors import UserError
from iris.model.chat import ANSWER, Refused, settled
from iris.model.template import Encoded, Template
from iris.model.text import eos_token_ids
from tests.iris.model.shapes import CHATML, SHAPES, TOKENIZERS, byte_level, finished, metaspace, sentencepiece

QUESTION = [{"role": "user", "content": "is it 5?"}]
ANSWERS = [
    "It is 5.",
    " It is 5. ",
    "It is 5.\n",
    "\n\nIt is 5.",
    "é 你好 😀",
    "- it\n\n- is\n\n  5",
    "5",
    "<think>\na\n</think>\n\n5",
]
CONTROLS = ["<|im_start|>", "<|im_end|>"]


def tokenizer_of(kind: str, shape: str, special: bool = True) -> PreTrainedTokenizerFast:
    template, controls, _ = SHAPES[shape]
    tokenizer = TOKENIZERS[kind](controls if special else [], [] if special else controls)
    tokenizer.chat_template = template
    return tokenizer


def rendered(tokenizer: PreTrainedTokenizerFast, source: str, answer: str | None) -> str:
    reply = [] if answer is None else [{"role": "assistant", "content": answer}]
    text: Any = tokenizer.apply_chat_template(
        [*QUESTION, *reply], chat_template=source, add_generation_prompt=answer is None, tokenize=False
    )
    return str(text)


def dated(shape: str) -> str:
    """The shape's own template, on the day that every template is told."""
    return SHAPES[shape][0].replace("strftime_now('%d %b %Y')", "'26 Jul 2024'")


@pytest.mark.parametrize("special", [True, False], ids=["special", "plain"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_an_example_is_the_rendered_conversation(kind: str, shape: str, special: bool) -> None:
    tokenizer = tokenizer_of(kind, shape, special)
    source = tokenizer.chat_template = settled(tokenizer)
    template = Template(tokenizer, "chat")
    end = tokenizer.convert_tokens_to_ids(SHAPES[shape][2])
    assert template.end == end and end in eos_token_ids(None, tokenizer)
    for answer in ANSWERS:
        example = template.encode(QUESTION, answer)
        conversation = tokenizer.encode(rendered(tokenizer, dated(shape), answer), add_special_tokens=False)
        assert example.prompt == tokenizer.encode(rendered(tokenizer, source, None), add_special_tokens=False)
        assert example.prompt == template.prompt(QUESTION)
        ids = [*example.prompt, *example.response]
        if conversation[: len(example.prompt)] == example.prompt:
            assert ids == conversation[: len(ids)]
        assert tokenizer.decode(conversation).startswith(tokenizer.decode(ids))
        rest = tokenizer.decode(conversation).removeprefix(tokenizer.decode(ids))
        assert rest.lstrip(" ") in ("", "\n", "\n\n", "\n</s>", "<|END|>")
        assert example.response.index(end) == len(example.response) - 1
        assert not re.search(r"assistant|Response|Bot|ASSISTANT", tokenizer.decode(example.response))


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize(
    "text", ["### Instruction: {prompt}\n\n### Response: ", "{prompt}\n", "{prompt}", "USER: {prompt} ASSISTANT:"]
)
def test_after_a_text_template_the_answer_follows_as_it_is(kind: str, answer: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    example = Template(tokenizer, text).encode(QUESTION, answer)
    whole = tokenizer.encode(text.replace("{prompt}", "is it 5?") + answer, add_special_tokens=False)
    assert tokenizer.decode(example.prompt + example.response) == tokenizer.decode(whole) + "</s>"
    assert example.response[-1] == tokenizer.eos_token_id


def test_a_text_template_keeps_its_control_tokens() -> None:
    text = "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    tokenizer = byte_level(CONTROLS)
    tokenizer.chat_template = CHATML
    typed, chat = Template(tokenizer, text), Template(tokenizer, "chat")
    assert typed.prompt(QUESTION) == chat.prompt(QUESTION)
    assert typed.encode(QUESTION, "5").response == [*chat.encode(QUESTION, "5").response[:-1], tokenizer.eos_token_id]


@pytest.mark.parametrize("special", [True, False], ids=["special", "plain"])
@pytest.mark.parametrize("template", ["chat", "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_control_tokens_in_data_stay_text_and_are_counted(kind: str, template: str, special: bool) -> None:
    tokenizer = TOKENIZERS[kind](CONTROLS if special else [], [] if special else CONTROLS)
    tokenizer.chat_template = CHATML
    writer = Template(tokenizer, template)
    messages = [{"role": "user", "content": "is <|im_end|> it</s>?"}]
    example, same = writer.encode(messages, "a<|im_start|>b</s>"), writer.encode(QUESTION, "5")
    assert (example.controls, same.controls) == (4, 0)
    assert example.prompt == writer.prompt(messages)
    ids = [tokenizer.convert_tokens_to_ids(token) for token in ("<|im_start|>", "<|im_end|>", "</s>")]
    for one, other in ((example.prompt, same.prompt), (example.response, same.response)):
        assert [i for i in one if i in ids] == [i for i in other if i in ids]
    assert "is <|im_end|> it</s>?" in tokenizer.decode(example.prompt)
    assert tokenizer.decode(example.response[:-1]).strip() == "a<|im_start|>b</s>"
    plain = "a|b" if template == "chat" else "ab"
    disguised = Encoded(*(writer._ids(plain, disguise) for disguise in (False, True)), 0)
    assert disguised.prompt == disguised.response


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_tokens_around_control_tokens_in_data_are_those_of_other_text(kind: str, shape: str) -> None:
    """The same conversation with and without the tokenizer that takes control tokens for text."""
    tokenizer = tokenizer_of(kind, shape)
    template = Template(tokenizer, "chat")
    for answer in (None, *ANSWERS):
        assert template._ids(template._text(QUESTION, answer, True), True) == template._ids(
            template._text(QUESTION, answer, False)
        )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "model.template=chat, but this model's tokenizer has no chat template"),
        ("{% for m in messages %}", "fails in line 1: Unexpected end of template"),
        ("{{ raise_exception('no') }}", "fails: no. Correct chat_template"),
        ("{{ messages[0].content + 1 }}", "fails: can only concatenate str"),
        ("{% for m in messages if m.role == 'user' %}{{ m.role }}{% endfor %}", "leaves out the assistant's answer"),
        (
            "{% for m in messages %}{{ '### ' + m.role + '\n' + m.content + '\n\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '### assistant\n' }}{% endif %}",
            r"no token that ends a response, only '\\n\\n'.*model.template to a text, such as "
            r"'### user\\n{prompt}\\n\\n### assistant\\n'",
        ),
        (
            "{% for m in messages %}{{ m.content if loop.last else m.content | upper }}</s>{% endfor %}",
            r"a prompt that no conversation begins with: …'Why\?</s>' where the conversation has …'WHY\?</s>iris</s>'",
        ),
    ],
)
def test_templates_that_cannot_be_used(source: str | None, message: str) -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = source
    with pytest.raises(UserError, match=message):
        Template(tokenizer, "chat")


def test_a_text_template_needs_a_place_for_the_prompt() -> None:
    with pytest.raises(UserError, match=r"'### {promt}': expected 'chat', or a text with {prompt} in it"):
        Template(byte_level(), "### {promt}")


def test_a_template_may_refuse_messages_or_demand_a_system_message() -> None:
    tokenizer = byte_level(CONTROLS)
    demand = "{{ raise_exception('system first') if messages[0]['role'] != 'system' }}"
    tokenizer.chat_template = demand + CHATML
    template = Template(tokenizer, "chat")
    with pytest.raises(Refused, match="refused by the chat template"):
        template.encode(QUESTION, "5")
    assert template.encode([{"role": "system", "content": "s"}, *QUESTION], "5").response[-1] == template.end


def test_a_prompt_that_the_conversation_writes_otherwise_is_refused() -> None:
    """As Mistral's does: a system message goes before the last user message, unless an answer follows."""
    tokenizer = byte_level()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {% if loop.last and messages[0].role == 'system' %}"
        "{{ messages[0].content + '\n' }}{% endif %}{{ m.content + '[/INST]' }}{% elif m.role == 'assistant' %}"
        "{{ ' ' + m.content + '</s>' }}{% endif %}{% endfor %}"
    )
    template = Template(tokenizer, "chat")
    assert tokenizer.decode(template.encode(QUESTION, "5").response) == " 5</s>"
    with pytest.raises(UserError, match=r"…'\[INST\] be kind.* where the conversation has …'\[INST\] is it 5"):
        template.encode([{"role": "system", "content": "be kind"}, *QUESTION], "5")


def test_an_end_that_is_in_the_vocabulary_alone() -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = CHATML
    backend = tokenizer.backend_tokenizer

    words = ["<unk>", "<s>", "</s>", "<|im_end|>", *"abcdefghijklmnopqrstuvwxyzIW5?.<|_>/ \n"]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"<\|im_end\|>|(?:.|\n)"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = finished(backend, [], [])
    tokenizer.chat_template = CHATML
    template = Template(tokenizer, "chat")
    assert template.end == 3 in eos_token_ids(None, tokenizer)
    assert tokenizer.decode(template.encode(QUESTION, "It is 5.").response) == "It is 5.<|im_end|>"
    with pytest.raises(Refused, match="token that ends it inside"):
        template.encode(QUESTION, "a<|im_end|>b")


def test_nothing_outside_the_conversation_enters() -> None:
    tokenizer = byte_level(CONTROLS)
    tokenizer.chat_template = (
        "{{ strftime_now('%d %b %Y') + ' ' + strftime_now(\"%H:%M\") + ' ' + ['a', 'b', 'c'] | random }}" + CHATML
    )
    source = settled(tokenizer)
    assert {rendered(tokenizer, source, None).partition("<")[0] for _ in range(20)} == {"26 Jul 2024 00:00 a"}
    tokenizer.chat_template = source
    assert settled(tokenizer) == source


@pytest.mark.parametrize("shape", ["no generation prompt", "deepseek r1", "alpaca with a wrong generation prompt"])
def test_a_generation_prompt_that_conversations_lack_is_replaced_once(shape: str) -> None:
    tokenizer = tokenizer_of("byte level", shape)
    source = tokenizer.chat_template = settled(tokenizer)
    assert source != SHAPES[shape][0] and settled(tokenizer) == source
    assert rendered(tokenizer, source, ANSWER) == rendered(tokenizer, SHAPES[shape][0], ANSWER)
    assert rendered(tokenizer, source, ANSWER).startswith(rendered(tokenizer, source, None))


@pytest.mark.parametrize("kind", [byte_level, sentencepiece, metaspace])
def test_a_beginning_token_is_there_once(kind: Any) -> None:
    tokenizer = kind()
    without = Template(tokenizer, "{prompt}").prompt(QUESTION)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    assert Template(tokenizer, "{prompt}").prompt(QUESTION) == [1, *without]
    assert Template(tokenizer, "<s>[INST] {prompt}").prompt(QUESTION).count(1) == 1
