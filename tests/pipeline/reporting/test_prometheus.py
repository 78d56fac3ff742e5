"""The metrics that Prometheus scrapes while a training runs and loses a worker, compared with the dashboard."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from clusters import Cluster
from launches import ROOT, STEPS_AN_EPOCH, has_epoch, training_flags, wait_until
from prepared import write_shards
from ray.dashboard.modules.reporter import reporter_agent

from pipeline.reporting import prometheus

EPOCHS = 16
GPU_METRICS = {"ray_node_gpus_utilization", "ray_node_gram_used"}
"""The metrics that are exported only on a machine with a GPU."""


def read_dashboard_metrics() -> set[str]:
    """Return the metrics in the queries of all panels."""
    dashboard = json.loads((ROOT / "k8s" / "monitoring" / "dashboard.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    queries += [variable["definition"] for variable in dashboard["templating"]["list"] if "definition" in variable]
    return {name for query in queries for name in re.findall(r"\bray_\w+", query)}


def find_samples(scrape: str, name: str) -> list[tuple[dict[str, str], float]]:
    """Return labels and value of each sample of a metric."""
    found = re.findall(rf"^{name}\{{(.*)\}} (\S+)$", scrape, re.MULTILINE)
    return [(dict(re.findall(r'(\w+)="([^"]*)"', labels)), float(value)) for labels, value in found]


@pytest.fixture
def folder(tmp_path: Path, save_tone: Callable[..., Path], new_store: Callable[[Path], str]) -> Path:
    new_store(tmp_path)
    write_shards(tmp_path / "shards", {"train": 42, "test": 21})
    for split in ("train", "test"):
        for number in range(6):
            save_tone(tmp_path / "audio" / split / ("low", "high")[number % 2] / f"{number}.wav", seed=number)
    (tmp_path / "audio" / "test" / "low" / "broken.wav").write_bytes(b"RIFF")
    return tmp_path


def launch(folder: Path, cluster: Cluster, program: str, flags: list[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(ROOT / "pipeline" / program), *flags, "--address", cluster.address]
    with (folder / f"{program}.log").open("wb") as log:
        return subprocess.Popen(command, cwd=folder, env=cluster.environment(), stdout=log, stderr=log)


def test_each_metric_of_ours_on_the_dashboard_is_exported() -> None:
    source = Path(prometheus.__file__).read_text()
    exported = {f"ray_{name}" for name in re.findall(r'"(ast_\w+)"', source)}
    shown = {name for name in read_dashboard_metrics() if name.startswith("ray_ast_")}
    assert shown
    assert {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in shown} <= exported


@pytest.mark.long  # the test above covers the names
@pytest.mark.timeout(500)
def test_each_metric_of_the_dashboard_is_scraped(folder: Path, ray_cluster: Cluster) -> None:
    seen: list[str] = []

    def scrape(driver: subprocess.Popen[bytes]) -> bool:
        seen.append(ray_cluster.scrape())
        return driver.poll() is not None

    flags = ["--recipe", "own", "--data.source", str(folder / "audio"), "--run-dir", str(folder / "prepared")]
    flags += ["--data.test-split", "test", "--data.validation-split", "", "--prepare.max-reject-share", "0.5"]
    preparing = launch(folder, ray_cluster, "prepare.py", flags)
    wait_until(lambda: scrape(preparing), lambda: True)
    assert preparing.returncode == 0, (folder / "prepare.py.log").read_text()
    member = folder / "seen" / "members" / "seed-0"
    training = launch(folder, ray_cluster, "train.py", training_flags(folder, "seen", EPOCHS))
    wait_until(lambda: has_epoch(member, 2), lambda: training.poll() is None)
    _find_workers(ray_cluster)[0].kill()
    wait_until(lambda: scrape(training), lambda: True)
    output = (folder / "train.py.log").read_text()
    assert training.returncode == 0, output
    assert "Workers were lost" in output
    text = "".join(seen)
    names = set(re.findall(r"^(ray_\w+)\{", text, re.MULTILINE))
    assert read_dashboard_metrics() - names - GPU_METRICS == set()
    exported = {f"ray_{gauge}" for gauge in reporter_agent.METRICS_GAUGES}
    assert read_dashboard_metrics() & GPU_METRICS <= exported
    _check_labels(text, folder)


def _find_workers(cluster: Cluster) -> list[psutil.Process]:
    processes = [child for raylet in cluster.raylets() for child in raylet.children(recursive=True)]
    return [process for process in processes if "RayTrainWorker" in " ".join(process.cmdline())]


def _check_labels(text: str, folder: Path) -> None:
    own = {"run": str(folder / "seen"), "member": "seed-0"}
    steps = [(labels, value) for labels, value in find_samples(text, "ray_ast_step") if own.items() <= labels.items()]
    assert {labels["rank"] for labels, _ in steps} == {"0", "1"}
    assert 0 < max(value for _, value in steps) <= STEPS_AN_EPOCH * EPOCHS
    restarts = [value for labels, value in find_samples(text, "ray_ast_restarts_total") if labels["run"] == own["run"]]
    assert max(restarts) == 1
    prepared: dict[str, float] = {}
    for labels, value in find_samples(text, "ray_ast_clips_prepared_total"):
        if labels["run"] == str(folder / "prepared"):
            prepared[labels["outcome"]] = max(value, prepared.get(labels["outcome"], 0))
    assert prepared == {"kept": 12, "rejected": 1}
