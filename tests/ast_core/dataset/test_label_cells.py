"""A cell with labels is read as it was written."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ast_core.dataset.loose.label_cells import join_labels, split_labels

NAMES = (
    st.text(st.sampled_from("ab1 ,|[]'\"\uff0c\u3001\uff1b\u00e9.#="), min_size=1, max_size=6)
    .map(str.strip)
    .filter(bool)
)


@given(st.sets(NAMES, max_size=4))
def test_names_without_a_semicolon_are_read_back(names: set[str]) -> None:
    assert split_labels(join_labels(sorted(names))) == tuple(sorted(names))


def test_a_known_name_may_have_separators() -> None:
    assert split_labels("Male speech, man; singing", {"Male speech, man; singing"}) == ("Male speech, man; singing",)
    assert join_labels(["dog", "rain"]) == "dog;rain"
    assert join_labels(["Male speech, man speaking"]) == "Male speech, man speaking;"
    assert join_labels([]) == ""
