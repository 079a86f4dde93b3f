"""Bad input gets one clear line: what is wrong, the choices, the nearest name."""

import pytest

from iris import compose
from iris.config import Experiment, at_iteration, identity, parse_size
from iris.errors import UserError
from iris.method.registry import METHODS, find


@pytest.mark.parametrize("method", METHODS)
def test_every_method_composes(method: str) -> None:
    config = compose.load([f"+method={method}"])
    assert config.method.name == method
    assert set(config.method.loss) == set(find(method).parameters)
    assert compose.load([f"method={method}"]) == config, "the plus may be forgotten"


def test_line_breaks_typed_in_a_template_are_line_breaks() -> None:
    typed = compose.load(["+method=iris", r"model.template='### {prompt}\n\n\tA: '"]).model.template
    assert typed == "### {prompt}\n\n\tA: "
    assert compose.load(["+method=iris"]).model.template == "{prompt}\n"


def test_every_option_of_every_group_composes() -> None:
    for group, options in compose.groups().items():
        for option in options:
            extra = [f"{group}.path=.", f"{group}.name=x"] if option in ("files", "hub", "pretrained") else []
            overrides = [f"{group}={option}", *extra] + ([] if group == "method" else ["+method=iris"])
            assert compose.load(overrides), option


def test_only_parts_of_an_experiment_are_groups() -> None:
    folders = {p.name for p in compose.conf_dir().iterdir() if p.is_dir()}
    assert {"study", "launcher", "search"} <= folders
    assert set(compose.groups()) == folders - {"study", "launcher", "search"}


def test_the_papers_setting_is_one_command() -> None:
    config = compose.load(
        ["+method=iris", "model=qwen2_5_3b", "data=ultrachat", "data.size=26k", "schedule=adaptive", "seed=0"]
    )
    assert config.model.path == "Qwen/Qwen2.5-3B"
    assert config.train.precision == "bfloat16"
    assert config.train.batch == 64
    assert config.evaluate.tasks == ["papers"]
    assert parse_size(config.data.size) == 26_000
    assert compose.load(["+method=iris", "data=ultrachat", "train=embedded"]).train.precision == "float32"


BAD = {
    "": r"No method given.*\+method=iris",
    "+method=irs": r"method=irs: choose one of .*Did you mean 'iris'",
    "+method=iris sede=1": r"sede: .*no such key.*'seed'",
    "method=[spin,iris]": r"method=\[spin,iris\]: one run takes one of iris, sft, .*--multirun",
    "method=[]": r"method=\[\]: one run takes one of",
    "+method=iris train=null": r"train=null: one run takes one of embedded, papers",
    "+method=iris model.path=my_model": r"model\.path=my_model: model\.source=config reads no files.*model=pretrained",
    "+method=iris data.path=my.jsonl": r"data\.path=my\.jsonl: data\.source=generated reads no files.*data=files",
    "+method=iris modle=embedded": r"modle: .*'model'",
    "+method=iris model=embeded": r"model=embeded: choose one of .*'embedded'",
    "+method=iris data.siz=3": r"data\.siz: .*'data\.size'",
    "+method=iris data.size=26q": r"data\.size=26q: .*26k",
    "+method=iris data.size=0": r"data\.size=0",
    "+method=iris learning_rate=1": r"learning_rate: .*'train\.learning_rate'",
    "+method=iris +method.loss.scal=1": r"method\.loss\.scal: .*'scale'",
    "+method=iris method.loss.scale=big": r"method\.loss\.scale=big: expected a number",
    "+method=iris method.loss.scale=[1,big]": r"method\.loss\.scale.*expected a number",
    "+method=space method.loss.mu=0": r"method\.loss\.mu=0: expected a number above 0",
    "+method=iris method.name=spni": r"method\.name=spni: choose one of .*'spin'",
    "+method=iris seed=abc": r"seed=abc: expected a whole number at least 0",
    "+method=iris seed=-1": r"seed=-1: expected a whole number at least 0",
    "+method=iris seed=0,1": r"seed=0,1.*--multirun",
    "+method=iris iterations=1.5": r"iterations=1\.5: expected a whole number",
    "+method=iris schedule.params.tau=-1": r"tau must be above 0",
    "+method=iris schedule=linear +schedule.params.ende=1": r"'ende'.*'end'",
    "+method=iris train.optimizer=adam": r"train\.optimizer=adam: choose one of adamw, rmsprop\. Did you mean 'adamw'",
    "+method=iris train.learning_rate=0": r"train\.learning_rate=0: expected a number above 0",
    "+method=iris train.sft.epochs=x": r"train\.sft\.epochs=x",
    "+method=iris generate.top_p=1.5": r"generate\.top_p=1\.5: .*at most 1",
    "+method=iris execution.device=gpu": r"execution\.device=gpu: choose one of",
    "+method=iris model.template=hello": r"model\.template: .*\{prompt\}",
    "foo": r"'foo' is no override: write key=value",
}


@pytest.mark.parametrize("words", BAD)
def test_bad_input_gets_one_line(words: str) -> None:
    with pytest.raises(UserError, match=BAD[words]) as caught:
        compose.load(words.split())
    assert "\n" not in str(caught.value)


def test_execution_cannot_reach_identity() -> None:
    one = identity(compose.load(["+method=iris"]))
    other = identity(
        compose.load(["+method=iris", "store=/a", "output=/b", "execution.slots=3", "execution.device=cpu"])
    )
    assert one == other
    assert isinstance(one, Experiment)
    assert not hasattr(one, "store")


@pytest.mark.parametrize(
    ("text", "rows"), [("26k", 26_000), ("1.5m", 1_500_000), ("800", 800), ("all", None), ("2K", 2000)]
)
def test_sizes(text: str, rows: int | None) -> None:
    assert parse_size(text) == rows


def test_a_list_gives_one_value_per_iteration() -> None:
    assert [at_iteration([5e-7, 5e-7, 1e-7], t) for t in range(5)] == [5e-7, 5e-7, 1e-7, 1e-7, 1e-7]
    assert at_iteration(0.1, 3) == 0.1
