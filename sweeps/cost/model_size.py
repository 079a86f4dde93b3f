"""Number of parameters of a model, from its configuration, its artifact or the number in its name."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iris.plan import Stage
from iris.store import Store

_IN_NAME = re.compile(r"(\d+(?:\.\d+)?) ?([mb])(?![a-z])", re.IGNORECASE)
_ASSUMED = 7e9


def parameters(base: Stage, store: Store) -> tuple[float, str]:
    """Return the parameters of a base stage's model, and a note where they are assumed. Never asks the hub."""
    if count := _of_config(_config(base, store)):
        return count, ""
    artifact = store.find("base", base.key)
    if artifact and (count := artifact.results.get("parameters")):
        return count, ""
    for text in (base.identity.get("repository"), base.location.get("path"), base.identity.get("file"), base.name):
        if match := _IN_NAME.search(str(text)):
            count = float(match[1]) * {"m": 1e6, "b": 1e9}[match[2].lower()]
            return count, f"{base.name}: {_text(count)} parameters, from its name"
    return _ASSUMED, f"{base.name}: size unknown, assumed {_text(_ASSUMED)} parameters"


def _config(base: Stage, store: Store) -> Mapping[str, Any]:
    identity, location = base.identity, base.location
    if identity["source"] == "config":
        vocabulary = {*(identity["alphabet"] or ""), *identity["words"]}
        return {"vocab_size": len(vocabulary) + 3, **identity["architecture"]}
    files = [store.folder("base", base.key) / "model" / "config.json"]
    if "repository" in identity:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(identity["repository"], "config.json", revision=identity["commit"])
        files += [Path(cached)] if isinstance(cached, str) else []
    elif "path" in location:
        files.append(Path(location["path"]) / "config.json")
    found = next((file for file in files if file.is_file()), None)
    content: Mapping[str, Any] = json.loads(found.read_text()) if found else {}
    return content


def _of_config(config: Mapping[str, Any]) -> float | None:
    """Count a transformer with gated feed-forward layers and grouped queries, as Llama, Mistral and Qwen have."""
    try:
        width, layers, heads = config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"]
        head_width = config.get("head_dim") or width // heads
        attention = 2 * width * head_width * (heads + (config.get("num_key_value_heads") or heads))
        embeddings = config["vocab_size"] * width * (1 if config.get("tie_word_embeddings") else 2)
        return float(layers * (attention + 3 * width * config["intermediate_size"]) + embeddings)
    except (KeyError, TypeError, ZeroDivisionError):
        return None


def _text(count: float) -> str:
    return f"{count / 1e9:g} billion" if count >= 1e9 else f"{count / 1e6:g} million"
