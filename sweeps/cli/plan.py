"""python -m sweeps plan study=data_efficiency    stages, costs, savings
python -m sweeps plan study=data_efficiency seeds=[0] method=iris,spin
python -m sweeps plan study=FILE.yaml launcher=slurm budget_gpu_hours=500
python -m sweeps plan study=data_efficiency --why KEY    why a stage will run
python -m sweeps plan study=data_efficiency --recompute-changed    as if what
                                 other code has computed were missing

Every other key=value is an override of all experiments; one whose key varies in
the study replaces that axis. Nothing is computed. The exit status is 2 where an
experiment cannot run or the budget is exceeded.
"""

from dataclasses import dataclass

from rich.console import Console

from iris.errors import UserError
from iris.store import Store
from sweeps.cli.arguments import Arguments
from sweeps.cli.changed import RECOMPUTE, changed, forget, note
from sweeps.cli.plan_report import print_report
from sweeps.cost.estimate import Estimate, check_budget, estimate
from sweeps.launch.launchers import Launcher, load_launcher
from sweeps.study.declare import points
from sweeps.study.experiments import compose_all, uncollected
from sweeps.study.file import load_study
from sweeps.study.plan import Plan, make_plan
from sweeps.study.presets import names
from sweeps.study.why import why

EPILOG = f"\nStudies: {', '.join(names('study'))}"


def run(given: Arguments) -> int:
    """Print the plan of a study."""
    console = Console(highlight=False)
    with uncollected():
        planned = plan_study(given)
        outdated = changed(planned.plan, planned.store)
        if RECOMPUTE in given.flags:
            forget(planned.plan, outdated)
        if "--why" in given.flags:
            console.print(why(planned.plan, planned.store, given.flags["--why"]), soft_wrap=True, markup=False)
            return 0
        found = planned.estimate()
        print_report(console, planned.plan, planned.store, found)
        console.print(*note(planned.plan, outdated), sep="\n", end="", markup=False, soft_wrap=True)
    planned.check_budget(found)
    return 0


@dataclass(frozen=True)
class PlannedStudy:
    """A study's plan on its store, and the launcher and budget of the command line."""

    plan: Plan
    store: Store
    launcher: Launcher | None
    budget: float | None

    def estimate(self) -> Estimate:
        """Estimate the plan on the launcher's devices, or without a launcher on those of the experiments."""
        if launcher := self.launcher:
            return estimate(self.plan, self.store, lambda kind: launcher.of(kind).processes * launcher.of(kind).nodes)
        processes = max(e.config.execution.processes for e in self.plan.experiments)
        return estimate(self.plan, self.store, lambda _: processes)

    def check_budget(self, found: Estimate | None = None) -> None:
        """Raise UserError where a budget is given and the plan exceeds it."""
        if self.budget is not None:
            check_budget(found or self.estimate(), self.budget)


def plan_study(given: Arguments) -> PlannedStudy:
    """Check the arguments and plan the study on the store that its experiments name. Raises UserError."""
    name = given.get("study", f"study=NAME or study=FILE.yaml. Studies: {', '.join(names('study'))}.")
    launcher = _launcher(given)
    budget = _budget(given.settings.get("budget_gpu_hours"))
    study = load_study(name, given.rest)
    experiments = compose_all(points(study))
    stores = {e.config.store for e in experiments}
    if len(stores) > 1:
        raise UserError(f"study={name}: its experiments name several stores ({', '.join(sorted(stores))}): name one.")
    store = Store(stores.pop())
    return PlannedStudy(make_plan(experiments, store, study.name), store, launcher, budget)


def _launcher(given: Arguments) -> Launcher | None:
    changes, name = given.under("launcher"), given.settings.get("launcher")
    if changes and name is None:
        raise UserError(f"launcher.{changes[0]}: no launcher is named: add launcher=NAME.")
    return None if name is None else load_launcher(name, changes)


def _budget(text: str | None) -> float | None:
    try:
        budget = None if text is None else float(text)
    except ValueError:
        budget = float("nan")
    if budget is not None and not budget >= 0:
        raise UserError(f"budget_gpu_hours={text}: expected a number of hours, at least 0.")
    return budget
