"""The bounded queue in front of one client."""

from gateway.outbound import Outbound


def test_what_waits_together_travels_in_one_frame_one_a_line() -> None:
    out = Outbound(1_000, 100)
    for item in (b"{}", b'{"id":1}', b'{"id":2}'):
        assert out.push(item)
    assert out.take(1_000, b"\n") == b'{}\n{"id":1}\n{"id":2}'
    assert (len(out), out.size, out.take(1_000, b"\n")) == (0, 0, b"")


def test_a_frame_stays_near_its_target() -> None:
    out = Outbound(1_000, 100)
    for _ in range(5):
        out.push(b"x" * 10)
    assert [len(out.take(20, b"\n")) for _ in range(3)] == [21, 21, 10]
    assert out.size == 0


def test_publications_leave_room_for_replies() -> None:
    out = Outbound(100, 100)
    assert [out.offer(b"x" * 25) for _ in range(3)] == [True, True, False]
    assert [out.push(b"x" * 25) for _ in range(3)] == [True, True, False]
    assert out.size == 100


def test_the_number_of_items_is_bounded_too() -> None:
    out = Outbound(1_000, 4)
    assert [out.offer(b"x") for _ in range(3)] == [True, True, False]
    assert [out.push(b"x") for _ in range(3)] == [True, True, False]


def test_a_single_item_larger_than_the_queue_still_gets_out() -> None:
    out = Outbound(10, 4)
    assert out.offer(b"x" * 50)
    assert not out.push(b"x")
    assert out.take(5, b"\n") == b"x" * 50
    assert out.low


def test_a_state_that_is_said_again_goes_behind_what_has_been_said_since() -> None:
    """In place of the first it would overtake what another owner of the stream said in between."""
    out = Outbound(1_000, 100)
    out.put("anna", b"anna 1")
    out.put("ben", b"ben 1")
    out.push(b"reply")
    out.put("anna", b"anna 2")
    assert len(out) == 3
    assert out.take(1_000, b" ") == b"ben 1 reply anna 2"
    assert (len(out), out.size) == (0, 0)


def test_a_state_said_over_and_over_takes_no_room() -> None:
    out = Outbound(1_000, 100)
    out.push(b"reply")
    for n in range(10_000):
        assert out.put(n % 3, b"%05d" % n)
        assert len(out._items or ()) <= 40
    assert (len(out), out.size) == (4, 5 + 3 * 5)
    assert out.take(1_000, b" ") == b"reply 09997 09998 09999"


def test_what_is_left_of_states_alone_is_nothing() -> None:
    out = Outbound(1_000, 100)
    out.put("anna", b"anna 1")
    out.put("anna", b"anna 2")
    assert out.take(1, b" ") == b"anna 2"
    assert out.take(1, b" ") == b""
    assert out.push(b"next")
    assert out.take(1, b" ") == b"next"
