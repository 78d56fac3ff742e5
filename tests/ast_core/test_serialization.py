"""Config dataclasses as JSON values and back: nesting, and the sentence for each wrong value."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from ast_core.config import DataConfig, ModelConfig, OptimConfig, Recipe
from ast_core.errors import UserError
from ast_core.serialization import NAN_ALLOWED, from_dict, to_dict
from ast_core.shards.index import PartEntry, ShardIndex, SplitCounts

PART = {"name": "part-00000.parquet", "rows": 3, "sha256": "ab", "bytes": 99}
COUNTS = {
    "listed": 4, "kept": 3, "rejected": 0, "missing": 1, "count": 6, "sum": -1.5, "sum_sq": 2, "parts": [PART],
    "classes": [3], "clip_index": "cd",
}  # fmt: skip
INDEX = {
    "front_end": {"target_frames": 2, "num_mel_bins": 1}, "labels": ["a"], "single_label": True, "layout": "folders",
    "splits": {"train": COUNTS}, "data_hash": "d", "unlisted": [], "split_rule": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """A dataclass with a float that may be anything, and an optional dataclass."""

    value: float = field(metadata=NAN_ALLOWED)
    optional: DataConfig | None = None


def test_nested_dataclasses_survive_json() -> None:
    recipe = Recipe(data=DataConfig(train_splits=("a", "b")), optim=OptimConfig(epochs=7))
    assert from_dict(Recipe, json.loads(json.dumps(to_dict(recipe)))) == recipe
    index = from_dict(ShardIndex, INDEX)
    assert index.splits == {"train": SplitCounts(4, 3, 0, 1, 6, -1.5, 2, (PartEntry(**PART),), (3,), "cd")}
    assert json.dumps(to_dict(index)) == json.dumps(INDEX)  # the same keys in the same order
    optional = from_dict(Measured, {"value": float("inf"), "optional": {"test_split": "eval"}})
    assert optional == Measured(float("inf"), DataConfig(test_split="eval"))
    assert from_dict(Measured, {"value": 1, "optional": None}) == Measured(1)


def test_an_index_without_the_keys_that_came_later_loads() -> None:
    counts = {key: value for key, value in COUNTS.items() if key not in {"classes", "clip_index"}}
    old = {key: value for key, value in INDEX.items() if key != "split_rule"}
    parts = [{key: value for key, value in PART.items() if key != "bytes"}]
    index = from_dict(ShardIndex, {**old, "splits": {"train": {**counts, "parts": parts}}})
    assert index.splits["train"].parts == (PartEntry("part-00000.parquet", 3, "ab"),)
    assert (index.split_rule, index.class_counts, index.splits["train"].clip_index) == (1, {}, "")


def test_an_index_with_further_keys_in_splits_and_parts_loads() -> None:
    counts = {**COUNTS, "parts": [{**PART, "later": 99, "sum": -1.5}], "note": "old"}
    assert from_dict(ShardIndex, {**INDEX, "splits": {"train": counts}}) == from_dict(ShardIndex, INDEX)


@pytest.mark.parametrize(
    ("kind", "values", "sentence"),
    [
        (ModelConfig, {"patch_freq": "16"}, "ModelConfig: patch_freq is '16'; give a whole number."),
        (ModelConfig, {"patch_freq": True}, "ModelConfig: patch_freq is True; give a whole number."),
        (ModelConfig, {"mask_padding": 1}, "ModelConfig: mask_padding is 1; give true or false."),
        (ModelConfig, [1], "ModelConfig is [1]; give an object."),
        (OptimConfig, {"loss": "mse"}, "OptimConfig: loss is 'mse'; give one of bce, cross_entropy."),
        (OptimConfig, {"ema_decay": float("nan")}, "OptimConfig: ema_decay is nan; give a finite number."),
        (DataConfig, {"mean": "x"}, "DataConfig: mean is 'x'; give a finite number or null."),
        (DataConfig, {"train_splits": "a"}, "DataConfig: train_splits is 'a'; give a list."),
        (DataConfig, {"train_splits": ["a", 1]}, "DataConfig: train_splits[1] is 1; give a text."),
        (Recipe, {"optim": {"epochs": 1.5}}, "Recipe: optim.epochs is 1.5; give a whole number."),
        (Recipe, {"optim": {"epoch": 1}}, "Recipe: optim does not know ['epoch']; another version"),
        (Measured, {"value": "x"}, "Measured: value is 'x'; give a finite number."),
        (Measured, {}, "Measured lacks value."),
    ],
)
def test_a_wrong_value_is_refused_with_the_type_that_is_allowed(kind: type, values: Any, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        from_dict(kind, values)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"kept": -1}, "kept is -1"),
        ({"kept": 1 << 70}, "kept is"),
        ({"parts": [{**PART, "name": "../part-0.parquet"}]}, "the part '../part-0.parquet' is not named"),
        ({"parts": [{**PART, "rows": "3"}]}, r"ShardIndex: splits.train.parts[0].rows is '3'; give a whole number."),
        ({"sum": None}, "ShardIndex: splits.train.sum is None; give a finite number."),
    ],
)
def test_a_wrong_count_or_part_in_an_index_is_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        from_dict(ShardIndex, {**INDEX, "splits": {"train": {**COUNTS, **change}}})
    assert sentence in str(caught.value)
