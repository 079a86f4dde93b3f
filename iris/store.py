"""The store: a folder of immutable artifacts, one per finished stage. Files are the database; there is no server.

<root>/<kind>/<key>/manifest.json   identity, inputs, files with checksums, results, cost, provenance
<root>/<kind>/.work-<key>/          what a running stage keeps to resume from
<root>/.locks/<key>.lock            held (flock) by the one process that computes the key
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from iris.errors import UserError
from iris.files import sync

MANIFEST = "manifest.json"
_STORAGE_ERRORS = {
    errno.ENOSPC: "is full",
    errno.EDQUOT: "is over its quota",
    errno.EFBIG: "takes no file of this size",
    errno.EACCES: "may not be written",
    errno.EPERM: "may not be written",
    errno.EROFS: "is read-only",
    errno.ENOTDIR: "is below something that is no folder",
}


def split_id(stage: str) -> tuple[str, str]:
    """Return the kind and the key of a stage's id, `kind/key`."""
    kind, _, key = stage.partition("/")
    return kind, key


class Damaged(Exception):
    """An artifact whose manifest does not match its checksum."""


@dataclass(frozen=True)
class Artifact:
    """A finished stage: its folder and its manifest."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def key(self) -> str:
        """The artifact's key."""
        return str(self.manifest["key"])

    @property
    def results(self) -> dict[str, Any]:
        """The small numbers the stage reported."""
        results: dict[str, Any] = self.manifest["results"]
        return results

    def read_json(self, name: str) -> Any:
        """Return the parsed content of one JSON file."""
        return json.loads((self.folder / name).read_text())


@dataclass(frozen=True)
class Claim:
    """The exclusive right to compute one key: a folder for its files, and one to keep resumable state in."""

    new: Path
    work: Path


