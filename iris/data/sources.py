"""Examples of a `data` stage's source: files, a hub repository or a generated task."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from iris import fingerprint
from iris.data import generators
from iris.data.examples import Example, from_columns, from_messages
from iris.data.files import Values, check_columns, most_rows, of_dataset, read_files
from iris.errors import UserError


def read_source(identity: Mapping[str, Any], location: Mapping[str, Any]) -> Iterator[Example]:
    """Yield the examples of a source in its order, unusable ones included (see `Example.problem`).

    Raises UserError for a column, split, configuration or file that is not there.
    """
    names = [identity["messages"]] if identity["messages"] else [identity["prompt"], identity["response"]]
    parse = from_messages if identity["messages"] else from_columns
    seen: set[str] = set()
    for row, values in enumerate(_SOURCES[identity["source"]](identity, location, names)):
        seen.update(values)
        yield parse(row, *(values.get(name) for name in names))
    if not seen:
        raise UserError(f"{described(identity, location)} holds no rows.")
    check_columns(names, seen, described(identity, location))


def check_size(identity: Mapping[str, Any], location: Mapping[str, Any]) -> None:
    """Raise UserError if a source cannot have as many rows as asked for, where that is known without reading it."""
    most = None
    if identity["source"] == "generated":
        most = identity["generator"].get(identity["split"])
    elif identity["source"] == "files":
        most = most_rows(Path(location["path"]), identity["split"])
    if isinstance(most, int) and most < (identity["size"] or 0):
        raise UserError(
            f"{described(identity, location)} has at most {most} rows, fewer than the {identity['size']} of data.size. "
            "Choose a smaller data.size or 'all'."
        )


def described(identity: Mapping[str, Any], location: Mapping[str, Any]) -> str:
    """Return a source as an error message names it."""
    if identity["source"] == "generated":
        return f"The generated task '{identity['generator'].get('task')}'"
    return f"data.path={location['path']}"


def _generated(identity: Mapping[str, Any], location: Mapping[str, Any], names: Sequence[str]) -> Values:
    for document in generators.documents(identity["generator"], identity["split"]):
        yield dict(zip(names, (document["prompt"], document["response"]), strict=True))


def _hub(identity: Mapping[str, Any], location: Mapping[str, Any], names: Sequence[str]) -> Values:
    """Read a repository from the hub's cache, downloaded at its commit: the same rows offline and online."""
    from datasets import load_dataset
    from huggingface_hub import snapshot_download

    where = f"data.path={location['path']} (commit {location['revision']})"
    try:
        folder = snapshot_download(location["path"], repo_type="dataset", revision=location["revision"])
    except fingerprint.hub_errors() as error:
        raise UserError(
            f"{where}: the hub does not give it and the cache does not hold all of it ({error}). Download it first: "
            f"hf download {location['path']} --repo-type dataset --revision {location['revision']}"
        ) from error
    try:
        dataset = load_dataset(folder, identity["config"], split=identity["split"])
    except (ValueError, FileNotFoundError) as error:  # an unknown split or configuration; the message has the choices
        raise UserError(
            f"{where}, data.config={identity['config']}, data.split={identity['split']}: {error}"
        ) from error
    yield from of_dataset(dataset, names, where)


def _files(identity: Mapping[str, Any], location: Mapping[str, Any], names: Sequence[str]) -> Values:
    return read_files(Path(location["path"]), identity["split"], names)


_SOURCES: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any], Sequence[str]], Values]] = {
    "generated": _generated,
    "hub": _hub,
    "files": _files,
}
