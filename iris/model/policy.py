"""Load, adapt and save policies.

Weights are read from safetensors only, and no code that comes with a model is run.
"""

import contextlib
import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from iris import fingerprint
from iris.errors import UserError, first_line
from iris.execution.device import DTYPES
from iris.store import Artifact, Store

_FILES = ["*.safetensors", "*.json", "tokenizer*", "*.txt", "*.model", "*.jinja"]
_NOT_FILES = ["*/*", "consolidated*"]  # other formats' copies of the weights

transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # the stages report progress


# --- folders of weights


def model_folder(artifact: Artifact) -> Path:
    """Return the folder with the full weights of a base, sft or train artifact, complete and unchanged.

    Raises UserError for a LoRA adapter, and for a folder outside the store that is gone or has changed.
    """
    if (artifact.folder / "model").is_dir():
        return artifact.folder / "model"
    if not (artifact.folder / "source.json").is_file():
        raise UserError(
            f"{artifact.folder} holds a LoRA adapter and no full weights, which this needs. "
            "Set generate.engine=slots, or train full weights with train.lora=null."
        )
    source = artifact.read_json("source.json")
    if "repository" in source:
        return fetch(source["repository"], source["commit"])
    return _unchanged(Path(source["path"]), source["content"], artifact)


def fetch(repository: str, commit: str) -> Path:
    """Return the folder of a commit in the hub cache, after downloading what it lacks of the files a model needs."""
    options: dict[str, Any] = {"revision": commit, "allow_patterns": _FILES, "ignore_patterns": _NOT_FILES}
    with contextlib.suppress(LocalEntryNotFoundError):
        return Path(snapshot_download(repository, **options, local_files_only=True))
    try:
        return Path(snapshot_download(repository, **options))
    except fingerprint.hub_errors() as error:
        raise UserError(
            f"The model {repository} at commit {commit} cannot be downloaded ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}), and the cache {constants.HF_HUB_CACHE} does not hold all of it. "
            "For a gated model accept its terms and log in first (hf auth login); without a network download it "
            f"elsewhere: hf download {repository} --revision {commit}"
        ) from error


def _unchanged(path: Path, content: str, artifact: Artifact) -> Path:
    if not path.is_dir():
        raise UserError(
            f"The model folder {path} is gone. Put it back; or, if it has moved, delete {artifact.folder} and run "
            "again with model.path=NEW_FOLDER."
        )
    if fingerprint.of_path(path) != content:
        raise UserError(
            f"The model folder {path} has changed since this experiment began: its policies no longer belong to it. "
            "Put the old files back, or run the same command again to start from the changed model."
        )
    return path


# --- loading


def read_config(folder: Path) -> PreTrainedConfig:
    """Return the configuration in a folder with every dropout set to 0.

    Raises UserError where there is none, or one that needs the folder's own code.
    """
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} holds no config.json: model.path must name a folder that save_pretrained has written."
        )
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{folder}/config.json describes no model that transformers {transformers.__version__} knows without "
            f"running code from that folder ({first_line(error)})."
        ) from error
    for part in {id(c): c for c in (config, config.get_text_config())}.values():
        for name, value in vars(part).items():
            if "drop" in name and isinstance(value, int | float) and not isinstance(value, bool):
                setattr(part, name, 0.0)
    return config


def load_policy(
    artifact: Artifact, store: Store, *, precision: str, device: torch.device, trainable: bool = False
) -> PreTrainedModel:
    """Load the policy of a base, sft or train artifact to a device, every dropout 0.

    Trainable: float32 weights whatever the precision (`Policy` computes in it); a PeftModel if it has an adapter.
    Otherwise frozen, in evaluation mode, an adapter merged into the weights and these cast to the precision.
    """
    adapter = artifact.folder / "adapter"
    if not adapter.is_dir():
        model = _read_weights(model_folder(artifact), torch.float32 if trainable else DTYPES[precision], device)
        return model if trainable else _frozen(model)
    full = model_folder(store.get(*artifact.results["adapter_of"]))
    # Merging in float32 on the CPU: the sum is rounded once, and a GPU never holds the weights twice.
    where = device if trainable else torch.device("cpu")
    adapted = PeftModel.from_pretrained(
        _read_weights(full, torch.float32, where), str(adapter), is_trainable=trainable, torch_device=str(where)
    )
    if trainable:
        return adapted  # type: ignore[return-value]
    return _frozen(adapted.merge_and_unload().to(device, DTYPES[precision]))


