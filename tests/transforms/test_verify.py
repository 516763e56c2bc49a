"""The proof of a history: every sabotage is found and named, and what a job may leave by right passes."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable

import pytest
from kubehistory.record_pb2 import Record

from tests import chains
from tests.chains import (
    CLUSTER,
    EVENTS,
    HOUR_US,
    NOW_US,
    THIS_HOUR_US,
    Job,
    Killed,
    MemoryStore,
    encoded,
    event,
    segments_in,
    service,
)
from transforms import codec, commit, layout
from transforms.commit import Commit, Link
from transforms.types import DeadLetter, Gap, Segment
from transforms.verify import Report, clusters, verify
from transforms.write import labelled, void, write_dead

HOUR = codec.partition(CLUSTER, THIS_HOUR_US)
HOUR_BEFORE = codec.partition(CLUSTER, THIS_HOUR_US - HOUR_US)
COMMITS = 8


@pytest.fixture(autouse=True)
def _short_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    """A base every 3 commits: of 8, the first 3 are in an archive, and the newest is no base."""
    monkeypatch.setattr(commit, "KEEP", 3)


@pytest.fixture
def store() -> MemoryStore:
    """A history of two hours and 8 commits; commit N names segment N - 1 of this hour, with records of two Events."""
    store = MemoryStore({})
    job = Job(store)
    job.epoch(event("a", 10, 2), event("b", 11), event("old", 9, time_us=THIS_HOUR_US - HOUR_US))
    for number in range(2, COMMITS + 1):
        job.epoch(event("a", 10 * number, 2 * number, more=2), event(f"e{number}", 10 * number + 1))
    return store


def report_of(store: MemoryStore, sleep: Callable[[float], None] = lambda seconds: None) -> Report:
    return verify(store, CLUSTER, sleep=sleep)


def problems(store: MemoryStore) -> str:
    return "\n".join(report_of(store).problems)


def segment(number: int, hour: str = HOUR, shard: str = "00") -> str:
    return codec.segment_name(hour, shard, number)


def records(store: MemoryStore, path: str) -> list[bytes]:
    return list(codec.unpack(store.read(path)))


def archive_of(store: MemoryStore) -> str:
    return next(path for path in store.objects if "/chain/" in path)


def read_commit(store: MemoryStore, number: int) -> Commit:
    return commit.decode(store.read(layout.commit(CLUSTER, number)))


def changed(link: Commit, **fields: object) -> bytes:
    values = {name: getattr(link, name) for name in link.__struct_fields__} | {"checksum": ""}
    return commit.encode(Commit(**values | fields))


def forget(store: MemoryStore) -> None:
    for path in [path for path in store.objects if path.startswith("_state/")]:
        store.delete(path)


# --- what holds


def test_a_whole_history_holds_and_is_counted(store: MemoryStore) -> None:
    report = report_of(store)
    assert report.problems == report.notes == report.gaps == []
    assert (report.commits, report.segments, report.occurrences) == (COMMITS, 9, 2 * COMMITS + 2 + 7)
    assert report.records == {"EVENT": 17}
    assert report.bytes == sum(len(store.objects[path]) for path in segments_in(store))
    assert report.positions == {"prod/events/": ("11", "81"), "prod/services/": ("11", "81")}
    assert report.from_us == NOW_US <= report.to_us


def test_how_far_it_is_is_told(store: MemoryStore) -> None:
    told: list[tuple[int, int]] = []
    verify(store, CLUSTER, progress=lambda done, of: told.append((done, of)))
    assert told == [(done, 9) for done in range(1, 10)]


def test_gaps_are_listed_and_are_no_problem() -> None:
    store = MemoryStore({})
    gap = Gap(EVENTS, 1, 2, "the watch expired")
    Job(store).epoch(event("a", 5), gaps=[gap])
    assert (report_of(store).gaps, report_of(store).problems) == ([gap], [])


def test_a_cluster_that_changed_its_identity_is_a_note(store: MemoryStore) -> None:
    Job(store, identity="another").epoch(event("c", 2))
    report = report_of(store)
    assert report.problems == []
    assert report.notes == ["commit 9: the name went to another cluster, whose history begins here"]


def test_what_was_there_before_the_chain_is_a_note(store: MemoryStore) -> None:
    forget(store)
    Job(store).epoch(event("c", 90))
    report = report_of(store)
    assert report.problems == []
    assert "9 segments were there under no commit" in report.notes[0]


def test_what_was_there_before_the_chain_must_still_be_there_and_readable(store: MemoryStore) -> None:
    forget(store)
    Job(store).epoch(event("c", 90))
    store.delete(segment(2))
    store.objects[segment(3)] = b"\x1f\x8b"
    assert f"{segment(2)} is missing" in problems(store)
    assert f"{segment(3)} can't be read" in problems(store)


@pytest.mark.parametrize("operations", range(40))
def test_a_crash_while_the_chain_is_folded_leaves_nothing_to_find(store: MemoryStore, operations: int) -> None:
    left = operations

    def die(operation: str) -> str:
        nonlocal left
        left -= 1
        return "die after" if left < 0 else "go"

    dying = MemoryStore(dict(store.objects), die)
    with contextlib.suppress(Killed):
        commit.compact(dying, CLUSTER, COMMITS, keep=1)
    report = report_of(MemoryStore(dying.objects))
    assert (report.problems, report.commits) == ([], COMMITS)


def test_an_event_whose_count_begins_anew_may_count_it_all_again() -> None:
    store = MemoryStore({})
    job = Job(store)
    job.epoch(event("a", 5, 7))
    job.epoch(event("a", 9, 2))
    assert problems(store) == ""


def test_records_that_have_no_time_of_their_own_may_be_two_hours_apart_and_are_still_told_from_repeats() -> None:
    store = MemoryStore({})
    undated = [event("a", 5, time_us=NOW_US), event("b", 6, time_us=NOW_US - HOUR_US)]
    undated[1].observed_time_us = undated[1].time_us
    Job(store).epoch(*undated)
    assert problems(store) == ""
    again = event("b", 6, time_us=NOW_US)
    Job(store).epoch(again)
    assert "the record of b at resourceVersion 6 is there twice" in problems(store)


def test_a_history_of_many_hours_forgets_what_counts_no_more() -> None:
    store = MemoryStore({})
    job = Job(store)
    for hour in range(120):
        time_us = THIS_HOUR_US - (120 - hour) * HOUR_US
        undated = event(f"u{hour}", 2 * hour + 1, time_us=time_us)
        undated.observed_time_us = time_us
        job.epoch(event("a", 2 * hour + 2, hour + 1, more=1, time_us=time_us), undated)
    assert (report_of(store).problems, report_of(store).occurrences) == ([], 240)


@pytest.mark.parametrize("cluster", ["a/b c", "prod=eu%", "..", "Ünï"])
def test_the_name_of_a_cluster_may_be_anything(monkeypatch: pytest.MonkeyPatch, cluster: str) -> None:
    monkeypatch.setattr(chains, "CLUSTER", cluster)
    store = MemoryStore({})
    Job(store).epoch(event("a", 5), event("b", 6))
    assert list(clusters(store)) == [cluster]
    assert verify(store, cluster).problems == []


def test_the_clusters_of_a_sink_are_proved_apart(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chains, "CLUSTER", "prod2")
    Job(store).epoch(event("a", 10, 2))
    store.create("cluster=bare/dt=2026-01-01/hour=00/00-0000000000.pb.gz", codec.pack([]))
    assert list(clusters(store)) == ["bare", "prod", "prod2"]
    assert [verify(store, name).problems for name in ("prod", "prod2")] == [[], []]
    assert "no commit is there" in verify(store, "bare").problems[0]


# --- while a job writes


def test_a_segment_whose_commit_comes_a_moment_later_is_no_problem(store: MemoryStore) -> None:
    job = Job(store)
    epoch = job.write(event("c", 90))
    looks = 0

    def sleep(seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            job.history.commit(epoch)

    report = report_of(store, sleep)
    assert (report.problems, report.commits) == ([], COMMITS + 1)


def test_a_segment_whose_commit_does_not_come_is_one(store: MemoryStore) -> None:
    slept: list[float] = []
    Job(store).write(event("c", 90))
    assert "was written for commit 9, which is not there: the run died" in report_of(store, slept.append).problems[0]
    assert 4 <= sum(slept) <= 10


def test_a_history_that_is_at_rest_is_not_waited_for(store: MemoryStore) -> None:
    Job(store).write(event("c", 90))
    slept: list[float] = []
    verify(store, CLUSTER, clock=lambda: NOW_US / 1e6 + 900, sleep=slept.append)
    assert slept == []


def test_a_commit_that_is_folded_while_the_chain_is_walked_is_found_in_its_archive(store: MemoryStore) -> None:
    class Folding(MemoryStore):
        """Folds when the archives were listed already."""

        def read(self, path: str) -> bytes:
            if "/commits/" in path and path in self.objects:
                commit.compact(MemoryStore(self.objects), CLUSTER, COMMITS)
            return super().read(path)

    slept: list[float] = []
    report = report_of(Folding(store.objects), slept.append)
    assert (report.problems, report.commits) == ([], COMMITS)
    assert len(slept) == 1


def test_a_name_that_is_voided_a_moment_later_is_no_problem(store: MemoryStore) -> None:
    one, other = Job(store, run="one"), Job(store, run="other")
    other.write(event("c", 91, 4))
    path = segment(COMMITS)
    taken = store.objects[path]
    one.epoch(event("c", 90, 3))
    store.objects[path] = taken  # as it is between the commit and the voiding
    assert f"{path} is not as it was written" in problems(store)
    assert report_of(store, lambda seconds: void(store, path)).problems == []
    store.delete(path)  # within it
    assert report_of(store, lambda seconds: void(store, path)).problems == []


# --- sabotage of segments

SEGMENTS = [segment(number) for number in (0, 3, COMMITS - 1)] + [segment(0, HOUR_BEFORE)]


@pytest.mark.parametrize("path", SEGMENTS)
def test_a_segment_that_was_deleted_is_found(store: MemoryStore, path: str) -> None:
    store.delete(path)
    assert report_of(store).problems[0] == f"{path} is missing"


@pytest.mark.parametrize("path", SEGMENTS)
@pytest.mark.parametrize("left", [0, 1, 10, -9, -1])
def test_a_segment_that_was_truncated_is_found(store: MemoryStore, path: str, left: int) -> None:
    store.objects[path] = store.objects[path][:left]
    assert f"{path} is not as it was written" in problems(store)


def test_any_bit_of_a_segment_that_was_altered_is_found(store: MemoryStore) -> None:
    whole = store.objects[segment(3)]
    for bit in range(0, 8 * len(whole), 7):
        altered = bytearray(whole)
        altered[bit // 8] ^= 1 << bit % 8
        store.objects[segment(3)] = bytes(altered)
        assert f"{segment(3)} is not as it was written" in problems(store), bit


@pytest.mark.parametrize("path", SEGMENTS)
@pytest.mark.parametrize("how", ["doubled", "removed", "all removed", "other order", "same records again"])
def test_a_segment_that_was_written_anew_is_found(store: MemoryStore, path: str, how: str) -> None:
    here = records(store, path)
    other = {
        "doubled": [*here, here[0]],
        "removed": here[1:],
        "all removed": [],
        "other order": here[::-1],
        "same records again": here,
    }[how]
    store.objects[path] = codec.pack(other)  # without its label, at least
    assert f"{path} is not as it was written" in problems(store)


def test_a_record_that_is_twice_in_a_segment_is_named(store: MemoryStore) -> None:
    here = records(store, segment(3))
    store.objects[segment(3)] = labelled(codec.pack([*here, here[0]]), 4)
    assert "the record of a at resourceVersion 40 is there twice" in problems(store)
    assert f"{segment(3)} holds 3 records, its commit says 2" in problems(store)
    assert "the event a counts 18 occurrences, it reported 16" in problems(store)


@pytest.mark.parametrize(
    "to",
    [
        segment(COMMITS),
        segment(COMMITS + 3),
        segment(1, HOUR_BEFORE),
        segment(0, HOUR, "01"),
        segment(0, codec.partition(CLUSTER, THIS_HOUR_US + 9 * HOUR_US)),
    ],
)
@pytest.mark.parametrize("number", [0, COMMITS - 1])
def test_a_segment_that_was_copied_is_found(store: MemoryStore, number: int, to: str) -> None:
    store.objects[to] = store.objects[segment(number)]
    assert f"{to} is under no commit: it was written for commit {number + 1}, which does not name it" in problems(store)


def test_two_segments_that_changed_places_are_found(store: MemoryStore) -> None:
    one, other = segment(2), segment(5)
    store.objects[one], store.objects[other] = store.objects[other], store.objects[one]
    assert [problem.partition(" ")[0] for problem in report_of(store).problems] == [one, other]


@pytest.mark.parametrize(
    "name",
    [
        f"{HOUR}/notes.txt",
        f"{HOUR}/00-0000000000.pb.gz.bak",
        f"{HOUR}/00-1.pb.gz",
        f"{HOUR}/deep/00-0000000000.pb.gz",
        "cluster=prod/x",
        "cluster=prod/dt=2026-01-01/_SUCCESS",
    ],
)
def test_a_foreign_object_among_the_data_is_found(store: MemoryStore, name: str) -> None:
    store.create(name, b"x")
    assert report_of(store).problems == [f"{name}: expected nothing but segments here, found what is none"]


@pytest.mark.parametrize("data", [b"", b"x", codec.pack([])])
def test_an_object_under_the_name_of_a_segment_is_found(store: MemoryStore, data: bytes) -> None:
    store.create(segment(COMMITS), data)
    assert "is under no commit: no commit names it" in problems(store)


def test_numbers_that_were_left_out_are_found(store: MemoryStore) -> None:
    """Also when commits were written that know nothing of what is missing."""
    data = labelled(codec.pack([]), 9)
    path = segment(COMMITS + 2)
    store.create(path, data)
    last = read_commit(store, COMMITS)
    following = changed(
        last,
        number=COMMITS + 1,
        previous=last.checksum,
        before=last.after,
        segments=[Segment(path, 0, codec.checksum(data), len(data))],
    )
    store.create(layout.commit(CLUSTER, COMMITS + 1), following)
    assert report_of(store).problems == [f"{HOUR}/00: the segments with the numbers [8, 9] are missing"]


# --- sabotage by records, with commits that agree


def append(store: MemoryStore, *added: Record, hour: str = HOUR, number: int = COMMITS) -> None:
    """A segment and a commit that names it, as if a job had written these records."""
    last = read_commit(store, COMMITS)
    data = labelled(codec.pack([record.data for record in encoded(*added)]), COMMITS + 1)
    path = segment(number, hour)
    store.create(path, data)
    named = [Segment(path, len(added), codec.checksum(data), len(data))]
    fields = {"number": COMMITS + 1, "previous": last.checksum, "before": last.after, "segments": named}
    store.create(layout.commit(CLUSTER, COMMITS + 1), changed(last, **fields))


def test_a_record_that_is_in_two_segments_is_found(store: MemoryStore) -> None:
    append(store, event("e5", 51))
    assert "the record of e5 at resourceVersion 51 is there twice" in problems(store)


def test_a_service_change_that_is_in_two_hours_is_found(store: MemoryStore) -> None:
    Job(store).epoch(service("web", 90))
    again = service("web", 90)
    again.time_us = THIS_HOUR_US - HOUR_US
    Job(store).epoch(again)
    assert "the record of web at resourceVersion 90 is there twice" in problems(store)


def test_occurrences_that_are_counted_twice_in_one_hour_are_found(store: MemoryStore) -> None:
    append(store, event("a", 90, 18))
    assert report_of(store).problems == [f"the event a counts 34 occurrences, it reported 18 ({HOUR})"]


def test_occurrences_that_are_counted_twice_across_hours_are_found(store: MemoryStore) -> None:
    append(store, event("old", 90, 3))
    assert report_of(store).problems == [f"the event old counts 4 occurrences, it reported 3 ({HOUR})"]


def test_a_record_in_the_wrong_hour_or_cluster_is_found(store: MemoryStore) -> None:
    stray = event("d", 91)
    stray.cluster = "other"
    append(store, event("c", 90, time_us=THIS_HOUR_US - HOUR_US), stray)
    assert problems(store).count("is of another cluster or hour") == 2


# --- sabotage of the chain


def test_any_commit_that_was_removed_is_found(store: MemoryStore) -> None:
    for path in [path for path in store.objects if "/commits/" in path]:
        objects = dict(store.objects)
        del objects[path]
        found = problems(MemoryStore(objects))
        number = layout.commit_number(path)
        if number < COMMITS:
            assert f"commit {number} is missing: what was covered there is not proved" in found
        else:
            assert "it was written for commit 8, which is not there" in found


def test_the_first_commit_that_was_removed_is_found() -> None:
    store = MemoryStore({})
    job = Job(store)
    job.epoch(event("a", 5))
    job.epoch(event("b", 6))
    store.delete(layout.commit(CLUSTER, 1))
    assert "commit 1 is missing" in problems(store)


def test_all_commits_that_were_removed_are_found(store: MemoryStore) -> None:
    for path in [path for path in store.objects if "/commits/" in path]:
        store.delete(path)
    assert "is not there" in problems(store)
    forget(store)
    assert report_of(store).problems[0] == "no commit is there: nothing says what this history covers"
    assert problems(store).count("is under no commit") == 9


def test_any_bit_of_a_commit_or_an_archive_that_was_altered_is_found(store: MemoryStore) -> None:
    for path in [path for path in store.objects if "/commits/" in path or "/chain/" in path]:
        whole = store.objects[path]
        for bit in range(0, 8 * len(whole), 11):
            altered = bytearray(whole)
            altered[bit // 8] ^= 1 << bit % 8
            store.objects[path] = bytes(altered)
            assert problems(store), (path, bit)
        store.objects[path] = whole


@pytest.mark.parametrize(
    "fields",
    [
        {"run": "another"},
        {"segments": []},
        {"after": {}},
        {"before": {}},
        {"number": 99},
        {"cluster": "other"},
        {"gaps": [Gap(EVENTS, 1, 2, "never was")]},
    ],
)
def test_a_commit_that_was_rewritten_is_found(store: MemoryStore, fields: dict[str, object]) -> None:
    store.objects[layout.commit(CLUSTER, COMMITS - 1)] = changed(read_commit(store, COMMITS - 1), **fields)
    assert problems(store)


@pytest.mark.parametrize("number", [COMMITS - 1, COMMITS])
def test_a_commit_that_was_replaced_by_an_older_one_is_found(store: MemoryStore, number: int) -> None:
    path = layout.commit(CLUSTER, number)
    store.objects[path] = store.objects[layout.commit(CLUSTER, COMMITS - 2)]
    assert f"{path}: expected commit {number}, found commit 6" in problems(store)


def test_a_newest_commit_without_segments_that_was_replaced_by_an_older_one_is_found(store: MemoryStore) -> None:
    Job(store).epoch()
    path = layout.commit(CLUSTER, COMMITS + 1)
    store.objects[path] = store.objects[layout.commit(CLUSTER, COMMITS)]
    assert f"{path}: expected commit 9, found commit 8" in problems(store)


@pytest.mark.parametrize("to", [COMMITS + 1, COMMITS + 91])
def test_a_commit_that_was_copied_under_a_newer_number_is_found(store: MemoryStore, to: int) -> None:
    path = layout.commit(CLUSTER, to)
    store.objects[path] = store.objects[layout.commit(CLUSTER, COMMITS)]
    assert f"{path}: expected commit {to}, found commit 8" in problems(store)


def test_a_commit_of_another_history_is_found(store: MemoryStore) -> None:
    other = MemoryStore({})
    job = Job(other)
    for number in range(COMMITS):
        job.epoch(event("z", number + 1, number + 1, more=1))
    path = layout.commit(CLUSTER, COMMITS - 1)
    store.objects[path] = other.objects[path]
    found = problems(store)
    assert "commit 7 was written after another commit 6 than is there" in found
    assert "commit 7 goes on from other positions than commit 6 ended at" in found


def test_a_segment_that_two_commits_name_is_found(store: MemoryStore) -> None:
    last = read_commit(store, COMMITS)
    following = changed(last, number=COMMITS + 1, previous=last.checksum, before=last.after)
    store.create(layout.commit(CLUSTER, COMMITS + 1), following)
    assert report_of(store).problems == [f"{segment(COMMITS - 1)} is named by two commits, the second is 9"]


def test_an_archive_that_was_removed_is_found(store: MemoryStore) -> None:
    first, last = layout.archive_span(archive_of(store))
    store.delete(archive_of(store))
    assert f"commits {first} to {last} are missing" in problems(store)


def test_an_archive_that_was_truncated_is_found(store: MemoryStore) -> None:
    path = archive_of(store)
    store.objects[path] = store.objects[path][:-3]
    assert f"{path}: expected gzipped JSON of commits" in problems(store)


@pytest.mark.parametrize("at", [0, 1, -1])
def test_an_archive_that_lacks_a_commit_is_found(store: MemoryStore, at: int) -> None:
    path = archive_of(store)
    links = commit.decode_archive(store.read(path))
    del links[at]
    store.objects[path] = commit.encode(links)
    assert "missing" in problems(store)


@pytest.mark.parametrize(
    "fields", [{"segments": []}, {"after": {}}, {"before": {}}, {"previous": "x"}, {"checksum": "x"}, {"cluster": "x"}]
)
def test_an_archive_whose_links_were_altered_is_found(store: MemoryStore, fields: dict[str, object]) -> None:
    path = archive_of(store)
    links = commit.decode_archive(store.read(path))
    values = {name: getattr(links[1], name) for name in Link.__struct_fields__}
    links[1] = Link(**values | fields)
    store.objects[path] = commit.encode(links)
    assert problems(store)


def test_an_archive_under_the_name_of_another_span_is_found(store: MemoryStore) -> None:
    path = layout.archive(CLUSTER, 40, 50)
    store.objects[path] = store.objects[archive_of(store)]
    assert f"{path}: expected commits 40 to 50, found commits 1 to" in problems(store)


@pytest.mark.parametrize("name", ["commits/notes.txt", "chain/notes.txt", "chain/0000000001.json.gz", "commits/a/b"])
def test_a_foreign_object_among_the_commits_is_found(store: MemoryStore, name: str) -> None:
    path = f"{layout.state(CLUSTER)}/{name}"
    store.create(path, b"x")
    Job(MemoryStore(dict(store.objects)))  # and is no reason not to start
    assert f"{path}: " in problems(store)


# --- dead letters


def test_dead_letters_that_are_missing_or_fewer_are_found(store: MemoryStore) -> None:
    letters = [DeadLetter(CLUSTER, "events", "not JSON", b"{%d" % number, NOW_US) for number in range(2)]
    path = write_dead(store, letters)
    Job(store).epoch(event("c", 90), dead={path: 2})
    assert (report_of(store).problems, report_of(store).dead_letters) == ([], 2)
    store.objects[path] = store.objects[path].partition(b"\n")[0] + b"\n"
    assert report_of(store).problems == [f"{path} holds 1 dead letters, its commit says 2"]
    store.delete(path)
    assert report_of(store).problems == [f"{path} is missing"]


def test_the_same_dead_letters_in_two_commits_are_there_once(store: MemoryStore) -> None:
    path = write_dead(store, [DeadLetter(CLUSTER, "events", "not JSON", b"{", NOW_US)])
    job = Job(store)
    for version in (90, 91):
        job.epoch(event("c", version, version, more=1 if version == 91 else None), dead={path: 1})
    assert collections.Counter(report_of(store).problems) == {}
