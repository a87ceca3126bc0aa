"""What an activation still knows of its last events, for readers who come back."""

from hypothesis import given
from hypothesis import strategies as st

from actors.activation import TAIL_BYTES, TAIL_EVENTS, Activation
from domain.chat import CHAT
from domain.commands import Publication
from domain.ports import Entry, Loaded

STREAM = "conversation:0190a0a0-0000-7000-8000-0000000000c1"
USER = "0190a0a0-0000-7000-8000-00000000000a"
AT = "2026-01-31T09:30:00.000Z"


def activation() -> Activation:
    return Activation(STREAM, 193, CHAT, 0.0)


def posted(offset: int, text: str = "x") -> Publication:
    return Publication(offset, b'{"type":"message.posted","text":"%s"}' % text.encode())


def offsets(publications: tuple[Publication, ...]) -> list[int]:
    return [publication.offset for publication in publications]


def test_all_that_came_after_an_offset_or_nothing() -> None:
    conversation = activation()
    conversation.publish([posted(n) for n in range(1, TAIL_EVENTS + 11)])
    assert offsets(conversation.tail_after(TAIL_EVENTS + 8)) == [TAIL_EVENTS + 9, TAIL_EVENTS + 10]
    assert offsets(conversation.tail_after(10)) == list(range(11, TAIL_EVENTS + 11))
    assert conversation.tail_after(9) == ()
    assert conversation.tail_after(TAIL_EVENTS + 10) == ()
    assert activation().tail_after(0) == ()


def test_what_is_loaded_can_be_had_again() -> None:
    conversation = activation()
    joined = b'{"type":"member.joined","by":"%s","at":"%s","user_id":"%s"}' % (
        USER.encode(),
        AT.encode(),
        USER.encode(),
    )
    entry = Entry(STREAM, 1, "member.joined", None, None, f"user:{USER}", 0, joined)
    conversation.load(Loaded(None, [entry]))
    assert conversation.tail_after(0) == (Publication(1, joined),)


def test_nothing_from_before_a_deletion_is_handed_out() -> None:
    conversation = activation()
    conversation.publish(
        [posted(1, "secret"), Publication(2, b'{"type":"message.deleted","message_id":"m"}'), posted(3)]
    )
    assert conversation.tail_after(0) == ()
    assert offsets(conversation.tail_after(1)) == [2, 3]


@given(st.lists(st.integers(0, 6_000), max_size=200))
def test_it_is_bounded_and_counted(sizes: list[int]) -> None:
    conversation = activation()
    bare = conversation.bytes
    for offset, size in enumerate(sizes, 1):
        conversation.publish([posted(offset, "x" * size)])
        known = conversation.tail_after(offset - 1)
        assert offsets(known) in ([offset], [])
        whole = [len(publication.data) for publication in conversation._tail]
        assert len(whole) <= TAIL_EVENTS
        assert sum(whole) <= TAIL_BYTES
        assert conversation.bytes == bare + sum(whole)


def of_size(offset: int, size: int) -> Publication:
    return Publication(offset, b"x" * size)


def test_as_many_bytes_are_kept_as_may_be_and_not_one_more() -> None:
    assert TAIL_BYTES == 16_384
    conversation = activation()
    conversation.publish([of_size(1, 8_192), of_size(2, 8_192)])
    assert offsets(conversation.tail_after(0)) == [1, 2], "just as many"
    conversation.publish([of_size(3, 1)])
    assert conversation.tail_after(0) == ()
    assert offsets(conversation.tail_after(1)) == [2, 3]


def test_what_is_forgotten_at_a_deletion_counts_no_more() -> None:
    conversation = activation()
    bare = conversation.bytes
    erasing = Publication(2, b'{"type":"message.deleted","message_id":"m"}')
    conversation.publish([of_size(1, 10_000), erasing])
    assert conversation.bytes == bare + len(erasing.data)
    fitting = TAIL_BYTES - len(erasing.data)
    conversation.publish([of_size(3, fitting)])
    assert offsets(conversation.tail_after(1)) == [2, 3], "there is room for all the rest"
    conversation.publish([of_size(4, 1)])
    assert conversation.tail_after(1) == ()


def test_nothing_from_before_a_hole_is_handed_out() -> None:
    conversation = activation()
    conversation.publish([posted(1), posted(2)])
    conversation.publish([posted(7), posted(8)])
    assert conversation.tail_after(1) == ()
    assert offsets(conversation.tail_after(6)) == [7, 8]


def test_to_who_has_everything_nothing_is_left_to_say() -> None:
    conversation = activation()
    conversation.publish([posted(1), posted(2)])
    assert conversation.tail_after(2) == ()
    assert conversation.tail_after(3) == ()
