"""A cluster's chain as a job writes it: starts, epochs, deaths between two operations, other jobs."""

from __future__ import annotations

import pytest

from tests.chains import (
    CLUSTER,
    HOUR_US,
    NOW_US,
    THIS_HOUR_US,
    Job,
    MemoryStore,
    event,
    records_in,
    segments_in,
    service,
)
from transforms import codec, commit, layout
from transforms.commit import ChainError, Commit
from transforms.verify import verify
from transforms.write import void, voided

HOUR = codec.partition(CLUSTER, THIS_HOUR_US)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore({})


def commits(store: MemoryStore) -> list[Commit]:
    return [
        commit.decode(store.read(entry.path)) for entry in store.list(f"{layout.state(CLUSTER)}/commits/") if entry.size
    ]


def problems(store: MemoryStore) -> list[str]:
    return verify(store, CLUSTER, sleep=lambda seconds: None).problems


def damage(store: MemoryStore, path: str) -> None:
    store.objects[path] = store.objects[path][:-9]


# --- starts and epochs


def test_a_first_start_has_no_chain_and_knows_what_was_written(store: MemoryStore) -> None:
    job = Job(store)
    assert (job.known, job.history.unknown_since_us, job.history.positions) == (False, None, {})


def test_a_start_goes_on_where_the_newest_commit_ended(store: MemoryStore) -> None:
    Job(store).epoch(event("a", 5, 3), event("b", 6))
    job = Job(store)
    assert job.known
    assert {key: position.resource_version for key, position in job.history.positions.items()} == {
        "prod/events/": "6",
        "prod/services/": "6",
    }
    assert job.carried.sequences == {f"{HOUR}/00": 1}
    assert job.carried.seen(CLUSTER).event("a") == (5, 3)


def test_every_commit_names_the_one_before_and_its_own_segments(store: MemoryStore) -> None:
    job = Job(store)
    for version in (5, 6, 7):
        job.epoch(event(f"e{version}", version))
    first, second, third = commits(store)
    assert [link.number for link in (first, second, third)] == [1, 2, 3]
    assert (first.previous, second.previous, third.previous) == ("", first.checksum, second.checksum)
    assert [len(link.segments) for link in (first, second, third)] == [1, 1, 1]
    assert second.before == first.after
    assert problems(store) == []


def test_a_long_chain_takes_few_objects_and_is_still_proved(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "KEEP", 4)
    job = Job(store)
    for version in range(1, 200):
        job.epoch(event("a", version, version, more=1))
    assert sum(path.startswith("_state/") for path in store.objects) < 25
    assert Job(store).carried.seen(CLUSTER).event("a") == (199, 199)
    report = verify(store, CLUSTER)
    assert (report.problems, report.commits, report.occurrences) == ([], 199, 199)


# --- what a dead run left


def test_a_start_takes_in_what_a_run_wrote_that_died_before_its_commit(store: MemoryStore) -> None:
    Job(store).epoch(event("a", 5, 3))
    Job(store).write(event("a", 6, 5, more=2), event("b", 7))
    job = Job(store)
    newest = commits(store)[-1]
    assert [segment.count for segment in newest.segments] == [2]
    assert newest.after == newest.before
    assert job.carried.seen(CLUSTER).event("a") == (6, 5)
    assert problems(store) == []


def test_a_first_run_that_dies_is_taken_in_as_well(store: MemoryStore) -> None:
    Job(store).write(event("a", 5, 3))
    job = Job(store)
    assert job.history.unknown_since_us is None
    assert job.carried.seen(CLUSTER).event("a") == (5, 3)
    assert problems(store) == []


def test_a_run_that_died_between_two_records_of_an_event_has_its_occurrences_counted_anew(store: MemoryStore) -> None:
    Job(store).epoch(event("x", 4))
    # The record of version 5 with 3 occurrences was to be in another segment, which the run did not get to write.
    Job(store).write(event("a", 9, 5, more=2))
    Job(store)
    assert records_in(store) == [("a", "9", 5), ("x", "4", 1)]
    assert problems(store) == []


