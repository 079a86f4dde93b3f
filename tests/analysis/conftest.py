"""A finished study for all tests to read, and a copy for tests that change it."""

import json
import shutil
from pathlib import Path

import pytest

from iris.store import Store
from tests.analysis import stores
from tests.analysis.stores import Made


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Return the finished study."""
    return stores.make(tmp_path_factory.mktemp("made") / "store")


@pytest.fixture
def copy(made: Made, tmp_path: Path) -> Made:
    """One that a test may change, without an index."""
    root = tmp_path / "store"
    shutil.copytree(made.store.root, root, ignore=shutil.ignore_patterns(".analysis"))
    return Made(Store(root), json.loads(json.dumps(made.points)))
