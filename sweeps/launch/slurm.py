"""Submitting jobs to Slurm through submitit."""

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


class Submission:
    """Submits the jobs of one launch, which run the code of a snapshot."""

    def __init__(self, launcher: Slurm, folder: Folder, code: Path) -> None:
        self.launcher, self.folder, self.code = launcher, folder, code

    def submit(self, calls: Sequence[Any], resources: Resources, name: str, dependency: str | None = None) -> list[str]:
        """Submit picklable calls (see SlurmJob) as one array, or a single one as a job; return their Slurm ids.

        Raises UserError with Slurm's message.
        """
        executor = _executor(self.folder.logs)
        parameters = self._parameters(resources) | {"job_name": name, "dependency": dependency}
        executor.update_parameters(**parameters, array_parallelism=len(calls))
        try:
            with _without_slurm_variables(), contextlib.redirect_stderr(io.StringIO()):  # it prints its errors too
                return [job.job_id for job in executor.submit_array(list(calls))]
        except (FailedJobError, FailedSubmissionError, OSError) as error:
            messages = [line.rpartition("error:")[2].strip() for line in str(error).splitlines() if "error:" in line]
            raise UserError(
                f"Slurm rejected the submission: {messages[-1] if messages else error}. Earlier submissions stay; "
                "rerun the same command to continue."
            ) from error

    def _parameters(self, resources: Resources) -> dict[str, Any]:
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
            "signal_delay_s": self.launcher.signal_seconds,
            "setup": [*self.launcher.setup, *self._exports(resources)],
            "srun_args": srun,
            "comment": self.folder.id,
            "wckey": None,
            "additional_parameters": {"requeue": True, "kill-on-invalid-dep": "yes"} | _options(resources),
        }

    def _exports(self, resources: Resources) -> list[str]:
        """Return shell lines that make Python import the snapshot, whatever is in the working folder."""
        lines = [
            "export PYTHONSAFEPATH=1",
            f'export PYTHONPATH={shlex.quote(str(self.code))}"${{PYTHONPATH:+:$PYTHONPATH}}"',
        ]
        if resources.cpus:
            lines.append(f'export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-{resources.cpus}}}"')
        return lines


def submit_jobs(
    submission: Submission, study: str, jobs: Sequence[Job], calls: Sequence[Any], awaited: Mapping[str, str]
) -> Iterator[dict[int, str]]:
    """Submit jobs, yielding the Slurm ids of each array as soon as it is queued.

    `calls` is what each job runs; `awaited` maps stages to the Slurm ids of jobs of other launches that compute them.
    At most `max_parallel` jobs of the study, earlier launches included, run at once: each job gets one of as many names
    with the dependency `singleton`.
    """
    limit = submission.launcher.max_parallel
    name = re.sub(r"[^\w.=-]+", "_", study) or "iris"
    if limit is None:
        arrays = make_arrays(jobs, slurm_cli.max_array_size())
        lane: list[str | None] = [None] * len(jobs)
    else:
        arrays = [Array([n], None, job.needs, job.awaited) for n, job in enumerate(jobs)]
        store = hashlib.sha256(str(submission.folder.path.parent).encode()).hexdigest()[:8]
        lane = [f"{name}.{store}.{k}" for k in lanes(jobs, limit)]
    ids: dict[int, str] = {}
    for array in arrays:
        first = array.jobs[0]
        conditions = _conditions(array, arrays, ids, awaited, jobs[first].dependency)
        conditions += ["singleton"] * (lane[first] is not None)
        found = submission.submit(
            [calls[n] for n in array.jobs], jobs[first].resources, lane[first] or name, ",".join(conditions) or None
        )
        new = dict(zip(array.jobs, found, strict=True))
        ids |= new
        yield new


def _conditions(
    array: Array, arrays: Sequence[Array], ids: Mapping[int, str], awaited: Mapping[str, str], dependency: str
) -> list[str]:
    if array.like is not None:
        return [f"aftercorr:{ids[arrays[array.like].jobs[0]].partition('_')[0]}"]
    found = [*(ids[n] for n in array.needs), *(awaited[stage] for stage in array.awaited)]
    return [f"{dependency}:{':'.join(dict.fromkeys(found))}"] if found else []


def _executor(logs: Path) -> SlurmExecutor:
    """Return a new executor: submitit delays the later submissions of a used one."""
    try:
        return SlurmExecutor(logs, max_num_timeout=_TIMEOUTS)
    except RuntimeError as error:
        raise slurm_cli.missing("srun") from error


def _options(resources: Resources) -> dict[str, Any]:
    return {str(k).replace("_", "-"): value for k, value in resources.sbatch.items() if value not in (None, False)}


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
