"""The commit chain: what a commit is, where a start goes on, and how old commits fold."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Sequence

import pytest

from tests.chains import CLUSTER, Killed, MemoryStore
from transforms import commit, layout
from transforms.commit import ChainError, Commit, Link
from transforms.types import Gap, Position, Segment, Target


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore({})


def a_commit(number: int, previous: str = "", **fields: object) -> Commit:
    known = {"cluster": CLUSTER, "identity": "i", "run": "r", "from_us": number, "to_us": number}
    return Commit(number=number, previous=previous, **{**known, **fields})  # type: ignore[arg-type]


def write_chain(store: MemoryStore, last: int, bases: Sequence[int] = (1,)) -> None:
    previous = ""
    for number in range(1, last + 1):
        fields = {
            "base": number in bases,
            "seen": [b"%d" % number],
            "sequences": {"p/00": number},
            "segments": [Segment(f"s{number}", 1, "", 1)],
        }
        previous = commit.append(store, a_commit(number, previous, **fields))


def numbers(store: MemoryStore) -> list[int]:
    found: list[str] = []
    links = [link.number for link in commit.links(store, CLUSTER, found.append)]
    assert found == []
    return links


def commit_numbers(store: MemoryStore) -> list[int]:
    return [layout.commit_number(entry.path) for entry in store.list(f"{layout.state(CLUSTER)}/commits/")]


# --- one commit


def test_a_commit_comes_back_as_it_was_written_with_its_checksum() -> None:
    target = Target(CLUSTER, "events")
    written = a_commit(
        3,
        "before",
        before={target.key: Position("5", listing=False)},
        after={target.key: Position("9", listing=True, continue_token="t", list_version="9")},
        segments=[Segment("a", 2, "sum", 100)],
        gaps=[Gap(target, 1, 2, "why")],
        dead={"_dead/x": 1},
        found=["f"],
        passed=[2],
        base=True,
        seen=[b"\x00\xff"],
        sequences={"p/00": 7},
        written=[("u", "5")],
    )
    data = commit.encode(written)
    read = commit.decode(data)
    assert len(read.checksum) == 64
    assert (
        commit.encode(Commit(**{name: getattr(read, name) for name in read.__struct_fields__} | {"checksum": ""}))
        == data
    )


@pytest.mark.parametrize("data", [b"", b"{}", b"\x1f\x8b\x08\x00", commit.encode([])])
def test_bytes_that_are_no_commit_are_told(data: bytes) -> None:
    with pytest.raises(ChainError, match="expected gzipped JSON of commits"):
        commit.decode(data)


def test_a_commit_is_a_gzip_file_that_any_reader_opens() -> None:
    assert json.loads(gzip.decompress(commit.encode(a_commit(1))))["number"] == 1


def test_a_commit_without_a_checksum_in_its_header_is_read() -> None:
    plain = gzip.compress(gzip.decompress(commit.encode(a_commit(1))), mtime=0)
    assert commit.decode(plain).number == 1


def test_no_bit_of_a_commit_can_be_altered_unnoticed() -> None:
    data = commit.encode(a_commit(1))
    for bit in range(8 * len(data)):
        altered = bytearray(data)
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ChainError):
            commit.decode(bytes(altered))


def test_of_two_commits_with_one_number_the_second_fails(store: MemoryStore) -> None:
    commit.append(store, a_commit(1, run="one"))
    with pytest.raises(ChainError, match="another job has written this commit"):
        commit.append(store, a_commit(1, run="two"))


def test_a_commit_that_comes_when_newer_ones_are_there_fails(store: MemoryStore) -> None:
    write_chain(store, 3)
    store.delete(layout.commit(CLUSTER, 2))
    with pytest.raises(ChainError, match="0000000003"):
        commit.append(store, a_commit(2))


# --- where a start goes on


def test_where_nothing_is_a_start_begins_with_number_one(store: MemoryStore) -> None:
    state = commit.read_state(store, CLUSTER)
    assert (state.last, state.next_number, state.base) == (None, 1, 0)


def test_a_start_reads_back_to_the_newest_base_and_adds_up_what_came_since(store: MemoryStore) -> None:
    write_chain(store, 6, bases=(1, 4))
    state = commit.read_state(store, CLUSTER)
    assert state.last is not None
    assert (state.last.number, state.next_number, state.base, state.since_base) == (6, 7, 4, 3)
    assert (state.seen, state.sequences) == ([b"4", b"5", b"6"], {"p/00": 6})
    assert state.named == {"s4", "s5", "s6"}


def test_a_start_passes_over_damaged_newest_commits(store: MemoryStore) -> None:
    write_chain(store, 6, bases=(1, 6))
    for number in (5, 6):
        store.objects[layout.commit(CLUSTER, number)] = b"damaged"
    state = commit.read_state(store, CLUSTER)
    assert state.last is not None
    assert (state.last.number, state.next_number, state.base, sorted(state.passed)) == (4, 7, 1, [5, 6])
    commit.append(store, a_commit(7, state.last.checksum, passed=[5, 6]))
    after = commit.read_state(store, CLUSTER)
    assert after.last is not None
    assert (after.last.number, after.base, after.passed) == (7, 1, {})


def test_a_start_fails_when_no_base_can_be_read(store: MemoryStore) -> None:
    write_chain(store, 2)
    for number in (1, 2):
        store.objects[layout.commit(CLUSTER, number)] = b"damaged"
    with pytest.raises(ChainError, match="whole keyed state among 2 commits"):
        commit.read_state(store, CLUSTER)


# --- folding


def test_commits_before_a_number_fold_into_an_archive_without_their_state(store: MemoryStore) -> None:
    write_chain(store, 6)
    before = [link.checksum for link in commit.links(store, CLUSTER, print)]
    commit.compact(store, CLUSTER, 5)
    assert commit_numbers(store) == [5, 6]
    archive = commit.decode_archive(store.read(layout.archive(CLUSTER, 1, 4)))
    assert [type(link) for link in archive] == [Link] * 4
    assert [link.checksum for link in commit.links(store, CLUSTER, print)] == before


def test_a_death_at_any_instant_of_folding_loses_nothing_and_the_next_time_finishes(store: MemoryStore) -> None:
    write_chain(store, 12)
    whole = dict(store.objects)
    for last in range(60):
        done = 0

        def die(operation: str, last: int = last) -> str:
            nonlocal done
            done += 1
            return "die after" if done > last else "go"

        dying = MemoryStore(dict(whole), die)
        try:
            for before in (4, 7, 10):
                commit.compact(dying, CLUSTER, before, keep=2)
        except Killed:
            pass
        again = MemoryStore(dying.objects)
        assert numbers(again) == list(range(1, 13))
        commit.compact(again, CLUSTER, 10, keep=2)
        assert numbers(again) == list(range(1, 13))
        assert commit_numbers(again) == [10, 11, 12]


def test_small_archives_fold_into_one_and_never_around_a_large_one(store: MemoryStore) -> None:
    write_chain(store, 60)
    for before in range(2, 60):
        commit.compact(store, CLUSTER, before, keep=2)
        assert numbers(store) == list(range(1, 61))
    spans = [layout.archive_span(entry.path) for entry in store.list(f"{layout.state(CLUSTER)}/chain/")]
    assert all(one[1] + 1 == other[0] for one, other in itertools.pairwise(spans))


def test_a_damaged_commit_stays_where_it_is_for_verify_to_find(store: MemoryStore) -> None:
    write_chain(store, 6)
    store.objects[layout.commit(CLUSTER, 2)] = b"damaged"
    commit.compact(store, CLUSTER, 5)
    assert commit_numbers(store) == [2, 5, 6]
    problems: list[str] = []
    assert [link.number for link in commit.links(store, CLUSTER, problems.append)] == [1, 3, 4, 5, 6]
    assert len(problems) == 1


def test_a_commit_of_a_number_that_an_archive_holds_counts_for_nothing(store: MemoryStore) -> None:
    write_chain(store, 6)
    commit.compact(store, CLUSTER, 5)
    late = layout.commit(CLUSTER, 2)
    store.create(late, commit.encode(a_commit(2, run="late")))
    assert [link.run for link in commit.links(store, CLUSTER, print)] == ["r"] * 6
    commit.compact(store, CLUSTER, 6)
    assert late not in store.objects


def test_what_an_archive_holds_beside_a_damaged_commit_does_not_have_it_deleted(store: MemoryStore) -> None:
    write_chain(store, 9)
    store.objects[layout.commit(CLUSTER, 2)] = b"damaged"
    for before in (5, 8, 9):
        commit.compact(store, CLUSTER, before)
    assert commit_numbers(store) == [2, 9]


def test_a_commit_under_the_name_of_another_is_passed_over_and_stays(store: MemoryStore) -> None:
    write_chain(store, 3)
    store.objects[layout.commit(CLUSTER, 4)] = store.objects[layout.commit(CLUSTER, 3)]
    state = commit.read_state(store, CLUSTER)
    assert (state.last and state.last.number, state.next_number) == (3, 5)
    assert state.passed == {4: "expected commit 4, found commit 3"}
    commit.compact(store, CLUSTER, 5)
    assert commit_numbers(store) == [4]


def test_a_damaged_archive_is_told_and_left(store: MemoryStore) -> None:
    write_chain(store, 6)
    commit.compact(store, CLUSTER, 5)
    store.objects[layout.archive(CLUSTER, 1, 4)] = b"damaged"
    problems: list[str] = []
    assert [link.number for link in commit.links(store, CLUSTER, problems.append)] == [5, 6]
    assert "0000000001-0000000004.json.gz: expected gzipped JSON" in problems[0]


def test_a_link_is_found_in_its_commit_or_in_an_archive(store: MemoryStore) -> None:
    write_chain(store, 6)
    commit.compact(store, CLUSTER, 5)
    found = [commit.read_link(store, CLUSTER, number) for number in (2, 6, 7)]
    assert [link and link.number for link in found] == [2, 6, None]


def test_the_clusters_are_those_that_have_a_chain(store: MemoryStore) -> None:
    for cluster in ("prod", "a/b"):
        commit.append(store, a_commit(1, cluster=cluster))
    assert sorted(commit.clusters(store)) == ["a/b", "prod"]


def test_a_segment_that_has_gone_since_it_was_found_is_another_jobs_doing(store: MemoryStore) -> None:
    with pytest.raises(ChainError, match="another job has removed it"):
        commit.read_taken(store, "cluster=prod/x")
