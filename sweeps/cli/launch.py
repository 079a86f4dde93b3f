"""python -m sweeps launch study=embedded launcher=slurm     submit and return
python -m sweeps launch study=embedded launcher=local     run in the background
python -m sweeps launch study=embedded launcher=inline    run in this process

    --retry              also run what has failed
    --cancel-orphans     also cancel jobs that no longer belong to the study
    --recompute-changed  also recompute what other code has computed, and all
                         that was made from it

Settings: launcher=NAME or FILE.yaml, launcher.KEY=VALUE (the keys are those of
conf/launcher/*.yaml), budget_gpu_hours=HOURS. Every other key=value is an
override of all experiments, such as seeds=[0,1] or store=FOLDER. Only missing
stages run: rerun the same command at any time to continue.
"""

from collections.abc import Iterator

from iris import preflight
from iris.store import Store
from sweeps.cli.arguments import Arguments
from sweeps.cli.changed import RECOMPUTE, changed, note, recompute
from sweeps.cli.plan import EPILOG as EPILOG
from sweeps.cli.plan import plan_study
from sweeps.launch.launchers import Inline, Launcher, Local
from sweeps.launch.submit import Report, Request, launch
from sweeps.state.selection import follow

_SHOWN = 10


def run(given: Arguments) -> int:
    """Launch a study and return 1 where a job that ran in this process failed."""
    given.get("launcher", "launcher=slurm, launcher=local, launcher=inline or launcher=FILE.yaml.")
    planned = plan_study(given)
    plan, store = planned.plan, planned.store
    preflight.check([e.config for e in plan.experiments])
    outdated = changed(plan, store)
    print(*(recompute(plan, store, outdated) if RECOMPUTE in given.flags else note(plan, outdated)), sep="\n", end="")
    planned.check_budget()
    request = Request(
        planned.plan,
        list(given.given),
        given.rest,
        retry="--retry" in given.flags,
        cancel_orphans="--cancel-orphans" in given.flags,
    )
    assert planned.launcher is not None
    report = launch(request, planned.launcher, planned.store)
    print("\n".join(_lines(report, planned.launcher, planned.plan.study, planned.store)))
    return 1 if report.failures else 0


def _lines(report: Report, launcher: Launcher, study: str, store: Store) -> Iterator[str]:
    found = report.found
    yield f"study {study}: {', '.join([_done(report, launcher), *_kept(report)])}"
    for name, status in list(found.failed.items())[:_SHOWN]:
        yield f"  failed: {name}: {status.error}"
    if len(found.failed) > _SHOWN:
        yield f"  … and {len(found.failed) - _SHOWN} more"
    if found.failed:
        yield "--retry runs failed stages again."
    if found.elsewhere:
        yield "Slurm cannot wait for jobs of launcher=local: launch again when they have finished."
    if report.orphans and not report.cancelled:
        yield f"{report.orphans} live jobs no longer belong to the study: --cancel-orphans cancels them."
    if report.folder:
        yield follow(study, store)
        yield f"logs: {report.folder.logs}"


def _done(report: Report, launcher: Launcher) -> str:
    """Return what the launch did."""
    if not report.jobs:
        return "nothing to do"
    verb = "ran" if isinstance(launcher, Inline) else "started" if isinstance(launcher, Local) else "submitted"
    failed = f", of which {report.failures} failed" if report.failures else ""
    return f"{verb} {len(report.jobs)} jobs for {sum(len(job.stages) for job in report.jobs)} stages{failed}"


def _kept(report: Report) -> list[str]:
    """Return what it left alone."""
    found = report.found
    counts = {"stages cached": report.cached, "queued or running": len(found.live), "failed": len(found.failed)}
    counts |= {"behind a failed one": len(found.behind), "behind one of launcher=local": len(found.elsewhere)}
    counts |= {"orphans cancelled": report.orphans if report.cancelled else 0}
    return [f"{count} {name}" for name, count in counts.items() if count]
