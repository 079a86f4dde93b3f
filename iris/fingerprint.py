"""What determines the content of something outside the store: a hub repository by its commit, a folder by its bytes."""

import contextlib
import functools
import hashlib
import os
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from iris.errors import UserError
from iris.files import write_atomic

_LARGE = 1 << 26  # bytes
_HIDDEN = (".", "__", "~", "#")  # how names of hidden and editors' files and folders begin


def digest(*parts: str) -> str:
    """Return a short digest of texts; the separator cannot occur in them."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def of_path(path: Path) -> str:
    """Hash the content of a file or of all files below a folder (see `files_below`), wherever it is."""
    files = [path] if path.is_file() else files_below(path)
    if not files:
        raise UserError(f"{path} holds no files.")
    parts = [f"{p.relative_to(path) if p != path else p.suffix}={_of_file(p, _state(p))}" for p in files]
    return digest(*parts)


def files_below(folder: Path) -> list[Path]:
    """Return all files below a folder, sorted, without hidden and editors' files and folders.

    Links are followed. Raises UserError for a link that leads nowhere or back to a folder above it.
    """
    files = []
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(_HIDDEN)]
        for name in folders:
            if Path(root).resolve().is_relative_to((Path(root) / name).resolve()):
                raise UserError(f"{root}/{name} is a link to a folder above it. Remove it.")
        files += [Path(root) / name for name in names if not name.startswith(_HIDDEN) and not name.endswith("~")]
    for file in files:
        if not file.exists():
            raise UserError(f"{file} is a link to a file that is not there. Remove it, or restore the file.")
    return sorted(files)


def of_package(name: str, install: str) -> str:
    """Return the installed version of a Python package; `install` is the command that installs it."""
    try:
        return f"{name}=={version(name)}"
    except PackageNotFoundError as error:
        raise UserError(f"The Python package '{name}' is not installed: {install}") from error


def of_hub(repository: str, revision: str | None, kind: str, key: str) -> str:
    """Return the commit that a hub repository's revision stands for now, from the local cache when offline.

    `kind` is 'model' or 'dataset'; `key` is the configuration key to name in an error.
    """
    if revision and re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    return _commit(repository, revision or "main", kind, key)


@functools.cache
def _commit(repository: str, revision: str, kind: str, key: str) -> str:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HFValidationError

    cached = (
        Path(constants.HF_HUB_CACHE)
        / f"{kind}s--{repository.replace('/', '--')}"
        / "refs"
        / revision.replace("/", os.sep)
    )
    try:
        if not constants.HF_HUB_OFFLINE:
            return str(HfApi().repo_info(repository, revision=revision, repo_type=kind, timeout=10).sha)
    except HFValidationError as error:
        raise UserError(
            f"{key}={repository}: neither a folder or file here nor a hub name such as owner/name."
        ) from error
    except hub_errors() as error:
        if not cached.is_file():
            raise _not_found(
                f"the hub does not answer with it ({type(error).__name__})", repository, revision, kind, key
            ) from error
    if not cached.is_file():
        raise _not_found("HF_HUB_OFFLINE is set", repository, revision, kind, key)
    return cached.read_text().strip()


def hub_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions of an unreachable hub: the library's own and its bases (OSError, the HTTP library's)."""
    from huggingface_hub.errors import HfHubHTTPError

    return tuple(c for c in HfHubHTTPError.__mro__ if issubclass(c, Exception) and c is not Exception)


def _not_found(why: str, repository: str, revision: str, kind: str, key: str) -> UserError:
    from huggingface_hub import constants

    return UserError(
        f"{key}={repository} (revision {revision}): {why} and the cache {constants.HF_HUB_CACHE} does not hold it. "
        f"Name its commit, {key.replace('path', 'revision')}=<40 hexadecimal digits>, give a local folder, or download "
        f"it first: hf download {repository} --repo-type {kind}"
    )


def _state(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


@functools.cache
def _of_file(path: Path, state: tuple[int, int]) -> str:
    if state[0] < _LARGE:
        return _hash(path)
    # Weights of many gigabytes would cost seconds at every start: their hash is kept until size or time change.
    kept = cache_folder() / "fingerprints" / digest(str(path.absolute()), *map(str, state))
    try:
        return kept.read_text()
    except OSError:
        found = _hash(path)
    with contextlib.suppress(OSError):  # a home that may not be written: read again next time
        write_atomic(kept, found)
    return found


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def cache_folder() -> Path:
    """Return the user's folder for what can be computed anew; it may not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "iris-selfplay"
