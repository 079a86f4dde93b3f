"""Methods and schedules of a user's own: found, checked before anything is spent, and told apart by their source."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from iris import compose, plan
from iris.config import identity
from iris.errors import UserError
from iris.method import functions, objectives, registry, schedules
from iris.training.gradient import Objective

Write = Callable[[str, str], str]
LOSSES = """
from torch.nn.functional import logsigmoid
from iris.method.registry import needs
from .helpers import square

HALF = 0.5


def _shifted(x):
    return x - HALF


@needs(players=1)
def ipo(real_ratio, synthetic_ratio, *, scale=1.0):
    '''IPO.'''
    # A comment.
    return square(_shifted(scale * (real_ratio - synthetic_ratio)))


def other(real_ratio, synthetic_ratio):
    return logsigmoid(real_ratio - synthetic_ratio)
"""
HELPERS = """
def square(x):
    return x * x


def cube(x):
    return x * x * x
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """`write(module, text)`: a module of package `own`, beside the losses above; returns its name."""

    def module(name: str, text: str) -> str:
        path = tmp_path / "own" / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        functions._parsed.cache_clear()
        sys.modules.pop(f"own.{name}", None)
        return f"own.{name}"

    monkeypatch.syspath_prepend(tmp_path)
    for name, text in (("__init__", ""), ("losses", LOSSES), ("helpers", HELPERS)):
        module(name, text)
    yield module
    for name in [name for name in sys.modules if name.partition(".")[0] == "own"]:
        del sys.modules[name]


# --- the source


def test_only_what_the_function_uses_counts(write: Write) -> None:
    before = functions.digest("own.losses:ipo")
    for text in (
        LOSSES.replace("A comment", "Another comment"),
        LOSSES.replace("'''IPO.'''", "'''Identity preference optimisation.'''"),
        LOSSES.replace("x - HALF", "(x   -\n    HALF)"),
        LOSSES.replace("logsigmoid(real", "2 * logsigmoid(real"),
        LOSSES.replace("players=1", "players=2"),  # what it needs is part of the key by itself
    ):
        write("losses", text)
        assert functions.digest("own.losses:ipo") == before, text
    write("losses", LOSSES)
    write("helpers", HELPERS.replace("x * x * x", "x**3"))
    assert functions.digest("own.losses:ipo") == before


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("losses", "square(_shifted", "2 * square(_shifted"),
        ("losses", "return x - HALF", "return x + HALF"),
        ("losses", "HALF = 0.5", "HALF = 0.25"),
        ("losses", "scale=1.0", "scale=2.0"),
        ("helpers", "return x * x\n", "return x**2\n"),
        ("losses", "from .helpers import square", "from .helpers import cube as square"),
    ],
)
def test_an_edit_of_what_it_uses_counts(write: Write, module: str, old: str, new: str) -> None:
    before = functions.digest("own.losses:ipo")
    text = {"losses": LOSSES, "helpers": HELPERS}[module]
    assert old in text
    write(module, text.replace(old, new))
    assert functions.digest("own.losses:ipo") != before


@pytest.mark.parametrize(
    "line", ["from own import helpers", "import own.helpers as helpers", "from own.helpers import square"]
)
def test_modules_of_the_package_count_however_they_are_imported(write: Write, line: str) -> None:
    body = "square(real - synthetic)" if "square" in line else "helpers.square(real - synthetic)"
    write("loss", f"{line}\n\n\ndef loss(real, synthetic):\n    return {body}\n")
    before = functions.digest("own.loss:loss")
    write("helpers", HELPERS.replace("return x * x\n", "return x**2\n"))
    assert functions.digest("own.loss:loss") != before


def test_the_source_of_built_in_functions_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = Path(objectives.__file__).read_text()
    edited = tmp_path / "objectives.py"
    found = functions._file

    def file(module: str) -> Path | None:
        return edited if module == "iris.method.objectives" else found(module)

    def keys(*changes: tuple[str, str]) -> dict[str, str]:
        changed = text
        for old, new in changes:
            assert old in changed
            changed = changed.replace(old, new)
        edited.write_text(changed)
        functions._parsed.cache_clear()
        made = {m: plan.chain(identity(compose.load([f"method={m}", "iterations=1"]))) for m in ("spin", "iris")}
        return {f"{m}-{s.kind}": s.key for m, chain in made.items() for s in chain.stages if s.kind in ("sft", "train")}

    monkeypatch.setattr(functions, "_file", file)
    before = keys()
    assert keys(("# Orders this close", "# All orders this close"), ("SPIN: softplus", "SPIN is softplus")) == before
    changed = keys(("return -logsigmoid(-z)", "return 1 * -logsigmoid(-z)"))
    assert {name for name in before if before[name] != changed[name]} == {"spin-train"}, "through its helper"
    changed = keys(("_LIMIT = 1e-20", "_LIMIT = 1e-19"))
    assert {name for name in before if before[name] != changed[name]} == {"iris-train"}
    changed = keys(("return -real / tokens", "return -(real / tokens)"))
    assert {name for name in before if before[name] != changed[name]} == set(before), "all that starts from π₀"


