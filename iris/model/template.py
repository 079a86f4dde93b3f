"""Prompts and responses as a model's template writes them.

An example is built from the rendered conversation. The prompt is its rendering with the generation prompt; the response
is the text that follows, up to and including the token that ends it. In tokens the response is the rest of the
conversation's. Where a token spans the boundary, the prompt has the tokens that sampling sees, and the response tokens
that decode to the same conversation.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase

from iris.errors import UserError
from iris.model.chat import ANSWER, Refused, probe, render, settled

Messages = Sequence[Mapping[str, str]]
_MARKUP = re.compile(r"[<\[(|].*[>\])|]")  # the form of a vocabulary entry that ends a response
_MASK = re.compile("\ufdd0([0-9]+)\ufdd0")  # noncharacters, which no text may hold
_ANCHORS = ("", "\n", "x")
_CONTEXT = 8  # tokens decoded around a difference


@dataclass(frozen=True)
class Encoded:
    """Token ids of a prompt and its response, and the number of control tokens in their texts that stayed text."""

    prompt: list[int]
    response: list[int]
    controls: int


class Template:
    """The chat template of a tokenizer, or a text with {prompt} in it that a response and eos follow.

    `end` is the id that ends a response; prompts alone need none. Raises UserError for a template that cannot be used.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str, *, needs_end: bool = True) -> None:
        self.tokenizer, self.source, self.chat = tokenizer, template, template == "chat"
        self.end, self._ends, self._first = tokenizer.eos_token_id, 0, list[int]()
        if self.chat:
            self.source = settled(tokenizer)
        elif "{prompt}" not in template:
            raise UserError(f"model.template={template!r}: expected 'chat', or a text with {{prompt}} in it.")
        written = render(tokenizer, self.source, probe(tokenizer, self.source), ANSWER) if self.chat else template
        self._controls = {
            token.content: i
            for i, token in tokenizer.added_tokens_decoder.items()
            if token.special or (token.content.strip() and token.content in written)
        }
        names = sorted(map(re.escape, self._controls), key=len, reverse=True)
        self._pattern = re.compile("|".join(names) or "(?!)")
        if self.chat and needs_end:
            self._find_end(probe(tokenizer, self.source))
        if not self.chat and not template.startswith(tokenizer.bos_token or "{prompt}"):
            first = tokenizer.encode("")[:1]
            self._first = first if first == [tokenizer.bos_token_id] else []

    def prompt(self, messages: Messages) -> list[int]:
        """Return a prompt's token ids up to where the response begins. Raises Refused."""
        disguise = any(self._pattern.search(m["content"]) for m in messages)
        return [*self._first, *self._ids(self._text(messages, None, disguise), disguise)]

    def encode(self, messages: Messages, answer: str) -> Encoded:
        """Return the token ids of an example; control tokens in its texts stay text.

        Raises Refused for a conversation that the template does not write, and UserError if it writes the prompt
        differently before an answer.
        """
        controls = sum(len(self._pattern.findall(text)) for text in [*(m["content"] for m in messages), answer])
        start, text = (self._text(messages, reply, controls > 0) for reply in (None, answer))
        if not text.startswith(start):
            raise UserError(_parting(start, text))
        prompt, whole = ([*self._first, *self._ids(part, controls > 0)] for part in (start, text))
        response = self._rest(prompt, whole, text[len(start) :], controls > 0)
        if not self._ends:
            return Encoded(prompt, [*response, self.end], controls)
        if response.count(self.end) != self._ends:
            raise Refused("response with the token that ends it inside")
        return Encoded(prompt, response[: response.index(self.end) + 1], controls)

    def _find_end(self, messages: Messages) -> None:
        """Set the id that ends a response, the first control token after it, and how often the rendering holds it."""
        start, text = (render(self.tokenizer, self.source, messages, reply) for reply in (None, ANSWER))
        if not text.startswith(start):
            raise UserError(_parting(start, text))
        rest = text[len(start) :]
        _, found, tail = rest.rpartition(ANSWER)
        if not found:
            raise UserError(
                f"The chat template of this model's tokenizer leaves out the assistant's answer. {_remedy()}"
            )
        marker = "".join(tail.split()[:1])
        controls = [i for i in self._ids(tail) if i in self._controls.values()]
        if _MARKUP.fullmatch(marker) and len(self._ids(marker)) == 1:
            controls = controls or self._ids(marker)
        if not controls:
            shown = render(self.tokenizer, self.source, [{"role": "user", "content": "{prompt}"}], None)
            raise UserError(
                f"The chat template of this model's tokenizer writes no token that ends a response, only {tail!r}: "
                f"sampling could not stop. {_remedy(shown.removeprefix(self.tokenizer.bos_token or ''))}"
            )
        self.end, self._ends = controls[0], self._ids(rest).count(controls[0])

    def _text(self, messages: Messages, answer: str | None, disguise: bool) -> str:
        """Render a conversation; disguised, with aliases for the control tokens of the template, not of the texts."""
        if not disguise:
            return self._render(messages, answer)
        masked = [{**m, "content": self.masked(m["content"])} for m in messages]
        return self._disguise(self._render(masked, answer and self.masked(answer)))

    def masked(self, text: str) -> str:
        """Return a text of data with marks in place of control tokens."""
        names = list(self._controls)
        return self._pattern.sub(lambda m: f"\ufdd0{names.index(m[0])}\ufdd0", text)

    def shown(self, text: str) -> str:
        """Return a text with the control tokens that marks stand for."""
        names = list(self._controls)
        return _MASK.sub(lambda m: names[int(m[1])], text)

    def masked_ids(self, text: str, *, first: bool = True) -> list[int]:
        """Return the token ids of a text whose masks stay text, with the beginning token where it is due."""
        return [*(self._first if first else []), *self._ids(self._disguise(text), True)]

    def _disguise(self, text: str) -> str:
        names = list(self._controls)
        return self.shown(self._pattern.sub(lambda m: _alias(names.index(m[0])), text))

    def _render(self, messages: Messages, answer: str | None) -> str:
        if self.chat:
            return render(self.tokenizer, self.source, messages, answer)
        return self.source.replace("{prompt}", "\n\n".join(m["content"] for m in messages)) + (answer or "")

    def _ids(self, text: str, disguise: bool = False) -> list[int]:
        if not disguise:
            return list(self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=False))
        backend, aliases = self._disguised
        return [aliases.get(i, i) for i in backend.encode(text, add_special_tokens=False).ids]

    @cached_property
    def _disguised(self) -> tuple[Tokenizer, dict[int, int]]:
        """Tokenizer that knows control tokens by their aliases only, and the id that each alias stands for."""
        if not hasattr(self.tokenizer, "backend_tokenizer"):
            raise Refused("control tokens that this model's kind of tokenizer cannot keep as text")
        backend = copy.deepcopy(self.tokenizer.backend_tokenizer)
        known = [self.tokenizer.added_tokens_decoder[i] for i in self._controls.values()]
        backend.add_special_tokens(known)
        backend.encode_special_tokens = True
        for number, token in enumerate(known):
            flags = {name: getattr(token, name) for name in ("single_word", "lstrip", "rstrip", "normalized")}
            backend.add_tokens([AddedToken(_alias(number), special=False, **flags)])
        return backend, {backend.token_to_id(_alias(n)): i for n, i in enumerate(self._controls.values())}

    def _rest(self, prompt: list[int], whole: list[int], text: str, disguise: bool) -> list[int]:
        """Return the tokens of `text` that follow a prompt's in a conversation of the tokens `whole`."""
        if whole[: len(prompt)] == prompt:
            return whole[len(prompt) :]
        for anchor in _ANCHORS:  # before which a tokenizer adds no space to the text
            start, tokens = self._ids(anchor, disguise), self._ids(anchor + text, disguise)
            rest = tokens[len(start) :]
            if tokens[: len(start)] == start and self._same_text(prompt + rest, whole):
                return rest
        raise UserError(_parting(str(self.tokenizer.decode(prompt)), str(self.tokenizer.decode(whole))))

    def _same_text(self, one: list[int], other: list[int]) -> bool:
        """Return whether two token lists decode alike, from what they share before to what they share after."""
        most = min(len(one), len(other))
        start = next((n for n in range(most) if one[n] != other[n]), most)
        end = next((n for n in range(most - start) if one[-1 - n] != other[-1 - n]), most - start)
        parts = (ids[max(start - _CONTEXT, 0) : len(ids) - max(end - _CONTEXT, 0)] for ids in (one, other))
        return len({str(self.tokenizer.decode(ids)) for ids in parts}) == 1


def _alias(number: int) -> str:
    return f"\ufdd1{number}\ufdd1"


def _remedy(template: str = "... {prompt} ...") -> str:
    return f"Set model.template to a text, such as {template!r}: a response and the eos token follow it."


def _parting(prompt: str, conversation: str) -> str:
    common = next((n for n, (a, b) in enumerate(zip(prompt, conversation, strict=False)) if a != b), len(prompt))
    at = max(common - 30, 0)
    return (
        f"The template writes a prompt that no conversation begins with: …{prompt[at : at + 80]!r} where the "
        f"conversation has …{conversation[at : at + 80]!r}. {_remedy()}"
    )
