"""The memory of what was written: its bytes, its layers, and what it forgets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.seen import _FOLD_AT, NOTHING, Memory, Seen, number_of
from transforms.types import ObjectMeta, Service

UUID = "00112233-4455-6677-8899-aabbccddeeff"
SECOND_US = 1_000_000


def service(version: str) -> Service:
    return Service(metadata=ObjectMeta(name="web", uid="s", resource_version=version))


def again(seen: Seen) -> Seen:
    merged = Seen()
    merged.merge(seen.encode())
    return merged


def test_an_entry_is_the_uids_bytes_the_version_the_count_and_the_second() -> None:
    seen = Seen()
    seen.saw_event(UUID, 0x0102, 3, 5 * SECOND_US)
    entry = "00112233445566778899aabbccddeeff" + "0000000000000102" + "00000003" + "00000005"
    assert seen.encode().hex() == "00000020" + entry + "93" + "80" + "80" + "90"
    assert NOTHING.hex() == "00000000" + "93808090"


@pytest.mark.parametrize("uid", ["", "e", "x" * 36, "Ünï", UUID.upper()])
def test_any_uid_is_remembered_and_told_from_others(uid: str) -> None:
    seen = Seen()
    seen.saw_event(uid, 7, 2, 0)
    assert again(seen).event(uid) == (7, 2)
    assert again(seen).event("other") is None


def test_a_count_and_a_version_that_are_too_large_are_bounded() -> None:
    seen = Seen()
    seen.saw_event("a", number_of("9" * 30), 2**40, 0)
    assert again(seen).event("a") == (0, 2**32 - 1)


@pytest.mark.parametrize(
    ("version", "number"),
    [("0", 0), ("12", 12), ("", 0), ("x1", 0), ("-1", 0), ("18446744073709551615", 2**64 - 1), ("1" * 21, 0)],
)
def test_a_version_that_is_no_number_of_64_bits_is_0(version: str, number: int) -> None:
    assert number_of(version) == number


def test_a_layer_sees_its_base_masks_it_and_leaves_it_as_it_is() -> None:
    base = Seen()
    base.saw_event("a", 5, 1, 0)
    base.saw_state("s", service("5"))
    layer = Seen(base)
    assert (layer.event("a"), layer.state("s")) == ((5, 1), service("5"))
    layer.forget_event("a")
    layer.saw_state("s", None)
    layer.saw_state("t", service("6"))
    assert (layer.event("a"), layer.state("s")) == (None, None)
    assert layer.states() == {"s": None, "t": service("6")}
    assert (base.event("a"), base.states()) == ((5, 1), {"s": service("5")})
    base.merge(layer.encode())
    assert (base.event("a"), len(base), base.states()) == (None, 0, {"t": service("6")})


def test_events_expire_by_when_they_were_last_written_and_services_stay() -> None:
    seen = Seen()
    for second in range(4):
        seen.saw_event(f"e{second}", 1, 1, second * SECOND_US)
    seen.saw_state("s", service("1"))
    seen.expire(2 * SECOND_US)
    assert [seen.event(f"e{second}") is not None for second in range(4)] == [False, False, True, True]
    assert seen.state("s") is not None


CHANGES = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.integers(0, 9)), max_size=20)


@given(st.lists(CHANGES, max_size=6))
def test_additions_merged_in_order_are_what_was_seen(additions: list[list[tuple[str, int, int]]]) -> None:
    model: dict[str, tuple[int, int]] = {}
    memory, base = Memory(), Seen()
    for changes in additions:
        layer = Seen(base)
        for uid, version, count in changes:
            if count:
                layer.saw_event(uid, version, count, 0)
                model[uid] = version, count
            else:
                layer.forget_event(uid)
                model.pop(uid, None)
        base.merge(layer.encode())
        memory = Memory([memory.seen.encode(), layer.encode()])
    for uid in "abc":
        assert base.event(uid) == memory.seen.event(uid) == again(base).event(uid) == model.get(uid)


def test_a_memory_is_folded_when_the_bag_is_twice_what_it_was_and_not_for_few_additions() -> None:
    def addition(number: int) -> bytes:
        seen = Seen()
        seen.saw_event(f"e{number}", 1, 1, number * SECOND_US)
        return seen.encode()

    memory = Memory(addition(number) for number in range(_FOLD_AT))
    assert not memory.due()
    memory.note(addition(_FOLD_AT))
    assert memory.due()
    folded = memory.fold(10 * SECOND_US)
    assert not memory.due()
    assert len(Memory([folded]).seen) == _FOLD_AT - 10
