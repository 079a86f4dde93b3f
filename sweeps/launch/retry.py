"""Launch failed experiments of a study again."""

import json
from collections.abc import Sequence

from iris import preflight
from iris.errors import UserError
from sweeps.launch.launchers import Launcher, load_launcher
from sweeps.launch.submit import Report, Request, launch
from sweeps.state.study_status import Experiment, StudyStatus
from sweeps.study.declare import Point
from sweeps.study.experiments import compose_all
from sweeps.study.plan import make_plan


def retry(
    study_status: StudyStatus, study: str, failed: Sequence[Experiment], launcher: str | None, changes: Sequence[str]
) -> Report:
    """Launch failed experiments of a study with `launcher`, or with that of the study's last launch.

    `changes` are settings of the launcher. Raises UserError if the experiments' stages have changed since.
    """
    if study_status.is_search(study):
        raise UserError(f"study={study}: rerun the same search command to retry failed trials of a search.")
    points = (study_status.records.study(study) or {"points": []})["points"]
    planned = compose_all([Point(p["name"], tuple(p["overrides"]), tuple(p.get("with_seed", ()))) for p in points])
    stages = {e.name: [stage.id for stage in e.chain.stages] for e in planned}
    if changed := [e.name for e in failed if stages[e.name] != list(e.stages)]:
        raise UserError(
            f"{changed[0]} ({len(changed)} of {len(failed)} failed experiments) has changed since its launch: code, "
            f"data or versions are different. Launch study={study} again."
        )
    names = frozenset(e.name for e in failed)
    preflight.check([e.config for e in planned if e.name in names])
    request = Request(
        make_plan(planned, study_status.store, study),
        ["retry", *sorted(names)],
        retry=True,
        only=names,
    )
    return launch(request, _launcher(study_status, study, launcher, changes), study_status.store)


def _launcher(study_status: StudyStatus, study: str, name: str | None, changes: Sequence[str]) -> Launcher:
    if name is not None:
        return load_launcher(name, changes)
    last = (study_status.records.study(study) or {}).get("launch")
    if not last:
        raise UserError(f"study={study}: none of it was submitted yet: give launcher=slurm, local or inline.")
    found = study_status.records.folder(last).launch
    settings = [f"{key}={json.dumps(value)}" for key, value in found.settings.items() if key != "kind"]
    return load_launcher(found.launcher, [*settings, *changes])
