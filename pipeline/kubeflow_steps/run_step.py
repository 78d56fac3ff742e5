"""Run one step of a Kubeflow pipeline, on a cluster or on this machine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from ast_core.errors import require
from pipeline.cli.sigterm import EXIT_LIMIT_S, exit_on_sigterm
from pipeline.kubeflow_steps.plan import ROOT, STAGES, Plan, ray_job, stage_flags

STOP_S = 30.0
"""Seconds that a stage on this machine has to end after SIGTERM; then it is killed."""


def run_step(plan: Plan, stage: str, own: Sequence[str] = ()) -> None:
    """Run a stage to its end, on the plan's cluster or on this machine.

    Args:
        plan: parameters of the pipeline run.
        stage: a key of `STAGES`.
        own: extra flags of this step, such as a member's seed.

    Raises:
        UserError: the stage failed; the message holds the stage's own.
    """
    if plan.ray_cluster:
        from pipeline.kubeflow_steps.ray_job import run_ray_job  # noqa: PLC0415 - the Kubernetes client takes seconds to import

        run_ray_job(ray_job(plan, stage, own))
    else:
        _run_process([sys.executable, str(ROOT / STAGES[stage][0]), *stage_flags(plan, stage, own)], stage)


def _run_process(command: Sequence[str], stage: str) -> None:
    """Run a process and print its output; raise UserError with its last line if it fails."""
    last = ""
    with (
        exit_on_sigterm(STOP_S + EXIT_LIMIT_S),
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process,
    ):
        try:
            for line in process.stdout or ():
                print(line, end="", flush=True)
                last = line.strip() or last
        except BaseException:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
    require(process.returncode == 0, f"{stage} failed (exit code {process.returncode}): {last}")
