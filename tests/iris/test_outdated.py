"""Cached stages of an experiment after an edit of the code that computed them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from iris import outdated, plan, run
from iris.config import Config, identity
from iris.store import Store

Tiny = Callable[..., Config]
LOOP = "iris/training/loop.py"


@pytest.fixture(scope="module")
def finished(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command line of an experiment that is finished."""
    folder = tmp_path_factory.mktemp("finished")
    words = ["+method=spin", *settings, "iterations=1", f"store={folder / 'store'}", f"output={folder / 'out'}"]
    assert run.main(words) == 0
    return words


@pytest.fixture
def edited(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of sft and train after an edit of the training loop."""
    real = outdated.computed_by

    def computed_by(kind: str) -> Mapping[str, str]:
        return {name: "edited" if name == LOOP else digest for name, digest in real(kind).items()}

    for module in ("iris.outdated", "iris.source", "iris.execution.runner"):
        monkeypatch.setattr(f"{module}.computed_by", computed_by)


def store_of(words: list[str]) -> Store:
    return Store(Path(next(w for w in words if w.startswith("store=")).removeprefix("store=")))


def test_nothing_is_said_while_the_code_is_the_same(finished: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(finished) == 0
    assert "other code" not in capsys.readouterr().err
    assert run.main([*finished, "--why"]) == 0
    assert capsys.readouterr().out == "Every cached stage was computed by the code that is here.\n"


@pytest.mark.usefixtures("edited")
def test_an_edit_is_said_shown_and_acted_on(finished: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    store = store_of(finished)
    kinds = ("base", "data", "sft", "generate", "score", "train", "evaluate")
    before = {path: path.stat().st_mtime_ns for path in store.root.glob("[!.]*/*/manifest.json")}
    assert run.main(finished) == 0
    said = f"2 cached stages were computed by other code: {LOOP}: changed since. --why shows how, "
    assert capsys.readouterr().err == said + "--recompute-changed computes them again.\n"
    assert run.main([*finished, "--why"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("/")[0] for line in lines[:2]] == ["sft", "train"]
    assert lines[2] == f"  {LOOP}: changed since"
    commit = json.loads(next(store.root.glob("sft/*/manifest.json")).read_text())["provenance"]["code"]["commit"]
    assert lines[3:] == ([f"  git diff {commit[:12]} -- {LOOP}"] if commit else [])

    assert run.main([*finished, "--recompute-changed"]) == 0
    after = {path: path.stat().st_mtime_ns for path in store.root.glob("[!.]*/*/manifest.json")}
    assert before.keys() == after.keys()
    kept = {path for path in before if before[path] == after[path]}
    assert {path.parents[1].name for path in kept} == {"base", "data", "evaluate"}, "of the base model alone"
    assert len(kept) == 3
    assert {path.name.split("-")[0] for path in (store.root / ".replaced").iterdir()} == set(kinds) - {"base", "data"}
    capsys.readouterr()
    assert run.main([*finished, "--why"]) == 0
    assert capsys.readouterr().out.startswith("Every cached stage")


def test_a_stage_is_no_newer_than_its_shards(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    store.prepare()
    new = dict(outdated.computed_by("generate"))
    old = new | {"iris/sampling/draw.py": "old"}
    for key, code, inputs in (("shard", old, {}), ("whole", new, {"shards": ["shard"]})):
        with store.claim("generate", key) as claim:
            assert claim is not None
            manifest = {"key": key, "inputs": inputs, "identity": {}, "provenance": {}, "computed_by": code}
            store.commit("generate", key, claim, manifest)
    found = outdated.find(["generate/whole", "generate/none"], store)
    assert found == {"generate/whole": ("iris/sampling/draw.py: changed since",)}
    assert outdated.set_aside(store, found) == 2
    assert not store.has("generate/shard")


def test_a_manifest_names_what_its_last_bits_depend_on(finished: list[str]) -> None:
    store = store_of(finished)
    manifests = [json.loads(path.read_text()) for path in store.root.glob("[!.]*/*/manifest.json")]
    found = {manifest["kind"]: manifest["bits_from"] for manifest in manifests}
    assert found["base"] == found["data"] == {}
    for kind in ("sft", "generate", "score", "train", "evaluate"):
        assert {"device", "dtype", "threads"} < found[kind].keys() and found[kind]["dtype"] == "float32"
    assert found["generate"]["engine"] == "slots"
    assert found["train"]["processes"] == 1


def test_a_resumed_stage_counts_as_computed_by_the_code_that_began_it(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny("sft", tmp_path / "store", {"iterations": 0})
    stage = next(s for s in plan.chain(identity(config)).stages if s.kind == "sft")
    work = tmp_path / "store" / "sft" / f".work-{stage.key}"
    work.mkdir(parents=True)
    (work / ".computed_by.json").write_text(json.dumps(dict(outdated.computed_by("sft")) | {LOOP: "older"}))
    run.run(config)
    assert outdated.find([stage.id], Store(config.store)) == {stage.id: (f"{LOOP}: changed since",)}
