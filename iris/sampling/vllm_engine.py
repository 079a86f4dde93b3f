"""Sampling of responses with vLLM, an optional extra: `pip install 'iris-selfplay[vllm]'`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from iris.errors import UserError
from iris.model.policy import read_config
from iris.sampling.engine import Request, Rollout, Sampling, check_requests, quiet


class VllmEngine:
    """vLLM on the model in `folder` (safetensors), with weights and activations in `precision`.

    Seeds make a response repeatable on the same machine, vLLM version and set of requests; vLLM does not promise the
    same tokens in another batch. Sample j of a request has the seed of the request plus j.
    """

    name = "vllm"

    def __init__(self, folder: Path, eos_token_ids: Sequence[int], precision: str = "auto") -> None:
        self._vllm = _import()
        self.version = str(self._vllm.__version__)
        self.eos, self.config = list(eos_token_ids), read_config(folder)
        # The model's own generation settings stay out, and so does the tokenizer: prompts and stops are token ids.
        self._llm = self._vllm.LLM(
            model=str(folder),
            load_format="safetensors",
            dtype=precision,
            generation_config="vllm",
            skip_tokenizer_init=True,
            enable_prefix_caching=True,
            seed=0,
        )

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, progress: Callable[[int], None] = quiet
    ) -> list[list[Rollout]]:
        """See `iris.sampling.engine.Engine.generate`; `progress` is called once, at the end."""
        check_requests(requests, sampling, self.config, self.config.get_text_config().vocab_size)
        order = sorted(range(len(requests)), key=lambda index: -requests[index].hint)
        outputs = self._llm.generate(
            [{"prompt_token_ids": list(requests[index].prompt)} for index in order],
            [self._parameters(requests[index], sampling) for index in order],
            use_tqdm=False,
        )
        results: list[list[Rollout]] = [[] for _ in requests]
        for index, output in zip(order, outputs, strict=True):
            results[index] = [Rollout(list(o.token_ids), o.finish_reason == "stop") for o in output.outputs]
        progress(sum(map(len, results)))
        return results

    def _parameters(self, request: Request, sampling: Sampling) -> Any:
        return self._vllm.SamplingParams(
            n=request.samples,
            seed=request.seed % 2**62,  # below the 64-bit limit of its generators, sample indices included
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_new_tokens,
            stop_token_ids=self.eos,
            ignore_eos=True,
            detokenize=False,
        )


def generation_config(folder: Path) -> GenerationConfig:
    """Return the generation configuration that the model in `folder` has once it is loaded."""
    if (folder / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(folder, local_files_only=True)
    return GenerationConfig.from_model_config(read_config(folder))


def _import() -> Any:
    try:
        import vllm
    except ImportError as error:
        raise UserError(
            f"The rollout engine 'vllm' cannot be loaded ({error}). Install it with pip install 'iris-selfplay[vllm]', "
            "or set generate.engine=slots."
        ) from error
    return vllm