def test_a_death_while_that_is_put_right_changes_nothing(store: MemoryStore) -> None:
    Job(store).epoch(event("x", 4))
    Job(store).write(event("a", 9, 5, more=2))
    before = dict(store.objects)
    operations = 0

    def count(operation: str) -> str:
        nonlocal operations
        operations += 1
        return "go"

    Job(MemoryStore(dict(before), count))
    for last in range(operations):
        objects, done = dict(before), 0

        def die_at_last(operation: str, last: int = last) -> str:
            nonlocal done
            done += 1
            return "die after" if done > last else "go"

        with pytest.raises(BaseException, match=r"^$"):
            Job(MemoryStore(objects, die_at_last))
        Job(MemoryStore(objects))
        assert records_in(MemoryStore(objects)) == [("a", "9", 5), ("x", "4", 1)]
        assert problems(MemoryStore(objects)) == []


def test_the_services_of_a_dead_run_are_not_written_again_however_many_runs_die(store: MemoryStore) -> None:
    Job(store).epoch(event("x", 4))
    Job(store).write(service("web", 9))
    for _ in range(3):
        job = Job(store)
        job.write(service("web", 9))
    assert records_in(store) == [("web", "9", 0), ("x", "4", 1)]
    job.epoch(service("web", 9), service("web", 10))
    assert job.carried.written == set()  # the position is beyond them
    assert problems(store) == []


def test_an_object_that_is_no_segment_is_left_and_noted_and_its_name_is_passed_over(store: MemoryStore) -> None:
    Job(store).epoch(event("a", 5))
    foreign = codec.segment_name(HOUR, "00", 1)
    store.create(foreign, b"what is this")
    job = Job(store)
    job.epoch(event("b", 6))
    assert commits(store)[-2].found == [foreign]
    assert [segment.path for segment in commits(store)[-1].segments] == [codec.segment_name(HOUR, "00", 2)]
    assert any("can't be read" in problem for problem in problems(store))


# --- another job


def test_of_two_jobs_the_one_that_commits_later_stops_and_says_what_to_do(store: MemoryStore) -> None:
    Job(store).epoch(event("a", 5))
    one, other = Job(store, run="one"), Job(store, run="other")
    one.epoch(event("b", 6))
    with pytest.raises(ChainError, match=r"another job .*nothing is lost: stop one of them, or give each its own"):
        other.epoch(event("b", 6))
    with pytest.raises(ChainError, match="another job"):
        other.history.check_alone()
    one.history.check_alone()


def test_what_another_job_wrote_for_the_same_commit_is_voided_when_its_name_is_met(store: MemoryStore) -> None:
    Job(store).epoch(event("a", 5))
    one, other = Job(store, run="one"), Job(store, run="other")
    other.write(event("b", 7, 4))
    one.epoch(event("b", 6, 3))
    assert records_in(store) == [("a", "5", 1), ("b", "6", 3)]
    assert problems(store) == []


def test_what_another_job_wrote_elsewhere_is_voided_by_the_next_start(store: MemoryStore) -> None:
    Job(store).epoch(event("a", 5))
    one, other = Job(store, run="one"), Job(store, run="other")
    other.write(event("b", 7, 4, time_us=THIS_HOUR_US - HOUR_US))
    one.epoch(event("b", 6, 3))
    assert len(problems(store)) == 1
    assert "written for commit 2, which does not name it" in problems(store)[0]
    Job(store)
    assert records_in(store) == [("a", "5", 1), ("b", "6", 3)]
    assert problems(store) == []


def test_a_job_that_goes_on_voids_it_at_its_next_base(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "KEEP", 3)
    Job(store).epoch(event("a", 5))
    one, other = Job(store, run="one"), Job(store, run="other")
    other.write(event("b", 7, 4, time_us=THIS_HOUR_US - HOUR_US))
    for version in (6, 7, 8):
        one.epoch(event(f"e{version}", version))
    assert commits(store)[-1].base
    assert problems(store) == []
    assert "b" not in {uid for uid, _, _ in records_in(store)}


def test_a_death_between_the_commit_and_the_voiding_is_made_good_by_the_next_start(store: MemoryStore) -> None:
    Job(store).epoch(event("a", 5))
    one, other = Job(store, run="one"), Job(store, run="other")
    other.write(event("b", 7, 4))
    taken = store.objects[codec.segment_name(HOUR, "00", 1)]
    one.epoch(event("b", 6, 3))
    store.objects[codec.segment_name(HOUR, "00", 1)] = taken
    assert len(problems(store)) > 0
    Job(store)
    assert problems(store) == []


