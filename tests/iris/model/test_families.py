"""Every causal architecture that can be built tiny: computed exactly, or refused from its configuration alone."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from iris.errors import UserError
from iris.model.architecture import check_architecture
from iris.model.logprobs import Policy
from iris.model.packing import Row, pack
from iris.sampling.engine import Request, Sampling
from iris.sampling.slots import SlotEngine

WINDOW = 8  # shorter than every text below
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "num_local_experts": 4}
WINDOWED = {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 1}
LATENT = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "head_dim": 8,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
}
EXACT: dict[str, dict[str, Any]] = {
    **{
        kind: {}
        for kind in ("llama", "gemma", "phi", "olmo2", "granite", "glm4", "glm", "gpt_neox", "gpt2", "ernie4_5")
    },
    **{kind: {} for kind in ("apertus", "hunyuan_v1_dense", "seed_oss", "arcee", "bitnet", "persimmon", "helium")},
    **{kind: {} for kind in ("ministral", "gemma3_text", "exaone4", "olmo3", "phi3", "starcoder2", "smollm3")},
    **dict.fromkeys(("qwen2", "qwen3", "mistral"), WINDOWED),
    **dict.fromkeys(("granitemoe", "olmoe"), MOE),
    **dict.fromkeys(("mixtral", "qwen3_moe", "phimoe"), MOE | WINDOWED),
    "qwen2_moe": MOE | WINDOWED | {"shared_expert_intermediate_size": 32},
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "glm4_moe": MOE | {"n_routed_experts": 4},
    "dots1": MOE
    | {"n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    "gemma4_text": {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 64},
    "opt": {"word_embed_proj_dim": 64, "ffn_dim": 96},
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "bamba": ({}, "mixes tokens by other means"),
    "bloom": ({}, "attention that cannot be replaced"),
    "cohere": ({}, "logit_scale=0.0625"),
    "cohere2": ({}, "logit_scale=0.0625"),
    "doge": ({}, "not reproduced here|AttentionInterface"),
    "falcon": ({}, "attention that cannot be replaced"),
    "falcon_h1": ({}, "mixes tokens by other means"),
    "gemma2": ({}, "final_logit_softcapping=30.0"),
    "gemma3n_text": (
        {"num_kv_shared_layers": 0, "layer_types": ["full_attention"] * 2},
        "final_logit_softcapping=30.0",
    ),
    "gpt_oss": (MOE, "s_aux"),
    "gptj": ({"rotary_dim": 8}, "attention that cannot be replaced"),
    "lfm2": ({"layer_types": ["conv", "full_attention"]}, "conv"),
    "llama4_text": (MOE | {"intermediate_size_mlp": 96}, "chunked_attention"),
    "mamba": ({}, "mixes tokens by other means"),
    "minimax": (MOE, "mixes tokens by other means"),
    "modernbert-decoder": ({}, "parts beside its layers"),
    "mpt": ({}, "attention that cannot be replaced"),
    "nemotron": ({}, "further arguments"),
    "qwen3_5_text": ({}, "mixes tokens by other means"),
    "qwen3_next": (MOE, "mixes tokens by other means"),
    "stablelm": ({}, "attention that cannot be replaced"),
}
PROMPT = list(range(3, 15))
ROW = Row(PROMPT, [list(range(20, 30)), list(range(31, 38))])


def configuration(kind: str, changes: dict[str, Any]) -> PreTrainedConfig:
    family = CONFIG_MAPPING[kind]
    known = {*family().to_dict(), *family.attribute_map}
    config: PreTrainedConfig = family(**{k: v for k, v in (SIZES | changes).items() if k in known})
    if getattr(config, "sliding_window", None):
        config.sliding_window = WINDOW
    return config


def build(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15)
    return model


def plain_logps(model: PreTrainedModel) -> Tensor:
    def one(response: list[int]) -> Tensor:
        logits = model(torch.tensor([PROMPT + response]), use_cache=False).logits[0, len(PROMPT) - 1 : -1]
        return logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None]).sum()

    return torch.stack([one(list(response)) for response in ROW.responses])


def plain_greedy(model: PreTrainedModel, steps: int) -> list[int]:
    tokens = list(PROMPT)
    for _ in range(steps):
        tokens.append(int(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
        if tokens[-1] == 2:
            break
    return tokens[len(PROMPT) :]


@pytest.mark.parametrize("kind", EXACT)
@torch.no_grad()
def test_a_family_is_computed_exactly(kind: str) -> None:
    config = configuration(kind, EXACT[kind])
    check_architecture(copy.deepcopy(config))
    model = build(config)
    logps, greedy = plain_logps(model), plain_greedy(model, 6)
    rollouts = SlotEngine(copy.deepcopy(model), [2], slots=2).generate([Request(PROMPT, 0)] * 2, Sampling(0.0, 1.0, 6))
    assert [rollout.tokens for (rollout,) in rollouts] == [greedy, greedy]
    torch.testing.assert_close(Policy(model)(pack([ROW]))[0], logps, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", REFUSED)
def test_a_family_is_refused_before_its_weights_are_loaded(kind: str) -> None:
    changes, message = REFUSED[kind]
    with pytest.raises(UserError, match=f"(?s)'{kind}' is not supported.*{message}"):
        check_architecture(configuration(kind, changes))


def test_no_window_is_a_window_of_zero() -> None:
    config = configuration("qwen2_moe", EXACT["qwen2_moe"] | {"use_sliding_window": False})
    config.sliding_window = 0
    check_architecture(copy.deepcopy(config))
    model = build(config)
    with torch.no_grad():
        torch.testing.assert_close(
            plain_logps(copy.deepcopy(model)), Policy(model)(pack([ROW]))[0], rtol=1e-5, atol=1e-4
        )
