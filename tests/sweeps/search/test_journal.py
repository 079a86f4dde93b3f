"""Damaged journals: read as far as possible, repaired under the lock, and reported."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from iris.errors import UserError
from sweeps.search import journal
from sweeps.search.lease import Lease

CREATE = 4
Damage = Callable[[list[bytes]], list[bytes]]


def ask(folder: Path, trials: int) -> optuna.Study:
    study = optuna.create_study(study_name="s", storage=journal.open_journal(folder), load_if_exists=True)
    study.sampler = optuna.samplers.RandomSampler(seed=0)
    for _ in range(trials):
        trial = study.ask()
        value = trial.suggest_float("a", 0, 1)
        trial.set_user_attr("overrides", [f"a={value}"])
        study.tell(trial, value)
    return study


def trials(storage: optuna.storages.BaseStorage) -> list[tuple[Any, ...]]:
    study = optuna.load_study(study_name="s", storage=storage)
    return [(t.number, t.state, t.params, t.values, t.user_attrs) for t in study.trials]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ask(tmp_path, 6)
    return tmp_path


def damage(folder: Path, change: Damage) -> None:
    path = folder / journal.NAME
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))


def places(lines: list[bytes], operation: int) -> list[int]:
    return [n for n, line in enumerate(lines) if json.loads(line)["op_code"] == operation]


def doubled(n: int) -> Damage:
    def change(lines: list[bytes]) -> list[bytes]:
        place = places(lines, CREATE)[n]
        return [*lines[: place + 1], *lines[place:]]

    return change


def blank(lines: list[bytes]) -> list[bytes]:
    return [*lines[:7], b"\n", b"  \n", *lines[7:], b"\n"]


def repeated_block(lines: list[bytes]) -> list[bytes]:
    return [*lines[:9], *lines[3:9], *lines[9:]]


HARMLESS: dict[str, tuple[Damage, str]] = {
    "torn at the end": (lambda lines: [*lines, lines[-1][:30]], "an unfinished record at its end"),
    "blank": (blank, "3 blank lines"),
    "doubled": (doubled(2), "1 repeated records"),
    "doubled and blank": (lambda lines: blank(doubled(0)(lines)), "3 blank lines, 1 repeated records"),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_nothing_is_lost_by_harmless_damage(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    change, found = HARMLESS[name]
    before = trials(journal.read_journal(folder))
    damage(folder, change)
    damaged = (folder / journal.NAME).read_bytes()
    assert trials(journal.read_journal(folder)) == before and journal.scan(folder).damage.endswith(f": {found}")
    assert (folder / journal.NAME).read_bytes() == damaged, "reading changes nothing"
    assert trials(journal.open_journal(folder)) == before and not journal.scan(folder).damage
    assert found.removeprefix("an ") in capsys.readouterr().err
    ask(folder, 2)
    assert trials(journal.read_journal(folder))[:6] == before


def test_records_that_set_the_same_again_are_no_damage(folder: Path) -> None:
    before = trials(journal.read_journal(folder))
    damage(folder, lambda lines: [*lines[:-1], lines[-2], lines[-1], lines[-1]])
    assert not journal.scan(folder).damage
    assert trials(journal.open_journal(folder)) == before


def test_a_block_of_records_may_repeat(folder: Path) -> None:
    before = trials(journal.read_journal(folder))
    damage(folder, repeated_block)
    assert trials(journal.open_journal(folder)) == before


def test_a_repeated_creation_that_later_records_count_stays(folder: Path) -> None:
    """As where a network file system has appended a record twice: its writer has seen both."""

    def change(lines: list[bytes]) -> list[bytes]:
        place = places(lines, CREATE)[3]
        counted = [json.loads(line) for line in lines[place:]]
        later = [r | ({"trial_id": r["trial_id"] + 1} if "trial_id" in r else {}) for r in counted]
        return [*lines[: place + 1], *(json.dumps(r, separators=(",", ":")).encode() + b"\n" for r in later)]

    before = [params for _, _, params, *_ in trials(journal.read_journal(folder))]
    damage(folder, change)
    assert [t[2] for t in trials(journal.open_journal(folder))] == [*before[:3], {}, *before[3:]]


@pytest.mark.parametrize(
    "record", [b'{"op_code":4,"worker_id":"x","stu\n', b"\0" * 40 + b"\n", b"null\n", b'{"op_code":99}\n', b"\xff\n"]
)
def test_a_journal_is_read_up_to_what_cannot_be(
    folder: Path, record: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    before = trials(journal.read_journal(folder))
    whole = (folder / journal.NAME).read_bytes().splitlines(keepends=True)
    place = places(whole, CREATE)[4]
    damage(folder, lambda lines: [*lines[:place], record, *lines[place + 1 :]])
    assert trials(journal.read_journal(folder)) == before[:4]
    assert f"record {place + 1} cannot be read" in journal.scan(folder).damage
    assert trials(journal.open_journal(folder)) == before[:4]
    assert f"record {place + 1} cannot be read, so {len(whole) - place} records" in capsys.readouterr().err
    assert (folder / journal.DAMAGED).read_bytes() == b"".join([record, *whole[place + 1 :]]), "nothing is thrown away"
    ask(folder, 1)
    assert [t[0] for t in trials(journal.read_journal(folder))] == list(range(5))


def test_a_journal_that_a_live_worker_uses_is_not_repaired(folder: Path) -> None:
    (folder / "trials").mkdir()
    lease = Lease.take(folder / "trials", 5)
    assert lease is not None
    damage(folder, blank)
    with pytest.raises(UserError, match=r"3 blank lines\. 1 workers use it.* cancel the search"):
        journal.open_journal(folder)
    assert len(trials(journal.read_journal(folder))) == 6, "reading never refuses"
    lease.release()
    assert len(trials(journal.open_journal(folder))) == 6


def test_any_cut_journal_is_one_that_it_once_was(folder: Path) -> None:
    content = (folder / journal.NAME).read_bytes()
    before = trials(journal.read_journal(folder))
    dice = random.Random(0)
    for _ in range(20):
        (folder / journal.NAME).write_bytes(content[: dice.randrange(400, len(content))])
        found = trials(journal.open_journal(folder))
        assert [t for t in found if t[3]] == before[: sum(bool(t[3]) for t in found)]
