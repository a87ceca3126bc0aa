"""What a query finds in a text, in which languages, and that the index never hides a text that the query is in."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from domain.errors import Code, Refusal
from domain.search import MAX_QUERY, terms_of, token, wanted


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("leak", "The pipe is leaking again."),
        ("PIPE leak", "the leaking pipe"),
        ("ok", "Ok, see you at 9"),
        ("9", "Ok, see you at 9"),
        ("138", "call 13800138000"),
        ("strasse", "Lange Straße 4"),
        ("café", "meet at the CAFE\u0301"),
        ("ТРУБА", "труба течёт"),
        ("हिन्दी", "वह हिन्दी बोलता है"),
        ("漏水", "厨房水管漏水了"),
        ("水", "厨房水管漏水了"),
        ("水管 明天", "明天修水管可以吗"),
        ("ＡＢＣ１２３", "abc123 号"),
        ("a4纸", "买一包A4纸"),
        ("ガス", "ｶﾞｽ漏れ"),
        ("น้ำ", "ท่อน้ำรั่ว"),
        ("누수", "주방 누수입니다"),
        ("👍", "好的👍🏽"),
        ("𠮷野家", "去𠮷野家吃饭"),
        ("don't", "I don't know"),
    ],
)
def test_what_is_in_a_text_is_found(query: str, text: str) -> None:
    assert wanted(query).found_in(text)


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("leaking", "a leak"),
        ("leak roof", "the pipe leaks"),
        ("is", "island"),  # short words are found whole
        ("ipe", "the pipe"),  # words are found by how they begin
        ("水漏", "水管漏水"),  # the order of characters counts
        ("漏水", "漏 水"),
        ("水管漏水", "漏水的水管"),
        ("1200", "12,000"),
    ],
)
def test_what_is_not_in_a_text_is_not_found(query: str, text: str) -> None:
    assert not wanted(query).found_in(text)


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("", "empty"),
        (" \u3000\n", "empty"),
        ("x" * (MAX_QUERY + 1), "too_long"),
        ("?! …", "invalid"),
        ("___", "invalid"),
    ],
)
def test_a_query_that_asks_for_nothing_is_refused(query: str, code: str) -> None:
    with pytest.raises(Refusal) as caught:
        wanted(query)
    assert (caught.value.code, caught.value.refused.errors[0].field) == (Code.INVALID, "q")
    assert caught.value.refused.errors[0].code == code


def test_a_query_of_two_hundred_characters_is_taken() -> None:
    assert wanted("水" * MAX_QUERY).found_in("水" * MAX_QUERY)


letters = st.text(alphabet="abcdeéß 12-_.水管漏了カ한ท👍АЖ\u0301\u0640", max_size=24)


@given(text=st.one_of(letters, st.text(max_size=40)), query=st.one_of(letters, st.text(max_size=8)))
@example(text="leaking", query="leaki")
@example(text="水管漏水", query="管漏")
@example(text="水", query="水")
def test_whoever_finds_a_text_finds_all_its_terms_in_the_index(text: str, query: str) -> None:
    try:
        asked = wanted(query)
    except Refusal:
        return
    assert asked.terms(16)
    if asked.found_in(text):
        assert set(asked.terms(16)) <= terms_of(text)


@given(text=letters, start=st.integers(0, 20), length=st.integers(1, 6))
def test_a_text_is_found_by_any_word_of_its_own(text: str, start: int, length: int) -> None:
    for word in text.split():
        try:
            asked = wanted(word)
        except Refusal:
            continue
        assert asked.found_in(text)


def test_terms_of_a_query_are_its_longest_and_bounded() -> None:
    asked = wanted("a contractor's 水管漏水")
    assert set(asked.terms(16)) == {"contracto", "a", "s", "水管", "管漏", "漏水"}
    assert asked.terms(2)[0] == "contracto"
    assert len(asked.terms(2)) == 2


@given(st.text(max_size=20), st.text(max_size=20))
def test_a_token_is_ten_plain_characters_and_differs_between_scopes(scope: str, term: str) -> None:
    made = token(scope, term)
    assert len(made) == 10
    assert made.isascii()
    assert made.isalnum()
    assert made != token(scope + "x", term)
