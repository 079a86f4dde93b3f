"""What several tests of sweeps begin with."""

from pathlib import Path

import pytest

from tests.sweeps.by_hand import ByHand


@pytest.fixture
def hand(tmp_path: Path) -> ByHand:
    """A store to fill by hand."""
    return ByHand(tmp_path)