def _frozen(model: PreTrainedModel) -> PreTrainedModel:
    model.requires_grad_(False)
    model.eval()  # type: ignore[no-untyped-call]
    return model


def _read_weights(folder: Path, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        config=read_config(folder),
        dtype=dtype,
        device_map=None if device.type == "cpu" else {"": device},
        attn_implementation="sdpa",
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
    )
    model: PreTrainedModel = loaded[0]
    if missing := loaded[1]["missing_keys"]:
        names = sorted(missing)
        raise UserError(
            f"{folder} lacks {len(names)} weights that its config.json calls for, such as {names[0]}: the two do not "
            "belong together."
        )
    return model


# --- adapting and saving


def add_lora(
    model: PreTrainedModel, rank: int, alpha: float, target_modules: str | Sequence[str] = "all-linear", seed: int = 0
) -> PeftModel:
    """Add low-rank adapters (LoRA, arXiv 2106.09685) that change nothing yet to a model, and freeze the rest.

    `seed` draws the factor that does not start at zero. Raises UserError for modules the model does not have.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=0.0,
        target_modules=target_modules if isinstance(target_modules, str) else list(target_modules),
        task_type="CAUSAL_LM",
    )
    try:
        with torch.random.fork_rng(devices=[]):  # adapters are drawn on the CPU
            torch.manual_seed(seed)
            adapted = get_peft_model(model, config)
    except ValueError as error:
        linear = sorted({n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)})
        raise UserError(
            f"train.lora.target_modules={target_modules}: choose all-linear, or among {', '.join(linear)}."
            f" ({first_line(error)})"
        ) from error
    assert isinstance(adapted, PeftModel)
    return adapted


def save_policy(
    model: PreTrainedModel | PeftModel, folder: Path, precision: str, state_dict: Mapping[str, Tensor] | None = None
) -> None:
    """Save full weights of the precision to `folder/model`, or a float32 adapter to `folder/adapter`.

    `state_dict` replaces the model's own where its parameters are sharded (`Accelerator.get_state_dict`). The bytes
    depend on the values alone, not on the device or the number of processes.
    """
    if isinstance(model, PeftModel):
        _save_adapter(model, folder / "adapter", state_dict)
        return
    dtype = DTYPES[precision]
    state = dict(model.state_dict() if state_dict is None else state_dict)
    for name, source in model.all_tied_weights_keys.items():
        if source in state:
            state.pop(name, None)
    weights = {n: t.detach().to("cpu", dtype if t.is_floating_point() else t.dtype) for n, t in state.items()}
    model.save_pretrained(folder / "model", state_dict=weights)
    config = copy.deepcopy(model.config)
    config.dtype = dtype
    config.save_pretrained(folder / "model")


def _save_adapter(model: PeftModel, folder: Path, state_dict: Mapping[str, Tensor] | None) -> None:
    state = get_peft_model_state_dict(model, None if state_dict is None else dict(state_dict))
    folder.mkdir(parents=True)
    tensors = {n: t.detach().to("cpu", torch.float32).contiguous() for n, t in state.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    # The base's folder and the order of a set differ from run to run.
    config = replace(model.peft_config["default"], base_model_name_or_path=None, inference_mode=True)
    content = {name: sorted(v) if isinstance(v, set) else v for name, v in config.to_dict().items()}
    (folder / "adapter_config.json").write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
