"""Many clips need no more memory than few, and many clients get correct answers. Measured with the benchmarks."""

from __future__ import annotations

import itertools
import tracemalloc
from pathlib import Path

import load_clips
import load_serving
import numpy as np
import pytest

from ast_core.training.order import clip_weights

FLAT = 1.25
"""Growth of memory, as a factor, that still counts as none."""


@pytest.mark.timeout(3600)
def test_ten_times_the_clips_need_no_more_memory(ray_session: None, tmp_path: Path, many, measured) -> None:
    loads = []
    few, most = many(100, 2_000), many(1_000, 20_000)
    for clips in (few, most):
        folder = tmp_path / str(clips)
        broken = load_clips.make_clips(folder / "audio", clips)
        loads.append(load_clips.prepare_clips(folder / "audio", folder / "run", clips, broken))
        if many(False, True):  # the start of a training takes longer than all the rest of the short form
            loads.append(load_clips.train_on_clips(folder / "run"))
    for load in loads:
        measured(
            "Load", stage=load.stage, clips=load.clips, clips_per_s=load.clips / load.seconds,
            driver_mb=load.peak.driver, heaviest_worker_mb=load.peak.worker, all_processes_mb=load.peak.tree,
            shared_mb=load.peak.shared, object_store_mb=load.peak.objects,
        )  # fmt: skip
        assert load.objects_left_mb < 1
    for stage in dict.fromkeys(load.stage for load in loads):
        own = [load for load in loads if load.stage == stage]
        for before, load in itertools.pairwise(own):
            times = load_clips.growth(before, load)
            measured("Load", stage=stage, **{f"times {name}": value for name, value in times.items()})
            assert max(times.values()) < FLAT


@pytest.mark.timeout(60)
def test_class_balanced_weights_need_no_memory_of_the_labels_size(measured) -> None:
    labels_NC = np.zeros((200_000, 527), np.uint8)
    labels_NC[np.arange(len(labels_NC)), np.arange(len(labels_NC)) % 527] = 1
    tracemalloc.start()
    weight_N = clip_weights(labels_NC)
    peak_mb = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    measured("Load", weighted_clips=len(labels_NC), mb_for_it=peak_mb, mb_of_labels=labels_NC.nbytes / 2**20)
    assert len(weight_N) == len(labels_NC)
    assert peak_mb < labels_NC.nbytes / 2**20


@pytest.mark.server
@pytest.mark.timeout(900)
def test_parallel_clients_get_the_bundles_own_answers(
    tmp_path: Path, new_store, many, measured, fault_seed: int
) -> None:
    seconds, clients = many(3, 300), many(16, 64)
    store = new_store(tmp_path)
    asked = load_serving.make_questions(load_serving.register_model(tmp_path / "bundle", store), fault_seed)
    with load_serving.serve(store, tmp_path) as (port, server):
        seen = load_serving.ask(port, server, asked, clients, seconds)
    figures = load_serving.figures(seen, seconds)
    measured("Load", clients=clients, seconds=seconds, **figures)
    assert seen.errors == []
    assert figures["requests"] > clients
    assert seen.refused > 0
    assert figures["server_mb_at_last"] < FLAT * figures["server_mb_warm"]
    assert figures["files_after"] <= figures["files_before"] + 2
