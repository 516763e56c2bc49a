"""`python -m pipeline.verify`: what is whole is proved, and every sabotage is found."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import verify as command
from tests.chains import CLUSTER, EVENTS, HOUR_US, NOW_US, THIS_HOUR_US, Job, MemoryStore, event, service
from transforms import codec, commit, layout
from transforms.store import LocalStore, Store
from transforms.types import DeadLetter, Gap, Position, Segment
from transforms.verify import Report, verify
from transforms.write import label_of, labelled, write_dead

HOUR = codec.partition(CLUSTER, THIS_HOUR_US)
LAST_HOUR = codec.partition(CLUSTER, THIS_HOUR_US - HOUR_US)
FIRST, SECOND = codec.segment_name(HOUR, "00", 0), codec.segment_name(HOUR, "00", 1)


@pytest.fixture(autouse=True)
def _short_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "KEEP", 4)


def history(store: Store) -> Store:
    """Twelve epochs, the first four in an archive; two hours; an Event that goes on; a dead letter; a gap."""
    job = Job(store)
    dead = write_dead(store, [DeadLetter(CLUSTER, "events", "why", b"bytes", NOW_US)])
    job.epoch(event("a", 1), event("b", 2), event("c", 3), service("web", 4))
    job.epoch(gaps=[Gap(EVENTS, NOW_US - HOUR_US, NOW_US, "an outage")], dead={dead: 1})
    for number in range(3, 13):
        job.epoch(
            event("a", 10 * number, number, more=2 if number == 3 else 1),
            event(f"e{number}", 10 * number + 1, time_us=THIS_HOUR_US - HOUR_US),
        )
    return store


@pytest.fixture
def store() -> MemoryStore:
    store = MemoryStore({})
    history(store)
    return store


def verified(store: Store, now_us: int = NOW_US + 3600 * 1_000_000) -> Report:
    return verify(store, CLUSTER, clock=lambda: now_us / 1e6, sleep=lambda seconds: None)


def bit(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


# --- what is whole


def test_a_whole_history_is_proved_and_counted(store: MemoryStore) -> None:
    report = verified(store)
    assert (report.problems, report.notes) == ([], [])
    assert (report.commits, report.segments, report.dead_letters) == (12, 22, 1)
    assert dict(report.records) == {"EVENT": 23, "SERVICE_CHANGE": 1}
    assert report.occurrences == 12 + 1 + 1 + 10
    assert report.bytes == sum(len(data) for path, data in store.objects.items() if path.startswith("cluster="))
    assert report.positions["prod/events/"] == ("4", "121")
    assert [gap.why for gap in report.gaps] == ["an outage"]


def test_a_history_of_one_commit_is_proved() -> None:
    store = MemoryStore({})
    Job(store).epoch()
    assert verified(store).problems == []


def test_a_count_that_fell_and_grew_again_is_no_fault() -> None:
    store = MemoryStore({})
    job = Job(store)
    for version, count, more in ((1, 5, 5), (2, 2, 2), (3, 4, 2)):
        job.epoch(event("a", version, count, more=more))
    report = verified(store)
    assert (report.problems, report.occurrences) == ([], 9)


def test_an_event_whose_hours_are_not_in_the_order_of_its_versions_is_no_fault() -> None:
    store = MemoryStore({})
    job = Job(store)
    job.epoch(event("a", 5, 3))
    job.epoch(event("a", 9, 5, more=2, time_us=THIS_HOUR_US - HOUR_US))
    assert verified(store).problems == []


# --- sabotage

Sabotage = Callable[[MemoryStore], None]


def move(store: MemoryStore, path: str, to: str) -> None:
    store.objects[to] = store.objects.pop(path)


def remove(store: MemoryStore, part: str) -> None:
    for path in [path for path in store.objects if part in path]:
        del store.objects[path]


def replace(store: MemoryStore, path: str, data: bytes) -> None:
    store.objects[path] = data


def doubled_record(data: bytes) -> bytes:
    records = list(codec.unpack(data))
    return labelled(codec.pack([*records, records[0]]), label_of(data))


ARCHIVE = layout.archive(CLUSTER, 1, 4)
SABOTAGE: dict[str, tuple[Sabotage, str]] = {
    "a segment is deleted": (lambda s: s.delete(SECOND), f"{SECOND} is missing"),
    "the last segment of an hour is deleted": (
        lambda s: s.delete(codec.segment_name(LAST_HOUR, "00", 9)),
        "00-0000000009.pb.gz is missing",
    ),
    "a segment is truncated": (lambda s: replace(s, FIRST, s.objects[FIRST][:-5]), f"{FIRST} is not as it was written"),
    "a segment is emptied": (lambda s: replace(s, FIRST, b""), f"{FIRST} is not as it was written"),
    "a segment is altered in its data": (
        lambda s: replace(s, FIRST, bit(s.objects[FIRST], len(s.objects[FIRST]) // 2)),
        f"{FIRST} is not as it was written",
    ),
    "a segment is altered where gzip does not look": (
        lambda s: replace(s, FIRST, bit(s.objects[FIRST], 4)),
        f"{FIRST} is not as it was written",
    ),
    "a segment is replaced by another": (
        lambda s: replace(s, FIRST, s.objects[SECOND]),
        f"{FIRST} is not as it was written",
    ),
    "a record is doubled within a segment": (
        lambda s: replace(s, FIRST, doubled_record(s.objects[FIRST])),
        f"{FIRST} holds 3 records, its commit says 2",
    ),
    "a segment is doubled under the next number": (
        lambda s: replace(s, codec.segment_name(HOUR, "00", 12), s.objects[FIRST]),
        "0000000012.pb.gz is under no commit: it was written for commit 1, which does not name it",
    ),
    "a segment is doubled under another shard": (
        lambda s: replace(s, codec.segment_name(HOUR, "copy", 0), s.objects[FIRST]),
        "copy-0000000000.pb.gz is under no commit",
    ),
    "a segment is doubled under a name that is none": (
        lambda s: replace(s, f"{HOUR}/copy of a segment.pb.gz", s.objects[FIRST]),
        "expected nothing but segments here",
    ),
    "a segment is doubled in another hour": (
        lambda s: replace(s, codec.segment_name(codec.partition(CLUSTER, 0), "00", 0), s.objects[FIRST]),
        "dt=1970-01-01/hour=00/00-0000000000.pb.gz is under no commit",
    ),
    "a segment is renamed": (lambda s: move(s, FIRST, codec.segment_name(HOUR, "00", 12)), f"{FIRST} is missing"),
    "two segments are exchanged": (
        lambda s: s.objects.update({FIRST: s.objects[SECOND], SECOND: s.objects[FIRST]}),
        f"{SECOND} is not as it was written",
    ),
    "a segment without a label is put there": (
        lambda s: replace(s, codec.segment_name(HOUR, "00", 12), codec.pack([])),
        "no commit names it",
    ),
    "a commit is removed from the middle": (
        lambda s: s.delete(layout.commit(CLUSTER, 10)),
        "commit 10 is missing: what was covered there is not proved",
    ),
    "a commit is truncated": (
        lambda s: replace(s, layout.commit(CLUSTER, 10), s.objects[layout.commit(CLUSTER, 10)][:-3]),
        "0000000010.json.gz: expected gzipped JSON of commits",
    ),
    "a commit is altered": (
        lambda s: replace(s, layout.commit(CLUSTER, 10), bit(s.objects[layout.commit(CLUSTER, 10)], 40)),
        "0000000010.json.gz: expected gzipped JSON of commits",
    ),
    "a commit is written anew": (
        lambda s: replace(s, layout.commit(CLUSTER, 10), rewritten(s.objects[layout.commit(CLUSTER, 10)])),
        "commit 11 was written after another commit 10 than is there",
    ),
    "the newest commit is removed": (
        lambda s: s.delete(layout.commit(CLUSTER, 12)),
        "it was written for commit 12, which is not there",
    ),
    "the newest commit is altered": (
        lambda s: replace(s, layout.commit(CLUSTER, 12), bit(s.objects[layout.commit(CLUSTER, 12)], 60)),
        "0000000012.json.gz: expected gzipped JSON of commits",
    ),
    "all commits are removed": (
        lambda s: remove(s, "/commits/"),
        "it was written for commit 12, which is not there",
    ),
    "an archive is removed": (lambda s: s.delete(ARCHIVE), "commits 1 to 4 are missing"),
    "an archive is altered": (
        lambda s: replace(s, ARCHIVE, bit(s.objects[ARCHIVE], 60)),
        "chain/0000000001-0000000004.json.gz: expected gzipped JSON",
    ),
    "a link is taken out of an archive": (
        lambda s: replace(s, ARCHIVE, commit.encode(commit.decode_archive(s.objects[ARCHIVE])[:1])),
        "commits 2 to 4 are missing",
    ),
    "a dead letter is removed": (lambda s: s.delete(_dead(s)), "jsonl is missing"),
    "a dead letter is emptied": (lambda s: replace(s, _dead(s), b""), "holds 0 dead letters, its commit says 1"),
    "the state is removed": (
        lambda s: remove(s, "_state/"),
        "no commit is there",
    ),
}


def rewritten(data: bytes) -> bytes:
    link = commit.decode(data)
    fields = {name: getattr(link, name) for name in link.__struct_fields__}
    return commit.encode(commit.Commit(**{**fields, "run": "another", "checksum": ""}))


def _dead(store: MemoryStore) -> str:
    return next(path for path in store.objects if path.startswith("_dead/"))


@pytest.mark.parametrize("what", SABOTAGE)
def test_sabotage_is_found(store: MemoryStore, what: str) -> None:
    sabotage, expected = SABOTAGE[what]
    sabotage(store)
    assert expected in "\n".join(verified(store).problems)


@pytest.mark.parametrize("at", range(0, 400, 13))
def test_no_bit_of_a_segment_can_be_altered_unnoticed(store: MemoryStore, at: int) -> None:
    data = store.objects[FIRST]
    store.objects[FIRST] = bit(data, at % len(data))
    assert verified(store).problems


def test_a_chain_that_says_what_it_should_not_is_found(store: MemoryStore) -> None:
    """What no sabotage of files brings about, but a fault of the job could."""
    previous = commit.decode(store.objects[layout.commit(CLUSTER, 12)])
    hour_ago = THIS_HOUR_US - HOUR_US
    data = codec.pack([event("a", 120, 12, more=1).SerializeToString(), event("b", 130, 2, more=2).SerializeToString()])
    wrong_hour = codec.pack([event("z", 131, time_us=hour_ago).SerializeToString()])
    path, other = codec.segment_name(HOUR, "00", 12), codec.segment_name(HOUR, "00", 14)
    store.create(path, data)
    store.create(other, wrong_hour)
    segments = [
        Segment(path, 2, codec.checksum(data), len(data)),
        Segment(other, 1, codec.checksum(wrong_hour), len(wrong_hour)),
        Segment(FIRST, 2, codec.checksum(store.objects[FIRST]), len(store.objects[FIRST])),
    ]
    commit.append(
        store,
        commit.Commit(
            number=13,
            previous=previous.checksum,
            cluster=CLUSTER,
            identity="identity",
            run="r",
            from_us=1,
            to_us=1,
            before={key: Position("1", listing=False) for key in previous.after},
            segments=segments,
        ),
    )
    problems = "\n".join(verified(store).problems)
    assert "commit 13 goes on from other positions than commit 12 ended at" in problems
    assert f"{FIRST} is named by two commits, the second is 13" in problems
    assert "the record of a at resourceVersion 120 is there twice" in problems
    assert "the event b counts 3 occurrences, it reported 2" in problems
    assert "a record of z is of another cluster or hour" in problems
    assert f"{HOUR}/00: the segments with the numbers [13] are missing" in problems


# --- beside a job at work


def test_a_commit_that_appears_while_verify_looks_is_no_fault(store: MemoryStore) -> None:
    job = Job(store)
    epoch = job.write(event("z", 200))
    looks = 0

    def sleep(seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            job.history.commit(epoch)

    report = verify(store, CLUSTER, clock=time.time, sleep=sleep)
    assert (report.problems, report.commits, looks) == ([], 13, 3)


def test_a_chain_that_folds_while_verify_walks_it_is_no_fault(store: MemoryStore) -> None:
    folded = False

    def fold(operation: str) -> str:
        nonlocal folded
        if operation == "read" and not folded:
            folded = True
            commit.compact(MemoryStore(store.objects), CLUSTER, 9)
        return "go"

    assert verified(MemoryStore(store.objects, fold)).problems == []


def test_a_segment_that_a_job_is_voiding_is_looked_at_again(store: MemoryStore) -> None:
    one, other = Job(store, run="one"), Job(store, run="other")
    other.write(event("z", 200))
    taken = codec.segment_name(HOUR, "00", 12)
    written = store.objects[taken]
    one.epoch(event("z", 200))
    empty = store.objects[taken]
    store.objects[taken] = written

    def sleep(seconds: float) -> None:
        store.objects[taken] = empty

    assert verify(store, CLUSTER, sleep=sleep).problems == []


def test_a_voided_name_that_is_free_again_lacks_nothing(store: MemoryStore) -> None:
    one, other = Job(store, run="one"), Job(store, run="other")
    other.write(event("z", 200))
    one.epoch(event("z", 200))
    store.delete(codec.segment_name(HOUR, "00", 12))
    assert verified(store).problems == []


# --- the command


@pytest.fixture
def output(tmp_path: Path) -> Path:
    root = tmp_path / "out"
    history(LocalStore(root))
    return root


def test_the_command_says_what_is_proved_and_ends_with_0(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([str(output)]) == 0
    out, err = capsys.readouterr()
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0] == "cluster prod"
    assert "commits 12" in lines
    assert "records 23 EVENT, 1 SERVICE_CHANGE" in lines
    assert "covered prod/events/ resourceVersion 4 to 121" in lines
    assert any(line.startswith("GAP prod/events/ from ") and line.endswith(": an outage") for line in lines)
    assert lines[-1] == "OK: nothing is missing, nothing is there twice, but for the gaps"
    assert err == ""


def test_the_command_says_what_does_not_hold_and_ends_with_1(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (output / FIRST).unlink()
    (output / SECOND).write_bytes(b"x")
    assert command.main([str(output)]) == 1
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    problems = [line for line in lines if line.startswith("PROBLEM")]
    assert problems[0] == f"PROBLEM {FIRST} is missing"
    assert lines[-1] == f"FAILED: {len(problems)} problems, but for the gaps"


def test_the_command_answers_in_json(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([str(output), "--format", "json", "--cluster", CLUSTER]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert (answer["cluster"], answer["ok"], answer["commits"], answer["problems"]) == (CLUSTER, True, 12, [])
    assert answer["gaps"][0]["why"] == "an outage"


def test_segments_of_a_cluster_without_a_chain_are_found(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(output / f"cluster={CLUSTER}", output / "cluster=copy")
    assert command.main([str(output)]) == 1
    assert "no commit is there" in capsys.readouterr().out
    assert command.main([str(output), "--cluster", CLUSTER]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required: OUTPUT"),
        (["OUT", "--nothing"], "unrecognized arguments: --nothing"),
        (["OUT", "--format", "xml"], "invalid choice"),
        (["OUT", "--cluster", "none"], "expected --cluster to be one of prod, got 'none'"),
        (["/does/not/exist"], "there is none"),
        (["s3://"], "expected a directory"),
    ],
)
def test_what_can_not_be_looked_at_is_one_line_and_2(
    output: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert command.main([str(output) if one == "OUT" else one for one in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("python -m pipeline.verify: ")
    assert said in line


def test_a_directory_without_a_history_is_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([str(tmp_path)]) == 2
    assert "expected a history, found none" in capsys.readouterr().err


def test_the_command_leaves_no_trace(output: Path) -> None:
    before = sorted(str(path) for path in output.rglob("*"))
    command.main([str(output)])
    assert sorted(str(path) for path in output.rglob("*")) == before
