"""Parameters of a Kubeflow pipeline run, and the command line and the RayJob of each stage.

The components in k8s/kubeflow use this module, and `pipeline.kubeflow_steps.logged_results` for the results to show.
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
    "search": ("tune/search.py", RunSettings),  # the step adds the study's own flags
}
READS_RECORDINGS = {"prepare", "report", "search"}


@dataclass(frozen=True)
class Plan:
    """Parameters that all steps of a pipeline run share."""

    recipe: str
    """Name of a packaged recipe, or path of a TOML file on the machines of the stages."""
    data_source: str
    """Folder of the recordings on the machines of the stages."""
    run_dir: str
    """Folder of the run on the machines of the stages; absolute on a cluster."""
    tracking: str
    """MLflow tracking URI for the stages and the steps."""
    experiment: str
    """Name of the MLflow experiment; "" for the recipe's name."""
    model_name: str
    """Name of the model in the registry; "" for `ast-RECIPE`."""
    workers: int
    """Number of worker processes of a stage; 0 for one a GPU or core."""
    changes: Mapping[str, Any]
    """New values of keys of the recipe or of a stage's settings, as `{"optim.epochs": 10, "bootstrap": 1000}`."""
    ray_cluster: str
    """Name of the RayCluster that runs the jobs; "" to run the stages on this machine."""
    ray_job: str
    """RayJob template that each step fills in, as JSON of k8s/jobs/train.yaml."""

    @classmethod
    def load(cls, text: str) -> Plan:
        """Read a plan from the text that `to_json` wrote."""
        return cls(**json.loads(text))

    def to_json(self) -> str:
        """Return the plan as JSON text, in which Kubeflow does not turn integers into floats."""
        return json.dumps(dataclasses.asdict(self))

    def resolve(self) -> Plan:
        """Check the plan and return it with empty names filled in.

        Raises:
            UserError: no stage takes a change, a folder is not an absolute path on a cluster, or `tracking` holds a
                password, which the cluster would show.
        """
        require(
            not (self.ray_cluster and holds_secret(self.tracking)),
            "tracking holds a password, which Kubernetes and Kubeflow would show. Give the address alone, and "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD from a secret in the pods' environment.",
        )
        known = set().union(*(_setting_names(stage) for stage in STAGES))
        unknown = [key for key in self.changes if key.partition(".")[0] not in known]
        require(
            not unknown,
            f"changes holds {', '.join(unknown)}, which no stage takes. Begin each key with one of "
            f"{', '.join(sorted(known))}.",
        )
        for name in () if not self.ray_cluster else ("data_source", "run_dir"):
            value = getattr(self, name)
            require(
                value.startswith("/"), f"{name} is {value!r}; on a cluster, set it to an absolute path of a volume."
            )
        stem = Path(self.recipe).stem
        return dataclasses.replace(
            self,
            run_dir=str(Path(self.run_dir).absolute()),
            experiment=self.experiment or stem,
            model_name=self.model_name or f"ast-{stem.replace('_', '-')}",  # same as the stages' default
        )


def stage_flags(plan: Plan, stage: str, own: Sequence[str] = ()) -> list[str]:
    """Return a stage's flags; the plan's changes for this stage come last, so that they win."""
    flags = ["--recipe", plan.recipe, "--run-dir", plan.run_dir, "--tracking", plan.tracking]
    flags += ["--experiment", plan.experiment]
    flags += ["--address", "auto"] if plan.ray_cluster else []
    flags += ["--workers", str(plan.workers)] if plan.workers else []
    flags += ["--gpus", "yes"] if plan.ray_cluster and "gpus" in _setting_names(stage) else []
    flags += ["--data.source", plan.data_source] if stage in READS_RECORDINGS else []
    flags += ["--model-name", plan.model_name] if stage == "register" else []
    taken = _setting_names(stage)
    changes = [(key, _restore_integers(value)) for key, value in plan.changes.items() if key.partition(".")[0] in taken]
    return [*flags, *own, *(flag for key, value in changes for flag in to_flags(nest_key(key, value)))]


def _setting_names(stage: str) -> set[str]:
    """Return the names of the settings that a stage takes."""
    return {field.name for field in dataclasses.fields(STAGES[stage][1])}


def _restore_integers(value: Any) -> Any:
    """Turn floats such as 10.0 into integers, because Kubeflow makes all numbers floats."""
    if isinstance(value, list):
        return [_restore_integers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def ray_job(plan: Plan, stage: str, own: Sequence[str] = ()) -> dict[str, Any]:
    """Return the RayJob of a stage: the plan's template with name, cluster and command.

    KubeRay gives the submitter the token of the cluster. A template of the user may name the token's secret itself.
    """
    manifest: dict[str, Any] = json.loads(plan.ray_job)
    manifest["metadata"] = {"generateName": f"pipeline-{stage}-", "namespace": manifest["metadata"]["namespace"]}
    manifest["spec"]["clusterSelector"] = {"ray.io/cluster": plan.ray_cluster}
    for variable in manifest["spec"]["submitterPodTemplate"]["spec"]["containers"][0].get("env", []):
        if "secretKeyRef" in variable.get("valueFrom", {}):  # KubeRay names the secret of Ray's token after the cluster
            variable["valueFrom"]["secretKeyRef"]["name"] = plan.ray_cluster
    manifest["spec"]["entrypoint"] = shlex.join(["python", STAGES[stage][0], *stage_flags(plan, stage, own)])
    return manifest
