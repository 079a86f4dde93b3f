"""python -m sweeps plan study=data_efficiency              what the study would compute and what that costs
python -m sweeps plan study=data_efficiency seeds=[0] method=iris,spin data.size=26k
python -m sweeps plan study=FILE.yaml launcher=slurm budget_gpu_hours=500
python -m sweeps plan study=data_efficiency --why KEY    why a stage will run (again)
python -m sweeps plan study=data_efficiency --recompute-changed    as if what other code has computed were missing

Every other key=value is an override of all experiments; one whose key varies in the study replaces that axis.
Nothing is computed. The exit status is 2 where an experiment cannot run or the budget is exceeded.
"""

from collections.abc import Sequence

from rich.console import Console

from iris.errors import UserError
from iris.store import Store
from sweeps.cli import arguments as words
from sweeps.cli.changed import RECOMPUTE, changed, forget, note
from sweeps.cli.plan_report import print_report
from sweeps.cost.estimate import Devices, check_budget, estimate
from sweeps.launch.launchers import Launcher, load_launcher
from sweeps.study.declare import Point, points
from sweeps.study.experiments import compose_all, uncollected
from sweeps.study.file import load_study
from sweeps.study.plan import Plan, make_plan
from sweeps.study.presets import names
from sweeps.study.why import why

_EXAMPLE = "study=NAME or study=FILE.yaml."


def main(arguments: Sequence[str]) -> int:
    """The command; prints to standard output."""
    if any(word in ("--help", "-h") for word in arguments):
        print(__doc__ + f"\nStudies: {', '.join(names('study'))}")
        return 0
    flags = {"--why": "KEY", RECOMPUTE: ""}
    given = words.parse(arguments, settings=("study", "launcher", "budget_gpu_hours"), flags=flags)
    name, launcher = given.get("study", f"{_EXAMPLE} Studies: {', '.join(names('study'))}."), given.under("launcher")
    budget = read_budget(given.settings.get("budget_gpu_hours"))
    console = Console(highlight=False)
    with uncollected():
        plan, store, _ = plan_study(name, given.overrides)
        outdated = changed(plan, store)
        if RECOMPUTE in given.flags:
            forget(plan, outdated)
        if "--why" in given.flags:
            console.print(why(plan, store, given.flags["--why"]), soft_wrap=True, markup=False)
            return 0
        found = estimate(plan, store, _devices(given.settings.get("launcher"), launcher, plan))
        print_report(console, plan, store, found)
        console.print(*note(plan, outdated), sep="\n", end="", markup=False, soft_wrap=True)
    if budget is not None:
        check_budget(found, budget)
    return 0


def plan_study(study: str, overrides: Sequence[str] = ()) -> tuple[Plan, Store, list[Point]]:
    """The plan of a study, changed by overrides, on the store that its experiments name. Raises UserError."""
    loaded = load_study(study, overrides)
    found = points(loaded)
    experiments = compose_all(found)
    stores = {e.config.store for e in experiments}
    if len(stores) > 1:
        raise UserError(f"study={study}: its experiments name several stores ({', '.join(sorted(stores))}): name one.")
    store = Store(stores.pop())
    return make_plan(experiments, store, loaded.name), store, found


def read_budget(text: str | None) -> float | None:
    """The hours that budget_gpu_hours gives. Raises UserError."""
    try:
        budget = None if text is None else float(text)
    except ValueError:
        budget = float("nan")
    if budget is not None and not budget >= 0:
        raise UserError(f"budget_gpu_hours={text}: expected a number of hours, at least 0.")
    return budget


def _devices(launcher: str | None, changes: Sequence[str], plan: Plan) -> Devices:
    """How many devices a stage runs on: what the launcher asks for, or without one what the experiments say."""
    if launcher is None:
        if changes:
            raise UserError(f"launcher.{changes[0]}: no launcher is named: add launcher=NAME.")
        processes = max(e.config.execution.processes for e in plan.experiments)
        return lambda kind: processes
    return devices_of(load_launcher(launcher, changes))


def devices_of(launcher: Launcher) -> Devices:
    """How many devices a launcher gives each kind of stage."""
    return lambda kind: launcher.of(kind).processes * launcher.of(kind).nodes
