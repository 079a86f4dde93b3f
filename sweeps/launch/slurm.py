"""Submit jobs to Slurm through submitit."""

import contextlib
import hashlib
import io
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from submitit import SlurmExecutor
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.helpers import clean_env

from iris.errors import UserError
from sweeps.launch.arrays import Array, lanes, make_arrays
from sweeps.launch.jobs import Job
from sweeps.launch.launchers import Resources, Slurm
from sweeps.state import slurm_cli
from sweeps.state.records import Folder

_TIMEOUTS = 1_000_000  # how often a job may reach its time limit


def submit_jobs(
    launcher: Slurm, folder: Folder, jobs: Sequence[Job], calls: Sequence[Any], awaited: Mapping[str, str]
) -> Iterator[dict[int, str]]:
    """Submit the jobs of a launch, yielding the Slurm ids of each array as soon as it is queued.

    `calls` is what each job runs; `awaited` maps stages to the Slurm ids of jobs of other launches that compute them.
    At most `max_parallel` jobs of the study, earlier launches included, run at once: each job gets one of as many names
    with the dependency `singleton`. Raises UserError with Slurm's message.
    """
    name = re.sub(r"[^\w.=-]+", "_", folder.launch.study) or "iris"
    if launcher.max_parallel is None:
        arrays = make_arrays(jobs, slurm_cli.max_array_size())
        names, singleton = [name] * len(jobs), []
    else:
        arrays = [Array([n], None, job.needs, job.awaited) for n, job in enumerate(jobs)]
        store = hashlib.sha256(str(folder.path.parent).encode()).hexdigest()[:8]
        names, singleton = [f"{name}.{store}.{k}" for k in lanes(jobs, launcher.max_parallel)], ["singleton"]
    ids: dict[int, str] = {}
    for array in arrays:
        first = jobs[array.jobs[0]]
        conditions = _conditions(array, arrays, ids, awaited, first.dependency) + singleton
        parameters = _parameters(launcher, folder, first.resources)
        parameters |= {"job_name": names[array.jobs[0]], "dependency": ",".join(conditions) or None}
        new = dict(zip(array.jobs, _submit(folder.logs, [calls[n] for n in array.jobs], parameters), strict=True))
        ids |= new
        yield new


def _submit(logs: Path, calls: Sequence[Any], parameters: Mapping[str, Any]) -> list[str]:
    """Submit picklable calls (see SlurmJob) as one array, or a single one as a job; return their Slurm ids."""
    try:
        executor = SlurmExecutor(logs, max_num_timeout=_TIMEOUTS)  # submitit delays later submissions of a used one
    except RuntimeError as error:
        raise slurm_cli.missing("srun") from error
    executor.update_parameters(**parameters, array_parallelism=len(calls))
    try:
        with _without_slurm_variables(), contextlib.redirect_stderr(io.StringIO()):  # it prints its errors too
            return [job.job_id for job in executor.submit_array(list(calls))]
    except (FailedJobError, FailedSubmissionError, OSError) as error:
        messages = [line.rpartition("error:")[2].strip() for line in str(error).splitlines() if "error:" in line]
        raise UserError(
            f"Slurm rejected the submission: {messages[-1] if messages else error}. Earlier submissions stay; rerun "
            "the same command to continue."
        ) from error


def _parameters(launcher: Slurm, folder: Folder, resources: Resources) -> dict[str, Any]:
    options = {str(k).replace("_", "-"): v for k, v in resources.sbatch.items() if v not in (None, False)}
    srun = ["--kill-on-bad-exit=1"]  # the other processes would wait for one that died
    if resources.cpus:
        srun.append(f"--cpus-per-task={resources.cpus}")  # steps do not inherit the job's
    return {
        "time": resources.minutes,
        "nodes": resources.nodes,
        "ntasks_per_node": resources.processes,
        "gpus_per_node": None if resources.gres else resources.gpus or None,
        "gres": resources.gres,
        "cpus_per_task": resources.cpus,
        "mem": resources.memory,
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "constraint": resources.constraint,
        "signal_delay_s": launcher.signal_seconds,
        "setup": [*launcher.setup, *_exports(folder.launch.code, resources)],
        "srun_args": srun,
        "comment": folder.id,
        "wckey": None,
        "additional_parameters": {"requeue": True, "kill-on-invalid-dep": "yes"} | options,
    }


def _exports(code: str, resources: Resources) -> list[str]:
    """Return shell lines that make Python import the snapshot, whatever is in the working folder."""
    path = f'export PYTHONPATH={shlex.quote(code)}"${{PYTHONPATH:+:$PYTHONPATH}}"'
    threads = f'export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-{resources.cpus}}}"'
    return ["export PYTHONSAFEPATH=1", path, *([threads] if resources.cpus else [])]


def _conditions(
    array: Array, arrays: Sequence[Array], ids: Mapping[int, str], awaited: Mapping[str, str], dependency: str
) -> list[str]:
    if array.like is not None:
        return [f"aftercorr:{ids[arrays[array.like].jobs[0]].partition('_')[0]}"]
    found = [*(ids[n] for n in array.needs), *(awaited[stage] for stage in array.awaited)]
    return [f"{dependency}:{':'.join(dict.fromkeys(found))}"] if found else []


@contextlib.contextmanager
def _without_slurm_variables() -> Iterator[None]:
    """Hide the variables of a job that this process runs in from the jobs it submits."""
    if "SLURM_JOB_ID" not in os.environ:
        yield
        return
    configuration = os.environ.get("SLURM_CONF")
    with clean_env():
        if configuration:
            os.environ["SLURM_CONF"] = configuration
        yield
