from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maas_middleware.stores._schema import key, read, written

TEXTS = st.text(st.characters(codec=None) | st.sampled_from("\0\\u0d8\ud800"))


@given(TEXTS)
def test_text_is_read_as_it_was_written(text: str) -> None:
    kept = written(text)

    assert "\0" not in kept
    assert kept.encode().decode() == kept
    assert read(kept) == text


@given(TEXTS, TEXTS)
def test_no_two_texts_have_one_key(one: str, other: str) -> None:
    assert (key(one) == key(other)) == (one == other)


@pytest.mark.parametrize("text", ["", "openshift/alice", "Ünïcode 😀", "tab\t and\nline", "%s :name {0}"])
def test_ordinary_text_is_kept_as_it_is(text: str) -> None:
    assert written(text) == key(text) == text


def test_keys_fit_into_an_index() -> None:
    assert key("x" * 1000) == "x" * 1000
    assert len(key("x" * 1001)) < 100
    assert key("x" * 1001) != key("x" * 1002)
    assert len(key("я" * 501)) < 100
    assert key(key("x" * 1001)) != key("x" * 1001)