class Store:
    """Artifacts under one root folder."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).expanduser().absolute()

    def prepare(self) -> None:
        """Create the root and make sure it can be written, before anything is spent."""
        with storage_errors(self.root):
            (self.root / ".locks").mkdir(parents=True, exist_ok=True)
            probe = self.root / f".probe-{uuid.uuid4().hex}"
            probe.write_bytes(b"0" * 4096)
            probe.unlink()

    def folder(self, kind: str, key: str) -> Path:
        """Return the folder of a key's artifact, finished or not."""
        return self.root / kind / key

    def keys(self, kind: str) -> set[str]:
        """Return the keys of a kind's finished artifacts, from the names of their folders.

        Reads only the manifests of artifacts that lost a shard.
        """
        with storage_errors(self.root), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            found = {name for name in os.listdir(self.root / kind) if not name.startswith(".")}  # noqa: PTH208
            return found - {k for k in self._doubtful(kind, found) if self.find(kind, k) is None}
        return set()

    def finished(self, kinds: Iterable[str]) -> set[str]:
        """Return the ids of all finished artifacts of some kinds, as `keys` finds them."""
        return {f"{kind}/{key}" for kind in kinds for key in self.keys(kind)}

    def has(self, stage: str) -> bool:
        """Return whether the stage of an id is finished."""
        return self.find(*split_id(stage)) is not None

    def _doubtful(self, kind: str, keys: set[str]) -> set[str]:
        aside = self.root / ".corrupt"
        if not aside.is_dir():
            return set()
        shards = [path.name.removeprefix(f"{kind}-") for path in aside.glob(f"{kind}-*")]
        whole = {name.rsplit("-", 3)[0] for name in shards}  # <name of the stage>-<number>-<hash>-<random>
        return {key for key in keys if key.rsplit("-", 1)[0] in whole}

    def manifest(self, kind: str, key: str) -> dict[str, Any] | None:
        """Return the manifest of a key, or None, and move nothing. Raises Damaged where its checksum is another."""
        try:
            text = (self.folder(kind, key) / MANIFEST).read_text()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except UnicodeDecodeError:
            text = ""
        try:
            manifest: dict[str, Any] = json.loads(text)
            sealed = manifest.pop("sha256") == _digest(manifest)
        except (ValueError, AttributeError, KeyError, TypeError):
            sealed = False
        if not sealed:
            raise Damaged(kind, key)
        return manifest

    def find(self, kind: str, key: str) -> Artifact | None:
        """Return the finished artifact of a key, or None, also where a shard of it is missing. Reads manifests only."""
        folder = self.folder(kind, key)
        try:
            manifest = self.manifest(kind, key)
        except Damaged as error:
            raise self._set_aside(folder, [MANIFEST]) from error
        if manifest is None:
            return None
        shards = manifest.get("inputs", {}).get("shards", [])  # a set-aside shard makes its stage missing again
        return Artifact(folder, manifest) if all((self.folder(kind, s) / MANIFEST).is_file() for s in shards) else None

    def get(self, kind: str, key: str, *, check: bool | Container[str] = True) -> Artifact:
        """Return the finished artifact of a key, its files (all, none or those named) compared with their checksums."""
        artifact = self.find(kind, key)
        if artifact is None:
            raise KeyError(f"no artifact {kind}/{key} in {self.root}")
        if check and (bad := self.verify(artifact, None if check is True else check)):
            raise self._set_aside(artifact.folder, bad)
        return artifact

    def verify(self, artifact: Artifact, among: Container[str] | None = None) -> list[str]:
        """Names of the artifact's files (among some, if given) that are missing or do not match their checksum."""
        files: dict[str, str] = artifact.manifest["files"]
        chosen = {name: digest for name, digest in files.items() if among is None or name in among}
        return [name for name, digest in chosen.items() if _file_digest(artifact.folder / name) != digest]

    @contextlib.contextmanager
    def claim(self, kind: str, key: str, waiting: Callable[[], None] = lambda: None) -> Iterator[Claim | None]:
        """Hold the key's lock; yields None when another process has finished it meanwhile.

        `waiting` is called once if another process holds it. The kernel frees the lock of a dead holder.
        """
        lock_file = self.root / ".locks" / f"{key}.lock"
        with storage_errors(self.root), locked(FileLock(lock_file, thread_local=False), waiting):
            if self.find(kind, key) is not None:
                lock_file.unlink(missing_ok=True)
                yield None
                return
            parent = self.root / kind
            parent.mkdir(exist_ok=True)
            for left in parent.glob(f".new-{key}-*"):
                shutil.rmtree(left, ignore_errors=True)
            claim = Claim(parent / f".new-{key}-{uuid.uuid4().hex[:8]}", parent / f".work-{key}")
            claim.new.mkdir()
            claim.work.mkdir(exist_ok=True)
            try:
                yield claim
            finally:
                shutil.rmtree(claim.new, ignore_errors=True)
                lock_file.unlink(missing_ok=True)

    def busy(self, kind: str, key: str) -> bool:
        """Whether some process holds a claim on a key that nobody has finished."""
        lock_file = self.root / ".locks" / f"{key}.lock"
        if not lock_file.exists() or self.find(kind, key) is not None:
            return False
        try:
            with FileLock(lock_file, thread_local=False).acquire(timeout=0):
                return False
        except Timeout:
            return True

    def commit(self, kind: str, key: str, claim: Claim, manifest: dict[str, Any]) -> Artifact:
        """Seal a claim's files: checksums, fsync, one rename. What is then in place is complete."""
        files = sorted(p for p in claim.new.rglob("*") if p.is_file())
        manifest = manifest | {"files": {str(p.relative_to(claim.new)): _file_digest(p) for p in files}}
        path = claim.new / MANIFEST
        path.write_text(json.dumps(manifest | {"sha256": _digest(manifest)}, indent=1, ensure_ascii=False) + "\n")
        for p in [*files, path]:
            p.chmod(0o666 & ~_umask())  # some writers leave files that only their owner can read
        for p in [*files, path, claim.new]:
            sync(p)
        target = self.folder(kind, key)
        try:
            claim.new.rename(target)
        except OSError as error:  # a second writer on a file system without locks: the first result stays
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        sync(target.parent)
        shutil.rmtree(claim.work, ignore_errors=True)
        found = self.find(kind, key)
        if found is None:
            raise OSError(errno.EIO, f"{target} could not be put in place")
        return found

    def _set_aside(self, folder: Path, bad: list[str]) -> UserError:
        aside = self.root / ".corrupt" / f"{folder.parent.name}-{folder.name}-{uuid.uuid4().hex[:8]}"
        with storage_errors(self.root), contextlib.suppress(FileNotFoundError):  # another process was faster
            aside.parent.mkdir(exist_ok=True)
            folder.rename(aside)
        return UserError(
            f"Artifact {folder.parent.name}/{folder.name} is damaged: {', '.join(bad)} does not match its checksum. "
            f"It was moved to {aside}. Run the same command again to compute it anew; finished work is kept."
        )


@contextlib.contextmanager
def storage_errors(root: Path, key: str = "store") -> Iterator[None]:
    """Turn a full, read-only or forbidden file system into one clear message; `root` is the folder that `key` sets."""
    try:
        yield
    except OSError as error:
        if error.errno not in _STORAGE_ERRORS:
            raise
        file = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else root
        what, remedy = f"The {key} {root}", f"choose another folder with {key}=FOLDER"
        if root not in (file, *file.parents) and file not in root.parents:
            what, remedy = str(file), "give access to it"
        raise UserError(
            f"{what} {_STORAGE_ERRORS[error.errno]} ({error}). Free space or {remedy}; finished stages are kept and "
            "the same command continues."
        ) from error


def _file_digest(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


@contextlib.contextmanager
def locked(lock: FileLock, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold a lock during the block; call `waiting` first if another process holds it."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        waiting()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
