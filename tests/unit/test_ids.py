"""Identifiers say which partition they live in, and derived ones share it."""

import uuid

import uuid_utils
from hypothesis import given
from hypothesis import strategies as st

from domain.ids import PARTITIONS, derived_uuid7, is_uuid, partition_of, uuid7, uuid7_ms

NOW = 1_767_225_600_123


def test_a_partition_is_the_low_ten_bits_of_the_id() -> None:
    identifier = "018f0000-0000-7000-8000-0000000007ff"
    assert partition_of(identifier) == 0x7FF & (PARTITIONS - 1)
    assert partition_of(f"order:{identifier}") == partition_of(identifier)


@given(st.uuids())
def test_every_uuid_has_a_partition_that_agrees_with_its_integer(value: uuid.UUID) -> None:
    assert partition_of(str(value)) == value.int % 1024


@given(st.binary(min_size=10, max_size=10), st.integers(0, 2**48 - 1))
def test_a_uuid7_is_one_to_other_libraries_and_keeps_its_time(entropy: bytes, now_ms: int) -> None:
    made = uuid7(now_ms, entropy)
    parsed = uuid.UUID(made)
    assert is_uuid(made)
    assert parsed.version == 7
    assert parsed.variant == uuid.RFC_4122
    assert uuid7_ms(made) == now_ms


@given(st.text(), st.uuids())
def test_a_derived_id_is_the_same_every_time_and_lives_with_its_model(seed: str, like: uuid.UUID) -> None:
    made = derived_uuid7(NOW, seed, str(like))
    assert made == derived_uuid7(NOW, seed, str(like))
    assert partition_of(made) == partition_of(str(like))
    assert uuid.UUID(made).version == 7


def test_different_seeds_give_different_ids() -> None:
    like = str(uuid_utils.uuid7())
    assert len({derived_uuid7(NOW, str(n), like) for n in range(1_000)}) == 1_000


def test_only_version_seven_carries_a_time() -> None:
    assert uuid7_ms(str(uuid.uuid4())) is None


def test_only_canonical_lower_case_uuids_are_ids() -> None:
    good = str(uuid_utils.uuid7())
    for bad in (good.upper(), good[:-1], good + "0", "{" + good + "}", good.replace("-", ""), f"{good}\n", "", None, 7):
        assert not is_uuid(bad), bad
    assert is_uuid(good)
