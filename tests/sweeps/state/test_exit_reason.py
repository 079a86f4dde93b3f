"""How Slurm ended a job, by what it writes into the log."""

import time
from datetime import datetime

import pytest

from sweeps.state.exit_reason import log_end
from tests.sweeps.by_hand import ByHand, running

SHARED = ["base/m", "data/d", "sft/s"]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("slurmstepd: error: *** JOB 7 ON node1 CANCELLED AT 2026-11-21T18:01:00 ***", ("CANCELLED", "")),
        (
            "slurmstepd: error: *** JOB 7 ON node1 CANCELLED AT 2026-11-21T18:01:00 DUE TO TIME LIMIT ***",
            ("TIMEOUT", ""),
        ),
        (
            "slurmstepd: error: *** JOB 7 ON node1 CANCELLED AT 2026-11-21T18:01:00 DUE TO NODE FAILURE ***",
            ("NODE_FAIL", ""),
        ),
        (
            "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0.",
            ("", "Detected 1 oom_kill event in StepId=7.0."),
        ),
        ("srun: error: node1: task 0: Killed", ("", "node1: task 0: Killed")),
        (
            "slurmstepd-node1: error: *** STEP 1.0 ON node1 CANCELLED AT 2026-11-21T18:01:00 ***\n"
            "srun: error: node1: task 0: Terminated",
            ("CANCELLED", ""),
        ),
        (
            "srun: error: node1: task 1: Killed\nsrun: launch/slurm: _step_signal: Terminating StepId=1.0\n"
            "slurmstepd-node1: error: *** STEP 1.0 ON node1 CANCELLED AT 2026-11-21T18:01:00 ***",
            ("", "node1: task 1: Killed"),
        ),
    ],
)
def test_what_slurm_writes_into_a_log_when_it_ends_a_job(hand: ByHand, line: str, found: tuple[str, str]) -> None:
    folder = hand.launch("study", [{"stages": SHARED, "slurm": "7"}])
    after = "launch/slurm: _step_signal: Terminating StepId=7.0\nsrun: Force Terminated StepId=7.0\n"
    (folder.logs / "7_0_log.err").write_text(f"step 1\n{line}\n{after}")
    assert log_end(folder, folder.jobs()[0], None) == found


def test_how_slurm_ended_an_earlier_run_of_a_job_is_not_its_end(hand: ByHand) -> None:
    folder = hand.launch("study", [{"stages": SHARED, "slurm": "7"}])
    ended = datetime.fromtimestamp(time.time() - 3600).isoformat(timespec="seconds")
    log = f"slurmstepd: error: *** JOB 7 ON node1 CANCELLED AT {ended} DUE TO PREEMPTION ***\nloading\n"
    (folder.logs / "7_0_log.err").write_text(log)
    assert log_end(folder, folder.jobs()[0], running("base/m")) == ("", "loading")
