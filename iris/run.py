"""python -m iris.run +method=iris            one experiment, from its base model to a table
python -m iris.run +method=spin seed=1 data.size=1k iterations=2
python -m iris.run --help                     the configuration groups
"""

import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from iris import compose, plan, runner, table
from iris.config import Config, identity
from iris.errors import UserError
from iris.methods import METHODS
from iris.plan import Chain
from iris.progress import Progress
from iris.store import Store
from iris.world import World

log = logging.getLogger("iris")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Exit status: 0 finished, 2 an error that the user can mend (in one message)."""
    arguments = compose.normalize(sys.argv[1:] if arguments is None else list(arguments))
    try:
        if any(a in ("--help", "-h") for a in arguments):
            print(_help())
        elif any(a.startswith("-") for a in arguments):
            _hydra(arguments)
        else:
            run(compose.load(arguments), arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped: finished stages are kept and the same command continues.", file=sys.stderr)
        return 130
    return 0


def run(config: Config, overrides: Sequence[str] = ()) -> list[table.Line]:
    """Run what is missing of one experiment and print its table."""
    experiment, execution = identity(config), config.execution
    store = Store(config.store)
    chain = plan.chain(experiment)
    if execution.processes > 1 and "WORLD_SIZE" not in os.environ and runner.missing(chain, store):
        _start_processes(execution.processes, overrides)
    runner.configure_threads(execution)
    world = World.join(execution.device) if runner.missing(chain, store) else World()
    folder = Path(config.output).expanduser().absolute() / chain.name
    if world.main:
        store.prepare()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
        _log_to(folder / "run.log")
    context = runner.Context(store, execution, Progress(quiet=not world.main), world, folder)
    _preflight(chain, config, context)
    runner.run_chain(chain, context)
    return _report(chain, config, store, folder) if world.main else []


def _preflight(chain: Chain, config: Config, context: runner.Context) -> None:
    """What needs heavy imports to check, only when something is going to run."""
    if not runner.missing(chain, context.store):
        return
    from iris import harness, models

    models.check_precision(config.train.precision, models.device(config.execution.device))
    harness.check_tasks(config.evaluate.tasks, [Path(f) for f in config.evaluate.include])
    log.info("%d of %d stages are missing", len(runner.missing(chain, context.store)), len(chain.stages))


def _report(chain: Chain, config: Config, store: Store, folder: Path) -> list[table.Line]:
    lines = table.lines(chain, store)
    found, total = table.contamination(chain, store)
    table.write(folder, chain, lines, {"contaminated": found, "evaluation_documents": total})
    console = Console(soft_wrap=True)
    console.print(table.render(chain, lines))
    console.print(f"score: {', '.join(lines[0].tasks)} in percent, ± standard error; seconds of each row's own stages")
    console.print(f"evaluation prompts found in training: {found} of {total}", highlight=False)
    console.print(f"table, logs: {folder}\nartifacts:   {store.root}", highlight=False)
    return lines


def _start_processes(count: int, overrides: Sequence[str]) -> None:
    """Replace this process's work by `count` processes of the same command; returns when they have finished."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    done = subprocess.run([*command, "-m", "iris.run", *overrides])
    if done.returncode:
        raise UserError(f"one of the {count} processes failed (exit status {done.returncode}): see its message above.")


def _log_to(path: Path) -> None:
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)


# --- Hydra's own flags: --cfg, --multirun, --info, --shell-completion …


def _hydra(arguments: Sequence[str]) -> None:
    settings = [a for a in arguments if "=" in a and not a.startswith("-")]
    if not any(a in ("--multirun", "-m") for a in arguments):
        compose.load(settings)

    @hydra.main(config_path=str(compose.conf_dir()), config_name="config", version_base="1.3")
    def job(composed: DictConfig) -> None:
        run(compose.to_config(composed), [])

    compose.register()
    sys.argv[1:] = arguments
    os.environ["HYDRA_FULL_ERROR"] = "1"  # an exception passes through, so that its message is ours
    with compose.explained():
        job()


def _help() -> str:
    lines = [
        __doc__ or "",
        "Groups (group=option; the method is the one without a default):",
        f"  method={'|'.join(METHODS)}",
    ]
    lines += [f"  {name}={'|'.join(options)}" for name, options in compose.groups().items() if name != "method"]
    lines += [
        "",
        "Any key can be set: seed=1 iterations=5 data.size=26k method.loss.scale=0.2 train.learning_rate=1e-6",
        "Folders: store=FOLDER (artifacts), output=FOLDER (tables and logs).",
        "Flags: --cfg job (print the resolved configuration), --multirun +method=spin,iris seed=0,1, --info, --help.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
