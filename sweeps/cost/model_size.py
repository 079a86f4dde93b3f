"""How large a model is, from what is at hand: its configuration, its artifact, or the number in its name."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iris.plan import Stage
from iris.store import Store

_IN_NAME = re.compile(r"(\d+(?:\.\d+)?) ?([mb])(?![a-z])", re.IGNORECASE)
_ASSUMED = 7e9


@dataclass(frozen=True)
class ModelSize:
    """Parameters that every token passes, those of the output projection, and all that are stored; what was assumed."""

    body: float
    head: float
    stored: float
    note: str = ""


def of_base(base: Stage, store: Store) -> ModelSize:
    """The size of the model that a base stage brings; never asks the hub."""
    size = _of_config(_config(base, store))
    if size:
        return size
    artifact = store.find("base", base.key)
    if artifact and (parameters := artifact.results.get("parameters")):
        return ModelSize(parameters, 0, parameters)
    for text in (base.identity.get("repository"), base.location.get("path"), base.identity.get("file"), base.name):
        if match := _IN_NAME.search(str(text)):
            parameters = float(match[1]) * {"m": 1e6, "b": 1e9}[match[2].lower()]
            return ModelSize(parameters, 0, parameters, f"{base.name}: {_count(parameters)} parameters, after its name")
    return ModelSize(_ASSUMED, 0, _ASSUMED, f"{base.name}: of unknown size, counted as {_count(_ASSUMED)} parameters")


def _config(base: Stage, store: Store) -> Mapping[str, Any]:
    identity, location = base.identity, base.location
    if identity["source"] == "config":
        words = {*(identity["alphabet"] or ""), *identity["words"]}
        return {"vocab_size": len(words) + 3, **identity["architecture"]}
    files = [store.folder("base", base.key) / "model" / "config.json"]
    if "repository" in identity:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(identity["repository"], "config.json", revision=identity["commit"])
        files += [Path(cached)] if isinstance(cached, str) else []
    elif "path" in location:
        files.append(Path(location["path"]) / "config.json")
    for file in files:
        if file.is_file():
            content: Mapping[str, Any] = json.loads(file.read_text())
            return content
    return {}


def _of_config(config: Mapping[str, Any]) -> ModelSize | None:
    """A transformer with gated feed-forward layers and grouped queries, as Llama, Mistral and Qwen are."""
    try:
        width, layers, heads = config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"]
        each = config.get("head_dim") or width // heads
        attention = 2 * width * each * (heads + (config.get("num_key_value_heads") or heads))
        body = float(layers * (attention + 3 * width * config["intermediate_size"]))
        head = float(config["vocab_size"] * width)
    except (KeyError, TypeError, ZeroDivisionError):
        return None
    return ModelSize(body, head, body + head * (1 if config.get("tie_word_embeddings") else 2))


def _count(number: float) -> str:
    return f"{number / 1e9:g} billion" if number >= 1e9 else f"{number / 1e6:g} million"
