"""python -m iris.run +method=iris            one experiment, from its base model to a table
python -m iris.run +method=spin seed=1 data.size=1k iterations=2
python -m iris.run +method=iris --why         which cached stages other code has computed, and how it differs
python -m iris.run +method=iris --recompute-changed    compute these again, and all that was made from them
python -m iris.run +method=iris --show 3      training examples and an evaluation prompt as the model reads them
python -m iris.run --help                     the configuration groups
"""

import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from iris import compose, outdated, plan, preflight, table
from iris.config import Config, identity
from iris.errors import UserError
from iris.execution import processes, runner
from iris.execution.progress import Progress
from iris.execution.world import World
from iris.files import write_atomic
from iris.method.registry import METHODS
from iris.plan import Chain
from iris.store import Store, storage_errors

log = logging.getLogger("iris")
_OWN_FLAGS = _WHY, _RECOMPUTE = "--why", "--recompute-changed"
_SHOW = "--show"
_REMEDY = f"{_WHY} shows how, {_RECOMPUTE} computes them again."


class Terminated(KeyboardInterrupt):
    """SIGTERM, as a scheduler sends it: ends a run like Ctrl-C does."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Exit status: 0 finished, 2 a mistake of the user's (in one message), 130/143 stopped."""
    arguments = compose.normalize(sys.argv[1:] if arguments is None else list(arguments))
    signal.signal(signal.SIGTERM, _terminate)
    try:
        if any(a in ("--help", "-h") for a in arguments):
            print(_help(compose.search_path(arguments)))
        else:
            _command(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # no second one while this one is reported
        print("\nstopped: finished stages are kept and the same command continues.", file=sys.stderr)
        return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)
    return 0


def _command(arguments: Sequence[str]) -> None:
    count, arguments = _show_count(arguments)
    flags, rest = [a for a in arguments if a in _OWN_FLAGS], [a for a in arguments if a not in _OWN_FLAGS]
    if any(a.startswith("-") for a in rest):
        _hydra(rest, flags, count)
    else:
        config, mistakes = compose.read(rest)
        _start(config, rest, flags, count, mistakes)


def _show_count(arguments: Sequence[str]) -> tuple[int, list[str]]:
    """Return N of `--show N`, or 0, and the other arguments."""
    if _SHOW not in arguments:
        return 0, list(arguments)
    at = arguments.index(_SHOW)
    number = arguments[at + 1] if at + 1 < len(arguments) else ""
    if not number.isdecimal() or int(number) < 1:
        raise UserError(f"{_SHOW} {number}: give a number of examples, as in {_SHOW} 3.")
    return int(number), [*arguments[:at], *arguments[at + 2 :]]


def _start(
    config: Config, overrides: Sequence[str], flags: Sequence[str], count: int, mistakes: Sequence[str] = ()
) -> None:
    if mistakes:
        preflight.check([config], mistakes, here=True)
    elif count:
        _show(config, count)
    elif _WHY in flags:
        store = Store(config.store)
        found = outdated.find((stage.id for stage in plan.chain(identity(config)).stages), store)
        lines = list(outdated.details(found, store))
        print("\n".join(lines or ["Every cached stage was computed by the code that is here."]))
    else:
        run(config, overrides, recompute=_RECOMPUTE in flags)


def _terminate(*_: Any) -> None:
    raise Terminated


def run(config: Config, overrides: Sequence[str] = (), *, recompute: bool = False) -> list[table.Line]:
    """Run what is missing of one experiment and print its table; `recompute` also what other code has computed."""
    execution, started = config.execution, "WORLD_SIZE" in os.environ
    alone = started or execution.processes == 1
    runner.configure_threads(execution)  # before torch is imported
    preflight.check([config], torch=alone, here=alone)
    store, chain = Store(config.store), plan.chain(identity(config))
    if not started:
        _compare_code(chain, store, recompute)
    folder = Path(config.output).expanduser().absolute() / chain.name
    missing = runner.missing(chain, store)
    if missing and not alone:
        _prepare(folder, config)
        processes.start(execution.processes, overrides, folder)
        return table.lines(chain, store)
    world = World.join(execution.device)
    if world.main:
        _prepare(folder, config)
        _log_to(folder / "run.log")
    context = runner.Context(store, execution, Progress(quiet=not world.main), world, folder)
    if missing and world.main:
        store.prepare()
    log.info("%d of %d stages are missing", len(missing), len(chain.stages))
    if missing:
        _log_example(chain, context)
    runner.run_chain(chain, context)
    return _report(chain, config, store, folder) if world.main else []


