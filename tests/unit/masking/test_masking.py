# ruff: noqa: E501 - fragments of many scripts, side by side
"""What is masked in a message, what is left alone, and how long that may take."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.masking import BULLETS, KINDS, Masked, mask
from tests.unit.masking.corpus import Score, Sentence, judge, read

TUNED = read("tuned.txt")
HELD_OUT = read("held_out.txt")

FRAGMENTS = (
    "a", "1", "0", "13", "138", "+1", " ", "  ", "-", ".", ",", "(", ")", "@", "(at)", " at ", " dot ", "点", "艾特", "one", "double ",
    "一", "幺", "o", "l", "oil", "wx", "v", "微信", "我", "号", "路", "12", "弄", "号楼", "单元", "室", "street", " road", " St", "Ab ",
    "Elm ", "flat 1, ", "mm", "order ", "call ", "电话", "qq", "my ", "line ", "id", "is", "/", "_", "~", "*", "|", "•", "•••", "t.me/",
    ".com", "gmail", "\u200b", "1,", "2026-", "11:", "¥", "$", "#", "zip ", "straße ", "É", "十", "里 1", "no. ", "\n", "x",
)  # fmt: skip
EVERY_HINT = "@ (at) wx 微信 qq 00000000 一二三 号 . "
"""Whatever looks for a contact finds a reason to look."""
MESSAGES = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=40).map("".join)


def test_a_text_without_contacts_comes_back_as_the_very_object() -> None:
    text = "The tiles are 600x600, 12,345.00 yuan in all."

    assert mask(text).text is text
    assert mask(text).kinds == ()


def test_a_contact_becomes_three_bullets_and_all_else_stays() -> None:
    masked = mask("call me at 138 0013 8000, or mail li@example.com!")

    assert masked.text == "call me at •••, or mail •••!"
    assert masked.kinds == ("phone", "email")


@pytest.mark.parametrize("sentence", [s for s in TUNED if s.kinds], ids=lambda s: s.text)
def test_what_is_found_is_named_by_its_kind(sentence: Sentence) -> None:
    assert set(mask(sentence.text).kinds) == sentence.kinds


def report(name: str, score: Score) -> None:
    print(f"{name}: precision {score.precision:.3f}, recall {score.recall:.3f}, {score.clean} sentences left alone")


def test_the_corpus_is_large_and_balanced() -> None:
    everything = TUNED + HELD_OUT
    contacts = [s for s in everything if s.kinds]
    chinese = [s for s in everything if s.language == "zh"]

    assert len({s.text for s in everything}) == len(everything) >= 500
    assert 0.4 <= len(contacts) / len(everything) <= 0.6
    assert 0.4 <= len(chinese) / len(everything) <= 0.6
    assert len(HELD_OUT) * 3 >= len(everything)
    assert {kind for s in contacts for kind in s.kinds} == set(KINDS)


def test_the_sentences_it_was_tuned_on_are_masked_right() -> None:
    score = judge(TUNED)
    report("tuned", score)
    print("".join(f"  leaked: {line}\n" for line in score.leaked + score.spoiled), end="")

    assert score.spoiled == []
    assert score.precision == 1.0
    assert score.recall >= 0.99


def test_sentences_it_was_never_tuned_on_are_masked_nearly_as_well() -> None:
    """Which ones it gets wrong is not printed: who reads them tunes on them."""
    score = judge(HELD_OUT)
    report("held out", score)

    assert score.precision >= 0.97
    assert score.recall >= 0.90


@settings(max_examples=400, deadline=None)
@given(MESSAGES)
def test_masking_what_is_masked_finds_nothing_more(text: str) -> None:
    masked = mask(text)

    assert mask(masked.text).kinds == ()
    assert mask(masked.text).text is masked.text


@settings(max_examples=400, deadline=None)
@given(MESSAGES)
def test_only_what_is_replaced_changes(text: str) -> None:
    """Bullets of the text's own are left out: nobody could tell where they end and ours begin."""
    text = text.replace("•", "")
    masked = mask(text)
    rest = text
    for piece in masked.text.split(BULLETS) if masked.kinds else [text]:
        assert piece in rest, "a piece of the masked text stands nowhere in what was said"
        rest = rest[rest.index(piece) + len(piece) :]


def cpu_s(text: str) -> float:
    """The least of some measurements of the processor time that masking takes."""

    def once() -> float:
        began = time.process_time()
        mask(text)
        return time.process_time() - began

    return min(once() for _ in range(3))


@pytest.mark.parametrize(
    "unit",
    [*FRAGMENTS, "1 ", "1, ", "a at ", "a.", "a dot ", "a_", "one ", "12 a b c ", "路1号", "路1号1", "a@", "@a", "1-", "o1", "flat 1, 2 ",
     "call 1", "my wx is ", "wx_", "1号楼1", "订单1", "order a", "+1 ", "0 ", "(1", "double ", "qq 1", "zip 1", "a1-", "www.a.", "t.me/a "],
)  # fmt: skip
def test_the_longest_message_is_masked_in_time_whatever_it_repeats(unit: str) -> None:
    """Bounds are loose for machines that do other things too; a pattern that is not linear misses them by far."""
    long = (EVERY_HINT + unit * 8_000)[:8_000]

    took = cpu_s(long)

    assert took < 0.1
    assert took < 10 * cpu_s(long[:2_000]) + 0.005


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=6).map("".join))
def test_no_repetition_of_anything_takes_long(unit: str) -> None:
    assert cpu_s((EVERY_HINT + unit * 8_000)[:8_000]) < 0.1


def test_who_hides_contacts_behind_contacts_is_masked_whole() -> None:
    """An address that is found only once the one before it is gone: nobody writes so but who tries the filter out."""
    nested = "x" * 50 + ("@b." + "x" * 113) * 6

    assert mask(nested) == Masked(BULLETS, ("email",))
