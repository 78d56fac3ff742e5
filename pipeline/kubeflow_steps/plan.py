"""A step of a Kubeflow pipeline: one stage, run as a process here or as a RayJob on a cluster.

The components in k8s/kubeflow call this, and `pipeline.kubeflow_steps.logged_results` for what they show.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ast_core.errors import require
from ast_core.redaction import holds_secret
from pipeline.cli.recipe_file import nest_key, to_flags
from pipeline.cli.stages import (
    CalibrateSettings,
    CombineSettings,
    Common,
    EvaluateSettings,
    PrepareSettings,
    RegisterSettings,
    ReportSettings,
    RunSettings,
    TrainSettings,
)

ROOT = Path(__file__).resolve().parents[2]
STAGES: dict[str, tuple[str, type[Common]]] = {
    "prepare": ("pipeline/prepare.py", PrepareSettings),
    "train": ("pipeline/train.py", TrainSettings),
    "combine": ("pipeline/combine.py", CombineSettings),
    "evaluate": ("pipeline/evaluate.py", EvaluateSettings),
    "calibrate": ("pipeline/calibrate.py", CalibrateSettings),
    "register": ("pipeline/register.py", RegisterSettings),
    "report": ("pipeline/report.py", ReportSettings),
    "search": ("tune/search.py", RunSettings),  # and what a study adds, which the steps give
}
READS_RECORDINGS = {"prepare", "report", "search"}


@dataclass(frozen=True)
class Plan:
    """What all steps of a pipeline's run share."""

    recipe: str
    """A packaged recipe's name, or a TOML file where the stages run."""
    data_source: str
    """The recordings' folder where the stages run."""
    run_dir: str
    """The run's folder where the stages run; absolute on a cluster."""
    tracking: str
    """MLflow's URI, for the stages and for the steps."""
    experiment: str
    """MLflow experiment; the recipe's name if empty."""
    model_name: str
    """Name in the registry; `ast-RECIPE` if empty."""
    workers: int
    """Worker processes of a stage; 0 for one a GPU or core."""
    changes: Mapping[str, Any]
    """Keys of the recipe, or of some stages' settings, with other values: `{"optim.epochs": 10, "bootstrap": 1000}`."""
    ray_cluster: str
    """The RayCluster that takes the jobs; "" runs the stages here."""
    ray_job: str
    """The RayJob that each step fills in, as JSON: k8s/jobs/train.yaml."""

    @classmethod
    def load(cls, text: str) -> Plan:
        """From what `dumped` gave."""
        return cls(**json.loads(text))

    def dumped(self) -> str:
        """As JSON, which keeps integers through Kubeflow."""
        return json.dumps(dataclasses.asdict(self))

    def settled(self) -> Plan:
        """With empty names filled in, and checked.

        Raises:
            UserError: a change that no stage takes, a folder that the cluster cannot find, or a password in what a
                cluster shows.
        """
        require(
            not (self.ray_cluster and holds_secret(self.tracking)),
            "tracking holds a password, which Kubernetes and Kubeflow would show. Give the address alone, and "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD from a secret in the pods' environment.",
        )
        known = set().union(*(_sections(stage) for stage in STAGES))
        unknown = [key for key in self.changes if key.partition(".")[0] not in known]
        require(
            not unknown, f"No stage takes {', '.join(unknown)}; changes begin with one of {', '.join(sorted(known))}."
        )
        for name in () if not self.ray_cluster else ("data_source", "run_dir"):
            value = getattr(self, name)
            require(value.startswith("/"), f"{name} is {value!r}; on a cluster give an absolute path of its volumes.")
        stem = Path(self.recipe).stem
        return dataclasses.replace(
            self,
            run_dir=str(Path(self.run_dir).absolute()),
            experiment=self.experiment or stem,
            model_name=self.model_name or f"ast-{stem.replace('_', '-')}",  # as the stages name it
        )


def stage_flags(plan: Plan, stage: str, own: Sequence[str] = ()) -> list[str]:
    """A stage's command line without the program; changes to what this stage takes last, so that they win."""
    flags = ["--recipe", plan.recipe, "--run-dir", plan.run_dir, "--tracking", plan.tracking]
    flags += ["--experiment", plan.experiment]
    flags += ["--address", "auto"] if plan.ray_cluster else []
    flags += ["--workers", str(plan.workers)] if plan.workers else []
    flags += ["--data.source", plan.data_source] if stage in READS_RECORDINGS else []
    flags += ["--model-name", plan.model_name] if stage == "register" else []
    taken = _sections(stage)
    changes = [(key, _plain(value)) for key, value in plan.changes.items() if key.partition(".")[0] in taken]
    return [*flags, *own, *(flag for key, value in changes for flag in to_flags(nest_key(key, value)))]


def _sections(stage: str) -> set[str]:
    return {field.name for field in dataclasses.fields(STAGES[stage][1])}


def _plain(value: Any) -> Any:
    """Kubeflow's numbers are floats: 10.0 is 10 again."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def ray_job(plan: Plan, stage: str, own: Sequence[str] = ()) -> dict[str, Any]:
    """The RayJob of a stage: the plan's, with a name, the cluster and the command."""
    manifest: dict[str, Any] = json.loads(plan.ray_job)
    manifest["metadata"] = {"generateName": f"pipeline-{stage}-", "namespace": manifest["metadata"]["namespace"]}
    manifest["spec"]["clusterSelector"] = {"ray.io/cluster": plan.ray_cluster}
    for variable in manifest["spec"]["submitterPodTemplate"]["spec"]["containers"][0]["env"]:
        if "secretKeyRef" in variable.get("valueFrom", {}):  # Ray's token: KubeRay names it after the cluster
            variable["valueFrom"]["secretKeyRef"]["name"] = plan.ray_cluster
    manifest["spec"]["entrypoint"] = shlex.join(["python", STAGES[stage][0], *stage_flags(plan, stage, own)])
    return manifest