def _show(config: Config, count: int) -> None:
    """Print examples and an evaluation prompt, after the stages that they need."""
    runner.configure_threads(config.execution)
    preflight.check([config], torch=True, here=True)
    chain = plan.chain(identity(config))
    context = runner.Context(Store(config.store), config.execution)
    context.store.prepare()
    _prepare_data(chain, context)
    from iris.stages import show

    print("\n".join([*show.examples(chain.data, context, count), *show.evaluation_prompt(chain, context)]))


def _prepare_data(chain: Chain, context: runner.Context) -> None:
    for stage in (chain.data.one("tokenizer"), chain.data):
        runner.ensure(stage, context)


def _log_example(chain: Chain, context: runner.Context) -> None:
    from iris.stages import show

    _prepare_data(chain, context)
    if context.world.main:
        log.info("what is trained on:\n%s", "\n".join(show.examples(chain.data, context, 1)))


def _compare_code(chain: Chain, store: Store, recompute: bool) -> None:
    found = outdated.find((stage.id for stage in chain.stages), store)
    if recompute and found:
        print(f"moved {outdated.set_aside(store, found)} stages to {store.root / '.replaced'}", file=sys.stderr)
    elif found:
        print(outdated.sentence(found, _REMEDY), file=sys.stderr)


def _prepare(folder: Path, config: Config) -> None:
    with storage_errors(Path(config.output).absolute(), "output"):
        write_atomic(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(asdict(config))))


def _report(chain: Chain, config: Config, store: Store, folder: Path) -> list[table.Line]:
    lines = table.lines(chain, store)
    found, total = table.contamination(chain, store)
    with storage_errors(folder.parent, "output"):
        table.write(folder, chain, lines, {"contaminated": found, "evaluation_documents": total})
    console = Console(soft_wrap=True)
    console.print(table.render(chain, lines))
    console.print(f"score: {', '.join(lines[0].tasks)} in percent, ± standard error; seconds of each row's own stages")
    console.print(f"evaluation prompts found in training: {found} of {total}", highlight=False)
    console.print(f"table, logs: {folder}\nartifacts:   {store.root}", highlight=False)
    return lines


class _RunLog(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Ignore a log that cannot be written: the stage that meets a full disk reports it."""


def _log_to(path: Path) -> None:
    with storage_errors(path.parent, "output"):
        handler = _RunLog(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for old in log.handlers:
        old.close()
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


# --- Hydra's own flags: --cfg, --multirun, --info, --shell-completion …


_FLAGS = [
    *("--cfg", "-c", "--resolve", "--package", "-p", "--multirun", "-m", "--info", "-i", "--version", "--hydra-help"),
    *("--config-dir", "-cd", "--config-name", "-cn", "--shell-completion", "-sc", "--help", "-h"),
]
_FOLDERS = ("hydra.sweep.dir=${output}", "hydra/job_logging=disabled")  # no files where the command is typed


def _hydra(arguments: Sequence[str], own: Sequence[str], count: int) -> None:
    settings = [a for a in arguments if not a.startswith("-") and ("=" in a or a.startswith("~"))]
    flags = [a for a in arguments if a not in settings]
    for flag in flags:
        if flag.startswith("-") and flag not in _FLAGS:
            raise UserError(
                f"{flag}: no such flag. There are --cfg job, --multirun, --info, {_WHY}, {_RECOMPUTE}, {_SHOW} N "
                "and --help; settings are written key=value, as in seed=1."
            )
    if not any(a in ("--multirun", "-m") for a in arguments):
        compose.load(settings)

    @hydra.main(config_path=str(compose.conf_dir()), config_name="config", version_base="1.3")
    def job(composed: DictConfig) -> None:
        search = [s for s in settings if s.startswith("hydra.searchpath=")]
        _start(compose.to_config(composed), [*HydraConfig.get().overrides.task, *search], own, count)

    compose.register()
    sys.argv[1:] = [*flags, *_FOLDERS, *settings]  # Hydra wants settings in one row
    os.environ["HYDRA_FULL_ERROR"] = "1"  # an exception passes through, so that its message is ours
    with compose.explained():
        job()


def _help(search: tuple[str, ...]) -> str:
    groups = compose.groups(search)
    methods = [*METHODS, *(m for m in groups["method"] if m not in METHODS)]
    lines = [
        __doc__ or "",
        "Groups (group=option; the method is the one without a default):",
        f"  method={'|'.join(methods)}",
    ]
    lines += [f"  {name}={'|'.join(options)}" for name, options in groups.items() if name != "method"]
    lines += [
        "",
        "Any key can be set: seed=1 iterations=5 data.size=26k method.loss.scale=0.2 train.learning_rate=1e-6",
        "Folders: store=FOLDER (artifacts), output=FOLDER (tables and logs).",
        "Your own methods, schedules and groups: hydra.searchpath=[FOLDER] (docs/add-a-method.md).",
        "Flags: --cfg job (print the resolved configuration), --multirun +method=spin,iris seed=0,1, --info, --help.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
