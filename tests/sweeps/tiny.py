"""A study of experiments on a few sums, each of which takes about a second of CPU time."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from iris.plan import Chain
from iris.store import Store
from sweeps.study.declare import points
from sweeps.study.experiments import compose_all
from sweeps.study.file import load_study
from sweeps.study.plan import Plan, make_plan
from tests import sums


def write_study(folder: Path, **sections: Any) -> Path:
    """A study file with its data; `sections` are those of a study, `base` is put over what makes it tiny."""
    found = sums.write(folder)
    found |= {"store": str(folder / "store"), "output": str(folder / "outputs")}
    study = {"base": {**sums.SETTINGS, "iterations": 1} | found | sections.pop("base", {})} | sections
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(study))
    return path


def tiny_plan(folder: Path, *, without: Sequence[str] = (), **sections: Any) -> tuple[Plan, Store]:
    """Return the plan of such a study, without the stages of some kinds, which nothing else may need."""
    study = load_study(str(write_study(folder, **sections)))
    experiments = compose_all(points(study))
    shorter = [replace(e, chain=_shorter(e.chain, without)) for e in experiments]
    store = Store(folder / "store")
    return make_plan(shorter, store, study.name), store


def _shorter(chain: Chain, without: Sequence[str]) -> Chain:
    stages = tuple(stage for stage in chain.stages if stage.kind not in without)
    return replace(chain, stages=stages, rows=tuple(row for row in chain.rows if row.evaluate in stages))


def files(store: Store) -> Mapping[tuple[str, str], dict[str, str]]:
    """The checksums of all files of all artifacts."""
    manifests = [json.loads(path.read_text()) for path in store.root.glob("[!.]*/[!.]*/manifest.json")]
    return {(m["kind"], m["key"]): m["files"] for m in manifests}
