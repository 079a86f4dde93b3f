"""Many configurations at once are what Hydra composes one by one, and bad ones are listed together."""

from collections.abc import Sequence
from dataclasses import asdict

import pytest

from iris import compose, plan
from iris.config import identity
from iris.errors import UserError
from iris.method.registry import METHODS
from sweeps.study.declare import Point
from sweeps.study.experiments import Composer, compose_all, policy_row

COMMIT = "0123456789" * 4
HUB = [f"model.revision={COMMIT}", f"data.revision={COMMIT}"]


@pytest.fixture(scope="module")
def composer() -> Composer:
    """One for all tests: what it keeps of one list of overrides must not show in the next."""
    return Composer()


ALIKE: list[list[str]] = [
    *(
        [f"method={method}", f"schedule={schedule}"]
        for method, schedule in zip(METHODS, ["constant", "linear"] * 4, strict=False)
    ),
    ["+method=iris", "schedule=cosine", "schedule.params.start=3", "schedule.params.end=1"],
    ["method=iris", "schedule=exponential", "schedule.per=step", "seed=7", "iterations=5"],
    ["method=iris", "++schedule.params.ema=0.5", "~schedule.params.tau", "++schedule.params.tau=2"],
    ["method=iris", "schedule.params={tau: 3}", "schedule.params.tau=4", "schedule.params.ema=0.25"],
    ["method=iris", "schedule.params.tau=4", "schedule.params={tau: 3}"],
    ["method=iris", "method.loss.scale=[0.1,0.2]", "train.learning_rate=[1e-6,1e-7]", "train.sft.learning_rate=1e-5"],
    ["method=iris", "train.sft.learning_rate=${train.learning_rate}", "train.learning_rate=1e-3"],
    ["method.name=spin", "+method.loss.scale=0.5"],
    ["method=iris", "method.name=spin"],
    ["method=space", "model=zephyr_7b_sft_full", "data=ultrachat", "data.size=50k", *HUB],
    ["method=tpaw", "data=ultrachat", "train=embedded", "data.size=500", "train.lora.rank=4"],
    ["method=sft", "model.architecture.hidden_size=32", "+model.architecture.rms_norm_eps=1e-5", "model.words=[a,b]"],
    ["method=sft", "evaluate.tasks=[gsm8k]", "evaluate.limit=7", "execution.tracking=[]", "store=elsewhere"],
    ["method=sft", "model.template='Q: {prompt}, it\\'s'"],
    ["method=iris", "train.epochs=2", "train.batch=16", "train.epochs=3"],
]


@pytest.mark.parametrize("overrides", ALIKE, ids=" ".join)
def test_a_configuration_is_what_hydra_composes(composer: Composer, overrides: Sequence[str]) -> None:
    assert asdict(composer.config(overrides)) == asdict(compose.load(overrides))


@pytest.mark.parametrize("group", ["method", "schedule"])
def test_every_option_of_a_group_composed_alone(composer: Composer, group: str) -> None:
    for option in compose.groups()[group]:
        overrides = [f"{group}={option}", *([] if group == "method" else ["method=iris"])]
        if option == "levels":
            overrides.append("schedule.levels=[1,0.5]")
        assert asdict(composer.config(overrides)) == asdict(compose.load(overrides)), option


def test_no_other_group_writes_into_those_composed_alone() -> None:
    for group, options in compose.groups().items():
        for option in options:
            text = (compose.conf_dir() / group / f"{option}.yaml").read_text()
            words = [f"{name}:" for name in ("method", "schedule")] + ["/method", "/schedule"]
            lines = [line.split("#")[0] for line in text.splitlines()]
            assert not any(word in line for line in lines for word in words), f"{group}/{option}"


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["method=irs"],
        ["method=iris", "sede=1"],
        ["method=iris", "data.siz=3"],
        ["method=iris", "data.size=26q"],
        ["method=iris", "method.loss.scal=1"],
        ["method=iris", "+method.loss.scal=1"],
        ["method=iris", "method.loss.scale=big"],
        ["method=iris", "seed=abc"],
        ["method=iris", "seed=-1"],
        ["method=iris", "seed=0,1"],
        ["method=iris", "iterations=1.5"],
        ["method=iris", "schedule.params.tau=-1"],
        ["method=iris", "schedule=linear", "schedule.params.tau=1"],
        ["method=iris", "train.optimizer=adam"],
        ["method=iris", "model=embeded"],
        ["method=iris", "model.template=hello"],
        ["method=iris", "foo"],
    ],
    ids=" ".join,
)
def test_a_mistake_is_explained_as_by_a_single_run(composer: Composer, overrides: list[str]) -> None:
    with pytest.raises(UserError) as single:
        compose.load(overrides)
    for _ in range(2):
        with pytest.raises(UserError) as many:
            composer.config(overrides)
        assert str(many.value) == str(single.value)


