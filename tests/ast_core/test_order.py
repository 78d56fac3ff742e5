"""Order of clips: permutation, disjoint ranks, resume as a suffix, the same global batches on any world size."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ast_core.order import clip_weights, epoch_order, evaluation_share, rank_steps, steps_per_epoch

sizes = st.integers(1, 200)


@given(clips=sizes, seed=st.integers(0, 9), epoch=st.integers(1, 9))
def test_shuffle_is_a_permutation_and_repeats(clips, seed, epoch):
    labels = np.ones((clips, 2), np.float32)
    order = epoch_order("shuffle", labels, seed, epoch)
    assert sorted(order) == list(range(clips))
    assert (order == epoch_order("shuffle", labels, seed, epoch)).all()


@given(clips=sizes, share=st.integers(1, 5), world=st.sampled_from([1, 2, 4]))
def test_every_rank_has_the_same_steps_and_batches_do_not_depend_on_world(clips, share, world):
    batch = share * 4
    ranks = [list(rank_steps(clips, batch, rank, world)) for rank in range(world)]
    assert {len(steps) for steps in ranks} == {steps_per_epoch(clips, batch)}
    whole = [np.concatenate(parts) for parts in zip(*ranks, strict=True)]
    alone = list(rank_steps(clips, batch, 0, 1))
    assert all((a == b).all() for a, b in zip(whole, alone, strict=True))
    assert {int(p) for p in np.concatenate(whole)} >= set(range(clips))


@given(clips=sizes, first=st.integers(0, 10))
def test_resume_is_the_suffix(clips, first):
    rest = list(rank_steps(clips, 8, 1, 2, first))
    everything = list(rank_steps(clips, 8, 1, 2))
    assert [list(p) for p in rest] == [list(p) for p in everything[first:]]


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
