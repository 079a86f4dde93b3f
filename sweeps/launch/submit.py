"""Launch a plan: compare it with all earlier launches on the store, and submit what is missing."""

import contextlib
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from iris.errors import UserError
from iris.execution import provenance
from iris.execution.progress import Progress
from iris.store import Store, locked, storage_errors
from sweeps.launch import dispatch, snapshot
from sweeps.launch.dispatch import Batch
from sweeps.launch.jobs import Job, make_jobs
from sweeps.launch.launchers import Inline, Launcher, Local, Slurm
from sweeps.launch.reconcile import Reconciled, orphans, reconcile
from sweeps.state import slurm_cli
from sweeps.state.job_status import JobStatuses
from sweeps.state.records import Folder, Launch, Records, new_id
from sweeps.study.experiments import Planned, facts, policy_row
from sweeps.study.plan import Plan, make_plan

_WAITING = "another launch on this store is submitting, waiting for it"


@dataclass(frozen=True)
class Request:
    """A plan to launch.

    With `only`, just the experiments of these names are launched; the study is recorded with all.
    """

    plan: Plan
    command: Sequence[str] = ()
    overrides: Sequence[str] = ()  # of the command line
    retry: bool = False
    cancel_orphans: bool = False
    only: frozenset[str] | None = None


@dataclass
class Report:
    """The result of a launch."""

    cached: int  # stages
    found: Reconciled
    jobs: list[Job] = field(default_factory=list)  # submitted
    orphans: int = 0  # live jobs that have left the study
    cancelled: bool = False  # whether the orphans were cancelled
    failures: int = 0  # of the jobs run in this process
    folder: Folder | None = None


def launch(request: Request, launcher: Launcher, store: Store) -> Report:
    """Submit the stages of a plan that are missing and not live; with an inline launcher, run them.

    Failed stages are submitted only with `retry`. Raises UserError; earlier submissions then stay, and the same call
    continues.
    """
    store.prepare()
    records = Records(store)
    with storage_errors(store.root), contextlib.ExitStack() as inline:
        with locked(records.lock(), lambda: Progress().say(_WAITING)):
            # Again: stages may have finished since the plan was made.
            every = request.plan.experiments
            chosen = [e for e in every if request.only is None or e.name in request.only]
            plan = make_plan(chosen, store, request.plan.study)
            if isinstance(launcher, Slurm):
                slurm_cli.cancel_strays(records)
            statuses = JobStatuses(store)
            found = reconcile(plan, statuses, retry=request.retry, slurm=isinstance(launcher, Slurm))
            report = Report(len(plan.cached), found, make_jobs(plan, launcher, found.submit))
            if report.jobs:
                check(report.jobs, launcher)
                started = new_launch(plan.study, request.command, request.overrides, launcher, store)
                report.folder = records.create(started)
            _write_study(records, request, report.folder)
            _settle_orphans(plan.study, statuses, request, report)
            if report.folder:
                batch = Batch(report.folder, plan, report.jobs, found.live, store)
                if isinstance(launcher, Inline):
                    inline.enter_context(report.folder.lock("scheduler").acquire())  # before another launch may look
                dispatch.submit(batch, launcher)
        if isinstance(launcher, Inline) and report.folder:
            report.failures = dispatch.run(batch)
    return report


def new_launch(
    study: str, command: Sequence[str], overrides: Sequence[str], launcher: Launcher, store: Store
) -> Launch:
    """Return the record of a launch of the running code, which is copied to the store."""
    return Launch(
        id=new_id(study),
        study=study,
        launcher=launcher.kind,
        command=list(command),
        overrides=list(overrides),
        commit=provenance.code(store.root)["commit"],
        code=str(snapshot.take(store)),
        created=time.time(),
        host=platform.node(),
        settings=asdict(launcher),
    )


def check(jobs: Sequence[Job], launcher: Launcher) -> None:
    """Check the launcher's devices before anything is submitted. Raises UserError."""
    if isinstance(launcher, Local):
        from sweeps.launch import local

        gpus, most = local.gpus(launcher), max(job.resources.gpus for job in jobs)
        if gpus and most > len(gpus):
            here = ", ".join(gpus)
            raise UserError(f"launcher.resources.gpus={most}: there are only {len(gpus)} GPUs here ({here}).")
    if isinstance(launcher, Inline) and any(job.config.execution.processes > 1 for job in jobs):
        raise UserError("execution.processes: launcher=inline is one process; use launcher=local with its gpus.")


def _write_study(records: Records, request: Request, folder: Folder | None) -> None:
    """Record the study as it is now; without a new launch it keeps its last one."""
    plan = request.plan
    before = records.study(plan.study) or {"launch": ""}
    points = [_point(experiment) for experiment in plan.experiments]
    records.write_study(plan.study, folder.id if folder else before["launch"], points)


def _point(experiment: Planned) -> dict[str, Any]:
    stages, rows = [stage.id for stage in experiment.chain.stages], experiment.chain.rows
    return {
        "name": experiment.name,
        "overrides": list(experiment.point.overrides),
        "with_seed": list(experiment.point.with_seed),
        "stages": stages,
        "facts": facts(experiment.config),
        "rows": [policy_row(row.label, row.policy.id, row.evaluate.id, stages) for row in rows],
    }


def _settle_orphans(study: str, statuses: JobStatuses, request: Request, report: Report) -> None:
    found = orphans(study, statuses)
    report.orphans, report.cancelled = len(found), request.cancel_orphans
    if request.cancel_orphans:
        dispatch.cancel(found)
