"""R15, R16: any number of clips trains on one to four ranks, with equal steps on each; properties of the order."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from forked_trainings import job_in, running
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from ast_core.config import Job, Sampler
from ast_core.evaluation import metrics
from ast_core.model.loss import probabilities
from ast_core.model.transformer import AST
from ast_core.shards.reader import ShardReader
from ast_core.training.batches import read_batch
from ast_core.training.order import clip_weights, epoch_order, evaluation_share, rank_steps, steps_per_epoch

BATCH = 12
"""Batch size that one, two, three and four ranks can share."""
SHORT = [(1, 1, 1), (2, 1, 1), (3, 2, 2), (4, 3, 1), (4, 13, 5), (3, 25, 7)]
"""Ranks, clips and held-out clips; fewer clips than ranks, than a share, than a batch, and one more than a batch."""
LONG = [
    (world, clips, held_out) for world in (1, 2, 3, 4) for clips in (1, 2, 3, 5, 12, 13, 24, 25) for held_out in (1, 6)
]

worlds = st.integers(1, 4)
sizes = st.integers(1, 200)
shares = st.integers(1, 5)
samplers: st.SearchStrategy[Sampler] = st.sampled_from(["shuffle", "balanced"])


def global_batches(clips: int, batch: int, world: int, first: int = 0) -> list[list[int]]:
    """Return the positions of each step over all ranks, in the order of the ranks."""
    ranks = [list(rank_steps(clips, batch, rank, world, first)) for rank in range(world)]
    assert {len(steps) for steps in ranks} == {max(0, steps_per_epoch(clips, batch) - first)}
    return [np.concatenate(parts).tolist() for parts in zip(*ranks, strict=True)]


@given(clips=sizes, seed=st.integers(0, 9), epoch=st.integers(1, 9))
def test_shuffle_is_a_permutation_and_repeats(clips, seed, epoch):
    labels = np.ones((clips, 2), np.float32)
    order = epoch_order("shuffle", labels, seed, epoch)
    assert sorted(order) == list(range(clips))
    assert (order == epoch_order("shuffle", labels, seed, epoch)).all()


@given(clips=sizes, sampler=samplers, seed=st.integers(0, 9), epoch=st.integers(1, 9))
def test_any_order_holds_existing_clips_only_and_repeats(clips, sampler, seed, epoch):
    labels = np.eye(3, dtype=np.float32)[np.arange(clips) % 3]
    order = epoch_order(sampler, labels, seed, epoch)
    assert len(order) == clips
    assert set(order.tolist()) <= set(range(clips))
    assert (order == epoch_order(sampler, labels, seed, epoch)).all()


@given(clips=sizes, share=shares, world=worlds)
def test_every_rank_has_the_same_steps_and_batches_do_not_depend_on_world(clips, share, world):
    batch = share * BATCH
    whole = global_batches(clips, batch, world)
    assert whole == global_batches(clips, batch, 1)
    flat = [position for positions in whole for position in positions]
    assert flat == list(range(len(whole) * batch))  # ranks are disjoint and cover every position
    assert len(flat) - clips < batch  # only the last batch is filled up


@given(clips=sizes, first=st.integers(0, 10), world=worlds)
def test_resumed_epoch_takes_the_remaining_batches(clips, first, world):
    assert global_batches(clips, BATCH, world, first) == global_batches(clips, BATCH, world)[first:]


@given(clips=st.integers(0, 100), world=st.integers(1, 5))
def test_evaluation_sees_each_clip_once(clips, world):
    seen = np.concatenate([evaluation_share(clips, rank, world) for rank in range(world)])
    assert sorted(seen) == list(range(clips))


def test_balanced_draws_follow_the_published_weights():
    labels = np.zeros((400, 2), np.float32)
    labels[:390, 0] = 1
    labels[390:, 1] = 1
    weights = clip_weights(labels)
    assert np.isclose(weights[0], 1000 / 390.01)
    assert np.isclose(weights[-1], 1000 / 10.01)
    drawn = np.concatenate([epoch_order("balanced", labels, 0, epoch) for epoch in range(1, 51)])
    rare = (drawn >= 390).mean()
    assert abs(rare - 0.5) < 4 * np.sqrt(0.25 / len(drawn))  # both classes weigh the same, four sigmas


@pytest.mark.parametrize("clips", [1, 5, 13])
def test_shares_of_all_ranks_make_the_batch_of_one_rank(tmp_path: Path, clips: int):
    job = job_in(tmp_path, clips, batch_size=BATCH)
    train = ShardReader(job.shards, ["train"])
    order = epoch_order("shuffle", train.labels_NC, job.seed, 1)

    def read(rank: int, world: int) -> list[torch.Tensor]:
        batches = [read_batch(job, train, 1, order, own) for own in rank_steps(clips, BATCH, rank, world)]
        parts = [(batch.fbank_BTM, batch.labels_BC, batch.num_frames_B) for batch in batches]
        return [torch.stack(own) for own in zip(*parts, strict=True)]

    for world in (2, 3, 4):
        shared = [torch.cat(own, dim=1) for own in zip(*(read(rank, world) for rank in range(world)), strict=True)]
        assert all(torch.equal(own, alone) for own, alone in zip(shared, read(0, 1), strict=True))


def evaluate_clip_by_clip(job: Job) -> dict[str, float]:
    """Return the metrics of the first epoch's weights on the held-out split, scored one clip at a time."""
    held_out = ShardReader(job.shards, ["test"])
    model = AST(job.model, job.front_end.num_mel_bins, job.front_end.target_frames, len(held_out.index.labels))
    model.load_state_dict(load_file(job.folder / "epochs" / "epoch-0001" / "model.safetensors"))
    rows = []
    with torch.inference_mode():
        for clip in range(len(held_out)):
            fbank_BTM = torch.from_numpy(held_out.read(np.array([clip]))).float()
            logits_BC = model.eval()((fbank_BTM + 6.0) / 8.0, torch.from_numpy(held_out.num_frames_N[[clip]]))
            rows.append(probabilities(job.optim.loss, logits_BC).numpy())
    return metrics.evaluate_scores(np.concatenate(rows), held_out.labels_NC, single_label=True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_any_number_of_clips_trains_on_one_to_four_ranks(tmp_path: Path, many, measured) -> None:
    cases = [*SHORT, *LONG][: many(len(SHORT), len(SHORT) + len(LONG))]
    for number, (world, clips, held_out) in enumerate(cases):
        job = job_in(tmp_path / str(number), clips, held_out, batch_size=BATCH, epochs=1)
        with running(job, world) as training:
            assert training.wait() == [0] * world, training.errors()
        steps = list(range(1, -(-clips // BATCH) + 1))
        assert [training.steps(rank) for rank in range(world)] == [steps] * world
        (line,) = (job.folder / "metrics.jsonl").read_text().splitlines()
        row = json.loads(line)
        for name, value in evaluate_clip_by_clip(job).items():
            if not name.startswith("chance"):
                assert row[f"test_{name}"] == pytest.approx(value, nan_ok=True)
    measured("R15", trainings=len(cases), most_ranks=4, fewest_clips=1)