def test_a_segment_that_a_commit_names_is_never_voided(store: MemoryStore) -> None:
    job = Job(store)
    for version in (5, 6):
        job.epoch(event(f"e{version}", version))
    job.carried.sequences[f"{HOUR}/00"] = 0  # wrong, for whatever reason
    before = dict(store.objects)
    with pytest.raises(ChainError, match="another job"):
        job.epoch(event("e7", 7))
    assert {path: store.objects[path] for path in before} == before


def test_a_job_that_was_halted_until_its_commits_number_was_free_again_stops(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "KEEP", 3)
    Job(store).epoch(event("a", 5))
    halted, job = Job(store, run="halted"), Job(store, run="job")
    for version in range(6, 20):
        job.epoch(event(f"e{version}", version))
    assert commit.read_link(store, CLUSTER, 2) is not None
    assert layout.commit(CLUSTER, 2) not in store.objects
    with pytest.raises(ChainError, match="another job"):
        halted.epoch(event("e6", 6))
    for version in range(20, 30):
        job.epoch(event(f"e{version}", version))
    Job(store)
    assert problems(store) == []


# --- a chain that is damaged, or not there


def test_a_damaged_newest_commit_is_passed_over_and_its_segments_are_taken_in(store: MemoryStore) -> None:
    job = Job(store)
    job.epoch(event("a", 5))
    job.epoch(event("b", 6))
    damage(store, layout.commit(CLUSTER, 2))
    assert any("000002.json.gz" in problem for problem in problems(store))
    Job(store).epoch(event("c", 7))
    assert Job(store).history.positions["prod/events/"].resource_version == "7"
    assert records_in(store) == [("a", "5", 1), ("b", "6", 1), ("c", "7", 1)]
    report = verify(store, CLUSTER)
    assert report.problems == []
    assert "a start passed over it" in " ".join(report.notes)


def test_a_damaged_newest_base_is_passed_over_too(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "KEEP", 3)
    job = Job(store)
    for version in range(1, 8):
        job.epoch(event(f"e{version}", version))
    assert commits(store)[-1].base
    damage(store, layout.commit(CLUSTER, 7))
    assert Job(store).carried.seen(CLUSTER).event("e1") == (1, 1)


def test_a_removed_newest_commit_is_made_good_by_the_next_start(store: MemoryStore) -> None:
    job = Job(store)
    job.epoch(event("a", 5))
    job.epoch(event("b", 6))
    store.delete(layout.commit(CLUSTER, 2))
    assert "it was written for commit 2, which is not there" in problems(store)[0]
    Job(store)
    assert problems(store) == []


@pytest.mark.parametrize("how", ["damaged", "removed", "replaced"])
def test_a_start_refuses_a_chain_without_a_commit_that_it_needs(store: MemoryStore, how: str) -> None:
    job = Job(store)
    for version in (5, 6, 7):
        job.epoch(event(f"e{version}", version))
    path = layout.commit(CLUSTER, 2)
    if how == "damaged":
        damage(store, path)
    elif how == "removed":
        store.delete(path)
    else:
        replacement = commits(store)[1]
        store.objects[path] = commit.encode(Commit(**{**_fields(replacement), "run": "another", "checksum": ""}))
    with pytest.raises(ChainError, match=r"needed to go on.*pipeline.verify.*move the directory away"):
        Job(store)


def test_a_start_refuses_archives_without_commits(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "KEEP", 3)
    job = Job(store)
    for version in range(1, 12):
        job.epoch(event(f"e{version}", version))
    for path in [path for path in store.objects if "/commits/" in path]:
        store.delete(path)
    with pytest.raises(ChainError, match="among 0 commits"):
        Job(store)


def test_where_the_state_is_lost_what_is_recent_counts_as_seen_and_the_rest_is_unknown(store: MemoryStore) -> None:
    Job(store).epoch(event("a", 5, 3), service("web", 6), event("old", 4, time_us=THIS_HOUR_US - 9 * HOUR_US))
    for path in [path for path in store.objects if path.startswith("_state/")]:
        store.delete(path)
    job = Job(store)
    assert (job.known, job.history.unknown_since_us, job.history.positions) == (False, 0, {})
    seen = job.carried.seen(CLUSTER)
    assert (seen.event("a"), seen.event("old")) == ((5, 3), None)
    job.epoch(event("a", 7, 5, more=2), service("web", 6))
    assert records_in(store) == [("a", "5", 3), ("a", "7", 2), ("old", "4", 1), ("web", "6", 0)]
    report = verify(store, CLUSTER)
    assert report.problems == []
    assert report.notes == [
        "commit 1: 2 segments were there under no commit; only that they can be read is proved of them"
    ]
    assert Job(store).carried.seen(CLUSTER).event("a") == (7, 5)