# --- a function in the configuration


def load(*overrides: str) -> plan.Chain:
    return plan.chain(identity(compose.load([*overrides, "iterations=1"])))


def test_a_function_is_a_method(write: Write) -> None:
    chain = load("method.function=own.losses:ipo", "+method.loss.scale=0.5")
    assert chain.name.startswith("ipo-sums-2k-tiny-s0")
    train = chain.rows[-1].policy
    assert train.identity["method"] == "ipo" and train.identity["loss"] == {"scale": 0.5}
    write("losses", LOSSES.replace("# A comment.", "# Nothing."))
    assert load("method.function=own.losses:ipo", "+method.loss.scale=0.5").stages[-1].key == chain.stages[-1].key
    write("losses", LOSSES.replace("HALF = 0.5", "HALF = 1"))
    other = load("method.function=own.losses:ipo", "+method.loss.scale=0.5")
    assert [s.id for s in chain.stages if s.kind != "train"][:-1] == [s.id for s in other.stages if s.kind != "train"][
        :-1
    ]
    assert other.rows[-1].policy.key != train.key


def test_needs_are_the_decorator_s_or_the_configuration_s(write: Write) -> None:
    write("three", "def loss(real, synthetic, proto, *, beta=1.0):\n    return real - synthetic + beta * proto\n")
    needs = "method.needs={proto:true,players:0,first:{beta:0}}"
    train = load("method.function=own.three:loss", needs).rows[-1].policy
    assert train.identity["needs"] == {"proto": True, "players": 0, "first": {"beta": 0.0}}
    assert train.identity["loss"] == {"beta": 0.0} and not train.many("real_scores")
    write(
        "three", "from iris.method import registry\n@registry.needs(proto=True)\ndef loss(a, b, c): return a - b + c\n"
    )
    assert load("method.function=own.three:loss").rows[-1].policy.identity["needs"] == {"proto": True}


WRONG = {
    "method.function=own.losses": "expected package.module:function",
    "method.function=own.lossses:ipo": "own.lossses cannot be imported: ModuleNotFoundError.*PYTHONPATH",
    "method.function=own.losses:ipoo": "has no function 'ipoo'. Did you mean 'ipo'",
    "method.function=own.losses:HALF": "has no function 'HALF'",
    "method.function=own.losses:square": "own.losses has no 'def square'. Name the module that defines it",
    "method.function=own.broken:loss": "own.broken cannot be imported: ZeroDivisionError: .* See .*broken.py:1",
    "method.function=own.lacking:loss": "ModuleNotFoundError: No module named 'nowhere'. See .*lacking.py:1",
    "method.function=own.unparsed:loss": "SyntaxError: .* See .*unparsed.py:1",
    "method=spin method.function=": "method.function=: expected package.module:function",
    "method.function=own.losses:ipo method.needs={first:{scal:0}}": "fix 'scal' .*one of scale. Did you mean 'scale'",
    "method.function=own.wrong:one": r"takes \(real\); by its needs it has to take \(real_ratio, synth",
    "method.function=own.wrong:three": r"takes \(a, b, c\)",
    "method.function=own.wrong:starred": "takes \\*args or \\*\\*kwargs",
    "method.function=own.wrong:required": "method.loss.beta is not set: 'required' needs it",
    "method.function=own.losses:ipo +method.loss.beta=1": "method.loss.beta: 'ipo' takes method.loss.scale",
    "method.function=own.losses:ipo method.needs={prot:true}": "method.needs.prot: no such key.*Did you mean 'proto'",
    "method.function=own.losses:ipo method.needs={players:-1}": "method.needs.players=-1: expected a whole number",
    "method.function=own.losses:ipo method.needs={alpha:true}": r"has to take \(real_ratio, synthetic_ratio, \*, alpha",
    "method.function=own.decorated:loss": "^needs.playrs: no such key",
    "method=spin method.function=own.losses:ipo": "method.name=spin is a built-in method: give own.losses:ipo another",
    "method=spin method.needs={proto:true}": "method.needs: 'spin' is built in",
    "method=iris schedule.function=own.wrong:one": "schedule.name=adaptive is built in: give own.wrong:one another",
    "method=iris schedule.function=own.wrong:one schedule.name=x": r"takes \(real\); a schedule takes position, gap",
    "method=iris schedule.function=own.none:x schedule.name=x": "own.none cannot be imported",
    "method=iris schedule.function=own.wrong:failing schedule.name=x schedule.params=null": "expected a mapping",
    "method=ipo": "method=ipo: choose one of .*hydra.searchpath=.FOLDER",
    "method=spin hydra.searchpath=[nowhere]": "hydra.searchpath: .*nowhere: no such folder",
    "method=spin hydra.searchpath=[pkg://own.nowhere]": "hydra.searchpath: pkg://own.nowhere: No module named",
    "method=spin hydra.searchpath=nowhere": "hydra.searchpath=nowhere: expected a list of folders",
}