def test_what_experiments_share_is_one_object(composer: Composer) -> None:
    one = composer.config(["method=iris", "train.batch=16", "seed=0"])
    other = composer.config(["method=spin", "train.batch=16", "seed=1"])
    assert one.train is other.train
    assert one.model is other.model
    assert composer.config(["method=iris", "train.batch=32"]).train is not one.train
    assert one.train.batch == 16, "a later value does not reach an earlier configuration"
    assert one.train.sft is composer.config(["method=iris", "train.batch=32"]).train.sft


def test_planned_experiments_have_the_stages_of_a_single_run() -> None:
    lists = [
        ["method=iris", "data.size=100", f"seed={seed}", f"train.batch={batch}"] for seed in (0, 1) for batch in (8, 16)
    ]
    planned = compose_all([Point(" ".join(o), tuple(o)) for o in lists], ["iterations=1"])
    for overrides, experiment in zip(lists, planned, strict=True):
        single = plan.chain(identity(compose.load([*overrides, "iterations=1"])))
        assert experiment.name == " ".join(overrides)
        assert experiment.chain.name == single.name
        assert [s.key for s in experiment.chain.stages] == [s.key for s in single.stages]


# --- bad points


def bad(*overrides: Sequence[str]) -> str:
    with pytest.raises(UserError) as caught:
        compose_all([Point(f"p{n}", tuple(o)) for n, o in enumerate(overrides)])
    return str(caught.value)


def test_one_mistake_of_all_points_is_one_line() -> None:
    assert bad(["method=irs"], ["method=irs", "seed=1"]).startswith("method=irs: choose one of")
    assert bad(["method=irs"], ["method=irs"]).endswith("Did you mean 'iris'?")


def test_one_mistake_of_some_points_names_the_first() -> None:
    assert bad(["method=iris"], ["method=iris", "seed=-1"]).endswith("(1 of 2 experiments, first p1)")


def test_all_bad_points_are_listed() -> None:
    good = [["method=iris", f"seed={n}"] for n in range(5)]
    message = bad(*good, ["method=iris", "seed=-1"], ["method=irs"]).splitlines()
    assert message[0] == "2 of 7 experiments cannot run:"
    assert message[1].startswith("  p5: seed=-1: expected a whole number")
    assert message[2].startswith("  p6: method=irs: choose one of")
    many = bad(*([f"method=irs{n}"] for n in range(50))).splitlines()
    assert len(many) == 22
    assert many[-1] == "  … and 30 more"


@pytest.mark.parametrize("seeds", [["seed=1", "seed=2"], ["++seed=3", "seed=4"], ["seed=4", "++seed=3"], ["seed=007"]])
def test_seeds_however_written_are_those_of_hydra(composer: Composer, seeds: list[str]) -> None:
    assert composer.config(["method=iris", *seeds]) == compose.load(["+method=iris", *seeds])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["method=iris"],
            {"base": ["base"], "start": ["sft"], "t=1": ["generate", "score", "score", "train"],
             "t=2": ["generate", "score", "score", "train"]},
        ),
        (["method=sft"], {"base": ["base"], "start": ["sft"], "t=1": ["train"], "t=2": ["train"]}),
        (
            ["method=t_spin", "model.sft=false"],
            {"start": ["base"], "t=1": ["generate", "train"], "t=2": ["generate", "train"]},
        ),
    ],
)  # fmt: skip
def test_the_record_has_the_stages_that_made_each_policy(words: list[str], expected: dict[str, list[str]]) -> None:
    chain = plan.chain(identity(compose.load([*words, "iterations=2"])))
    stages = [stage.id for stage in chain.stages]
    rows = [policy_row(r.label, r.policy.id, r.evaluate.id, stages) for r in chain.rows]
    assert {label: [s.kind for s in chain.stages[first : last + 1]] for label, first, last, *_ in rows} == expected
    assert [(stages[last], stages[evaluation]) for _, _, last, evaluation, _ in rows] == [
        (row.policy.id, row.evaluate.id) for row in chain.rows
    ]
