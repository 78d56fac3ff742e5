"""Addresses of the hub's models: what is accepted, what is refused; and the table of known models."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ast_core.errors import UserError
from ast_core.weights.hub.hub_address import HubAddress, parse_hub_address
from ast_core.weights.hub.known_models import describe_licence, known_models
from ast_core.weights.published import STRIDES, TRAININGS
from pipeline.cli.command_line import load_recipe

HOSTILE = [
    "hf:", "hf:name", "hf:/x", "hf:../x", "hf:x/..", "hf:a/b/c", "hf:a b/c", "hf: a/b", "hf:a/b ", "hf:a/b\n",
    "hf://a/b", "hf:a/b@", "hf:a/b@../../x", "hf:a/b@x/../y", "hf:a/b@x//y", "hf:a/b@/x", "hf:a/b@x y", "hf:a/b@x@y",
    "hf:a/b@.lock", "hf:a/b@x.lock", "hf:a/b@x/.y", "hf:a--b/c", "hf:a/b..c", "hf:a/b.git", "hf:-a/b", "hf:a/b-",
    "hf:ä/b", "hf:a/b?x=1", "hf:a/b#x", "hf:a%2Fb/c", "hf:a/b@%2e%2e", "hf:a/b@\x00", "hf:a\\b/c",
    f"hf:a/{'b' * 97}", f"hf:a/b@{'x' * 201}",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_address_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(
        UserError, match=r"names no model on Hugging Face's hub; give hf:ORG/NAME or .*\.4593\."
    ) as caught:
        parse_hub_address(text)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "name", "revision"),
    [
        ("hf:MIT/ast-finetuned-audioset-10-10-0.4593", "MIT/ast-finetuned-audioset-10-10-0.4593", ""),
        ("hf:a/b@main", "a/b", "main"),
        ("hf:a/b@refs/pr/1", "a/b", "refs/pr/1"),
        ("hf:a/b@v1.0-rc--2", "a/b", "v1.0-rc--2"),
        (f"hf:_a/b_@{'0f' * 20}", "_a/b_", "0f" * 20),
    ],
)
def test_an_address_has_a_name_and_a_revision(text: str, name: str, revision: str) -> None:
    found = parse_hub_address(text)
    assert (found, str(found)) == (HubAddress(name, revision), text)
    assert found.is_pinned == (len(revision) == 40)


@given(st.text(alphabet="ab/@.-_ %\n\\~0", max_size=24))
def test_whatever_is_accepted_stays_inside_the_cache(rest: str) -> None:
    try:
        found = parse_hub_address(f"hf:{rest}")
    except UserError:
        return
    assert str(found) == f"hf:{rest}"
    parts = [*found.name.split("/"), *found.revision.split("/")]
    assert len(found.name.split("/")) == 2
    assert not {"..", "."} & set(parts)
    assert re.fullmatch(r"[\w./+-]*", found.revision)


def test_known_models_have_the_strides_of_their_names_and_the_lengths_of_their_training() -> None:
    known = known_models()
    assert len(known) == 8
    frames = {own.data_set: own.target_frames for own in TRAININGS.values()}
    for name, own in known.items():
        assert parse_hub_address(f"hf:{name}").name == name
        assert own.licence == "BSD-3-Clause"
        assert own.frames == frames[own.data.partition(",")[0]]
        strides = re.search(r"audioset-(\d+)-(\d+)-(0\.\d+)", name)
        if strides:
            assert (own.freq_stride, own.time_stride) == (int(strides[1]), int(strides[2]))
            published = re.search(r"mAP (0\.\d{4})", own.result)
            assert published is not None
            assert float(published[1]) == pytest.approx(float(strides[3]), abs=6e-4)
        assert own.freq_stride in STRIDES


@pytest.mark.parametrize("recipe", ["esc50_ast_p", "speech_commands_ast_p"])
def test_recipes_that_begin_with_audioset_name_a_known_model_of_their_strides(recipe: str) -> None:
    model = load_recipe(recipe).model
    known = known_models()[parse_hub_address(model.init).name]
    assert (known.freq_stride, known.time_stride) == (model.freq_stride, model.time_stride)


def test_the_licence_is_named_or_its_page() -> None:
    known = describe_licence(parse_hub_address("hf:MIT/ast-finetuned-audioset-16-16-0.442@main"))
    assert "licence BSD-3-Clause. Keep its copyright notice" in known
    assert describe_licence(HubAddress("a/b")) == "hf:a/b: its licence is on https://huggingface.co/a/b."
