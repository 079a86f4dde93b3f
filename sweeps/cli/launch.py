"""python -m sweeps launch study=embedded launcher=slurm      submit what is missing, and return
python -m sweeps launch study=embedded launcher=local      run it on this machine, in the background
python -m sweeps launch study=embedded launcher=inline     run it in this process

    --retry            also what has failed
    --cancel-orphans   also cancel what waits or runs and has left the study
    --recompute-changed    also compute again what other code has computed, and all that was made from it

Settings: launcher=NAME or FILE.yaml, launcher.KEY=VALUE (conf/launcher/*.yaml has the keys), budget_gpu_hours=HOURS.
Every other key=value is an override of all experiments, such as seeds=[0,1] or store=FOLDER. Launching twice does
nothing; launching again after whatever has happened goes on where things are.
"""

import signal
from collections.abc import Iterator, Sequence
from typing import Any

from iris.store import Store
from sweeps.cli.arguments import parse
from sweeps.cli.changed import RECOMPUTE, changed, note, recompute
from sweeps.cli.plan import devices_of, plan_study, read_budget
from sweeps.cost.estimate import check_budget, estimate
from sweeps.launch.launchers import Inline, Launcher, Local, load_launcher
from sweeps.launch.submit import Report, Request, launch
from sweeps.state.selection import follow
from sweeps.study.presets import names

_SHOWN = 10


def main(arguments: Sequence[str]) -> int:
    """The command. Exit status 1: a job that ran in this process failed."""
    if any(word in ("--help", "-h") for word in arguments):
        print(__doc__ + f"\nStudies: {', '.join(names('study'))}")
        return 0
    keys = ("study", "launcher", "budget_gpu_hours")
    given = parse(arguments, settings=keys, flags={"--retry": "", "--cancel-orphans": "", RECOMPUTE: ""})
    name = given.get("launcher", "launcher=slurm, launcher=local, launcher=inline or launcher=FILE.yaml.")
    launcher = load_launcher(name, given.under("launcher"))
    budget = read_budget(given.settings.get("budget_gpu_hours"))
    study = given.get("study", f"study=NAME or study=FILE.yaml. Studies: {', '.join(names('study'))}.")
    plan, store, points = plan_study(study, given.overrides)
    outdated = changed(plan, store)
    print(*(recompute(plan, store, outdated) if RECOMPUTE in given.flags else note(plan, outdated)), sep="\n", end="")
    if budget is not None:
        check_budget(estimate(plan, store, devices_of(launcher)), budget)
    request = Request(
        plan,
        {point.name: point.overrides for point in points},
        list(arguments),
        given.overrides,
        retry="--retry" in given.flags,
        cancel_orphans="--cancel-orphans" in given.flags,
    )
    signal.signal(signal.SIGTERM, _stop)
    report = launch(request, launcher, store)
    print("\n".join(_lines(report, launcher, plan.study, store)))
    return 1 if report.failures else 0


def _stop(*_: Any) -> None:
    raise KeyboardInterrupt


def _lines(report: Report, launcher: Launcher, study: str, store: Store) -> Iterator[str]:
    found = report.found
    yield f"study {study}: {', '.join([_done(report, launcher), *_there(report)])}"
    for name, status in list(found.failed.items())[:_SHOWN]:
        yield f"  failed: {name}: {status.error}"
    if len(found.failed) > _SHOWN:
        yield f"  … and {len(found.failed) - _SHOWN} more"
    if found.failed:
        yield "--retry starts what has failed again."
    if found.elsewhere:
        yield "Slurm cannot wait for a job of launcher=local: launch again when that has finished."
    if report.orphans and not report.cancelled:
        yield f"{report.orphans} jobs that wait or run have left the study: --cancel-orphans cancels them."
    if report.folder:
        yield follow(study, store)
        yield f"logs: {report.folder.logs}"


def _done(report: Report, launcher: Launcher) -> str:
    """What the launch has done."""
    if not report.jobs:
        return "nothing to do"
    verb = "ran" if isinstance(launcher, Inline) else "started" if isinstance(launcher, Local) else "submitted"
    failed = f", of which {report.failures} failed" if report.failures else ""
    return f"{verb} {len(report.jobs)} jobs for {sum(len(job.stages) for job in report.jobs)} stages{failed}"


def _there(report: Report) -> list[str]:
    """What there was before."""
    found = report.found
    counts = {"stages cached": report.cached, "queued or running": len(found.live), "failed": len(found.failed)}
    counts |= {"behind a failed one": len(found.behind), "behind one of launcher=local": len(found.elsewhere)}
    counts |= {"orphans cancelled": report.orphans if report.cancelled else 0}
    return [f"{count} {name}" for name, count in counts.items() if count]
