"""Check early what evaluation tasks need beyond lm-eval, which fails late or scores wrongly."""

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iris.errors import UserError

LOCAL_FORMATS = ("json", "csv", "parquet", "arrow", "text")
_MODULES = {
    "ifeval": ("langdetect", "immutabledict", "nltk"),
    "leaderboard/ifeval": ("langdetect", "immutabledict", "nltk", "pkg_resources"),
    "leaderboard/math": ("math_verify", "latex2sympy2_extended"),
}
_INSTALL = {
    "ifeval": "pip install 'iris-selfplay[ifeval]'",
    "leaderboard/ifeval": "use the task ifeval instead, the same prompts and metrics; or pip install 'setuptools<81'",
    "leaderboard/math": "pip install 'math-verify[antlr4_9_3]'",
}


def check_modules(folder: str) -> None:
    """Raise UserError if the tasks in this folder of lm-eval's tasks (such as `ifeval`) cannot run here."""
    missing = [name for name in _MODULES.get(folder, ()) if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"lm-eval's {folder} tasks need the Python module {missing[0]}: {_INSTALL[folder]}")
    if folder.endswith("ifeval"):
        _check_sentences(folder)
    if folder == "minerva_math":
        raise UserError(
            "lm-eval's minerva_math tasks need antlr 4.11, which cannot be installed beside hydra. Use "
            "leaderboard_math_hard (level 5, checked with math-verify) or hendrycks_math."
        )


def _check_sentences(folder: str) -> None:
    import nltk  # type: ignore[import-untyped]

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError as error:
        raise UserError(
            f"lm-eval's {folder} tasks need nltk's sentence tokenizer 'punkt_tab', which is not here. Fetch it once, "
            "where there is a network: python -m nltk.downloader punkt_tab (NLTK_DATA names its folder)."
        ) from error


def check_task(name: str, config: Mapping[str, Any]) -> None:
    """Raise UserError for a task that runs generated code, or, offline, one whose data set no cache holds."""
    if config.get("unsafe_code"):
        raise UserError(f"The evaluation task '{name}' runs code that the model writes, which is not supported.")
    path = config.get("dataset_path")
    if path and _offline() and path not in LOCAL_FORMATS and not any(place.exists() for place in _places(path)):
        raise UserError(no_data(name, config, "HF_HUB_OFFLINE is set"))


def no_data(name: str, config: Mapping[str, Any], reason: str) -> str:
    """Return the message for a task whose data set is neither cached nor available on the hub."""
    path, part = config.get("dataset_path"), config.get("dataset_name")
    return (
        f"The evaluation task '{name}' needs the data set '{path}'{f' ({part})' if part else ''}, which no cache holds "
        f"and the hub does not give: {reason}. Download it first where there is a network (hf download {path} "
        "--repo-type dataset; a gated one needs hf auth login), or leave the task out."
    )


def _offline() -> bool:
    return any(
        os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"}
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    )


def _places(path: str) -> list[Path]:
    """Return where a local copy of a data set may be: a folder, the hub's cache or that of datasets."""
    from huggingface_hub import constants

    prepared = Path(os.environ.get("HF_DATASETS_CACHE", Path(constants.HF_HOME) / "datasets"))
    return [
        Path(path),
        Path(constants.HF_HUB_CACHE) / f"datasets--{path.replace('/', '--')}",
        prepared / path.replace("/", "___"),
    ]
