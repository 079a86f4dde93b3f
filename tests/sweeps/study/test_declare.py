"""What a study file declares, and the one clear line for what is wrong in it."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

from iris.errors import UserError
from sweeps.study.declare import Point, points
from sweeps.study.file import load_study
from sweeps.study.presets import names
from sweeps.study.settings import of_text, of_value


@pytest.fixture
def declared(tmp_path: Path) -> Any:
    """`declared({section: …}, changes)`: the points of a study file with these sections."""

    def make(content: Any, *changes: str) -> list[Point]:
        path = tmp_path / "mine.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
        return points(load_study(str(path), changes))

    return make


def named(found: list[Point]) -> list[str]:
    return [point.name for point in found]


def overrides(found: list[Point]) -> list[set[str]]:
    return [set(point.overrides) for point in found]


# --- what is declared


def test_a_grid_is_every_combination_and_the_seed_varies_fastest(declared: Any) -> None:
    found = declared({"grid": {"method": ["iris", "spin"], "data.size": ["1k", 200]}, "seeds": [0, 1]})
    assert len(found) == 8
    assert named(found)[:3] == [
        "method=iris,data.size=1k,seed=0",
        "method=iris,data.size=1k,seed=1",
        "method=iris,data.size=200,seed=0",
    ]
    assert found[0].overrides == ("method=iris", "data.size=1k", "seed=0")


def test_base_is_a_mapping_or_a_list_and_has_no_part_in_names(declared: Any) -> None:
    mapping = declared({"base": {"method": "iris", "train.learning_rate": [1e-6, 1e-7]}, "seeds": [3]})
    listed = declared({"base": ["method=iris", "train.learning_rate=[1e-06,1e-07]"], "seeds": [3]})
    assert named(mapping) == ["seed=3"]
    assert overrides(mapping) == overrides(listed) == [{"method=iris", "train.learning_rate=[1e-06,1e-07]", "seed=3"}]


def test_one_point_is_named_after_its_study(declared: Any) -> None:
    assert named(declared({"base": {"method": "iris"}})) == ["mine"]


def test_a_replicate_is_a_seed_with_all_that_follows_it(declared: Any) -> None:
    content = {"grid": {"method": ["iris", "spin"]}, "seeds": {"seed": [0, 3], "data.subset_seed": "same"}}
    found = declared(content)
    assert named(found) == [f"method={m},seed={s}" for m in ("iris", "spin") for s in (0, 3)]
    assert found[1].overrides == ("method=iris", "seed=3", "data.subset_seed=3")
    assert {point.with_seed for point in found} == {("data.subset_seed",)}
    assert [p.overrides[1:] for p in declared(content, "method=iris", "seeds=[7]")] == [
        ("seed=7", "data.subset_seed=7")
    ]
    fixed = declared(content, "method=iris", "data.subset_seed=5")
    assert named(fixed) == [f"method=iris,data.subset_seed=5,seed={seed}" for seed in (0, 3)]
    assert fixed[0].with_seed == ()
    assert declared({"grid": {"method": ["iris"]}, "seeds": [1]})[0].with_seed == ()


def test_a_sub_study_inherits_replicates_or_declares_its_own(declared: Any) -> None:
    content = {
        "seeds": {"seed": [1, 2], "data.subset_seed": "same"},
        "union": [{"base": {"method": "iris"}}, {"base": {"method": "spin"}, "seeds": [2]}],
    }
    found = {p.name: (p.overrides, p.with_seed) for p in declared(content)}
    assert found["method=iris,seed=2"] == (("method=iris", "seed=2", "data.subset_seed=2"), ("data.subset_seed",))
    assert found["method=spin,seed=2"] == (("method=spin", "seed=2"), ())
    assert len(found) == 3


def test_zip_pairs_values_and_several_are_multiplied(declared: Any) -> None:
    one = {"method.loss.mu": [1, 3], "method.samples": [1, 3]}
    two = {"train.epochs": [1, 2], "train.batch": [32, 64]}
    assert overrides(declared({"zip": one})) == [
        {"method.loss.mu=1", "method.samples=1"},
        {"method.loss.mu=3", "method.samples=3"},
    ]
    both = declared({"zip": [one, two], "seeds": [0]})
    assert len(both) == 4
    assert {"method.loss.mu=3", "method.samples=3", "train.epochs=1", "train.batch=32", "seed=0"} in overrides(both)


def test_conditions_set_or_skip(declared: Any) -> None:
    content = {
        "base": {"iterations": 3},
        "grid": {"method": ["sft", "iris", "spin"], "data.size": ["1k", "2k"]},
        "when": [
            {"if": {"method": "sft"}, "set": {"iterations": 0}},
            {"if": {"method": ["iris", "spin"], "data.size": "2k"}, "skip": True},
        ],
    }
    found = {p.name: set(p.overrides) for p in declared(content)}
    assert set(found) == {
        "method=sft,data.size=1k",
        "method=sft,data.size=2k",
        "method=iris,data.size=1k",
        "method=spin,data.size=1k",
    }
    assert "iterations=0" in found["method=sft,data.size=2k"]
    assert "iterations=3" not in found["method=sft,data.size=2k"]
    assert "iterations=3" in found["method=iris,data.size=1k"]


def test_conditions_compare_numbers_by_value(declared: Any) -> None:
    content = "grid: {train.learning_rate: [1e-6, 2e-6]}\nwhen: [{if: {train.learning_rate: 0.000001}, skip: true}]"
    assert named(declared(content)) == ["train.learning_rate=2e-06"]


def test_sub_studies_inherit_and_replace_what_they_name_again(declared: Any) -> None:
    content = {
        "base": {"data.size": "1k", "iterations": 2},
        "grid": {"method": ["iris", "spin"]},
        "seeds": [0, 1],
        "when": [{"if": {"method": "spin"}, "set": {"train.epochs": 2}}],
        "union": [
            {"grid": {"method": ["spin", "tpaw"]}},
            {"base": {"data.size": "2k"}, "seeds": [7]},
            {"base": {"method": "sft"}, "union": [{"base": {"iterations": 9}}, {"grid": {"train.batch": [8, 16]}}]},
        ],
    }
    found = declared(content)
    assert len(found) == len(set(named(found))) == 4 + 2 + 2 + 4
    by_name = {p.name: set(p.overrides) for p in found}
    spin = by_name["data.size=1k,iterations=2,method=spin,seed=1"]
    assert spin == {"data.size=1k", "iterations=2", "method=spin", "seed=1", "train.epochs=2"}
    assert by_name["data.size=2k,iterations=2,method=iris,seed=7"]
    assert by_name["data.size=1k,iterations=9,method=sft,seed=0"]
    assert by_name["data.size=1k,iterations=2,method=sft,train.batch=16,seed=1"]


def test_what_is_declared_twice_is_one_point(declared: Any) -> None:
    content = {
        "base": {"method": "iris"},
        "union": [{"grid": {"data.size": ["1k", "2k"]}}, {"base": {"data.size": "2k"}}],
    }
    assert named(declared(content)) == ["data.size=1k", "data.size=2k"]


def test_names_differ_where_conditions_alone_tell_points_apart(declared: Any) -> None:
    same = {"grid": {"method": ["iris", "spin"]}}
    more = same | {"when": [{"if": {"method": "iris"}, "set": {"iterations": 5}}]}
    found = declared({"base": {"iterations": 2}, "union": [same, more]})
    assert named(found) == ["method=iris,iterations=2", "method=spin,iterations=2", "method=iris,iterations=5"]


# --- the command line


GRID = {
    "base": {"iterations": 3, "data.size": "1k"},
    "grid": {"method": ["iris", "spin"], "train.epochs": [1, 2]},
    "zip": {"train.batch": [8, 16], "train.warmup": [0, 0.1]},
    "seeds": [0, 1],
    "when": [{"if": {"method": "spin"}, "set": {"iterations": 5, "train.epochs": 9}}],
}


@pytest.mark.parametrize(
    ("changes", "count", "name", "override"),
    [
        ((), 16, "method=iris,train.epochs=1,train.batch=8,train.warmup=0,seed=0", "iterations=3"),
        (("method=tpaw",), 8, "method=tpaw,train.epochs=1,train.batch=8,train.warmup=0,seed=0", "method=tpaw"),
        (("method=iris,tpaw",), 16, "method=tpaw,train.epochs=2,train.batch=16,train.warmup=0.1,seed=1", "seed=1"),
        (("seeds=[4]",), 8, "method=iris,train.epochs=1,train.batch=8,train.warmup=0,seed=4", "seed=4"),
        (("seeds=4",), 8, "method=iris,train.epochs=1,train.batch=8,train.warmup=0,seed=4", "seed=4"),
        (("seeds=range(0,3)",), 24, "method=iris,train.epochs=1,train.batch=8,train.warmup=0,seed=2", "seed=2"),
        (("seed=5,6",), 16, "method=iris,train.epochs=1,train.batch=8,train.warmup=0,seed=6", "seed=6"),
        (
            ("train.warmup=0.5",),
            16,
            "method=iris,train.epochs=1,train.warmup=0.5,train.batch=8,seed=0",
            "train.batch=8",
        ),
        (("data.size=2k",), 16, "method=iris,train.epochs=1,train.batch=8,train.warmup=0,seed=0", "data.size=2k"),
        (("data.size=2k,3k",), 32, "method=iris,train.epochs=1,data.size=3k,train.batch=8,train.warmup=0,seed=0", ""),
        (
            ("train.lora.rank=4",),
            16,
            "method=iris,train.epochs=1,train.batch=8,train.warmup=0,seed=0",
            "train.lora.rank=4",
        ),
        (("iterations=1",), 16, "method=spin,train.epochs=9,train.batch=8,train.warmup=0,seed=0", "iterations=1"),
    ],
)
def test_the_command_line_replaces_axes_and_applies_to_all(
    declared: Any, changes: tuple[str, ...], count: int, name: str, override: str
) -> None:
    found = declared(GRID | {"when": []} if "spin" not in name else GRID, *changes)
    assert len(found) == (count if "spin" not in name else count // 2 + count // 4)
    (point,) = [p for p in found if p.name == name]
    assert not override or override in point.overrides


def test_an_axis_of_a_sub_study_is_replaced_too(declared: Any) -> None:
    content = {"grid": {"method": ["iris"]}, "union": [{"grid": {"method": ["spin"]}}, {"base": {"method": "sft"}}]}
    assert named(declared(content, "method=tpaw")) == ["method=tpaw"]


# --- mistakes


BAD: dict[str, tuple[Any, str]] = {
    "nothing": ("", r"mine\.yaml: expected a mapping with some of base, grid.*not nothing"),
    "a list": ([1, 2], r"expected a mapping with some of base, grid.*not \[1, 2\]"),
    "section": ({"gird": {}}, r"gird: no such key\. Choose from base, grid.*Did you mean 'grid'"),
    "empty axis": ({"grid": {"method": []}}, r"grid: method: the list is empty"),
    "no list": ({"grid": {"method": "iris"}}, r"grid: method: expected a list of values, not 'iris'.*goes to base"),
    "grid of what": ({"grid": ["method=iris"]}, r"grid: expected a mapping of keys to lists"),
    "value twice": ({"grid": {"seed": [1, 2, 1]}}, r"grid: seed: 1 is there twice"),
    "lengths": (
        {"zip": {"method.samples": [1, 2], "method.loss.mu": [1]}},
        r"zip: paired keys need equally many values: method\.samples has 2, method\.loss\.mu has 1",
    ),
    "empty zip": ({"zip": {"method": []}}, r"zip: method: expected a list of at least one value"),
    "zip of nothing": ({"zip": {}}, r"zip: no key is named"),
    "base and grid": (
        {"base": {"method": "iris"}, "grid": {"method": ["iris"]}},
        r"method is declared twice, under base and under grid",
    ),
    "seed twice": ({"grid": {"seed": [1]}, "seeds": [2]}, r"seed is declared twice, under grid and under seeds"),
    "zip twice": ({"zip": [{"a": [1]}, {"a": [2]}]}, r"a is declared twice, under zip and under zip"),
    "base list": ({"base": [3]}, r"base: 3: expected a text key=value"),
    "base text": ({"base": ["method iris"]}, r"'method iris' is no override"),
    "base sweep": ({"base": ["method=iris,spin"]}, r"base: method=iris,spin: several values make an axis"),
    "seeds": ({"seeds": 3}, r"seeds: seed: expected a list of values, not 3"),
    "seeds without seed": ({"seeds": {"data.subset_seed": [1]}}, r"seeds: 'seed' is missing"),
    "seeds with values": (
        {"seeds": {"seed": [1], "data.subset_seed": [2]}},
        r"seeds: data\.subset_seed: expected 'same' \(the value of seed\), not \[2\]",
    ),
    "follows and varies": (
        {"grid": {"data.size": [1]}, "seeds": {"seed": [1], "data.size": "same"}},
        r"data\.size is declared twice, under grid and under seeds",
    ),
    "union": ({"union": {}}, r"union: expected a list of entries, not \{\}"),
    "empty union": ({"union": []}, r"union: expected a list of entries"),
    "in a union": ({"union": [{"grid": {"x": []}}]}, r"union 1: grid: x: the list is empty"),
    "rule": ({"seeds": [1], "when": [{"seed": 1}]}, r"when 1: seed: no such key\. Choose from if, set, skip"),
    "no action": ({"seeds": [1], "when": [{"if": {"seed": 1}}]}, r"when 1: expected 'if' and either 'set' or 'skip"),
    "no condition": ({"seeds": [1], "when": [{"skip": True}]}, r"when 1: if: expected a mapping of keys"),
    "condition key": (
        {"grid": {"method": ["iris"]}, "when": [{"if": {"methd": "iris"}, "skip": True}]},
        r"when: if: methd: base, grid, zip and seeds do not set this key\. Did you mean 'method'\? They set: method",
    ),
    "condition value": (
        {"grid": {"method": ["iris", "spin"]}, "when": [{"if": {"method": ["iris", "spni"]}, "skip": True}]},
        r"when: if: method: spni: no point has this value\. Did you mean 'spin'\? Values of method: iris, spin",
    ),
    "all skipped": ({"seeds": [1], "when": [{"if": {"seed": 1}, "skip": True}]}, r"'when' skips every point"),
    "duplicate keys": ("grid: {a: [1]}\ngrid: {b: [1]}", r"mine\.yaml, line 2: found duplicate key grid"),
    "broken YAML": ("grid: {a: [1", r"mine\.yaml, line 1: "),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_in_a_study_gets_one_line(declared: Any, case: str) -> None:
    content, message = BAD[case]
    with pytest.raises(UserError, match=message) as caught:
        declared(content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("method=iris", "+method=spin"), "method is given twice"),
        (("seeds=[1,1]",), "seeds: seed: 1 is there twice"),
        (("seeds=[]",), "the list is empty"),
        (("seeds={seed:[1]}",), "expected a list such as"),
        (("foo",), "'foo' is no override"),
    ],
)
def test_a_mistake_on_the_command_line_gets_one_line(declared: Any, changes: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        declared({"grid": {"method": ["iris"]}}, *changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "message"), [("embeded", "Did you mean 'embedded'"), ("none.yaml", "no such file")])
def test_a_study_that_does_not_exist(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_study(name)


def test_the_shipped_studies() -> None:
    assert set(names("study")) >= {"ablations", "alpha", "data_efficiency", "embedded", "methods"}
    full = points(load_study("data_efficiency"))
    methods = {p.overrides[-3] for p in full}
    assert len(full) == len(methods) * 5 * 3 >= 7 * 5 * 3
    assert {p.overrides[-2] for p in full} == {f"data.size={n}k" for n in (14, 26, 50, 100, 200)}
    assert {p.overrides[-3] for p in points(load_study("embedded"))} == methods


# --- values as Hydra reads them

plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12)
nested = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(deadline=None)
@given(nested)
def test_every_value_of_a_file_reaches_hydra_as_it_is(value: Any) -> None:
    parsed = OverridesParser.create().parse_override(of_value("key", value).text)
    assert not parsed.is_sweep_override()
    assert parsed.value() == value


def test_settings_know_their_key() -> None:
    for text in ("method=iris", "+method=iris", "++method=iris"):
        assert (of_text(text).key, of_text(text).value) == ("method", "iris")
    assert of_text("~schedule.params.ema").key == "schedule.params.ema"
    assert of_value("+schedule.params.ema", 0.5).text == "+schedule.params.ema=0.5"
