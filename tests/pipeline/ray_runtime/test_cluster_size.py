"""How many workers a stage starts on a cluster that can grow, and what `--gpus yes` says where it cannot."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import ray
from ray._raylet import GCS_AUTOSCALER_CLUSTER_CONFIG_KEY, GCS_AUTOSCALER_STATE_NAMESPACE
from ray.core.generated.autoscaler_pb2 import ClusterConfig, NodeGroupConfig
from ray.experimental import internal_kv
from ray.train import TrainingFailedError

from ast_core.errors import UserError
from pipeline.ray_runtime import cluster_size, connection, internals, training_supervisor
from pipeline.ray_runtime.internals import AutoscalerReport
from tune.trial_queue import Room

FIXED = AutoscalerReport(1.0, (), True)
GROWING = AutoscalerReport(1.0, (), False)
SetCluster = Callable[..., None]


@pytest.fixture
def set_cluster(monkeypatch: pytest.MonkeyPatch) -> SetCluster:
    """Return a function that says which GPUs and CPUs are alive, what Ray reports, and what the autoscaler does."""

    def set_it(gpus: int, cpus: int = 4, maximum: int = 0, report: AutoscalerReport | None = FIXED) -> None:
        alive = {"GPU": float(gpus), "CPU": float(cpus)} if gpus else {"CPU": float(cpus)}
        monkeypatch.setattr(ray, "cluster_resources", lambda: alive)
        monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True}] * 3)
        monkeypatch.setattr(internals, "reported_maximum", lambda name: maximum if name == "GPU" else 0)
        monkeypatch.setattr(internals, "autoscaler_report", lambda: report)
        monkeypatch.setattr(internals, "started_here", lambda: False)

    monkeypatch.setattr(cluster_size.torch.version, "cuda", "13.0")
    return set_it


@pytest.mark.parametrize(
    ("gpus", "alive", "maximum", "uses", "workers"),
    [
        ("auto", 8, 0, True, 8),
        ("auto", 0, 0, False, 4),
        ("auto", 0, 16, False, 4),  # as before there was --gpus: no node that is alive has a GPU
        ("yes", 8, 0, True, 8),
        ("yes", 0, 16, True, 16),
        ("yes", 8, 16, True, 16),
        ("no", 8, 16, False, 4),
    ],
)
def test_workers_come_from_the_nodes_that_are_alive_or_may_start(
    set_cluster: SetCluster, gpus: cluster_size.Gpus, alive: int, maximum: int, uses: bool, workers: int
) -> None:
    set_cluster(alive, maximum=maximum, report=GROWING)
    assert cluster_size.uses_gpu(gpus) is uses
    assert cluster_size.worker_count(0, gpus) == cluster_size.room(gpus) == workers
    assert cluster_size.worker_count(3, gpus) == 3
    assert 12 % cluster_size.worker_count(0, gpus, 12) == 0


def test_number_of_workers_must_be_given_where_ray_reports_no_maximum(set_cluster: SetCluster) -> None:
    set_cluster(0, report=GROWING)
    with pytest.raises(UserError, match=r"--gpus yes needs --workers on this cluster: .*Set --workers to"):
        cluster_size.worker_count(0, "yes")
    assert cluster_size.worker_count(6, "yes", 12) == 6


def test_one_trial_more_than_has_room_asks_an_autoscaler_for_the_next_node(set_cluster: SetCluster) -> None:
    room = None
    for alive, maximum, report, trials in (
        (0, 0, GROWING, 1), (8, 0, GROWING, 5), (16, 0, GROWING, 9), (0, 16, GROWING, 8), (8, 0, FIXED, 4),
    ):  # fmt: skip
        set_cluster(alive, maximum=maximum, report=report)
        room = room or Room("yes", 2)
        room._looked_s = 0.0
        assert room.trials() == trials, (alive, maximum)


@pytest.mark.parametrize(
    ("alive", "maximum", "report", "count", "message"),
    [
        (
            0,
            0,
            FIXED,
            1,
            "asks for 1 GPU, but the 3 nodes of .* have none, and no autoscaler .* --gpus no",
        ),
        (2, 0, FIXED, 6, "asks for 6 GPUs, but .* have 2, and no autoscaler could start .* Set --workers to 2"),
        (0, 4, GROWING, 6, "asks for 6 GPUs, but .* have none and the autoscaler starts 4 at most. Set --workers to 4"),
    ],
)
def test_gpus_that_can_never_come_are_an_error_at_once(
    set_cluster: SetCluster, alive: int, maximum: int, report: AutoscalerReport, count: int, message: str
) -> None:
    set_cluster(alive, maximum=maximum, report=report)
    with pytest.raises(UserError, match=message):
        cluster_size.GpuWait(count)
    cluster_size.require_gpus("auto", count)
    cluster_size.require_gpus("no", count)


def test_wait_says_what_it_waits_for_and_ends_if_no_node_starts(
    set_cluster: SetCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock, updates = itertools.count(0.0, 10.0), itertools.count(1.0)
    set_cluster(0, report=GROWING)
    monkeypatch.setattr(cluster_size.time, "monotonic", lambda: next(clock))
    wait = cluster_size.GpuWait(2)

    def look(*starting: str, times: int = 1) -> str:
        for _ in range(times):
            report = AutoscalerReport(next(updates), starting, False)
            monkeypatch.setattr(internals, "autoscaler_report", lambda report=report: report)
            wait.look()
        return capsys.readouterr().err

    assert "Waiting for 2 GPUs since 10 s: the cluster has 0, the autoscaler starts gpu." in look("gpu")
    assert look("gpu", times=100).count("Waiting for 2 GPUs") == 33  # every half a minute, without end
    monkeypatch.setattr(internals, "autoscaler_report", lambda: None)
    for _ in range(100):  # an autoscaler that does not answer may still come back
        wait.look()
    look(times=10)
    with pytest.raises(UserError, match=r"for 2 GPUs at the same time, the cluster has 0, .*no node for 120 s"):
        look(times=20)


@pytest.mark.parametrize("words", training_supervisor.NO_DEVICE)
def test_node_whose_gpu_torch_does_not_find_is_named_and_not_tried_again(words: str) -> None:
    error = TrainingFailedError(f"ray::execute._setup() (pid=7, ip=10.0.0.3, actor_id=9c)\nValueError: {words}!")
    with pytest.raises(UserError, match=r"on a GPU of 10\.0\.0\.3, but torch finds no GPU there\. Check .*--gpus no"):
        training_supervisor._require_device(error)
    training_supervisor._require_device(TrainingFailedError("a worker died"))


def test_ray_of_this_machine_has_no_autoscaler_and_refuses_at_once(ray_session: None) -> None:
    if ray.cluster_resources().get("GPU"):
        pytest.skip("this machine has a GPU")
    with (
        pytest.raises(UserError, match="--gpus yes asks for 1 GPU, but this machine has none, and no autoscaler"),
        connection.connect("", 1, "yes"),
    ):
        pass


def test_maximum_is_what_ray_reports_of_the_cluster(ray_session: None) -> None:
    assert internals.reported_maximum("GPU") == 0
    key, namespace = GCS_AUTOSCALER_CLUSTER_CONFIG_KEY.encode(), GCS_AUTOSCALER_STATE_NAMESPACE.encode()
    group = NodeGroupConfig(name="gpu", resources={"GPU": 8, "CPU": 64}, max_count=3)
    config = ClusterConfig(node_group_configs=[group], max_resources={"GPU": 24})
    internal_kv._internal_kv_put(key, config.SerializeToString(), namespace=namespace)
    try:
        assert internals.reported_maximum("GPU") == 24
    finally:
        internal_kv._internal_kv_del(key, namespace=namespace)
