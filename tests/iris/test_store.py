"""The store: sealed artifacts, detected damage, one writer per key."""

import errno
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from iris.errors import UserError
from iris.store import Artifact, Claim, Store, storage_errors


def put(store: Store, key: str = "k-1", content: bytes = b"weights") -> Artifact | None:
    with store.claim("sft", key) as claim:
        if claim is None:
            return None
        (claim.new / "deep").mkdir()
        (claim.new / "deep" / "file.bin").write_bytes(content)
        return store.commit("sft", key, claim, {"kind": "sft", "key": key, "inputs": {}, "results": {"loss": 1.5}})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "store")
    made.prepare()
    return made


def test_what_is_committed_is_found(store: Store) -> None:
    assert store.find("sft", "k-1") is None
    put(store)
    found = store.get("sft", "k-1")
    assert found.results == {"loss": 1.5}
    assert found.key == "k-1"
    assert (found.folder / "deep" / "file.bin").read_bytes() == b"weights"
    assert set(found.manifest["files"]) == {"deep/file.bin"}
    assert put(store) is None, "a finished key is not claimed again"


def test_an_interrupted_stage_leaves_no_artifact_but_keeps_its_work(store: Store) -> None:
    with pytest.raises(RuntimeError), store.claim("train", "k") as claim:
        assert claim is not None
        (claim.new / "half.bin").write_bytes(b"x")
        (claim.work / "checkpoint").write_bytes(b"y")
        raise RuntimeError("killed")
    assert store.find("train", "k") is None
    with store.claim("train", "k") as claim:
        assert claim is not None
        assert list(claim.new.iterdir()) == []
        assert (claim.work / "checkpoint").read_bytes() == b"y"
        store.commit("train", "k", claim, {"kind": "train", "key": "k", "inputs": {}, "results": {}})
        work = claim.work
    assert not work.exists(), "resumable state goes when the artifact is in place"


@pytest.mark.parametrize("name", ["deep/file.bin", "manifest.json"])
def test_a_flipped_byte_is_found_set_aside_and_computed_anew(store: Store, name: str) -> None:
    put(store)
    path = store.folder("sft", "k-1") / name
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"damaged.*Run the same command again"):
        store.get("sft", "k-1")
    assert store.find("sft", "k-1") is None
    assert len(list((store.root / ".corrupt").iterdir())) == 1, "nothing is deleted"
    assert put(store) is not None
    assert store.verify(store.get("sft", "k-1")) == []


def test_the_keys_of_a_kind_are_those_of_finished_artifacts(store: Store) -> None:
    assert store.keys("sft") == set(), "no such folder yet"
    put(store)
    put(store, "k-2")
    with store.claim("sft", "k-3") as claim:
        assert claim is not None
        assert store.keys("sft") == {"k-1", "k-2"}, "neither begun nor resumable ones"
    assert Store(store.root / "sft" / "k-1" / "manifest.json").keys("sft") == set()


def test_the_keys_leave_out_what_misses_a_damaged_shard(store: Store) -> None:
    for key, shards in {
        "y-0000-00000000000a": [],
        "y-00000000000b": ["y-0000-00000000000a"],
        "z-00000000000c": [],
    }.items():
        with store.claim("generate", key) as claim:
            assert claim is not None
            (claim.new / "file").write_bytes(b"x")
            manifest = {"kind": "generate", "key": key, "inputs": {"shards": shards}, "results": {}}
            store.commit("generate", key, claim, manifest)
    (store.root / "generate" / "y-0000-00000000000a" / "file").write_bytes(b"y")
    assert "y-00000000000b" in store.keys("generate")
    with pytest.raises(UserError, match="damaged"):
        store.get("generate", "y-0000-00000000000a")
    assert store.keys("generate") == {"z-00000000000c"}


def test_a_missing_file_is_damage(store: Store) -> None:
    put(store)
    (store.folder("sft", "k-1") / "deep" / "file.bin").unlink()
    with pytest.raises(UserError, match=r"deep/file\.bin"):
        store.get("sft", "k-1")


def test_the_manifest_of_a_truncated_write_is_damage(store: Store) -> None:
    put(store)
    path = store.folder("sft", "k-1") / "manifest.json"
    path.write_text(path.read_text()[:40])
    with pytest.raises(UserError, match=r"manifest\.json"):
        store.find("sft", "k-1")


def test_the_first_result_stays_when_locks_do_not_hold(store: Store) -> None:
    """Two writers of one key, as on a file system that does not lock."""
    manifest = {"kind": "sft", "key": "k-1", "inputs": {}, "results": {}}
    (store.root / "sft").mkdir()
    for name in ("first", "second"):
        claim = Claim(store.root / "sft" / f".new-k-1-{name}", store.root / "sft" / ".work-k-1")
        claim.new.mkdir()
        (claim.new / "file").write_text(name)
        kept = store.commit("sft", "k-1", claim, manifest)
        assert (kept.folder / "file").read_text() == "first"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_disk_errors_say_what_to_do(tmp_path: Path, number: int) -> None:
    with pytest.raises(UserError, match="store=FOLDER"), storage_errors(tmp_path):
        raise OSError(number, os.strerror(number))


def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nothing here"), storage_errors(tmp_path):
        raise OSError(errno.ENOENT, "nothing here")


def test_a_store_on_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="store"):
        Store(tmp_path / "file" / "store").prepare()


def _hold(root: str, seconds: float) -> None:
    with Store(root).claim("sft", "k-1") as claim:
        assert claim is not None
        (claim.work / "held").touch()
        time.sleep(seconds)


def _compute(root: str) -> None:
    store = Store(root)
    with store.claim("sft", "k-1") as claim:
        if claim is None:
            return
        with (store.root / "count").open("a") as file:
            file.write("computed\n")
        time.sleep(0.05)
        store.commit("sft", "k-1", claim, {"kind": "sft", "key": "k-1", "inputs": {}, "results": {}})


def test_a_killed_holder_loses_the_lock(store: Store) -> None:
    context = multiprocessing.get_context("spawn")
    holder = context.Process(target=_hold, args=(str(store.root), 600))
    holder.start()
    while not (store.root / "sft" / ".work-k-1" / "held").exists():
        time.sleep(0.02)
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert put(store) is not None


def test_sixteen_processes_compute_a_key_once(store: Store) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_compute, args=(str(store.root),)) for _ in range(16)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0] * 16
    assert (store.root / "count").read_text() == "computed\n"
    assert json.loads((store.folder("sft", "k-1") / "manifest.json").read_text())["key"] == "k-1"
    assert list((store.root / ".locks").iterdir()) == []
