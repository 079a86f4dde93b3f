"""lm-eval's interface to a policy: likelihoods from packed micro-batches, responses from the rollout engine.

HFLM tokenizes and applies the chat template. Every process holds the whole model, sees all requests and answers its
share; the answers are exchanged, so that all continue with the same. lm-eval's own splitting of documents would give
every process other few-shot examples.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from iris.errors import UserError
from iris.evaluation.subset import request_keys
from iris.execution.progress import Progress
from iris.execution.world import World
from iris.model.architecture import context_length
from iris.model.logprobs import Policy
from iris.model.packing import Row, micro_batches, pack
from iris.model.template import Template
from iris.sampling.engine import Engine, Request, Sampling, quiet

# Responses are searched for stop strings when they have reached this many tokens, then twice as many, and so on.
_FIRST_CHECK = 128
_SETTINGS = {"until", "do_sample", "temperature", "top_p", "max_gen_toks"}


@dataclass
class _Job:
    """A prompt and its response so far."""

    prompt: list[int]
    until: list[str]
    sampling: Sampling
    seed: int
    response: list[int] = field(default_factory=list)
    text: str = ""
    done: bool = False

    @property
    def next(self) -> Sampling:
        """Sampling up to the next search for stop strings."""
        written = len(self.response)
        rest = self.sampling.max_new_tokens - written
        tokens = min(rest, max(_FIRST_CHECK, written)) if self.until else rest
        return Sampling(self.sampling.temperature, self.sampling.top_p, tokens)


class PolicyLM(HFLM):  # type: ignore[misc]
    """A model in memory as a whole, behind lm-eval's three kinds of request.

    `tokens` counts what this process has fed and sampled; `truncated` its requests whose prompt lost its beginning
    because it was longer than the model's context. Requests in `answers` are not computed again; others are added.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        engine: Engine,
        *,
        template: str | None = None,
        micro_batch_tokens: int,
        seed: int,
        world: World,
        progress: Progress,
        answers: Mapping[str, Any] | None = None,
    ) -> None:
        length = context_length(model.config)
        super().__init__(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=64, max_length=length)
        self.engine, self.template, self.micro_batch_tokens = engine, template, micro_batch_tokens
        self.seed, self.world, self.progress = seed, world, progress
        self.tokens = self.truncated = self.reused = 0
        self.answers = dict(answers or {})

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a conversation in the chat template, or its messages, joined by blank lines, in the text template."""
        masked = [{**message, "content": self._writer.masked(message["content"])} for message in chat_history]
        return self._keep(self._write(masked, add_generation_prompt))

    def _write(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        if self.template in (None, "chat"):
            return str(super().apply_chat_template(messages, add_generation_prompt))
        texts = [message["content"] for message in messages]
        answer = "" if add_generation_prompt else texts.pop()  # the beginning of a response, which a task may give
        return self.template.replace("{prompt}", "\n\n".join(texts)) + answer

    @cached_property
    def _writer(self) -> Template:
        return Template(self.tokenizer, self.template or "{prompt}", needs_end=False)

    @cached_property
    def _masked(self) -> dict[str, str]:
        """Texts with control tokens of data in them, and the same with these masked."""
        return {}

    def _keep(self, masked: str) -> str:
        """Return a masked text with its control tokens, and remember which of them are data."""
        shown = self._writer.shown(masked)
        if shown != masked:
            self._masked[shown] = masked
        return shown

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]:
        """Return token ids as in training: control tokens in data stay text, those of a chat template are there."""
        masked = self._mask(string)
        if self._writer.shown(masked) != masked:
            return self._writer.masked_ids(masked, first=add_special_tokens is not False)
        special = False if self.template == "chat" else add_special_tokens
        return list(super().tok_encode(string, add_special_tokens=special, **options))

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        masked = self._mask(context)
        self._keep(masked + self._writer.masked(continuation))
        self._keep(masked.rstrip())  # lm-eval moves spaces at the end into the continuation
        context_ids, ids = super()._encode_pair(context, continuation)
        return context_ids, ids

    def _mask(self, string: str) -> str:
        """Return a text with the control tokens of data masked; without a template all is data."""
        return self._masked.get(string) or (string if self.template else self._writer.masked(string))

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[Any]:
        """Return (log π(continuation | context) in nats, whether it is the greedy one) of every request."""
        return self._answer("likelihoods", requests, requests, partial(super().loglikelihood, disable_tqdm=True))

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[Any]:
        """Return log π(text) in nats of every request."""
        return self._answer(
            "likelihoods", requests, requests, partial(super().loglikelihood_rolling, disable_tqdm=True)
        )

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[Any]:
        """Return the response to every request, cut before the first of its stop strings."""
        repeats: Counter[tuple[str, int]] = Counter()
        work = []
        for request in requests:
            document = request.task_name, request.doc_id
            work.append((request.args[0], *self._settings(request), _seed(self.seed, *document, repeats[document])))
            repeats[document] += 1
        return self._answer("responses", requests, work, self._generate)

    def _answer(
        self, label: str, requests: Sequence[Any], work: Sequence[Any], answer: Callable[[list[Any]], list[Any]]
    ) -> list[Any]:
        """Return the answers to all requests, given ones included; `answer` takes items of `work`, one per request."""
        keys = request_keys(requests)
        new = [index for index, key in enumerate(keys) if key not in self.answers]
        found = self._share(label, [requests[i] for i in new], [work[i] for i in new], answer)
        self.reused += len(keys) - len(new)
        self.answers |= zip((keys[i] for i in new), found, strict=True)
        return [self.answers[key] for key in keys]

    def _share(
        self, label: str, requests: Sequence[Any], work: Sequence[Any], answer: Callable[[list[Any]], list[Any]]
    ) -> list[Any]:
        """Return the answers to all requests after computing this process's share and exchanging it."""
        size, documents = self.world.size, dict[tuple[str, int], int]()
        # All requests of a document go to one process: they have the context in common.
        owners = [documents.setdefault((r.task_name, r.doc_id), len(documents)) % size for r in requests]
        mine = [item for item, owner in zip(work, owners, strict=True) if owner == self.world.rank]
        failure, own = None, []
        with self.progress.line(f"evaluate {label}", len(mine), "requests") as self._line:
            try:
                own = answer(mine) if mine else []
            except Exception as error:
                if size == 1:
                    raise
                failure = error  # raised below: the other processes wait for this one
        parts = self.world.gather((failure and f"{type(failure).__name__}: {failure}", own))
        for process, (failed, _) in enumerate(parts):
            if failed:
                raise RuntimeError(f"Process {process} could not answer its evaluation requests: {failed}") from failure
        answers = [iter(part) for _, part in parts]
        return [next(answers[owner]) for owner in owners]

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[Any]:
        """Return what HFLM's method does, with each context computed once for all its continuations, unpadded."""
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, (_, context, continuation) in enumerate(requests):
            groups[self._context(context, continuation)].append(index)
        rows = [Row(context, [requests[i][2] for i in members]) for context, members in groups.items()]
        members = list(groups.values())
        answers: list[Any] = [None] * len(requests)
        attention = self.model.config._attn_implementation
        policy = Policy(self.model)
        for batch in micro_batches([row.tokens for row in rows], self.micro_batch_tokens):
            indices = [index for row in batch for index in members[row]]
            with torch.inference_mode():
                scores = policy(pack([rows[row] for row in batch]).to(self.device))
            for index, logp, greedy in zip(indices, *(values.tolist() for values in scores), strict=True):
                answers[index] = logp, greedy
            self._line.advance(len(indices))
        self.model.set_attn_implementation(attention)
        self.tokens += sum(row.tokens for row in rows)
        return answers

    def _context(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[int, ...]:
        # The last token of a continuation is only predicted, not fed.
        room = self.max_length + 1 - len(continuation)
        if room < 1 or not continuation:
            raise UserError(
                f"A text to score has {len(continuation)} tokens; it needs at least one, and the model's context of "
                f"{self.max_length} must hold it."
            )
        return tuple(self._cut(context, room))

    def _cut(self, prompt: Sequence[int], room: int) -> list[int]:
        self.truncated += len(prompt) > room
        return list(prompt[-room:])

    def _settings(self, request: Any) -> tuple[list[str], Sampling]:
        """Return the stop strings and the sampling of a request's task."""
        kwargs = normalize_gen_kwargs(request.args[1], self.max_gen_toks)
        tokens, temperature = kwargs["max_gen_toks"], float(kwargs.get("temperature", 0.0))
        where = f"generation_kwargs of the evaluation task '{request.task_name}'"
        if unknown := set(kwargs) - _SETTINGS:
            raise UserError(f"The {where} hold {', '.join(sorted(unknown))}; only {', '.join(sorted(_SETTINGS))} work.")
        if kwargs["do_sample"] and temperature == 0:
            raise UserError(f"The {where} set do_sample without a temperature above 0: set one, or do_sample: false.")
        if tokens >= self.max_length:
            raise UserError(
                f"The {where} ask for {tokens} new tokens, which leaves no room for the prompt in the model's context "
                f"of {self.max_length}. Leave the task out, or lower its max_gen_toks."
            )
        return [stop for stop in kwargs["until"] if stop], Sampling(temperature, kwargs.get("top_p", 1.0), tokens)

    def _generate(self, work: Sequence[tuple[str, list[str], Sampling, int]]) -> list[str]:
        jobs = [
            _Job(self._cut(self.tok_encode(context), self.max_length - sampling.max_new_tokens), until, sampling, seed)
            for context, until, sampling, seed in work
        ]
        progress: Callable[[int], None] = self._line.advance
        while unfinished := [job for job in jobs if not job.done]:
            groups: dict[Sampling, list[_Job]] = defaultdict(list)
            for job in unfinished:
                groups[job.next].append(job)
            for sampling, group in groups.items():
                self._continue(group, sampling, progress)
            progress = quiet
        return [job.text for job in jobs]

    def _continue(self, jobs: Sequence[_Job], sampling: Sampling, progress: Callable[[int], None]) -> None:
        """Sample each response up to its end, its limit or the next search for stop strings."""
        requests = [Request(job.prompt + job.response, job.seed + len(job.response)) for job in jobs]
        for job, (rollout,) in zip(jobs, self.engine.generate(requests, sampling, progress), strict=True):
            self.tokens += len(job.prompt) + len(job.response) + len(rollout.tokens)
            job.response += rollout.tokens[:-1] if rollout.finished else rollout.tokens
            text = self.tok_decode(job.response)
            job.text = postprocess_generated_text(text, job.until, None)
            full = len(job.response) == job.sampling.max_new_tokens
            job.done = rollout.finished or full or job.text != text


def _seed(seed: int, task: str, document: int, repeat: int) -> int:
    """Return the seed of one response, which depends on no limit and no other task."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{task}/{document}/{repeat}".encode()).digest()[:7])