def test_what_is_unknown_stays_so_until_something_was_read(store: MemoryStore) -> None:
    Job(store).epoch(event("a", 5, 3))
    for path in [path for path in store.objects if path.startswith("_state/")]:
        store.delete(path)
    Job(store).write(event("b", 6))  # and it dies
    assert Job(store).history.unknown_since_us == 0
    assert Job(store).history.unknown_since_us == 0
    assert problems(store) == []


def test_another_cluster_of_the_same_name_begins_anew_after_what_was_left_is_taken_in(store: MemoryStore) -> None:
    Job(store).epoch(event("a", 5, 3))
    Job(store).write(event("b", 6))
    job = Job(store, identity="another")
    assert job.known
    assert job.history.positions == {}
    assert job.history.unknown_since_us is not None
    assert job.history.unknown_since_us >= NOW_US
    assert job.carried.seen(CLUSTER).event("a") is None
    job.epoch(event("c", 2))
    assert [link.identity for link in commits(store)] == ["identity", "identity", "another"]
    report = verify(store, CLUSTER)
    assert report.problems == []
    assert report.notes == ["commit 3: the name went to another cluster, whose history begins here"]
    assert Job(store, identity="another").history.unknown_since_us is None


def test_a_cluster_that_no_longer_tells_its_identity_keeps_it(store: MemoryStore) -> None:
    Job(store).epoch(event("a", 5))
    Job(store, identity="").epoch(event("b", 6))
    assert Job(store, identity="another").history.unknown_since_us is not None


# --- hours that are over


def test_a_late_record_opens_its_hour_anew_and_a_death_then_is_harmless(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "KEEP", 2)
    long_ago = THIS_HOUR_US - 9 * HOUR_US
    old = codec.partition(CLUSTER, long_ago)
    job = Job(store)
    job.epoch(event("a", 1, time_us=long_ago))
    assert f"{old}/00" not in job.carried.sequences
    assert layout.open_marker(old) not in store.objects
    job.epoch(event("b", 2))
    job.write(event("c", 3, time_us=long_ago))
    Job(store)
    assert records_in(store) == [("a", "1", 1), ("b", "2", 1), ("c", "3", 1)]
    assert problems(store) == []


def test_a_marker_that_a_death_left_behind_is_harmless(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "KEEP", 2)
    long_ago = THIS_HOUR_US - 9 * HOUR_US
    marker = layout.open_marker(codec.partition(CLUSTER, long_ago))
    Job(store).epoch(event("a", 1, time_us=long_ago))
    store.create(marker, b"{}")
    job = Job(store)
    for version in (2, 3, 4):
        job.epoch(event(f"e{version}", version))
    assert marker not in store.objects
    assert problems(store) == []


def test_a_voided_name_in_an_hour_that_is_over_stays_as_it_is(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "KEEP", 2)
    long_ago = THIS_HOUR_US - 9 * HOUR_US
    path = codec.segment_name(codec.partition(CLUSTER, long_ago), "00", 0)
    one, other = Job(store, run="one"), Job(store, run="other")
    other.write(event("b", 7, 4, time_us=long_ago))
    one.epoch(event("b", 6, 3, time_us=long_ago))
    assert [segment for segment in commits(store)[0].segments if segment.path == path] == [voided(path)]
    store.create(layout.open_marker(codec.partition(CLUSTER, long_ago)), b"{}")
    Job(store).epoch(event("c", 8))
    void(store, path)
    assert problems(store) == []


def _fields(link: Commit) -> dict[str, object]:
    return {name: getattr(link, name) for name in link.__struct_fields__}


def test_every_segment_is_named_once(store: MemoryStore) -> None:
    job = Job(store)
    job.epoch(*[event(f"e{number}", number) for number in range(1, 8)])
    assert sorted(segment.path for link in commits(store) for segment in link.segments) == segments_in(store)
