"""Every class gets its share of each split, groups stay together, and new clips move hardly any other clip."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable

import pytest

from ast_core.dataset.clips import Clip
from ast_core.dataset.stratified_split import HASH_ALONE, hashed_split, place_clips

SPLITS = {"train", "validation", "test"}
ORDER = ("test", "validation", "train")


def make_set(rng: random.Random, classes: int, clips: int) -> list[Clip]:
    return [Clip(f"{c}/{rng.random()}.wav", "", (c,), "") for c in range(classes) for _ in range(clips)]


def count(clips: Iterable[Clip]) -> dict[int, Counter[str]]:
    found: dict[int, Counter[str]] = defaultdict(Counter)
    for clip in clips:
        for label in clip.labels:
            found[label][clip.split] += 1
    return found


def splits_of(clips: Iterable[Clip]) -> dict[str, str]:
    return {clip.clip_id: clip.split for clip in clips}


@pytest.mark.parametrize(
    ("classes", "clips", "sets"), [(10, 20, 300), (3, 30, 300), (4, 3, 300), (7, 4, 50), (2, 300, 5)]
)
def test_each_class_of_three_clips_or_more_is_in_every_split(classes: int, clips: int, sets: int) -> None:
    rng = random.Random(0)
    for _ in range(sets):
        for own in count(place_clips(make_set(rng, classes, clips))).values():
            assert own.keys() == SPLITS
            for split in ("validation", "test"):
                assert max(1, clips // 15) <= own[split] <= max(1, 2 * clips // 15)


def test_of_two_clips_one_is_for_the_test_and_a_single_one_is_for_training() -> None:
    clips = [Clip("a", "", (0,), ""), Clip("b", "", (0,), ""), Clip("c", "", (1,), "")]
    counts = count(place_clips(clips))
    assert counts[0] == {"train": 1, "test": 1}
    assert counts[1] == {"train": 1}


def test_classes_of_very_different_sizes_each_get_their_share() -> None:
    rng = random.Random(1)
    clips = [Clip(f"{rng.random()}", "", (c,), "") for c, size in enumerate((1, 2, 3, 50, 2000)) for _ in range(size)]
    counts = count(place_clips(clips))
    assert [counts[c]["test"] for c in range(4)] == [0, 1, 1, counts[3]["test"]]
    assert 160 < counts[4]["test"] < 240


def test_the_order_of_the_clips_does_not_matter() -> None:
    rng = random.Random(2)
    clips = [
        Clip(f"{n}", "", tuple(sorted(rng.sample(range(8), rng.randint(1, 4)))), "", group=f"g{n % 9}")
        for n in range(60)
    ]
    first = splits_of(place_clips(clips))
    rng.shuffle(clips)
    assert splits_of(place_clips(clips)) == first


def test_a_new_clip_moves_at_most_three_clips_by_one_split_each() -> None:
    rng = random.Random(3)
    moved = placed = 0
    for _ in range(20):
        clips, before = make_set(rng, 2, 3), dict[str, str]()
        for _ in range(60):
            after = splits_of(place_clips(clips))
            moves = [(before[name], after[name]) for name in before if before[name] != after[name]]
            assert len(moves) <= 3
            assert all(abs(ORDER.index(old) - ORDER.index(new)) == 1 for old, new in moves)
            moved, placed, before = moved + len(moves), placed + len(before), after
            clips.append(Clip(f"0/{rng.random()}.wav", "", (0,), ""))
    assert moved / placed < 0.01


def test_a_new_clip_moves_none_where_the_shares_are_right_by_themselves() -> None:
    rng = random.Random(4)
    clips = make_set(rng, 3, 500)
    placed = splits_of(place_clips(clips))
    assert placed == {clip.clip_id: hashed_split(clip.clip_id) for clip in clips}
    more = splits_of(place_clips([*clips, *make_set(rng, 3, 20)]))
    assert {name: more[name] for name in placed} == placed


@pytest.mark.parametrize("speakers", [3, 6, 20])
def test_groups_that_say_every_class_stay_together(speakers: int) -> None:
    clips = [
        Clip(f"{digit}_{speaker}_{take}", "", (digit,), "", group=f"speaker {speaker}")
        for digit in range(10) for speaker in range(speakers) for take in range(4)
    ]  # fmt: skip
    placed = place_clips(clips)
    assert all(len({clip.split for clip in placed if clip.group == group}) == 1 for group in {c.group for c in placed})
    assert all(own.keys() == SPLITS for own in count(placed).values())


def test_groups_of_uneven_sizes_leave_the_largest_for_training() -> None:
    sizes = {"large": 60, "middle": 9, "small": 5}
    clips = [Clip(f"{name}{n}", "", (0,), "", group=name) for name, size in sizes.items() for n in range(size)]
    placed = {clip.group: clip.split for clip in place_clips(clips)}
    assert placed["large"] == "train"
    assert set(placed.values()) == SPLITS


def test_each_label_of_clips_with_several_labels_gets_its_share() -> None:
    rng = random.Random(5)
    weights = [1 / (rank + 1) for rank in range(20)]
    for _ in range(30):
        clips = [
            Clip(f"{rng.random()}", "", tuple(sorted(set(rng.choices(range(20), weights, k=3)))), "")
            for _ in range(200)
        ]
        counts = count(place_clips(clips))
        assert all(own.keys() == SPLITS for own in counts.values() if own.total() >= 3)
        assert 10 <= sum(clip.split == "test" for clip in place_clips(clips)) <= 40


def test_labels_of_one_clip_each_do_not_empty_the_test_split() -> None:
    clips = [Clip(f"{n}", "", (n % 3, 3 + n), "") for n in range(90)]
    counts = count(place_clips(clips))
    assert all(counts[label]["test"] >= 2 for label in range(3))


def test_clips_without_a_label_are_placed_by_their_hash() -> None:
    clips = [Clip(f"{n}", "", (), "") for n in range(50)]
    assert splits_of(place_clips(clips)) == {clip.clip_id: hashed_split(clip.clip_id) for clip in clips}


def test_given_splits_stay_and_groups_follow_them() -> None:
    given = [Clip(f"t{n}", "", (0,), "test", group="anna") for n in range(3)]
    free = [Clip(f"f{n}", "", (0,), "", group="anna" if n < 5 else "") for n in range(20)]
    placed = splits_of(place_clips([*given, *free]))
    assert [placed[f"f{n}"] for n in range(5)] == ["test"] * 5
    assert Counter(placed[f"f{n}"] for n in range(5, 20))["test"] == 0  # the class has more than its share already


def test_shards_of_version_0_1_0_keep_its_rule() -> None:
    # Taken from version 0.1.0.
    expected = {"dog/3.wav": "train", "dog/4.wav": "validation", "dog/11.wav": "validation", "dog/13.wav": "test"}
    clips = [Clip(name, "", (0,), "") for name in expected]
    assert splits_of(place_clips(clips, HASH_ALONE)) == expected


def test_rows_of_one_file_share_a_split_that_does_not_depend_on_the_folder_or_the_number_of_rows() -> None:
    def place(folder: str, rows: int) -> dict[str, set[str]]:
        found: dict[str, set[str]] = defaultdict(set)
        names = [(f"talk{n}.wav", row) for n in range(30) for row in range(rows)]
        for clip in place_clips([Clip(f"{name}#{row}", f"{folder}/{name}", (0,), "") for name, row in names]):
            found[clip.clip_id.partition("#")[0]].add(clip.split)
        return found

    first = place("/data/a", 4)
    assert all(len(splits) == 1 for splits in first.values())
    assert first == place("/mnt/elsewhere", 6)