@pytest.mark.parametrize("words", WRONG)
def test_what_is_wrong_is_said_in_one_line(write: Write, words: str) -> None:
    write("broken", "1 / 0")
    write("lacking", "import nowhere")
    write("unparsed", "def loss(:")
    write("decorated", "from iris.method.registry import needs\n@needs(playrs=1)\ndef loss(a, b): return a - b\n")
    write(
        "wrong",
        "def one(real): ...\ndef three(a, b, c): ...\ndef starred(a, b, **more): ...\n"
        "def required(a, b, *, beta): ...\ndef failing(position, *, alpha=1.0): return alpha / 0\n",
    )
    with pytest.raises(UserError, match=WRONG[words]) as error:
        load(*words.split())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("body", "coupled", "message"),
    [
        ("(a - b).mean()", False, r"returns a tensor of shape \[\]; expected a loss per sample, \[B\] = \[3\]"),
        ("(a - b)[:, None]", False, r"a tensor of shape \[3, 1\]"),
        ("a - b", True, r"a tensor of shape \[3\]; expected one value of the whole batch"),
        ("None", False, "returns None"),
        ("1.0", True, "returns a float"),
        ("(a - b).detach()", False, "a tensor without gradient"),
    ],
)
def test_a_result_that_is_no_loss_is_refused(write: Write, body: str, coupled: bool, message: str) -> None:
    write("result", f"def loss(a, b): return {body}\n")
    method = registry.find("mine", "own.result:loss", {"coupled": coupled, "players": 0})
    logps = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    with pytest.raises(UserError, match=message):
        Objective(method, {}).loss(logps, None, step=0, batch=3, tokens=1)


def test_a_file_with_the_name_of_a_shipped_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "spin.yaml").write_text("name: mine\n")
    with pytest.raises(UserError, match=f"method=spin: .*conf/method/spin.yaml and {tmp_path}/method/spin.yaml"):
        load("method=spin", f"hydra.searchpath=[{tmp_path}]")


def test_a_schedule_that_fails_is_told_when_planned(write: Write, tmp_path: Path) -> None:
    write("wrong", "def failing(position, *, alpha=1.0): return alpha / 0\n")
    (tmp_path / "conf" / "schedule").mkdir(parents=True)
    (tmp_path / "conf" / "schedule" / "mine.yaml").write_text("name: mine\nfunction: own.wrong:failing\n")
    with pytest.raises(UserError, match=r"schedule own\.wrong:failing at position 0: .*division by zero"):
        load("method=iris", "schedule=mine", f"hydra.searchpath=[{tmp_path}/conf]")


def test_a_schedule_of_ones_own_enters_the_key_where_it_runs_later(write: Write, tmp_path: Path) -> None:
    def chain(text: str, *more: str) -> plan.Chain:
        write("orders", text)
        return load("method=iris", "schedule=mine", f"hydra.searchpath=[{tmp_path}/conf]", *more)

    (tmp_path / "conf" / "schedule").mkdir(parents=True)
    (tmp_path / "conf" / "schedule" / "mine.yaml").write_text("name: mine\nfunction: own.orders:mine\n")
    half, gap = "def mine(position): return 0.5\n", "def mine(gap): return 0.5 + gap\n"
    constant = load("method=iris", "schedule=constant", "schedule.params.alpha=0.5")
    assert chain(half).stages[-1].key == constant.stages[-1].key, "the same orders"
    assert chain(half, "schedule.per=step").rows[-1].policy.identity["alpha"]["span"] == [0, 1]
    first = chain(gap).rows[-1].policy
    assert (
        first.identity["alpha"]["source"] == functions.digest("own.orders:mine")
        and "span" not in first.identity["alpha"]
    )
    assert chain(f"# A comment.\n{gap}").rows[-1].policy.key == first.key
    assert chain(gap.replace("0.5", "1.5")).rows[-1].policy.key != first.key


def test_methods_and_schedules_say_themselves_what_they_read() -> None:
    assert {name for name in schedules.SCHEDULES if schedules.find(name).needs_gap} == {"adaptive"}
    for name in registry.METHODS:
        method = registry.find(name)
        assert len(method.signature.positional) == len(method.needs.arguments), name
